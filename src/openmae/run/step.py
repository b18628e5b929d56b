"""One optimiser step over the micro-batches of a batch, as all trainers take it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from openmae.data.batch import Batch
from openmae.machine.parallel import Processes, accumulating
from openmae.run.model_input import ModelInput
from openmae.training.prefetch import StepInputs

# This process's part of the loss, the norm of all gradients, and 1 where the step was skipped, else 0: scalars that
# stay on the device.
StepResult = tuple[Tensor, Tensor, Tensor]


def accumulated_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: StepInputs[Batch, ModelInput],
    loss_of: Callable[[ModelInput], Tensor],
    processes: Processes,
    reported: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> StepResult:
    """Take one optimiser step over this process's micro-batches of a global batch.

    A step whose gradients are not finite leaves weights and optimiser as they are.

    Args:
        model: wrapped so that gradients are averaged over processes.
        optimizer: one that heeds `found_inf` on the device: torch's fused kinds, as of `training.optim`, or LARS.
        loss_of: a micro-batch's part of the step's loss, which all parts of all processes add up to.
        reported: what of a part's loss the log adds up.
    """
    total: Tensor | None = None
    for number, part in enumerate(parts, start=1):
        with accumulating(model, is_last=number == len(parts)):
            loss = loss_of(part)
            (loss * processes.count).backward()  # what is averaged over processes must add up
        own = reported(loss.detach())
        total = own if total is None else total + own
    assert total is not None, "a step has micro-batches"
    return total, *step_if_finite(model, optimizer)


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
