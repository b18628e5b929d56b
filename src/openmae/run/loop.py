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

from openmae.data.loader import Batch
from openmae.data.readers import ReaderKilled, reader_fault
from openmae.errors import Fault, Interrupted
from openmae.machine.device import peak_memory
from openmae.machine.parallel import Processes
from openmae.machine.signals import EvaluationStopped, StopRequest
from openmae.run.evaluators import Evaluator, evaluate
from openmae.run.progress import MOST_SKIPPED, Progress
from openmae.run.recovery import is_finite, named_inputs, roll_back, smaller_micro_batch
from openmae.run.step_model import StepModel
from openmae.run.waits import Waits
from openmae.training.checkpoint import Checkpoint
from openmae.training.copy_ahead import StepInputs
from openmae.training.optim import set_rate
from openmae.training.telemetry import Screen, duration

TIMED_STEPS = 5  # after so many steps the time that the run will take is said

# This process's part of the loss, the norm of all gradients, and 1 where the step was skipped, else 0: scalars that
# stay on the device.
StepResult = tuple[Tensor, Tensor, Tensor]


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
    t, micro_batch_size, saved_step = training, training.micro_batch_size, step
    killed: ReaderKilled | None = None  # of this process, the second time: the run is to end
    inputs, is_warm = t.read_from(step, micro_batch_size), False
    screen = Screen(t.num_steps, step, t.title, quiet=not processes.is_first, has_pace=False)
    waits = Waits(
        screen.say if processes.is_first else lambda line: print(f"process {processes.rank}: {line}", flush=True)
    )

    def save() -> None:
        nonlocal saved_step
        with waits.on("the checkpoint to be written"):
            state = progress.to_dict()
            if processes.is_first:
                t.save(step, state)
            processes.wait()
        saved_step = step

    def stop_if_asked() -> None:
        """Save and stop where a signal came to any of the processes, or one has no readers any more.

        No weight has changed since the last step.
        """
        with waits.on("another process"):
            is_asked = processes.any(stop.is_received() or killed is not None)
        if is_asked:
            is_lost = processes.any(not is_finite(t.model))
            if not is_lost and (saved_step != step or step == 0):
                save()
            how = "not saved, weights are not finite" if is_lost else "saved, --resume auto continues"
            if killed is not None:
                raise Fault(f"{killed}; at step {step:,}: {how}")
            signal = stop.received or "a signal to another process, or a killed reader of it,"
            raise Interrupted(f"{signal} at step {step:,}: {how}")

    def look() -> None:
        """Evaluate, where it is time to."""
        nonlocal killed
        try:
            with waits.on("the evaluation"):
                evaluate(evaluators, step, t.num_steps, t.model, progress, stop)
        except ReaderKilled as error:
            killed = error

    def warm_up(found: StepInputs[Batch, Any]) -> None:
        """Compile before the first step, where that is wanted; it is not the step's time."""
        nonlocal is_warm
        if t.step_model is not None and t.step_model.needs_warm_up and not is_warm:
            screen.say("compiling  the step, about a minute on a GPU")
            before = time.monotonic()
            try:
                with waits.on("the compiler"):
                    screen.say(t.step_model.warm_up(found, stop))
            finally:
                for clock in (screen, progress):
                    clock.leave_out(time.monotonic() - before)
            stop_if_asked()
        is_warm = True

    def try_step() -> tuple[float, StepResult] | None:
        """The rate and the result of a step; None where it did not fit into memory: micro-batches are smaller now."""
        nonlocal inputs, is_warm, micro_batch_size, killed
        found = None
        try:
            try:
                with waits.on("the readers' next batch"):
                    found = progress.wait_for(inputs)
            except ReaderKilled as error:  # the other processes hear of it in `stop_if_asked`
                killed = error
            stop_if_asked()
            assert found is not None, "readers give up where a stop was asked for"
            warm_up(found)
            set_rate(t.optimizer, rate := t.schedule(step))
            return rate, t.take_step(found, step)
        except RuntimeError as error:
            micro_batch_size = smaller_micro_batch(t.run, t.batch_size, micro_batch_size, error, t.optimizer, processes)
            screen.say(f"out of memory: now {micro_batch_size} images at a time")
            inputs.close()
            inputs, is_warm = t.read_from(step, micro_batch_size), False
            return None

    try:
        with waits, ExitStack() as live:
            with waits.on("the images to evaluate on"):
                evaluators = make_evaluators()
            stop.defer()
            live.enter_context(screen)
            screen.say(f"resumed at step {step:,}" if progress.is_resumed else f"writing to {t.run}")
            first = step
            look()  # if a stop came before it could
            while step < t.num_steps:
                if (tried := try_step()) is None:
                    continue
                rate, (loss, norm, is_skipped) = tried
                step += 1
                progress.add(loss, is_skipped)
                if step % t.log_every == 0 or step in (1, t.num_steps):
                    with waits.on("the device"):
                        said, *unusual = progress.line(step, rate, norm, peak_memory(t.device))
                    screen.update(step, said)
                    for line in unusual + [skipped_line(n, t.names_of_step(n - 1)) for n in progress.skipped_steps]:
                        screen.say(line)
                wants_save = step % t.save_every == 0 or step == t.num_steps
                if progress.skipped_in_row >= MOST_SKIPPED or (wants_save and processes.any(not is_finite(t.model))):
                    step = roll_back(t.run, step, t.restore, progress, t.names_of_step(step - 1))
                    screen.say(f"weights or gradients are not finite: back to step {step:,}")
                    screen.start_clock(step)
                    inputs.close()
                    inputs = t.read_from(step, micro_batch_size)
                    continue
                if step in (first + 1, first + 1 + TIMED_STEPS):
                    float(loss)  # waits for the device: what is only queued has taken no time yet
                    if step == first + 1:  # readers have started, kernels are chosen
                        screen.start_clock(step)
                    elif (left := screen.time_left(step)) is not None:
                        screen.say(f"timed      about {duration(left)} from here")
                look()
                if wants_save:
                    save()
            stop_if_asked()
            with waits.on("the final evaluation"):
                finished = finish()
    except EvaluationStopped:
        progress.log.summary(progress.summary("interrupted", step))
        raise Interrupted("stopped in the final evaluation: saved, --resume auto continues") from None
    except BaseException as error:
        with suppress(Fault):  # on a full disk, what happened first is what must be said
            progress.log.summary(progress.summary("interrupted" if isinstance(error, Interrupted) else "failed", step))
        if (fault := reader_fault(error)) is not None:  # a reader died while this process was elsewhere
            raise fault from None
        raise
    finally:
        inputs.close()
        progress.log.close()
    return {**progress.summary("complete", step), **finished}


def skipped_line(step: int, names: list[str]) -> str:
    """Which inputs a step was not trained on, since their gradients were not finite."""
    return f"step {step:,} was not trained on its batch: {named_inputs(names)}"


def step_if_finite(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tensor, Tensor]:
    """Step, unless gradients are not finite: then weights and optimiser stay as they are.

    The decision is made on the device (the kernel's `found_inf`), and gradients are averaged over processes
    before it: all decide alike and none waits.

    Returns:
        The norm of all gradients, and 1 where the step was skipped, else 0.
    """
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    is_skipped = (~norm.isfinite()).float()
    optimizer.found_inf = is_skipped  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, is_skipped
