"""The plan of an experiment: its rows on a person's data and machine, checked before anything is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from openmae.config import ExperimentConfig
from openmae.data.sources.named import check_named
from openmae.errors import RequestError
from openmae.experiments.budget import budget_lines
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
from openmae.experiments.studies.transfer import table_4, table_5, table_7
from openmae.experiments.transfer_data import LABELS, divide, images_alone, open_transfer
from openmae.experiments.transfer_setup import with_transfers
from openmae.experiments.trials.make_trials import make_trials, row_shape, stored_row
from openmae.experiments.trials.side_by_side import Resources
from openmae.experiments.trials.trial import Trial
from openmae.interchange.incoming.named import check_init
from openmae.machine.device import pick_device
from openmae.planning.decisions import Machine

STUDIES: dict[str, Callable[[str, Setup], Study]] = {
    **dict.fromkeys(("table-1", *SECTIONS), table_1),
    "table-2": table_2,
    "table-4": table_4,
    "table-5": table_5,
    "table-7": table_7,
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
        settings: of each row, by its name, as results.json holds them.
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
        return budget_lines(self.setup, self.data, self.study)


def plan_experiment(config: ExperimentConfig) -> ExperimentPlan:
    """Open the data, scale the experiment to it, and check what would otherwise fail hours later.

    Args:
        config: with what an earlier start decided.

    Raises:
        RequestError: a wrong setting, unusable data, or too little memory.
    """
    for one in config.also_inits:
        check_init(one.init)
    for dataset in config.paths:
        check_named(dataset, takes_json=True)
    device = pick_device(config.devices[0] if config.devices else None)
    scale = config.scale or ("laptop" if device.type == "cpu" else "gpu")
    source, data = open_all(config)
    machine = Machine.of(device, 1, data.facts.largest)
    if scale == "paper":
        setup = make_paper_setup(source, data.facts)
    else:
        setup = make_setup(source, scale, data.facts, machine)
    setup = with_transfers(replace(setup, has_labels=data.num_classes > 0), config, data.transfers)
    study = STUDIES[config.name](config.name, setup)
    if "psnr" in study.protocols and not data.num_test:
        raise RequestError(
            f"{config.name} draws images that were not trained on: give a val or test part, or more images"
        )
    trials, memory, flops = make_trials(
        study,
        setup,
        data.facts,
        machine,
        seeds=config.seeds or 1,
        num_classes=data.num_classes,
        out=config.out,
        transfers=data.transfers,
    )
    resources = resources_of(config, device, setup.threads)
    plan = ExperimentPlan(
        config=replace(config, scale=scale, threads=setup.threads),
        data=data,
        setup=setup,
        study=study,
        trials=trials,
        settings={row.name: stored_settings(stored_row(row, setup)) for row in study.rows},
        flops=flops,
        resources=resources,
        machine=machine,
    )
    if plan.only_prints:
        return plan
    return replace(plan, resources=check_memory(resources, memory, machine, config.jobs is not None))


def open_all(config: ExperimentConfig) -> tuple[ExperimentConfig, ExperimentData]:
    """The config with the DATA that is pre-trained on, and the data of the experiment.

    Raises:
        RequestError: a DATA cannot be used.
    """
    configs = divide(config)
    labelled = configs.pop(LABELS, None)
    transfers = {kind: open_transfer(kind, one) for kind, one in configs.items()}
    if labelled is not None:
        source, data = labelled, open_data(labelled, needs_labels=config.needs_labels)
    else:
        first = next(iter(transfers))
        source = images_alone(configs[first], transfers[first])
        # Nothing is measured on what pre-training holds out.
        data = replace(open_data(source, needs_labels=False), num_test=0, final_split="")
    fingerprint = " ".join([data.fingerprint, *(one.fingerprint for one in transfers.values())])
    return source, replace(data, transfers=transfers, fingerprint=fingerprint)
