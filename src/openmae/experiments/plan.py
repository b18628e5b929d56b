"""The plan of an experiment: its rows on a person's data and machine, checked before anything is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from openmae.config import ExperimentConfig
from openmae.errors import RequestError
from openmae.experiments.data import ExperimentData, open_data
from openmae.experiments.paper_scale import make_paper_setup
from openmae.experiments.resources import check_memory, measured_rate, resources_of
from openmae.experiments.results.picture import Picture
from openmae.experiments.results.plain_report import plain_report
from openmae.experiments.results.report import report
from openmae.experiments.results.results import stored_settings
from openmae.experiments.setup import Setup, make_setup
from openmae.experiments.start import DATA
from openmae.experiments.studies.figure_6 import figure_6
from openmae.experiments.studies.figures import figure_5, figure_7, figure_8
from openmae.experiments.studies.study import RowResult, Study
from openmae.experiments.studies.table_1 import SECTIONS, table_1
from openmae.experiments.studies.table_2 import table_2
from openmae.experiments.trials.make_trials import make_trials, row_settings, row_shape
from openmae.experiments.trials.side_by_side import Resources
from openmae.experiments.trials.trial import Trial
from openmae.machine.device import pick_device
from openmae.planning.decisions import Machine

STUDIES: dict[str, Callable[[str, Setup], Study]] = {
    **dict.fromkeys(("table-1", *SECTIONS), table_1),
    "table-2": table_2,
    "figure-5": figure_5,
    "figure-6": figure_6,
    "figure-7": figure_7,
    "figure-8": figure_8,
}


@dataclass(frozen=True)
class ExperimentPlan:
    """An experiment without open questions.

    Attributes:
        config: with `scale` and `threads` decided.
        trials: in the order in which they are begun.
        settings: of each row's pre-training, by its name, as results.json holds them.
        flops: of each row's pre-training for an image, by the row's name.
        resources: what the trials run on.
        machine: the first device and its host.
    """

    config: ExperimentConfig
    data: ExperimentData
    setup: Setup
    study: Study
    trials: list[Trial]
    settings: dict[str, dict[str, Any]]
    flops: dict[str, float]
    resources: Resources
    machine: Machine

    @property
    def only_prints(self) -> bool:
        """Whether the commands are printed and nothing is run."""
        return self.setup.scale == "paper" and not self.config.run

    @cached_property
    def _picture(self) -> Picture:
        return Picture(Path(self.config.out), self.study, self.data.num_test)

    def report(self, rows: Sequence[RowResult], *, is_last: bool) -> str:
        """Draw the picture; return the text of results.md."""
        if not self.study.baseline:
            return plain_report(self.study, rows, self.budget)
        return report(self.study, rows, self.budget, self.data.num_test, self._picture.draw(rows, is_last=is_last))

    def measured_rate(self) -> float:
        """FLOPs a second of a trial, by a few steps of its first row.

        Raises:
            RequestError: the device has no memory for that now.
        """
        first, device = self.study.rows[0], torch.device(self.machine.name)
        shape, visible, _ = row_shape(first, self.setup, self.data.facts, self.machine, self.config.out)
        ratio = 1 - visible / shape.encoder.num_patches
        try:
            return measured_rate(shape, ratio, self.flops[first.name], device, self.setup.threads)
        except torch.OutOfMemoryError:
            raise RequestError(f"{device} is short of memory already: wait for what else runs on it") from None
        finally:
            torch.cuda.empty_cache()  # this process keeps nothing of what its trials need; does nothing without CUDA

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of what must not change until it is finished."""
        return {DATA: self.data.fingerprint}

    @property
    def budget(self) -> list[str]:
        """What every row is given, for the screen and for results.md."""
        setup, data, p, f = self.setup, self.data, self.setup.pretrain, self.setup.finetune
        size = p["image_size"] if isinstance(p["image_size"], int) else f"{p['image_size'][0]}x{p['image_size'][1]}"
        epochs = setup.steps * p["batch_size"] / setup.count
        measured = f", {data.num_test:,} to measure on ({data.final_split})" if data.num_test else ""
        tuned = (
            f"; fine-tuning {f['steps']:,} steps of {f['batch_size']} with each of the base rates "
            f"{', '.join(f'{rate:g}' for rate in setup.rates)}, of which {data.chosen_on} chooses"
        )
        scale = f"Scale {setup.scale}, {setup.threads} CPU thread{'s' * (setup.threads > 1)} a row."
        if self.study.budget:
            return [f"Data: {setup.count:,} images to pre-train on, at {size} px.", *self.study.budget, scale]
        return [
            f"Data: {setup.count:,} images to pre-train on{measured}, at {size} px.",
            f"Default row: encoder {p['width']} wide, {p['depth']} blocks; decoder {p['decoder_width']} wide, "
            f"{p['decoder_depth']} blocks; patches of {p['patch_size']} px; pixels, random crops, 75 % hidden.",
            f"Every row: {setup.steps:,} steps of {p['batch_size']} images of pre-training ({epochs:.3g} epochs)"
            f"{tuned if 'finetune' in self.study.protocols else ''}.",
            scale,
        ]


def plan_experiment(config: ExperimentConfig) -> ExperimentPlan:
    """Open the data, scale the experiment to it, and check what would otherwise fail hours later.

    Args:
        config: with what an earlier start decided.

    Raises:
        RequestError: a wrong setting, unusable data, or too little memory.
    """
    device = pick_device(config.devices[0] if config.devices else None)
    scale = config.scale or ("laptop" if device.type == "cpu" else "gpu")
    data = open_data(config, needs_labels=config.needs_labels)
    machine = Machine.of(device, 1, data.facts.largest)
    if scale == "paper":
        setup = make_paper_setup(config, data.facts)
    else:
        setup = make_setup(config, scale, data.facts, machine)
    study = STUDIES[config.name](config.name, setup)
    if "psnr" in study.protocols and not data.num_test:
        raise RequestError(
            f"{config.name} draws images that were not trained on: give a val or test part, or more images"
        )
    trials, memory, flops = make_trials(
        study, setup, data.facts, machine, seeds=config.seeds or 1, num_classes=data.num_classes, out=config.out
    )
    resources = resources_of(config, device, setup.threads)
    plan = ExperimentPlan(
        config=replace(config, scale=scale, threads=setup.threads),
        data=data,
        setup=setup,
        study=study,
        trials=trials,
        settings={row.name: stored_settings(row_settings(row, setup)) for row in study.rows},
        flops=flops,
        resources=resources,
        machine=machine,
    )
    if plan.only_prints:
        return plan
    return replace(plan, resources=check_memory(resources, memory, machine, config.jobs is not None))
