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
from openmae.run.recovery import (
    compiler_fault,
    is_finite,
    named_inputs,
    roll_back,
    smaller_micro_batch,
)
from openmae.run.step import StepResult
from openmae.run.step_model import StepModel
from openmae.run.waits import Waits
from openmae.training.checkpoint import Checkpoint
from openmae.training.optim import set_learning_rate
from openmae.training.prefetch import StepInputs
from openmae.training.telemetry import ProgressBar, format_duration

TIMED_STEPS = 5  # after so many steps the time that the run will take is printed


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, as the loop sees it.

    Attributes:
        title: of the progress line.
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
        Interrupted: a signal; the run was saved.
        Fault: a full disk, a dead reader process, or numbers that are not finite after every roll-back.
    """
    loop = Loop(training, progress, stop, processes, step)
    try:
        finished = loop.run(make_evaluators, finish)
    except EvaluationStopped:
        progress.log.summary(progress.summary("interrupted", loop.step))
        raise Interrupted("stopped in the final evaluation: saved, --resume auto continues") from None
    except BaseException as error:
        with suppress(Fault):  # on a full disk the first error is the one to report
            status = "interrupted" if isinstance(error, Interrupted) else "failed"
            progress.log.summary(progress.summary(status, loop.step))
        if (fault := reader_fault(error)) is not None:  # a reader died while this process was elsewhere
            raise fault from None
        raise
    finally:
        loop.inputs.close()
        progress.log.close()
    return {**progress.summary("complete", loop.step), **finished}


class Loop:
    """A run between its first step and its last.

    Attributes:
        step: the number of steps done.
        saved_step: the step of the last checkpoint.
        inputs: the micro-batches of the steps to come.
        micro_batch_size: images at a time; halved whenever memory runs out.
        is_warm: whether the step is compiled for the current micro-batch size.
        killed: why this process has no readers any more: one of them was killed for the second time.
    """

    def __init__(
        self, training: Training, progress: Progress, stop: StopRequest, processes: Processes, step: int
    ) -> None:
        self.training, self.progress, self.stop, self.processes = training, progress, stop, processes
        self.step = self.first_step = self.saved_step = step
        self.micro_batch_size = training.micro_batch_size
        self.is_warm = False
        self.killed: ReaderKilled | None = None
        self.evaluators: list[Evaluator] = []
        self.bar = ProgressBar(
            training.num_steps, step, training.title, quiet=not processes.is_first, is_timed_from_start=False
        )
        self.waits = Waits(
            self.bar.print
            if processes.is_first
            else lambda line: print(f"process {processes.rank}: {line}", flush=True)
        )
        self.inputs = training.read_from(step, self.micro_batch_size)

    def run(
        self, make_evaluators: Callable[[], list[Evaluator]], finish: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Take all steps, then return the result of `finish`."""
        t, bar = self.training, self.bar
        with self.waits, ExitStack() as live:
            with self.waits.waiting_for("the images to evaluate on"):
                self.evaluators = make_evaluators()
            self.stop.defer()
            live.enter_context(bar)
            bar.print(f"resumed at step {self.step:,}" if self.progress.is_resumed else f"writing to {t.run}")
            self.evaluate()  # where a stop request had kept the previous start from it
            while self.step < t.num_steps:
                if (taken := self.try_step()) is not None:
                    self.after_step(*taken)
            self.stop_if_requested()
            with self.waits.waiting_for("the final evaluation"):
                return finish()

    def try_step(self) -> tuple[float, StepResult] | None:
        """Take a step: its learning rate and result, or None where memory ran out and the micro-batch was halved."""
        t, inputs = self.training, None
        try:
            try:
                with self.waits.waiting_for("the readers' next batch"):
                    inputs = self.progress.next_inputs(self.inputs)
            except ReaderKilled as error:  # the other processes hear of it in `stop_if_requested`
                self.killed = error
            self.stop_if_requested()
            assert inputs is not None, "readers end early only where a stop was requested"
            self.warm_up(inputs)
            set_learning_rate(t.optimizer, rate := t.schedule(self.step))
            return rate, t.take_step(inputs, self.step)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                if (fault := compiler_fault(t.run, error)) is not None:
                    raise fault from error
                raise
            self.micro_batch_size = smaller_micro_batch(
                t.run, t.batch_size, self.micro_batch_size, t.optimizer, self.processes
            )
            self.bar.print(f"out of memory: now {self.micro_batch_size} images at a time")
            self.inputs.close()
            self._read()
            return None

    def after_step(self, rate: float, result: StepResult) -> None:
        """Count the step, then log, evaluate and save, each when it is due."""
        t, (loss, norm, is_skipped) = self.training, result
        self.step += 1
        self.progress.add(loss, is_skipped)
        if self.step % t.log_every == 0 or self.step in (1, t.num_steps):
            self.write_line(rate, norm)
        is_save_due = self.step % t.save_every == 0 or self.step == t.num_steps
        has_diverged = self.progress.skipped_in_row >= MAX_SKIPPED
        if has_diverged or (is_save_due and self.processes.any(not is_finite(t.model))):
            self.roll_back()
            return
        self.print_time_left(loss)
        self.evaluate()
        if is_save_due:
            self.save()

    def write_line(self, rate: float, norm: Tensor) -> None:
        """Write a line to metrics.jsonl and to the screen, and a line about each unusual event."""
        t = self.training
        with self.waits.waiting_for("the device"):
            line, *unusual = self.progress.line(self.step, rate, norm, peak_memory(t.device))
        self.bar.update(self.step, line)
        skipped = [skipped_line(number, t.names_of_step(number - 1)) for number in self.progress.skipped_steps]
        for line in unusual + skipped:
            self.bar.print(line)

    def print_time_left(self, loss: Tensor) -> None:
        """After the first steps, print how long the others will take."""
        first, bar = self.first_step, self.bar
        if self.step not in (first + 1, first + 1 + TIMED_STEPS):
            return
        float(loss)  # waits for the device, which may only have queued the step so far
        if self.step == first + 1:  # readers have started, kernels are chosen
            bar.start_clock(self.step)
        elif (left := bar.time_left(self.step)) is not None:
            bar.print(f"timed      about {format_duration(left)} from here")

    def evaluate(self) -> None:
        """Run the evaluators that are due."""
        t = self.training
        try:
            with self.waits.waiting_for("the evaluation"):
                evaluate(self.evaluators, self.step, t.num_steps, t.model, self.progress, self.stop)
        except ReaderKilled as error:
            self.killed = error

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
        """Return to the newest good checkpoint, for weights or gradients are not finite."""
        t = self.training
        self.step = roll_back(t.run, self.step, t.restore, self.progress, t.names_of_step(self.step - 1))
        self.bar.print(f"weights or gradients are not finite: back to step {self.step:,}")
        self.bar.start_clock(self.step)
        self.inputs.close()
        self.inputs = t.read_from(self.step, self.micro_batch_size)

    def stop_if_requested(self) -> None:
        """Save and stop where any of the processes received a signal, or has no readers any more.

        It is called between steps, when weights, optimiser and step number belong together.
        """
        processes = self.processes
        with self.waits.waiting_for("another process"):
            should_stop = processes.any(self.stop.is_received() or self.killed is not None)
        if not should_stop:
            return
        is_not_finite = processes.any(not is_finite(self.training.model))
        if not is_not_finite and (self.saved_step != self.step or self.step == 0):
            self.save()
        outcome = "not saved, weights are not finite" if is_not_finite else "saved, --resume auto continues"
        if self.killed is not None:
            raise Fault(f"{self.killed}; at step {self.step:,}: {outcome}")
        signal = self.stop.received or "a signal to another process, or a killed reader of it,"
        raise Interrupted(f"{signal} at step {self.step:,}: {outcome}")

    def _read(self) -> None:
        """Restart reading at the current step, in micro-batches of the current size."""
        self.inputs, self.is_warm = self.training.read_from(self.step, self.micro_batch_size), False


def skipped_line(step: int, names: list[str]) -> str:
    """A line that names the inputs of a step that was skipped because its gradients were not finite."""
    return f"step {step:,} was not trained on its batch: {named_inputs(names)}"
