"""One way to open a run: found or new, joined by its processes, planned, held, trained."""

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
from openmae.machine.parallel import Processes, joined
from openmae.machine.signals import StopRequest
from openmae.run.batches import Batches, stream_batches
from openmae.run.evaluators import Evaluator
from openmae.run.folder import PreviousRun, ResolvedConfigT, begin, find_previous_run, settings_of, summary_if_finished
from openmae.run.loop import Training, run_loop
from openmae.run.model_input import ModelInput
from openmae.run.progress import Progress, open_progress
from openmae.run.remembered import with_remembered
from openmae.run.step import StepResult
from openmae.run.step_model import StepModel
from openmae.training.checkpoint import Checkpoint, save_checkpoint

RequestedConfigT = TypeVar("RequestedConfigT", PretrainConfig, FinetuneConfig, ProbeConfig)


class Save(Protocol):
    """What writes a checkpoint, as `save_checkpoint` does."""

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
        requested: the settings of the earlier start, or what was asked for; may have open questions.
        earlier: that start; None for a new run.
        step: the one to go on from, 0 before `restore`.
        config, progress: from `begin` on, the settings without open questions and where the run stands.
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

    def say(self, *lines: str) -> None:
        """Print lines, in the first process."""
        if self.processes.is_first and lines:
            print("\n".join(lines), flush=True)

    def check_shares(self, batch_size: int, smallest: int = 1, why: str = "") -> None:
        """Raise RequestError where a process would get less than `smallest` samples of a batch."""
        count = self.processes.count
        if count * smallest > batch_size:
            least, of = "one" if smallest == 1 else smallest, "process" if count == 1 else "processes"
            raise RequestError(f"--batch-size {batch_size} for {count} {of}: give at least {least} each{why}")

    def restore(
        self,
        fingerprint: str,
        restore_state: Callable[[Checkpoint], None],
        check: Callable[[PreviousRun[ResolvedConfigT]], None] = lambda previous: None,
    ) -> None:
        """Put the newest good checkpoint of an earlier start back; a new run stays at step 0.

        Args:
            fingerprint: of the data.
            check: raises RequestError where something else than settings and data is not that of the checkpoint.

        Raises:
            RequestError: the settings in config.json, or the data, are not those of the checkpoint.
        """
        self._fingerprint, self._put_back = fingerprint, restore_state
        if self.previous is None:
            return
        assert self.previous.checkpoint is not None
        self.previous.check_settings()
        self.previous.check_data(fingerprint)
        check(self.previous)
        restore_state(self.previous.checkpoint)
        self.step = int(self.previous.state["step"])

    def finished(self, num_steps: int) -> dict[str, Any] | None:
        """The summary of a run that is complete at `num_steps`, else None. Raises as `summary_if_finished`."""
        self.num_steps = num_steps
        return summary_if_finished(self.path, self.step, num_steps, self.processes)

    def announce(self, plan: list[str], checkpoint_bytes: int, keep: int) -> None:
        """Say the plan of a new run, or what is the matter with an earlier one. Raises Fault for a full disk."""
        if self.previous is None:
            self.say(*plan)
        else:
            self.say(*(f"warning: {warning}" for warning in self.previous.warnings))
        check_disk(self.path, checkpoint_bytes, keep)

    def begin(
        self,
        config: ResolvedConfigT,
        preprocessing: Preprocessing,
        *,
        taken: dict[str, str],
        num_images: int,
        num_inputs: int,
        description: dict[str, Any],
        state: dict[str, Any] | None = None,
    ) -> None:
        """Make the run folder and hold it: from here on it exists.

        Args:
            taken: what of the data was taken for what.
            num_images: of an epoch.
            num_inputs: all inputs, of which `max_bad` may be unreadable.
            description: what determines the weights; the metadata of every checkpoint.
            state: what every checkpoint keeps of the beginning, behind data and settings.
        """
        self.config = config
        self.processes.wait()  # until all have seen the run folder as it was
        if self.processes.is_first:
            begin(config, preprocessing, self.previous, self._lock, taken)
        self.progress = open_progress(self.path, config, self.previous, self.processes, num_images, num_inputs)
        self._description = description
        self._state = {"data": self._fingerprint, "settings": settings_of(config, preprocessing), **(state or {})}

    def batches(
        self,
        config: ResolvedConfigT,
        stream: Stream,
        prepare: Callable[[Batch], ModelInput],
        *,
        is_paired: bool = False,
        size_of_micro_batch: Callable[[int], int] = lambda size: size,
    ) -> Batches:
        """The steps' micro-batches of a stream of samples, read by reader processes; see `stream_batches`."""
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
            size_of_micro_batch=size_of_micro_batch,
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
        closing: Callable[[dict[str, Any]], str],
    ) -> dict[str, Any]:
        """Train to the last step; return what RUN/summary.json holds.

        Args:
            bad: unreadable inputs that are known before the first batch.
            finish: as of `run_loop`.
            closing: the last lines on the screen.
        """

        def saved(step: int, state: dict[str, Any]) -> None:
            metadata, own = {**self._description, "step": step}, {**self._state, **state}
            save(self.path, step, model, optimizer, metadata, own, self.config.keep)

        def watched() -> list[Evaluator]:
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
            save=saved,
            restore=self._put_back,
            names_of_step=batches.names_of_step,
        )
        summary = run_loop(training, self.progress, watched, self.stop, self.processes, self.step, finish)
        self.progress.log.summary(summary)
        if self.processes.is_first:
            print(closing(summary))
        self.processes.wait()
        return summary


@contextmanager
def open_run(
    title: str, config: RequestedConfigT, settled: type[ResolvedConfigT], remembers_micro_batch: bool = True
) -> Iterator[Run[ResolvedConfigT]]:
    """Open the run folder of `config`: find what an earlier start left, join the processes, hear signals.

    Nothing is written before `begin`.

    Args:
        remembers_micro_batch: a run that ended before its first checkpoint for want of memory goes on with the
            micro-batch that will do.

    Raises:
        RequestError: the folder exists and may not be continued, settings differ, or there is no such device.
    """
    config = config.plain()
    with joined() as processes, StopRequest() as stop, ExitStack() as lock:
        previous = find_previous_run(config, settled)
        requested = previous.config if previous else with_remembered(config, remembers_micro_batch)
        yield Run(title, requested, previous, processes, stop, lock)
