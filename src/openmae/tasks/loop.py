"""The loop of a run: steps, lines, evaluations, checkpoints, and going on after what goes wrong.

Every task that trains hands its own step and verbs to `run_loop`; the loop knows no model and no data.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openmae.data.loader import Batch
from openmae.errors import Fault, Interrupted
from openmae.tasks.evaluators import Evaluator, evaluate
from openmae.tasks.held_out import EvaluationStopped
from openmae.tasks.progress import MOST_SKIPPED, Progress
from openmae.tasks.recovery import is_finite, roll_back, smaller_micro_batch
from openmae.training.checkpoint import Checkpoint
from openmae.training.device import peak_memory
from openmae.training.optim import set_rate
from openmae.training.parallel import Processes
from openmae.training.signals import StopRequest
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
        take_step: one optimiser step, over this process's micro-batches of the step with this number.
        read_from: the micro-batches of each step from one on, of at most so many images.
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
    take_step: Callable[[Sequence[Batch], int], StepResult]
    read_from: Callable[[int, int], Generator[list[Batch], None, None]]
    save: Callable[[int, dict[str, Any]], None]
    restore: Callable[[Checkpoint], None]
    names_of_step: Callable[[int], list[str]]


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
    t, micro_batch_size = training, training.micro_batch_size

    def save() -> None:
        state = progress.to_dict()
        if processes.is_first:
            t.save(step, state)
        processes.wait()

    batches = t.read_from(step, micro_batch_size)
    try:
        evaluators = make_evaluators()
        stop.defer()
        with Screen(t.num_steps, step, t.title, quiet=not processes.is_first) as screen:
            screen.say(f"resumed at step {step:,}" if step else f"writing to {t.run}")
            first = step
            evaluate(evaluators, step, t.num_steps, t.model, progress, stop)  # if a stop came before it could
            while step < t.num_steps:
                parts = progress.wait_for(batches)
                set_rate(t.optimizer, rate := t.schedule(step))
                try:
                    loss, norm, is_skipped = t.take_step(parts, step)
                except RuntimeError as error:
                    micro_batch_size = smaller_micro_batch(
                        t.run, t.batch_size, micro_batch_size, error, t.optimizer, processes
                    )
                    screen.say(f"out of memory: now {micro_batch_size} images at a time")
                    batches.close()
                    batches = t.read_from(step, micro_batch_size)
                    continue
                step += 1
                progress.add(loss, is_skipped)
                if step % t.log_every == 0 or step in (1, t.num_steps):
                    # The one place that waits for the device.
                    said, *unusual = progress.line(step, rate, norm, peak_memory(t.device))
                    screen.update(step, said)
                    for line in unusual:
                        screen.say(line)
                wants_save = step % t.save_every == 0 or step == t.num_steps
                if progress.skipped_in_row >= MOST_SKIPPED or (wants_save and processes.any(not is_finite(t.model))):
                    step = roll_back(t.run, step, t.restore, progress, t.names_of_step(step - 1))
                    screen.say(f"weights or gradients are not finite: back to step {step:,}")
                    batches.close()
                    batches = t.read_from(step, micro_batch_size)
                    continue
                if step in (first + 1, first + 1 + TIMED_STEPS):
                    float(loss)  # waits for the device: what is only queued has taken no time yet
                    if step == first + 1:  # readers have started, kernels are chosen
                        screen.restart_clock(step)
                    else:
                        screen.say(f"timed      about {duration(screen.time_left(step))} from here")
                evaluate(evaluators, step, t.num_steps, t.model, progress, stop)
                if processes.any(stop.received is not None):
                    signal = stop.received or "a signal to another process"
                    if processes.any(not is_finite(t.model)):
                        raise Interrupted(f"{signal} at step {step:,}: not saved, weights are not finite")
                    save()
                    raise Interrupted(f"{signal} at step {step:,}: saved, --resume auto continues")
                if wants_save:
                    save()
        finished = finish()
    except EvaluationStopped:
        progress.log.summary(progress.summary("interrupted", step))
        raise Interrupted("stopped in the final evaluation: saved, --resume auto continues") from None
    except BaseException as error:
        with suppress(Fault):  # on a full disk, what happened first is what must be said
            progress.log.summary(progress.summary("interrupted" if isinstance(error, Interrupted) else "failed", step))
        raise
    finally:
        batches.close()
        progress.log.close()
    return {**progress.summary("complete", step), **finished}


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
