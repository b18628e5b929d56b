"""Where all trials stand: one table that is rewritten in a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from openmae.experiments.trials.side_by_side import Job
from openmae.experiments.trials.trial import Stage
from openmae.run.lock import summary_of
from openmae.run.reader import read_json_object, read_metrics
from openmae.training.telemetry import format_duration

WORDS = {
    "tokenizer": "tokenizer",
    "pretrain": "pre-training",
    "finetune": "fine-tuning",
    "segment": "segmentation",
    "detect": "detection",
    "probe": "linear probe",
    "knn": "kNN",
    "reconstruct": "drawing",
    "speed": "timing",
}
SECONDS_A_RUN = 4.0  # to start a command, read the data's headers, and write its report, about
SECONDS_BETWEEN_LINES = 60.0
SECONDS_BETWEEN_TABLES = 2.0


def share_done(job: Job, stage: Stage) -> float:
    """How much of a stage is done, 0 to 1, from its run folders."""
    shares = []
    for name in stage.runs:
        run = job.folder / name
        if summary_of(run).get("status") == "complete":
            shares.append(1.0)
        else:
            lines = read_metrics(run / "metrics.jsonl")
            steps = stage.settings.get("steps") or read_json_object(run / "config.json")[0].get("steps")
            shares.append(min(0.99, lines[-1].get("step", 0) / steps) if lines and steps else 0.0)
    return sum(shares) / len(shares)


def work_done(job: Job) -> float:
    """FLOPs of a trial that are done, about, by this start or an earlier one."""
    if job.state == "done":
        return job.trial.work
    return sum(stage.work * share_done(job, stage) for stage in job.trial.stages)


def state_text(job: Job, result: Callable[[Job], str]) -> str:
    """waiting; the stage under way and how far it is; or the result."""
    if job.state == "done":
        return f"done {result(job)}".rstrip()
    if job.state != "running":
        return f"failed: {job.why}" if job.state == "failed" else job.state
    for stage in job.trial.stages:
        if (share := share_done(job, stage)) < 1:
            return f"{WORDS.get(stage.kind, stage.kind)} {share:.0%}"
    return "measuring"


@dataclass
class ProgressTable:
    """Shows where all trials stand while they run.

    Attributes:
        result: from a finished trial to its figures, as text.
        rate: FLOPs a second of one trial, as measured before it started.
        num_jobs: trials at a time.
    """

    jobs: Sequence[Job]
    result: Callable[[Job], str]
    rate: float
    num_jobs: int
    _live: Any = None
    _stack: ExitStack = field(default_factory=ExitStack)
    _looked: float = 0.0
    _expected: float = 0.0
    _seconds: float = 0.0
    _begun: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> "ProgressTable":
        # What an earlier start did of a trial takes no time now.
        self._begun = {job.trial.folder: 1 - self._share_left(job) for job in self.jobs if job.state == "waiting"}
        self._looked = time.monotonic()
        if sys.stdout is not None and sys.stdout.isatty():
            from rich.live import Live

            self._live = self._stack.enter_context(Live(auto_refresh=False))
            self._live.update(self._table(), refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def watch(self) -> None:
        """Show where they stand, not more often than a person reads it."""
        pause = SECONDS_BETWEEN_LINES if self._live is None else SECONDS_BETWEEN_TABLES
        if time.monotonic() - self._looked < pause:
            return
        self._looked = time.monotonic()
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        else:
            running = [
                f"{self._name(job)} {state_text(job, self.result)}" for job in self.jobs if job.state == "running"
            ]
            print(f"{self._count()}; {', '.join(running)}; {self.remaining()}", flush=True)

    def ended(self, job: Job) -> None:
        """Say what a trial came to; after the first one, how long the others will take by it."""
        if job.state == "done" and job.seconds:
            is_first = not self._seconds
            self._expected += self._seconds_of(job) * (1 - self._begun[job.trial.folder])
            self._seconds += job.seconds
            note = f"; {self.remaining()}, by what this one took" if is_first else ""
        else:
            note = ""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        else:
            print(
                f"{self._name(job)}: {state_text(job, self.result)} ({format_duration(job.seconds)}){note}", flush=True
            )

    def remaining(self) -> str:
        """How long the rest takes, about."""
        slower = self._seconds / self._expected if self._expected else 1.0
        unfinished = [job for job in self.jobs if job.state in ("waiting", "running")]
        left = sum(self._seconds_of(job) * self._share_left(job) for job in unfinished) / max(
            1, min(self.num_jobs, len(unfinished))
        )
        return f"about {format_duration(left * slower)} left"

    def _seconds_of(self, job: Job) -> float:
        """How long a trial takes, as expected before any was run."""
        return job.trial.work / self.rate + SECONDS_A_RUN * sum(len(stage.runs) for stage in job.trial.stages)

    def _share_left(self, job: Job) -> float:
        return 1 - work_done(job) / job.trial.work if job.trial.work else 1.0

    def _count(self) -> str:
        done = sum(job.state == "done" for job in self.jobs)
        return f"{done} of {len(self.jobs)} done"

    def _name(self, job: Job) -> str:
        return f"{job.trial.row}, seed {job.trial.seed}"

    def _shown(self) -> list[Job]:
        """The trials that the terminal has lines for: those that run or failed, and of the others the nearest."""
        room = max(3, self._live.console.height - 6 if self._live is not None else len(self.jobs))
        urgent = ("running", "failed", "stopped")
        by_state = {state: [job for job in self.jobs if job.state == state] for state in ("done", "waiting")}
        num_others = max(0, room - sum(job.state in urgent for job in self.jobs))
        num_done = max(num_others // 2, num_others - len(by_state["waiting"]))
        done = by_state["done"][-num_done:] if num_done else []
        others = [*done, *by_state["waiting"][: num_others - len(done)]]
        return [job for job in self.jobs if job.state in urgent or any(job is other for other in others)]

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"{self._count()}, {self.remaining()}", title_justify="left")
        for column in ("row", "seed", ""):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for job in self._shown():
            table.add_row(Text(job.trial.row), Text(str(job.trial.seed)), Text(state_text(job, self.result)))
        return table
