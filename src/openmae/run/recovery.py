"""Recovery from too little memory, failures of the compiler, and numbers that are not finite."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from openmae.errors import Fault
from openmae.machine.parallel import Processes
from openmae.run.progress import Progress
from openmae.run.remembered import remember_micro_batch, remember_no_compile
from openmae.training.checkpoint import Checkpoint, newest_checkpoint

MAX_ROLLBACKS = 3
NAMED_INPUTS = 8  # at most so many of a bad batch are named in a message


def smaller_micro_batch(
    run: Path,
    batch_size: int,
    micro_batch_size: int,
    optimizer: torch.optim.Optimizer,
    processes: Processes,
) -> int:
    """The micro-batch size to continue with after running out of memory: half as many images, the same batch.

    With several processes the others already wait for this one's gradients, so the run has to be started again.

    Raises:
        Fault: one image at a time is too much; or there are several processes, and the run folder remembers the
            smaller size for the next start.
    """
    optimizer.zero_grad(set_to_none=True)
    micro = min(micro_batch_size, len(processes.share(batch_size)))
    if micro == 1:
        raise Fault(
            "out of memory with a single image at a time: give a smaller --model or --image-size (pretrain: or "
            "--recompute True)"
        )
    remember_micro_batch(run, micro // 2, too_many=micro)
    if processes.count > 1:
        raise Fault(
            f"out of memory with {micro} images at a time: started again with --resume auto (torchrun --max-restarts "
            f"does) the run takes {micro // 2}"
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return micro // 2


def compiler_fault(run: Path, error: RuntimeError) -> Fault | None:
    """The error to raise where torch.compile failed, else None; the run folder then remembers not to compile."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    remember_no_compile(run)
    reason = " ".join(str(error).strip().split("\n\n")[0].split()) or type(error).__name__
    return Fault(f"torch.compile fails here ({reason}): --compile False goes without it")


def is_finite(model: nn.Module) -> bool:
    """Whether every parameter is finite; weights that are not are never saved. Waits for the device."""
    return bool(torch.stack([parameter.isfinite().all() for parameter in model.parameters()]).all())


def named_inputs(names: list[str]) -> str:
    """The names of the first inputs of a batch, and how many more there are."""
    more = f" and {len(names) - NAMED_INPUTS} more" if len(names) > NAMED_INPUTS else ""
    return ", ".join(map(repr, names[:NAMED_INPUTS])) + more


def roll_back(run: Path, step: int, restore: Callable[[Checkpoint], None], progress: Progress, names: list[str]) -> int:
    """Restore the newest good checkpoint; return its step.

    Args:
        names: the inputs of the last batch, for the message.

    Raises:
        Fault: there is no checkpoint, or the run was rolled back too often.
    """
    rollbacks = progress.counts["rollbacks"]
    checkpoint, _ = newest_checkpoint(run)
    if checkpoint is None or rollbacks == MAX_ROLLBACKS:
        raise Fault(
            f"weights or gradients are not finite at step {step:,}, after {rollbacks} roll-backs: try a lower "
            f"--base-lr or --precision fp32; the last batch was {named_inputs(names)}"
        )
    restore(checkpoint)
    step = int(checkpoint.state["step"])
    progress.restore(checkpoint.state)
    progress.counts["rollbacks"] = rollbacks + 1
    progress.log.rewind(step, progress.evaluated_step == step)
    return step
