"""One optimiser step with gradients accumulated over the micro-batches of a batch; all trainers use it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from openmae.data.batch import Batch
from openmae.machine.parallel import Processes, accumulating
from openmae.model.sync_batch_norm import SyncBatchNorm
from openmae.run.model_input import ModelInput
from openmae.training.prefetch import StepInputs

BATCH_NORMS = (SyncBatchNorm, nn.modules.batchnorm._BatchNorm)

# This process's part of the loss, the norm of all gradients, and 1 where the step was skipped, else 0: scalar tensors
# on the device.
StepResult = tuple[Tensor, Tensor, Tensor]


def accumulated_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: StepInputs[Batch, ModelInput],
    loss_fn: Callable[[ModelInput], Tensor],
    processes: Processes,
    logged_loss: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> StepResult:
    """Take one optimiser step over this process's micro-batches of a global batch.

    A step whose gradients are not finite leaves weights and optimiser as they are.

    Args:
        model: wrapped so that gradients are averaged over processes.
        optimizer: one that reads `found_inf` on the device: torch's fused optimisers, as in `training.optim`, or LARS.
        loss_fn: a micro-batch's share of the step's loss; the shares of all micro-batches and processes add up to it.
        logged_loss: from that share to what is logged.
    """
    total: Tensor | None = None
    statistics = RunningStatistics(model)
    try:
        for number, micro_batch in enumerate(micro_batches, start=1):
            with accumulating(model, is_last=number == len(micro_batches)):
                loss = loss_fn(micro_batch)
                (loss * processes.count).backward()  # DDP averages over processes, and the shares must add up
            share = logged_loss(loss.detach())
            total = share if total is None else total + share
    except RuntimeError:  # out of memory, after which the step is taken again
        statistics.restore()
        raise
    assert total is not None, "a step has micro-batches"
    norm, is_skipped = step_if_finite(model, optimizer)
    statistics.restore_where(is_skipped)
    return total, norm, is_skipped


class RunningStatistics:
    """The statistics of a model's batch norms before a step, whose forward pass changes them even if it is skipped."""

    def __init__(self, model: nn.Module) -> None:
        norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
        self._buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self._before = [buffer.clone() for buffer in self._buffers]

    def restore(self) -> None:
        """Set them back."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)

    def restore_where(self, is_skipped: Tensor) -> None:
        """Set them back where the step was skipped, which is decided on the device: nothing waits."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(torch.where(is_skipped.bool(), before, buffer))


def step_if_finite(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tensor, Tensor]:
    """Take the optimiser step, unless gradients are not finite: then weights and optimiser stay as they are.

    The decision is made on the device (the fused kernel's `found_inf`), so nothing waits; gradients are averaged over
    processes before it, so all decide alike.

    Returns:
        The norm of all gradients, and 1 where the step was skipped, else 0.
    """
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    is_skipped = (~norm.isfinite()).float()
    optimizer.found_inf = is_skipped  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, is_skipped
