"""`openmae experiment NAME`: a table or figure of the paper, at any scale."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from openmae.config import ExperimentConfig
from openmae.errors import Fault, Interrupted, RequestError
from openmae.experiments.figure_9.old_results import keep_old_results
from openmae.experiments.figure_9.plan import Figure9Plan, plan_figure_9
from openmae.experiments.paper_scale import command_lines
from openmae.experiments.plan import ExperimentPlan, plan_experiment
from openmae.experiments.results.results import collect, write_results
from openmae.experiments.start import create_experiment, find_experiment
from openmae.experiments.studies.study import PROTOCOLS
from openmae.experiments.trials.progress import ProgressTable
from openmae.experiments.trials.side_by_side import LOG, Job, prepare, run_side_by_side
from openmae.experiments.trials.trial import read_result
from openmae.machine.files import atomic_write, disk_faults


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
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise RequestError("an experiment starts its own processes, see --jobs: start it without torchrun")
    config = find_experiment(config if len(config.paths) != 1 else replace(config, data=config.paths[0]))
    plan = plan_figure_9(config) if config.is_figure_9 else plan_experiment(config)
    if isinstance(plan, ExperimentPlan) and plan.only_prints:
        print("\n".join(command_lines(plan.study, plan.trials, config.out, plan.setup.count)), flush=True)
        return {"experiment": config.name, "scale": plan.config.scale, "rows": []}
    with ExitStack() as lock:
        create_experiment(plan.config, plan.fingerprints, plan.trials, lock)
        if config.is_figure_9:
            keep_old_results(Path(config.out), plan.study, plan.trials)
        jobs = prepare(Path(config.out), plan.trials)
        print("\n".join([plan.study.title, *plan.budget]), flush=True)
        if any(job.state == "done" for job in jobs):
            write(plan, jobs)
        with ProgressTable(jobs, result_text, plan.measured_rate(), plan.resources.jobs) as progress:
            print(resources_line(plan, jobs, progress.remaining()), flush=True)

            def ended(job: Job) -> None:
                progress.ended(job)
                write(plan, jobs)

            run_side_by_side(jobs, plan.resources, progress.watch, ended)
        results = write(plan, jobs, is_last=True)
    print(f"wrote {Path(config.out) / 'results.md'}", flush=True)
    raise_failures(jobs)
    return results


def write(plan: ExperimentPlan | Figure9Plan, jobs: Sequence[Job], *, is_last: bool = False) -> dict[str, Any]:
    """Write results.json, the picture and results.md of what is known so far; return what results.json holds."""
    out = Path(plan.config.out)
    rows = collect(plan.study, plan.settings, jobs, plan.flops)
    results = write_results(out, plan.study, plan.config.scale, rows)
    if plan.study.draw is not None:
        finished = {job.trial.row: job.folder for job in jobs if job.trial.seed == 0 and job.state == "done"}
        plan.study.draw(out / f"{plan.study.name}.png", rows, finished)
    text = plan.report(rows, is_last=is_last)
    with disk_faults(out), atomic_write(out / "results.md") as partial:
        partial.write_text(text, encoding="utf-8")
    return results


def result_text(job: Job) -> str:
    """A finished trial's figures: fine-tuning 71.2, linear probe 65.0."""
    found = read_result(job.folder, job.trial).get("protocols", {})
    return ", ".join(f"{PROTOCOLS[name]} {values['value']:.1f}" for name, values in found.items())


def resources_line(plan: ExperimentPlan | Figure9Plan, jobs: Sequence[Job], remaining: str) -> str:
    """What runs on what, and how long it will take."""
    left, r = sum(job.state == "waiting" for job in jobs), plan.resources
    return (
        f"Runs: {len(jobs)}, {left} to do, {r.jobs} at a time on {', '.join(r.devices)}; {remaining} (an estimate, "
        "said again after the first)"
    )


def raise_failures(jobs: Sequence[Job]) -> None:
    """Raise where trials failed (RequestError where all of them were wrong requests, else Fault) or were stopped."""
    failed = [job for job in jobs if job.state == "failed"]
    if not failed and (num_stopped := sum(job.state == "stopped" for job in jobs)):
        raise Interrupted(f"{num_stopped} of {len(jobs)} runs were stopped by a signal; the same command goes on")
    if not failed:
        return
    first = failed[0]
    kind = RequestError if all(job.exit_code == RequestError.exit_code for job in failed) else Fault
    raise kind(
        f"{len(failed)} of {len(jobs)} runs failed, first {first.trial.row}, seed {first.trial.seed}: {first.why} "
        f"({first.folder / LOG}); what else there was is finished, and the same command tries again"
    )
