"""The plan of figure 9: its trials on a person's model and data, checked before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from openmae.config import ClassifierShape, ExperimentConfig, FinetuneConfig
from openmae.experiments.figure_9.data import Figure9Data, open_figure_9_data
from openmae.experiments.figure_9.report import draw_figure_9, figure_9_report
from openmae.experiments.figure_9.study import DEFAULTS, figure_9, with_blocks, with_defaults
from openmae.experiments.resources import check_memory, flops_a_second, images_to_time, resources_of
from openmae.experiments.results.results import stored_settings
from openmae.experiments.setup import NEVER
from openmae.experiments.start import DATA, ENCODER
from openmae.experiments.studies.study import Row, RowResult, Study
from openmae.experiments.trials.make_trials import PROCESS_BYTES
from openmae.experiments.trials.side_by_side import Resources
from openmae.experiments.trials.trial import Stage, Trial
from openmae.inference.load import load
from openmae.inference.models import EncoderModel
from openmae.interchange.stored import hash_weights
from openmae.machine.device import pick_device
from openmae.model import cost
from openmae.planning.decisions import Machine
from openmae.run.folder import DATA_PATHS

NEIGHBOURS = 10


@dataclass(frozen=True)
class Figure9Plan:
    """Figure 9 without open questions.

    Attributes:
        config: with all that the scale decides.
        trials: in the order in which they are begun: what takes seconds first.
        settings: of each row, by its name, as results.json holds them.
        flops: of each row's training for an image, by the row's name.
        fingerprints: of what must not change until it is finished.
        budget: what every row is given, for the screen and for results.md.
        resources: what the trials run on.
        model: of `init`; as a classifier of the data's classes it has the shape `classifier`.
    """

    config: ExperimentConfig
    study: Study
    trials: list[Trial]
    settings: dict[str, dict[str, Any]]
    flops: dict[str, float]
    fingerprints: dict[str, str]
    budget: list[str]
    resources: Resources
    model: EncoderModel
    classifier: ClassifierShape

    def report(self, rows: Sequence[RowResult], *, is_last: bool) -> str:
        """Draw the picture; return the text of results.md."""
        draw_figure_9(Path(self.config.out) / "figure-9.png", self.study, rows)
        return figure_9_report(self.study, rows, self.budget)

    def measured_rate(self) -> float:
        """FLOPs a second of a trial, by a few steps of the encoder's way forward."""
        shape, flops = self.model.encoder.shape, float(cost.classifier_flops(self.classifier, 0.0))
        count = images_to_time(flops)

        @torch.no_grad()
        def step() -> None:
            images = torch.zeros(count, shape.channels, *shape.image_size, device=self.model.device)
            self.model.encoder(images).sum().item()  # waits for the device

        return flops_a_second(step, flops * count, self.resources.threads)


def plan_figure_9(config: ExperimentConfig) -> Figure9Plan:
    """Open the model and the data, and check now what would otherwise fail hours later.

    Args:
        config: with what an earlier start decided.

    Raises:
        RequestError: a wrong setting, unusable data, or too little memory.
    """
    config = with_defaults(config)
    device = pick_device(config.devices[0] if config.devices else None)
    model = load(str(config.init), str(device), verbose=True)
    shape = model.encoder.shape
    config = with_blocks(config, shape.depth)
    data = open_figure_9_data(config, model.preprocessing)
    config = replace(config, held_out=data.held_out or config.held_out)
    for blocks in config.blocks or ():
        FinetuneConfig(**_data_settings(config), init=str(config.init), out=config.out, blocks=blocks)
    study = figure_9(config, shape.depth)
    classifier = ClassifierShape(encoder=shape, num_classes=data.labelled.num_classes, pool="mean")
    stages = {row.name: _stage(row, config, data, model, classifier) for row in study.rows}
    num_seeds = {row.name: config.seeds or 1 if row.protocols == ("linear",) else 1 for row in study.rows}
    trials = [
        Trial(row=row.name, seed=seed, stages=(stages[row.name],))
        for row in _in_turn(study)
        for seed in range(num_seeds[row.name])
    ]
    machine = Machine.of(device, 1)
    memory = (config.batch_size or 1) * cost.classifier_activation_bytes(classifier, None, 4)
    memory += PROCESS_BYTES + 16 * cost.classifier_parameters(classifier)
    resources = resources_of(config, device, config.threads or 1)
    return Figure9Plan(
        config=config,
        study=study,
        trials=trials,
        settings={name: _stored(stage) for name, stage in stages.items()},
        flops={row.name: _flops(row, classifier) for row in study.rows},
        fingerprints={DATA: data.labelled.fingerprint, ENCODER: hash_weights(model.encoder.state_dict())},
        budget=budget_lines(config, data, model),
        resources=check_memory(resources, memory, machine, config.jobs is not None),
        model=model,
        classifier=classifier,
    )


def _in_turn(study: Study) -> list[Row]:
    """The rows as they are begun: what trains no encoder first; then of each share what stands at its ends."""
    tuned = [[row for row in section.rows if row.protocols == ("finetune",)] for section in study.sections]
    others = [row for row in study.rows if row.protocols != ("finetune",)]
    return others + [row for rows in tuned for row in sorted(rows, key=lambda r: (r.blocks is not None, r.is_scratch))]


def _stage(
    row: Row, config: ExperimentConfig, data: Figure9Data, model: EncoderModel, classifier: ClassifierShape
) -> Stage:
    """The command that measures a row."""
    assert row.labels is not None
    assert config.labels is not None
    assert config.epochs is not None
    count, flops = data.counts[row.labels], _flops(row, classifier)
    look = flops * sum(map(len, data.labelled.parts))
    settings = {
        **_data_settings(config),
        "labels": row.labels,
        "held_out": data.held_out,
        "axes": data.axes,
        "nodata": config.nodata,
        "value_range": data.value_range,
        "init": config.init,
    }
    if row.protocols == ("knn",):
        return Stage(kind="knn", settings={**settings, "k": (min(NEIGHBOURS, count),)}, work=look)
    settings["evaluate_every"] = NEVER
    if row.protocols == ("linear",):
        steps = DEFAULTS[str(config.scale)].probe_steps
        return Stage(kind="probe", settings=settings | ({"steps": steps} if steps else {}), work=look)
    epochs = dict(zip(config.labels, config.epochs, strict=True))[row.labels]
    settings |= {"report": "held-out", "epochs": epochs, "batch_size": config.batch_size}
    if row.blocks is not None:
        settings["blocks"] = row.blocks
    if row.is_scratch:
        settings |= {"init": "none", **_from_scratch_settings(model, data.own_range)}
    rates = config.base_lr or ()
    return Stage(kind="finetune", settings=settings, rates=rates, work=flops * epochs * count * len(rates))


def _flops(row: Row, classifier: ClassifierShape) -> float:
    """To train on an image; of the probe and kNN to look at it."""
    is_frozen = row.protocols != ("finetune",)
    return float(cost.classifier_flops(classifier, 0.0 if is_frozen else row.blocks))


def _stored(stage: Stage) -> dict[str, Any]:
    return stored_settings(stage.settings | ({"base_lr": stage.rates} if stage.rates else {}))


def _data_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The settings that name the data, which all commands share."""
    return {name: getattr(config, name) for name in sorted(DATA_PATHS)}


def _from_scratch_settings(model: EncoderModel, value_range: tuple[float, float]) -> dict[str, Any]:
    """Settings that train a model of the same shape and preprocessing from scratch, on data of this value range."""
    shape, p = model.encoder.shape, model.preprocessing
    return {
        "width": shape.width,
        "depth": shape.depth,
        "num_heads": shape.num_heads,
        "patch_size": shape.patch_size,
        "channels": shape.channels,
        "image_size": shape.image_size,
        "mean": p.mean,
        "std": p.std,
        "value_range": value_range,
        "background": p.background,
    }


def budget_lines(config: ExperimentConfig, data: Figure9Data, model: EncoderModel) -> list[str]:
    """What every row is given."""
    shape, shares = model.encoder.shape, dict(zip(config.labels or (), config.epochs or (), strict=True))
    measured = f"{len(data.labelled.final_source):,} to measure on ({data.labelled.final_split})"
    counts = ", ".join(f"{data.counts[share]:,} at {share}" for share in shares)
    epochs = ", ".join(f"{epochs:g} at {share}" for share, epochs in shares.items())
    rates = ", ".join(f"{rate:g}" for rate in config.base_lr or ())
    threads = config.threads or 1
    return [
        f"Data: {counts} of the labels to train on; {measured}.",
        f"Model: {config.init}, encoder {shape.width} wide, {shape.depth} blocks.",
        f"Every fine-tuning, and training from scratch: epochs {epochs}, {config.batch_size} images a step, base rates "
        f"{rates}, chosen by {data.chosen_by}; only the chosen run is measured on {data.labelled.final_split}.",
        f"The probe has {config.seeds} seed{'s' * (config.seeds != 1)}, all others have one; kNN has k = {NEIGHBOURS}, "
        "or as many images as there are.",
        f"Scale {config.scale}, {threads} CPU thread{'s' * (threads > 1)} a row.",
    ]
