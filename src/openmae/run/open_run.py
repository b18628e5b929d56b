"""A training run, new or resumed: what all commands that train have in common around their step."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol

import torch
from torch import nn

from openmae.config import Preprocessing
from openmae.data.batch import Batch
from openmae.data.sample_stream import SampleStream
from openmae.errors import RequestError
from openmae.machine.device import use_device
from openmae.machine.files import check_disk
from openmae.machine.parallel import Processes, join_processes
from openmae.machine.signals import StopRequest
from openmae.run.batches import Batches, stream_batches
from openmae.run.evaluators import Evaluator
from openmae.run.folder import (
    PreviousRun,
    RequestedConfigT,
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
    """A run inside `open_run`.

    A trainer calls, in this order: `check_batch_size`, `restore`, `finished_summary`, `print_plan`, `check_disk`,
    `begin`, `batches`, `train`. Each keeps what the later ones need.

    Attributes:
        requested: of a new run, the requested settings, where None is still to be decided; of a resumed run, its saved
            settings with those that were changed now.
        previous: what a resumed run continues; None for a new one.
        path: the run folder.
        step: the number of steps done, which `restore` sets from the checkpoint.
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
        folder_lock: ExitStack,
    ) -> None:
        self.title, self.requested = title, requested
        self.previous: PreviousRun[ResolvedConfigT] | None = previous
        self.path, self.processes, self.stop, self._folder_lock = Path(requested.out), processes, stop, folder_lock
        self.device = use_device(requested.device, processes.local_rank)
        self.step = self.num_steps = 0

    @property
    def is_new(self) -> bool:
        return self.previous is None

    def print_lines(self, *lines: str) -> None:
        """Print lines, in the first process only."""
        if self.processes.is_first and lines:
            print("\n".join(lines), flush=True)

    def check_batch_size(self, batch_size: int, min_per_process: int = 1, why: str = "") -> None:
        """Raise RequestError, ending with `why`, where a process would get too few samples of a batch."""
        count = self.processes.count
        if count * min_per_process > batch_size:
            least, noun = "one" if min_per_process == 1 else min_per_process, "process" if count == 1 else "processes"
            raise RequestError(f"--batch-size {batch_size} for {count} {noun}: give at least {least} each{why}")

    def restore(
        self,
        fingerprint: str,
        restore_state: Callable[[Checkpoint], None],
        check: Callable[[PreviousRun[ResolvedConfigT]], None] = lambda previous: None,
    ) -> None:
        """Restore the checkpoint that a resumed run continues; a new run stays at step 0.

        Args:
            fingerprint: a hash that identifies the data.
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

    def finished_summary(self, num_steps: int) -> dict[str, Any] | None:
        """Set the length of the run; return its summary where it is already complete, else None.

        Raises: see `summary_if_finished`.
        """
        self.num_steps = num_steps
        return summary_if_finished(self.path, self.step, num_steps, self.processes)

    def print_plan(self, plan: list[str]) -> None:
        """Print the plan of a new run, or the warnings about a resumed one."""
        if self.previous is None:
            self.print_lines(*plan)
        else:
            self.print_lines(*(f"warning: {warning}" for warning in self.previous.warnings))

    def check_disk(self, checkpoint_bytes: int, keep: int) -> None:
        """Raise Fault where the disk has no room for the `keep` checkpoints that are kept."""
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
            origins: the folders or files that each split was read from, as a note in config.json.
            num_images: images in an epoch.
            num_inputs: all input images, of which a fraction of `max_bad` may be unreadable.
            description: what determines the weights; the metadata of every checkpoint.
            state: further entries of every checkpoint's state, beside the data's fingerprint and the settings.
        """
        self.config = config
        self.processes.wait()  # until all have seen the run folder as it was
        if self.processes.is_first:
            start_run(config, preprocessing, self.previous, self._folder_lock, origins)
        self.progress = open_progress(self.path, config, self.previous, self.processes, num_images, num_inputs)
        self._description = description
        self._state = {"data": self._fingerprint, "settings": run_settings(config, preprocessing), **(state or {})}

    def batches(
        self,
        config: ResolvedConfigT,
        stream: SampleStream,
        prepare: Callable[[Batch], ModelInput],
        *,
        is_paired: bool = False,
        adjust_micro_batch_size: Callable[[int], int] = lambda size: size,
    ) -> Batches:
        """The micro-batches of each step, read by DataLoader workers and prepared; see `stream_batches`."""
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
        """Train to the last step; return what RUN/summary.json holds. Raises as `run_loop` does.

        Args:
            schedule, take_step, step_model: see `Training`.
            evaluators: called once, before the first step.
            bad: unreadable inputs that are known before the first batch: name → reason.
            finish: see `run_loop`.
            save: writes a checkpoint.
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
    """A context with the run of `config`: processes are joined, stop signals handled, a previous start is found.

    Nothing is written to disk before `Run.begin`.

    Args:
        title: the command's name, before each progress line.
        config_type: the resolved type of `config`, without None.
        remembers_micro_batch: where the run ran out of memory before its first checkpoint, start with the smaller
            micro-batch that it wrote down.

    Raises:
        RequestError: the folder exists and `--resume` does not allow to continue it, settings differ from the run's, or
            there is no such device.
    """
    config = config.plain()
    with join_processes() as processes, StopRequest() as stop, ExitStack() as folder_lock:
        previous = find_previous_run(config, config_type)
        requested = previous.config if previous else with_remembered(config, remembers_micro_batch)
        yield Run(title, requested, previous, processes, stop, folder_lock)
