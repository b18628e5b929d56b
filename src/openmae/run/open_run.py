"""The life of a training run: opened (new or resumed), planned, its folder locked, trained."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from openmae.config import FinetuneConfig, Preprocessing, PretrainConfig, ProbeConfig
from openmae.data.batch import Batch
from openmae.data.loader import Stream
from openmae.errors import RequestError
from openmae.machine.device import use_device
from openmae.machine.files import check_disk
from openmae.machine.parallel import Processes, join_processes
from openmae.machine.signals import StopRequest
from openmae.run.batches import Batches, stream_batches
from openmae.run.evaluators import Evaluator
from openmae.run.folder import (
    PreviousRun,
    ResolvedConfigT,
    find_previous_run,
    run_settings,
    start_run,
    summary_if_finished,
)
from openmae.run.loop import Training, run_loop
from openmae.run.model_input import ModelInput
from openmae.run.progress import Progress, open_progress
from openmae.run.remembered import with_remembered
from openmae.run.step import StepResult
from openmae.run.step_model import StepModel
from openmae.training.checkpoint import Checkpoint, save_checkpoint

RequestedConfigT = TypeVar("RequestedConfigT", PretrainConfig, FinetuneConfig, ProbeConfig)


class Save(Protocol):
    """A function that writes a checkpoint, with the signature of `save_checkpoint`."""

    def __call__(
        self,
        run: Path,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        metadata: dict[str, Any],
        state: dict[str, Any],
        keep: int,
    ) -> Any: ...


class Run(Generic[ResolvedConfigT]):
    """A run from its opening to its end; a trainer calls `restore`, `finished`, `announce`, `begin`, `train`, in order.

    Attributes:
        requested: the settings of the previous start, or those requested now; None in them is still to be decided.
        previous: the previous start of a resumed run; None for a new one.
        step: the step to continue from, 0 before `restore`.
        config, progress: set by `begin`: the resolved settings, and where the run stands.
    """

    config: ResolvedConfigT
    progress: Progress

    def __init__(
        self,
        title: str,
        requested: Any,
        previous: PreviousRun[ResolvedConfigT] | None,
        processes: Processes,
        stop: StopRequest,
        lock: ExitStack,
    ) -> None:
        self.title, self.requested = title, requested
        self.previous: PreviousRun[ResolvedConfigT] | None = previous
        self.path, self.processes, self.stop, self._lock = Path(requested.out), processes, stop, lock
        self.device = use_device(requested.device, processes.local_rank)
        self.step = self.num_steps = 0

    @property
    def is_new(self) -> bool:
        return self.previous is None

    def print_lines(self, *lines: str) -> None:
        """Print lines, in the first process only."""
        if self.processes.is_first and lines:
            print("\n".join(lines), flush=True)

    def check_batch_size(self, batch_size: int, min_share: int = 1, why: str = "") -> None:
        """Raise RequestError where a process would get fewer than `min_share` samples of a batch."""
        count = self.processes.count
        if count * min_share > batch_size:
            least, noun = "one" if min_share == 1 else min_share, "process" if count == 1 else "processes"
            raise RequestError(f"--batch-size {batch_size} for {count} {noun}: give at least {least} each{why}")

    def restore(
        self,
        fingerprint: str,
        restore_state: Callable[[Checkpoint], None],
        check: Callable[[PreviousRun[ResolvedConfigT]], None] = lambda previous: None,
    ) -> None:
        """Restore the newest good checkpoint of the previous start; a new run stays at step 0.

        Args:
            fingerprint: of the data.
            restore_state: loads a checkpoint into model and optimiser; also called when the run is rolled back.
            check: raises RequestError where anything besides settings and data differs from the checkpoint's.

        Raises:
            RequestError: the settings in config.json, or the data, are not those of the checkpoint.
        """
        self._fingerprint, self._restore_state = fingerprint, restore_state
        if self.previous is None:
            return
        self.previous.check_settings()
        self.previous.check_data(fingerprint)
        check(self.previous)
        restore_state(self.previous.checkpoint)
        self.step = int(self.previous.state["step"])

    def finished(self, num_steps: int) -> dict[str, Any] | None:
        """The summary of a run that is already complete at `num_steps`, else None. Raises as `summary_if_finished`."""
        self.num_steps = num_steps
        return summary_if_finished(self.path, self.step, num_steps, self.processes)

    def announce(self, plan: list[str], checkpoint_bytes: int, keep: int) -> None:
        """Print the plan of a new run, or the warnings about a resumed one. Raises Fault where the disk is too full."""
        if self.previous is None:
            self.print_lines(*plan)
        else:
            self.print_lines(*(f"warning: {warning}" for warning in self.previous.warnings))
        check_disk(self.path, checkpoint_bytes, keep)

    def begin(
        self,
        config: ResolvedConfigT,
        preprocessing: Preprocessing,
        *,
        origins: dict[str, str],
        num_images: int,
        num_inputs: int,
        description: dict[str, Any],
        state: dict[str, Any] | None = None,
    ) -> None:
        """Create the run folder and lock it; nothing is written to disk before this.

        Args:
            split_sources: the part of the data that each split was read from, for whoever reads config.json.
            num_images: images of an epoch.
            num_inputs: all inputs, of which a share of `max_bad` may be unreadable.
            description: what determines the weights; the metadata of every checkpoint.
            state: further entries of every checkpoint's state, beside the data's fingerprint and the settings.
        """
        self.config = config
        self.processes.wait()  # until all have seen the run folder as it was
        if self.processes.is_first:
            start_run(config, preprocessing, self.previous, self._lock, origins)
        self.progress = open_progress(self.path, config, self.previous, self.processes, num_images, num_inputs)
        self._description = description
        self._state = {"data": self._fingerprint, "settings": run_settings(config, preprocessing), **(state or {})}

    def batches(
        self,
        config: ResolvedConfigT,
        stream: Stream,
        prepare: Callable[[Batch], ModelInput],
        *,
        is_paired: bool = False,
        adjust_micro_batch_size: Callable[[int], int] = lambda size: size,
    ) -> Batches:
        """The micro-batches of each step, read from a stream of samples by worker processes; see `stream_batches`."""
        return stream_batches(
            stream,
            prepare,
            batch_size=config.batch_size,
            workers=config.workers,
            num_steps=self.num_steps,
            device=self.device,
            processes=self.processes,
            stop=self.stop,
            is_paired=is_paired,
            adjust_micro_batch_size=adjust_micro_batch_size,
        )

    def train(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        batches: Batches,
        take_step: Callable[..., StepResult],
        evaluators: Callable[[], list[Evaluator]],
        bad: dict[str, str] | None = None,
        step_model: StepModel | None = None,
        finish: Callable[[], dict[str, Any]] = dict,
        save: Save = save_checkpoint,
        final_message: Callable[[dict[str, Any]], str],
    ) -> dict[str, Any]:
        """Train to the last step; return what RUN/summary.json holds.

        Args:
            bad: unreadable inputs, with reasons, that are known before the first batch.
            finish: see `run_loop`.
            final_message: from the summary to the last lines on the screen.
        """

        def save_step(step: int, state: dict[str, Any]) -> None:
            metadata = {**self._description, "step": step}
            save(self.path, step, model, optimizer, metadata, {**self._state, **state}, self.config.keep)

        def make_evaluators() -> list[Evaluator]:
            self.progress.bad_inputs.note(bad or {})
            return evaluators()

        c = self.config
        training = Training(
            title=self.title,
            run=self.path,
            device=self.device,
            num_steps=self.num_steps,
            batch_size=c.batch_size,
            micro_batch_size=c.micro_batch_size,
            log_every=c.log_every,
            save_every=c.save_every,
            model=model,
            optimizer=optimizer,
            schedule=schedule,
            step_model=step_model,
            take_step=take_step,
            read_from=batches.read_from,
            save=save_step,
            restore=self._restore_state,
            names_of_step=batches.names_of_step,
        )
        summary = run_loop(training, self.progress, make_evaluators, self.stop, self.processes, self.step, finish)
        self.progress.log.summary(summary)
        if self.processes.is_first:
            print(final_message(summary))
        self.processes.wait()
        return summary


@contextmanager
def open_run(
    title: str, config: RequestedConfigT, config_type: type[ResolvedConfigT], remembers_micro_batch: bool = True
) -> Iterator[Run[ResolvedConfigT]]:
    """Open the run folder of `config`: join the processes, handle signals, find what a previous start left.

    Nothing is written before `begin`.

    Args:
        title: of the progress line.
        config_type: the resolved type of `config`, without None.
        remembers_micro_batch: a run that ran out of memory before its first checkpoint continues with the smaller
            micro-batch that was written down then.

    Raises:
        RequestError: the folder exists and may not be continued, settings differ, or there is no such device.
    """
    config = config.plain()
    with join_processes() as processes, StopRequest() as stop, ExitStack() as lock:
        previous = find_previous_run(config, config_type)
        requested = previous.config if previous else with_remembered(config, remembers_micro_batch)
        yield Run(title, requested, previous, processes, stop, lock)
