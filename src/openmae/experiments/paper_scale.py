"""`--scale paper`: the paper's own settings, as commands for a cluster with what each of them costs."""

import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from openmae.config import (
    SIZES,
    DetectConfig,
    ExperimentConfig,
    FinetuneConfig,
    KnnConfig,
    PretrainConfig,
    ProbeConfig,
    SegmentConfig,
    flag_of,
    format_value,
)
from openmae.config.checks import Settings
from openmae.data.preprocess import DataFacts
from openmae.experiments.setup import NEIGHBOURS, Setup, Size, label_settings, shared_settings
from openmae.experiments.studies.study import Study
from openmae.experiments.trials.trial import OWN_MODEL, Stage, Trial
from openmae.recipes import FINETUNE_RECIPES, PRETRAIN_RECIPES, PROBE_RECIPES

RECIPES = {"pretrain": PRETRAIN_RECIPES, "finetune": FINETUNE_RECIPES, "probe": PROBE_RECIPES}
# Of the default row, and of ViT-B, L and H: pre-training (table 3), fine-tuning and training from scratch.
DEFAULT_PRETRAIN, DEFAULT_TUNED = "table-1d-pixel", "imagenet-large"
MODELS = ("base", "large", "huge")
DECODER = {"decoder_width": 512, "decoder_depth": 8, "decoder_num_heads": 16}
TOKENIZER = "hf:facebook/flava-image-codebook"
CONFIGS: dict[str, type[Settings]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "probe": ProbeConfig,
    "segment": SegmentConfig,
    "detect": DetectConfig,
    "knn": KnnConfig,
}
COMMANDS = {"speed": "pretrain"}  # of kinds of stages that are called otherwise
TIMED_STEPS = 60
H100 = 0.4 * 989e12  # FLOPs a second that one reaches, about: 40 % of its dense bf16 peak


def recipe_settings(command: str, recipe: str) -> dict[str, Any]:
    """What a recipe sets; a model's size as its numbers."""
    settings = RECIPES[command][recipe]()
    model = settings.pop("model", None)
    return settings if model is None else settings | (model_of(model) if command == "pretrain" else _encoder(model))


def model_of(size: str) -> dict[str, Any]:
    """The encoder of a size and the paper's decoder, as settings of pre-training."""
    return {**_encoder(size), **DECODER}


def _encoder(size: str) -> dict[str, Any]:
    width, depth, heads, patch = SIZES[size]
    return {"width": width, "depth": depth, "num_heads": heads, "patch_size": patch}


def in_steps(settings: dict[str, Any], count: int, batch_size: int | None = None) -> dict[str, Any]:
    """A recipe's settings with the steps of its epochs, which are of the person's own images."""
    batch = batch_size or settings["batch_size"]
    rest = {name: value for name, value in settings.items() if name != "epochs"}
    return {**rest, "batch_size": batch, "steps": max(1, round(settings["epochs"] * count / batch))}


def make_paper_setup(config: ExperimentConfig, facts: DataFacts) -> Setup:
    """The paper's default row: ViT-L, 800 epochs of the person's images."""
    shared, labelled = shared_settings(config), label_settings(config)
    pretrain = recipe_settings("pretrain", DEFAULT_PRETRAIN)
    del pretrain["mask_ratio"]  # the default, which masks of a fixed ratio refuse
    epochs = {} if config.epochs is None else {"epochs": config.epochs[0]}

    def supervised(recipe: str) -> tuple[dict[str, Any], tuple[float, ...]]:
        settings = recipe_settings("finetune", recipe)
        rates = (settings.pop("base_lr"),) if config.base_lr is None else config.base_lr
        return {**labelled, **in_steps(settings, facts.count), "report": "held-out"}, rates

    def size(name: str) -> Size:
        (finetune, rates), (scratch, scratch_rates) = supervised(f"imagenet-{name}"), supervised(f"scratch-{name}")
        own = in_steps(recipe_settings("pretrain", f"mae-{name}"), facts.count, config.batch_size)
        return Size(
            model=model_of(name),
            pretrain={setting: own[setting] for setting in ("target", "steps")},
            finetune=finetune,
            rates=rates,
            scratch=scratch,
            scratch_rates=scratch_rates,
        )

    finetune, rates = supervised(DEFAULT_TUNED)
    return Setup(
        scale="paper",
        count=facts.count,
        pretrain={**shared, **in_steps(pretrain | epochs, facts.count, config.batch_size), "channels": facts.channels},
        finetune=finetune,
        rates=rates,
        probe={**labelled, **in_steps(recipe_settings("probe", DEFAULT_TUNED), facts.count)},
        knn={**labelled, "k": (min(NEIGHBOURS, facts.count),)},
        tokenizer={},
        token_settings={"tokenizer": TOKENIZER},
        sizes=tuple(map(size, MODELS)),
        timed_steps=config.steps or TIMED_STEPS,
        default_seeds=1,
        threads=config.threads or 8,
    )


def command_lines(study: Study, trials: Sequence[Trial], out: str, count: int) -> list[str]:
    """Every trial's commands, with the FLOPs and the H100 hours of each; the same that `--run` would run here.

    Args:
        count: training images.
    """
    lines, total = [study.title, ""], 0.0
    labels = {row.name: row.label for row in study.rows}
    for trial in trials:
        lines.append(f"# {labels[trial.row]}, seed {trial.seed}")
        for stage in trial.stages:
            total += stage.work
            lines += [f"#   {stage.kind}: {_cost(stage.work)}", *_commands(stage, trial, out, count)]
        lines.append("")
    return [
        *lines,
        f"# All {len(trials)} rows: {_cost(total)}. Start each with torchrun for many GPUs, as README says; --run "
        "runs all of it here.",
    ]


def _cost(work: float) -> str:
    return f"{work / 1e18:,.3g} EFLOP, about {work / H100 / 3600:,.3g} hours of an H100 at 40 % of its bf16 peak"


def _typed(name: str, value: Any, config: type[Settings]) -> list[str]:
    """A setting as it is typed: of one that is off by default the flag alone."""
    if value is True and any(f.name == name and f.default is False for f in fields(config)):
        return [flag_of(name)]
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [flag_of(name), *(shlex.quote(format_value(one)) for one in values)]


def nearest_recipe(command: str, settings: dict[str, Any], count: int) -> tuple[str, dict[str, Any]]:
    """The recipe that says most of the settings, and those that it does not say.

    Args:
        count: training images, from which its epochs become steps.
    """
    is_scratch = settings.get("init") == "none"
    found = []
    for name in RECIPES[command]:
        sets = in_steps(recipe_settings(command, name), count)
        others = {key: value for key, value in settings.items() if sets.get(key) != value}
        unasked = sets.keys() - settings.keys() - {"mask_ratio", "base_lr"}
        if name.startswith("scratch") == is_scratch:
            found.append((len(others) + len(unasked), name, others))
    _, name, others = min(found, key=lambda one: one[0])
    return name, others


def _commands(stage: Stage, trial: Trial, out: str, count: int) -> list[str]:
    """The command lines of a stage, one for each rate."""
    folder = f"{out}/runs/{trial.folder}"
    if stage.kind == "reconstruct":
        return ["# drawn by this command with --run, which takes the runs above where they are finished"]
    command = COMMANDS.get(stage.kind, stage.kind)
    settings = {name: value for name, value in stage.settings.items() if value is not None}
    data = settings.pop("data", None)
    flags: list[str] = [] if data is None else [shlex.quote(str(data))]
    if "recipe" in settings:
        flags += ["--recipe", settings.pop("recipe")]
    elif command in RECIPES:
        recipe, settings = nearest_recipe(command, settings, count)
        flags += ["--recipe", recipe]
    if len(stage.rates) == 1:
        settings.pop("report")  # nothing is chosen: the test split is measured at once
    if settings.get("init") == OWN_MODEL:
        settings["init"] = f"{folder}/pretrain"
    for name, value in settings.items():
        flags += _typed(name, value, CONFIGS[command])
    flags += ["--seed", str(trial.seed)]
    runs = [
        (run, [] if not stage.rates else ["--base-lr", f"{rate:g}"])
        for run, rate in zip(stage.runs, stage.rates or (0.0,), strict=True)
    ]
    return [
        " ".join(["openmae", command, *flags, *rate, "--out", shlex.quote(f"{folder}/{run}")]) for run, rate in runs
    ]
