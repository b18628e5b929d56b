"""`--scale paper`: the paper's own settings, as commands for a cluster with what each of them costs."""

import shlex
from collections.abc import Sequence
from typing import Any

from openmae.config import SIZES, ExperimentConfig, flag_of, format_value
from openmae.data.preprocess import DataFacts
from openmae.experiments.setup import Setup, label_settings, shared_settings
from openmae.experiments.studies.study import Study
from openmae.experiments.trials.trial import OWN_MODEL, Stage, Trial
from openmae.recipes import FINETUNE_RECIPES, PRETRAIN_RECIPES, PROBE_RECIPES

RECIPE = {"pretrain": "table-1d-pixel", "finetune": "imagenet-large", "probe": "imagenet-large"}  # of the default row
RECIPES = {"pretrain": PRETRAIN_RECIPES, "finetune": FINETUNE_RECIPES, "probe": PROBE_RECIPES}
DECODER = {"decoder_width": 512, "decoder_depth": 8, "decoder_num_heads": 16}
MODELS = ("base", "large", "huge")
TOKENIZER = "hf:facebook/flava-image-codebook"
COMMANDS = {"speed": "pretrain"}  # of kinds of stages that are called otherwise
TIMED_STEPS = 60
H100 = 0.4 * 989e12  # FLOPs a second that one reaches, about: 40 % of its dense bf16 peak


def recipe_settings(kind: str) -> dict[str, Any]:
    """What the recipe of the default row sets for a command; a model's size as its numbers."""
    settings = RECIPES[kind][RECIPE[kind]]()
    return (
        {**{name: value for name, value in settings.items() if name != "model"}, **_model("large")}
        if (kind == "pretrain")
        else settings
    )


def _model(size: str) -> dict[str, Any]:
    width, depth, heads, patch = SIZES[size]
    return {"width": width, "depth": depth, "num_heads": heads, "patch_size": patch, **DECODER}


def make_paper_setup(config: ExperimentConfig, facts: DataFacts) -> Setup:
    """The paper's default row (ViT-L, 800 epochs of the person's images); an epoch is one of theirs."""
    pretrain, finetune, probe = (recipe_settings(kind) for kind in RECIPES)
    shared, labelled = shared_settings(config), label_settings(config)

    def in_steps(settings: dict[str, Any]) -> dict[str, Any]:
        batch = config.batch_size or settings["batch_size"] if settings is pretrain else settings["batch_size"]
        epochs = config.epochs[0] if config.epochs and settings is pretrain else settings["epochs"]
        steps = max(1, round(epochs * facts.count / batch))
        rest = {name: value for name, value in settings.items() if name not in ("epochs", "batch_size")}
        return {**rest, "batch_size": batch, "steps": steps}

    rates = (finetune.pop("base_lr"),) if config.base_lr is None else config.base_lr
    del pretrain["mask_ratio"]  # the default, which masks of a fixed ratio refuse
    return Setup(
        scale="paper",
        count=facts.count,
        pretrain={**shared, **in_steps(pretrain), "channels": facts.channels},
        finetune={**labelled, **in_steps({**finetune}), "report": "held-out"},
        rates=rates,
        probe={**labelled, **in_steps(probe)},
        knn={**labelled, "k": (10,)},
        tokenizer={},
        token_settings={"tokenizer": TOKENIZER},
        models=tuple(_model(size) for size in MODELS),
        timed_steps=config.steps or TIMED_STEPS,
        default_seeds=1,
        threads=config.threads or 8,
    )


def command_lines(study: Study, trials: Sequence[Trial], out: str) -> list[str]:
    """Every trial's commands, with the FLOPs and the H100 hours of each; the same that `--run` would run here."""
    lines, total = [study.title, ""], 0.0
    labels = {row.name: row.label for row in study.rows}
    for trial in trials:
        lines.append(f"# {labels[trial.row]}, seed {trial.seed}")
        for stage in trial.stages:
            total += stage.work
            lines += [f"#   {stage.kind}: {_cost(stage.work)}", *_commands(stage, trial, out)]
        lines.append("")
    return [
        *lines,
        f"# All {len(trials)} rows: {_cost(total)}. Start each with torchrun for many GPUs, as README says; --run "
        "runs all of it here.",
    ]


def _cost(work: float) -> str:
    return f"{work / 1e18:,.3g} EFLOP, about {work / H100 / 3600:,.3g} hours of an H100 at 40 % of its bf16 peak"


def _commands(stage: Stage, trial: Trial, out: str) -> list[str]:
    """The command lines of a stage, one for each rate."""
    folder = f"{out}/runs/{trial.folder}"
    if stage.kind == "reconstruct":
        return ["# drawn by this command with --run, which takes the runs above where they are finished"]
    command = COMMANDS.get(stage.kind, stage.kind)
    settings = {name: value for name, value in stage.settings.items() if value is not None}
    data = settings.pop("data", None)
    flags: list[str] = [] if data is None else [shlex.quote(str(data))]
    if command in RECIPE and settings.get("init") != "none":
        recipe = recipe_settings(command)
        flags += ["--recipe", RECIPE[command]]
        settings = {name: value for name, value in settings.items() if recipe.get(name) != value}
    if len(stage.rates) == 1:
        settings.pop("report")  # nothing is chosen: the test split is measured at once
    if settings.get("init") == OWN_MODEL:
        settings["init"] = f"{folder}/pretrain"
    for name, value in settings.items():
        values = [*map(format_value, value)] if isinstance(value, (tuple, list)) else [format_value(value)]
        flags += [flag_of(name), *map(shlex.quote, values)]
    flags += ["--seed", str(trial.seed)]
    runs = [
        (run, [] if not stage.rates else ["--base-lr", f"{rate:g}"])
        for run, rate in zip(stage.runs, stage.rates or (0.0,), strict=True)
    ]
    return [
        " ".join(["openmae", command, *flags, *rate, "--out", shlex.quote(f"{folder}/{run}")]) for run, rate in runs
    ]
