"""The loop of a run: steps, lines, evaluations, checkpoints, and going on after what goes wrong.

Every task that trains hands its own step and verbs to `run_loop`; the loop knows no model and no data.
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
from openmae.training.optim import set_rate
from openmae.training.prefetch import StepInputs
from openmae.training.telemetry import Screen, duration

TIMED_STEPS = 5  # after so many steps the time that the run will take is said


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, as the loop sees it.

    Attributes:
        title: of the progress line.
        model: without what distribution puts around it.
        schedule: the learning rate of a step.
        step_model: what is to be compiled and checked before the first step and after each change of the
            micro-batches' size; None where nothing ever is.
        take_step: one optimiser step, over this process's micro-batches of the step with this number.
        read_from: the micro-batches of each step from one on, of at most so many images, made ready for the model.
        save: write the checkpoint of a step, with where the run stands; called in the first process.
        restore: put a checkpoint's weights and optimiser back.
        names_of_step: the inputs of a step's batch.
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
    """Train from `step` to the last one, then `finish`: what it returns goes into the summary.

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
        with suppress(Fault):  # on a full disk, what happened first is what must be said
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
        step: how many are done.
        saved_step: of the last checkpoint.
        inputs: the micro-batches of the steps to come.
        micro_batch_size: images at a time, fewer after memory was short.
        is_warm: whether the step is compiled for the present size of micro-batches.
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
        self.screen = Screen(training.num_steps, step, training.title, quiet=not processes.is_first, has_pace=False)
        self.waits = Waits(
            self.screen.say
            if processes.is_first
            else lambda line: print(f"process {processes.rank}: {line}", flush=True)
        )
        self.inputs = training.read_from(step, self.micro_batch_size)

    def run(
        self, make_evaluators: Callable[[], list[Evaluator]], finish: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """All steps, then what `finish` finds."""
        t, screen = self.training, self.screen
        with self.waits, ExitStack() as live:
            with self.waits.on("the images to evaluate on"):
                self.evaluators = make_evaluators()
            self.stop.defer()
            live.enter_context(screen)
            screen.say(f"resumed at step {self.step:,}" if self.progress.is_resumed else f"writing to {t.run}")
            self.evaluate()  # if a stop came before it could
            while self.step < t.num_steps:
                if (tried := self.try_step()) is not None:
                    self.after_step(*tried)
            self.stop_if_asked()
            with self.waits.on("the final evaluation"):
                return finish()

    def try_step(self) -> tuple[float, StepResult] | None:
        """The rate and the result of a step; None where it did not fit into memory: micro-batches are smaller now."""
        t, found = self.training, None
        try:
            try:
                with self.waits.on("the readers' next batch"):
                    found = self.progress.wait_for(self.inputs)
            except ReaderKilled as error:  # the other processes hear of it in `stop_if_asked`
                self.killed = error
            self.stop_if_asked()
            assert found is not None, "readers give up where a stop was asked for"
            self.warm_up(found)
            set_rate(t.optimizer, rate := t.schedule(self.step))
            return rate, t.take_step(found, self.step)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                if (fault := compiler_fault(t.run, error)) is not None:
                    raise fault from error
                raise
            self.micro_batch_size = smaller_micro_batch(
                t.run, t.batch_size, self.micro_batch_size, t.optimizer, self.processes
            )
            self.screen.say(f"out of memory: now {self.micro_batch_size} images at a time")
            self.inputs.close()
            self._read()
            return None

    def after_step(self, rate: float, result: StepResult) -> None:
        """Count the step, say how it goes, look at the model and save it, each when it is its turn."""
        t, (loss, norm, is_skipped) = self.training, result
        self.step += 1
        self.progress.add(loss, is_skipped)
        if self.step % t.log_every == 0 or self.step in (1, t.num_steps):
            self.write_line(rate, norm)
        wants_save = self.step % t.save_every == 0 or self.step == t.num_steps
        is_lost = self.progress.skipped_in_row >= MAX_SKIPPED
        if is_lost or (wants_save and self.processes.any(not is_finite(t.model))):
            self.roll_back()
            return
        self.say_time(loss)
        self.evaluate()
        if wants_save:
            self.save()

    def write_line(self, rate: float, norm: Tensor) -> None:
        """A line of metrics.jsonl and of the screen, and one about each unusual thing."""
        t = self.training
        with self.waits.on("the device"):
            line, *unusual = self.progress.line(self.step, rate, norm, peak_memory(t.device))
        self.screen.update(self.step, line)
        skipped = [skipped_line(number, t.names_of_step(number - 1)) for number in self.progress.skipped_steps]
        for line in unusual + skipped:
            self.screen.say(line)

    def say_time(self, loss: Tensor) -> None:
        """After the first steps, how long the others will take."""
        first, screen = self.first_step, self.screen
        if self.step not in (first + 1, first + 1 + TIMED_STEPS):
            return
        float(loss)  # waits for the device: what is only queued has taken no time yet
        if self.step == first + 1:  # readers have started, kernels are chosen
            screen.start_clock(self.step)
        elif (left := screen.time_left(self.step)) is not None:
            screen.say(f"timed      about {duration(left)} from here")

    def evaluate(self) -> None:
        """Look at the model, where it is time to."""
        t = self.training
        try:
            with self.waits.on("the evaluation"):
                evaluate(self.evaluators, self.step, t.num_steps, t.model, self.progress, self.stop)
        except ReaderKilled as error:
            self.killed = error

    def warm_up(self, inputs: StepInputs[Batch, Any]) -> None:
        """Compile before the first step, where that is wanted; it is not the step's time."""
        step_model = self.training.step_model
        if step_model is not None and step_model.needs_warm_up and not self.is_warm:
            self.screen.say("compiling  the step, about a minute on a GPU")
            before = time.monotonic()
            try:
                with self.waits.on("the compiler"):
                    self.screen.say(step_model.warm_up(inputs, self.stop))
            finally:
                for clock in (self.screen, self.progress):
                    clock.leave_out(time.monotonic() - before)
            self.stop_if_asked()
        self.is_warm = True

    def save(self) -> None:
        """Write a checkpoint of the present step."""
        with self.waits.on("the checkpoint to be written"):
            state = self.progress.to_dict()
            if self.processes.is_first:
                self.training.save(self.step, state)
            self.processes.wait()
        self.saved_step = self.step

    def roll_back(self) -> None:
        """Go back to the newest good checkpoint: weights or gradients are not finite."""
        t = self.training
        self.step = roll_back(t.run, self.step, t.restore, self.progress, t.names_of_step(self.step - 1))
        self.screen.say(f"weights or gradients are not finite: back to step {self.step:,}")
        self.screen.start_clock(self.step)
        self.inputs.close()
        self.inputs = t.read_from(self.step, self.micro_batch_size)

    def stop_if_asked(self) -> None:
        """Save and stop where a signal came to any of the processes, or one has no readers any more.

        No weight has changed since the last step.
        """
        processes = self.processes
        with self.waits.on("another process"):
            is_asked = processes.any(self.stop.is_received() or self.killed is not None)
        if not is_asked:
            return
        is_lost = processes.any(not is_finite(self.training.model))
        if not is_lost and (self.saved_step != self.step or self.step == 0):
            self.save()
        how = "not saved, weights are not finite" if is_lost else "saved, --resume auto continues"
        if self.killed is not None:
            raise Fault(f"{self.killed}; at step {self.step:,}: {how}")
        signal = self.stop.received or "a signal to another process, or a killed reader of it,"
        raise Interrupted(f"{signal} at step {self.step:,}: {how}")

    def _read(self) -> None:
        """Read on from the present step, in micro-batches of the present size."""
        self.inputs, self.is_warm = self.training.read_from(self.step, self.micro_batch_size), False


def skipped_line(step: int, names: list[str]) -> str:
    """Which inputs a step was not trained on, since their gradients were not finite."""
    return f"step {step:,} was not trained on its batch: {named_inputs(names)}"
