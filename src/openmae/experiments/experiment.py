"""`openmae experiment NAME`: a table or figure of the paper, at any scale."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from openmae.config import ExperimentConfig
from openmae.data.preprocess import survey
from openmae.errors import Fault, RequestError
from openmae.experiments.data import ExperimentData, open_data
from openmae.experiments.figure_9 import figure_9
from openmae.experiments.figures import figure_5, figure_7, figure_8
from openmae.experiments.progress import ProgressTable
from openmae.experiments.report import report
from openmae.experiments.resources import check_memory, measured_rate, resources_of
from openmae.experiments.results import collect, stored_settings, write_results
from openmae.experiments.setup import Setup, make_setup
from openmae.experiments.side_by_side import Job, prepare, run_side_by_side
from openmae.experiments.start import create_experiment, find_experiment
from openmae.experiments.study import PROTOCOLS, Study
from openmae.experiments.table_1 import SECTIONS, table_1
from openmae.experiments.trials import make_trials, row_settings, row_shape
from openmae.machine.device import pick_device
from openmae.machine.files import atomic_write, disk_faults
from openmae.planning.decisions import Machine
from openmae.run.reader import read_json_object
from openmae.training.telemetry import format_duration

STUDIES: dict[str, Callable[[str, Setup], Study]] = {
    **dict.fromkeys(("table-1", *SECTIONS), table_1),
    "figure-5": figure_5,
    "figure-7": figure_7,
    "figure-8": figure_8,
}


def experiment(config: ExperimentConfig) -> dict[str, Any]:
    """Run a table or figure of the paper, or continue one that was stopped; the results lie in `config.out`.

    Returns:
        What OUT/results.json holds.

    Raises:
        RequestError: a wrong setting or unusable data.
        Fault: rows failed; the others are finished.
        Interrupted: a signal; the same command continues.
    """
    config = config.plain()
    if config.is_figure_9:
        return figure_9(config)
    config = find_experiment(config)
    device = pick_device(config.devices[0] if config.devices else None)
    scale = config.scale or ("laptop" if device.type == "cpu" else "gpu")
    data = open_data(config, needs_labels=True)
    facts = survey(data.train, other_splits=data.parts)
    machine = Machine.of(device, 1, facts.largest)
    setup = make_setup(config, scale, facts, machine)
    config = replace(config, scale=scale, threads=setup.threads)
    study = STUDIES[config.name](config.name, setup)
    trials, memory, flops = make_trials(
        study, setup, facts, machine, seeds=config.seeds or 1, num_classes=data.num_classes, out=config.out
    )
    resources = resources_of(config, device, setup.threads)
    resources = check_memory(resources, memory, machine, config.jobs is not None)
    shape = row_shape(study.rows[0], setup, facts, machine, config.out)[0]
    rate = measured_rate(shape, 0.75, flops[study.rows[0].name], device, setup.threads)
    with ExitStack() as lock:
        create_experiment(config, data.fingerprint, lock)
        jobs = prepare(Path(config.out), trials)
        budget = budget_lines(config, setup, data)
        print("\n".join([study.title, *budget]), flush=True)
        settings = {row.name: stored_settings(row_settings(row, setup)) for row in study.rows}

        def write() -> dict[str, Any]:
            rows = collect(study, settings, jobs, flops)
            results, out = write_results(Path(config.out), study, scale, rows), Path(config.out)
            with disk_faults(out), atomic_write(out / "results.md") as partial:
                partial.write_text(report(study, rows, budget, data.num_test), encoding="utf-8")
            return results

        with ProgressTable(jobs, result_text, rate, resources.jobs) as progress:
            left = sum(job.state == "waiting" for job in jobs)
            print(
                f"runs       {len(jobs)}, {left} to do, {resources.jobs} at a time with {setup.threads} thread"
                f"{'s' * (setup.threads > 1)} each on {', '.join(resources.devices)}: {progress.remaining()}",
                flush=True,
            )

            def ended(job: Job) -> None:
                progress.ended(job)
                write()

            run_side_by_side(jobs, resources, progress.watch, ended)
        results = write()
    print(f"wrote {Path(config.out) / 'results.md'}", flush=True)
    raise_failures(jobs)
    return results


def result_text(job: Job) -> str:
    """A finished trial's figures: fine-tuning 71.2, linear probe 65.0."""
    found = read_json_object(job.folder / "result.json")[0].get("protocols", {})
    return ", ".join(f"{PROTOCOLS[name]} {values['value']:.1f}" for name, values in found.items())


def budget_lines(config: ExperimentConfig, setup: Setup, data: ExperimentData) -> list[str]:
    """What every row is given, for the screen and for results.md."""
    p, f = setup.pretrain, setup.finetune
    size = p["image_size"] if isinstance(p["image_size"], int) else f"{p['image_size'][0]}x{p['image_size'][1]}"
    epochs = setup.steps * p["batch_size"] / setup.count
    return [
        f"Data: {setup.count:,} training images, {data.num_test:,} to measure on ({data.final_split}), at {size} px.",
        f"Default row: encoder {p['width']} wide, {p['depth']} blocks; decoder {p['decoder_width']} wide, "
        f"{p['decoder_depth']} blocks; patches of {p['patch_size']} px; pixels, random crops, 75 % hidden.",
        f"Every row: {setup.steps:,} steps of {p['batch_size']} images of pre-training ({epochs:.3g} epochs); "
        f"fine-tuning {f['steps']:,} steps of {f['batch_size']} with each of the base rates "
        f"{', '.join(f'{rate:g}' for rate in setup.rates)}, of which {data.chosen_on} chooses.",
        f"Scale {setup.scale}, {setup.threads} thread{'s' * (setup.threads > 1)} a row.",
    ]


def raise_failures(jobs: list[Job]) -> None:
    """Raise where trials failed: RequestError where all of them were wrong requests, else Fault."""
    failed = [job for job in jobs if job.state == "failed"]
    if not failed:
        return
    first = failed[0]
    kind = RequestError if all(job.exit_code == RequestError.exit_code for job in failed) else Fault
    raise kind(
        f"{len(failed)} of {len(jobs)} runs failed, first {first.trial.row}, seed {first.trial.seed}: {first.why} "
        f"({first.folder / 'log.txt'}); the others are finished, the same command tries again"
    )
