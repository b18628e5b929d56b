"""The training loop: steps, log lines, evaluations, checkpoints, and recovery from what goes wrong.

Every task that trains passes its own step and functions to `run_loop`; the loop knows no model and no data.
"""

import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openmae.data.batch import Batch
from openmae.data.readers import ReaderKilled, reader_fault
from openmae.errors import Fault, Interrupted
from openmae.machine.device import is_out_of_memory, peak_memory
from openmae.machine.parallel import Processes
from openmae.machine.signals import EvaluationStopped, StopRequest
from openmae.run.evaluators import Evaluator, evaluate
from openmae.run.progress import MAX_SKIPPED, Progress
from openmae.run.recovery import compiler_fault, is_finite, named_inputs, roll_back, smaller_micro_batch
from openmae.run.step import StepResult
from openmae.run.step_model import StepModel
from openmae.run.waits import Waits
from openmae.training.checkpoint import Checkpoint
from openmae.training.optim import set_learning_rate
from openmae.training.prefetch import StepInputs
from openmae.training.telemetry import ProgressBar, format_duration

TIMED_STEPS = 5  # after the first step so many are timed; then an estimate for the run is printed


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a task passes to the training loop: its model, its step and its settings.

    Attributes:
        title: the command's name, before each progress line.
        run: the run folder.
        log_every, save_every: steps between lines of metrics.jsonl, and between checkpoints.
        model: the bare model, not wrapped for several processes.
        schedule: step -> learning rate.
        take_step: (micro-batches, step) -> one optimiser step over this process's micro-batches.
        read_from: (step, micro_batch_size) -> the prepared micro-batches of that step and of each one after it.
        save: (step, state) -> write the checkpoint; called in the first process.
        restore: load a checkpoint's weights and optimiser state.
        names_of_step: step -> the names of the inputs in its batch.
        step_model: compiled and checked before the first step and after each change of the micro-batch size; None
            where the task never compiles.
    """

    title: str
    run: Path
    device: torch.device
    num_steps: int
    batch_size: int
    micro_batch_size: int
    log_every: int
    save_every: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    take_step: Callable[[StepInputs[Batch, Any], int], StepResult]
    read_from: Callable[[int, int], Generator[StepInputs[Batch, Any], None, None]]
    save: Callable[[int, dict[str, Any]], None]
    restore: Callable[[Checkpoint], None]
    names_of_step: Callable[[int], list[str]]
    step_model: StepModel | None = None


def run_loop(
    training: Training,
    progress: Progress,
    make_evaluators: Callable[[], list[Evaluator]],
    stop: StopRequest,
    processes: Processes,
    step: int,
    finish: Callable[[], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """Train from `step` to the last one, then call `finish`, whose result goes into the summary.

    Returns:
        What RUN/summary.json holds.

    Raises:
        RequestError: too many unreadable files.
        Interrupted: a signal; the message says whether the run was saved.
        Fault: a full disk, dead DataLoader workers, a failure of torch.compile, out of memory with a single image or
            with several processes, or gradients or weights that are not finite after every roll-back.
    """
    loop = Loop(training, progress, stop, processes, step)
    try:
        finished = loop.run(make_evaluators, finish)
    except EvaluationStopped:
        progress.log.summary(progress.summary("interrupted", loop.step))
        raise Interrupted("stopped in the final evaluation: saved, --resume auto continues") from None
    except BaseException as error:
        with suppress(Fault):  # a full disk here must not hide the first error
            status = "interrupted" if isinstance(error, Interrupted) else "failed"
            progress.log.summary(progress.summary(status, loop.step))
        if (fault := reader_fault(error)) is not None:  # a DataLoader worker died while no batch was waited for
            raise fault from None
        raise
    finally:
        loop.inputs.close()
        progress.log.close()
    return {**progress.summary("complete", loop.step), **finished}


class Loop:
    """The state of the loop.

    Attributes:
        step: the number of steps done; `first_step`, when the loop began.
        saved_step: the step of the last checkpoint.
        inputs: the micro-batches of the steps to come.
        micro_batch_size: images at a time; halved whenever memory runs out.
        is_warm: whether the step is compiled for the current micro-batch size, or need not be.
        reader_killed: the error that ended this process's readers (DataLoader workers): the system killed one for the
            second time. None while they work.
    """

    def __init__(
        self, training: Training, progress: Progress, stop: StopRequest, processes: Processes, step: int
    ) -> None:
        self.training, self.progress, self.stop, self.processes = training, progress, stop, processes
        self.step = self.first_step = self.saved_step = step
        self.micro_batch_size = training.micro_batch_size
        self.is_warm = False
        self.reader_killed: ReaderKilled | None = None
        self.evaluators: list[Evaluator] = []
        self.bar = ProgressBar(
            training.num_steps, step, training.title, quiet=not processes.is_first, is_timed_from_start=False
        )
        is_first, rank = processes.is_first, processes.rank
        self.waits = Waits(self.bar.print if is_first else lambda line: print(f"process {rank}: {line}", flush=True))
        self.inputs = training.read_from(step, self.micro_batch_size)

    def run(
        self, make_evaluators: Callable[[], list[Evaluator]], finish: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Take all steps, then return the result of `finish`."""
        training, bar = self.training, self.bar
        with self.waits, ExitStack() as stack:
            with self.waits.waiting_for("the images to evaluate on"):
                self.evaluators = make_evaluators()
            self.stop.defer()
            stack.enter_context(bar)
            bar.print(f"resumed at step {self.step:,}" if self.progress.is_resumed else f"writing to {training.run}")
            self.evaluate()  # where a signal stopped the previous start before it evaluated this step
            while self.step < training.num_steps:
                if (taken := self.try_step()) is not None:
                    self.after_step(*taken)
            self.stop_if_requested()
            with self.waits.waiting_for("the final evaluation"):
                return finish()

    def try_step(self) -> tuple[float, StepResult] | None:
        """Take a step; return learning rate and result, or None where memory ran out and the micro-batch was halved."""
        training, inputs = self.training, None
        try:
            try:
                with self.waits.waiting_for("the readers' next batch"):
                    inputs = self.progress.next_inputs(self.inputs)
            except ReaderKilled as error:  # `stop_if_requested` tells the other processes
                self.reader_killed = error
            self.stop_if_requested()
            assert inputs is not None, "readers end early only where a stop was requested"
            self.warm_up(inputs)
            lr = training.schedule(self.step)
            set_learning_rate(training.optimizer, lr)
            return lr, training.take_step(inputs, self.step)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                if (fault := compiler_fault(training.run, error)) is not None:
                    raise fault from error
                raise
            self.micro_batch_size = smaller_micro_batch(
                training.run, training.batch_size, self.micro_batch_size, training.optimizer, self.processes
            )
            self.bar.print(f"out of memory: now {self.micro_batch_size} images at a time")
            self.inputs.close()
            self._restart_reading()
            self.is_warm = False
            return None

    def after_step(self, lr: float, result: StepResult) -> None:
        """Count the step, then log, evaluate and save, each when it is due; or roll back."""
        training, (loss, grad_norm, is_skipped) = self.training, result
        self.step += 1
        self.progress.add(loss, is_skipped)
        if self.step % training.log_every == 0 or self.step in (1, training.num_steps):
            self.write_line(lr, grad_norm)
        is_save_due = self.step % training.save_every == 0 or self.step == training.num_steps
        has_diverged = self.progress.skipped_in_row >= MAX_SKIPPED
        if has_diverged or (is_save_due and self.processes.any(not is_finite(training.model))):
            self.roll_back()
            return
        self.print_time_left(loss)
        self.evaluate()
        if is_save_due:
            self.save()

    def write_line(self, lr: float, grad_norm: Tensor) -> None:
        """Write a line to metrics.jsonl and to the screen, and to the screen a line about each unusual event."""
        training = self.training
        with self.waits.waiting_for("the device"):
            line, *unusual = self.progress.line(self.step, lr, grad_norm, peak_memory(training.device))
        self.bar.update(self.step, line)
        skipped = [skipped_line(number, training.names_of_step(number - 1)) for number in self.progress.skipped_steps]
        for line in unusual + skipped:
            self.bar.print(line)

    def print_time_left(self, loss: Tensor) -> None:
        """After the first steps, print how long the others will take; the very first one, a slow one, is not timed."""
        first, bar = self.first_step, self.bar
        if self.step not in (first + 1, first + 1 + TIMED_STEPS):
            return
        float(loss)  # waits for the device: a CUDA step may only be queued
        if self.step == first + 1:  # the readers have started and the kernels are chosen
            bar.start_clock(self.step)
        elif (left := bar.time_left(self.step)) is not None:
            bar.print(f"timed      about {format_duration(left)} from here")

    def evaluate(self) -> None:
        """Run the evaluators that are due."""
        training = self.training
        try:
            with self.waits.waiting_for("the evaluation"):
                evaluate(self.evaluators, self.step, training.num_steps, training.model, self.progress, self.stop)
        except ReaderKilled as error:
            self.reader_killed = error

    def warm_up(self, inputs: StepInputs[Batch, Any]) -> None:
        """Compile before the first step where the task does so; the time is not counted as training."""
        step_model = self.training.step_model
        if step_model is not None and step_model.needs_warm_up and not self.is_warm:
            self.bar.print("compiling  the step, about a minute on a GPU")
            before = time.monotonic()
            try:
                with self.waits.waiting_for("the compiler"):
                    self.bar.print(step_model.warm_up(inputs, self.stop))
            finally:
                for clock in (self.bar, self.progress):
                    clock.exclude_time(time.monotonic() - before)
            self.stop_if_requested()
        self.is_warm = True

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        with self.waits.waiting_for("the checkpoint to be written"):
            state = self.progress.to_dict()
            if self.processes.is_first:
                self.training.save(self.step, state)
            self.processes.wait()
        self.saved_step = self.step

    def roll_back(self) -> None:
        """Go back to the newest good checkpoint because weights or gradients are not finite."""
        training, names = self.training, self.training.names_of_step(self.step - 1)
        self.step = roll_back(training.run, self.step, training.restore, self.progress, names)
        self.bar.print(f"weights or gradients are not finite: back to step {self.step:,}")
        self.bar.start_clock(self.step)
        self.inputs.close()
        self._restart_reading()

    def stop_if_requested(self) -> None:
        """Save and stop where any of the processes received a signal, or its readers were killed.

        Called between steps only, when weights, optimiser and step number are of the same step.
        """
        processes = self.processes
        with self.waits.waiting_for("another process"):
            should_stop = processes.any(self.stop.is_received() or self.reader_killed is not None)
        if not should_stop:
            return
        can_save = not processes.any(not is_finite(self.training.model))
        if can_save and (self.saved_step != self.step or self.step == 0):
            self.save()
        outcome = "saved, --resume auto continues" if can_save else "not saved, weights are not finite"
        if self.reader_killed is not None:
            raise Fault(f"{self.reader_killed}; at step {self.step:,}: {outcome}")
        signal = self.stop.received or "another process received a signal or lost its readers"
        raise Interrupted(f"{signal} at step {self.step:,}: {outcome}")

    def _restart_reading(self) -> None:
        """Start new readers at the current step, with micro-batches of the current size."""
        self.inputs = self.training.read_from(self.step, self.micro_batch_size)


def skipped_line(step: int, names: list[str]) -> str:
    """A line that names the inputs of a step that was skipped because its gradients were not finite."""
    return f"step {step:,} was skipped, its gradients were not finite; its batch: {named_inputs(names)}"
