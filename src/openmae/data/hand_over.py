"""How a reader process hands a batch to the main process: in shared memory, or through a pipe where that is too small.

A container has 64 MB of shared memory by default (Docker's --shm-size), and four readers of a raw pack need more. A
pipe copies each batch a few more times and has no such limit.
"""

import math
import os
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

SHARED_MEMORY = Path("/dev/shm")
PREFETCHED = 2  # `prefetch_factor`: batches that each reader has ready or is making


def free_shared_memory() -> int | None:
    """Free bytes of shared memory; None where the system has no /dev/shm (macOS)."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def pipes_reason(bytes_per_batch: int, workers: int, num_in_use: int) -> str | None:
    """Why batches must go through pipes, as a line; None where they fit into shared memory.

    Args:
        bytes_per_batch: of a micro-batch as readers make it.
        workers: of all processes on this machine.
        num_in_use: micro-batches that the main processes keep beside those of the readers.
    """
    free = free_shared_memory()
    needed = (PREFETCHED * workers + num_in_use) * bytes_per_batch
    if free is None or workers == 0 or needed <= free:
        return None
    return (
        f"{workers} reader{'s need' if workers > 1 else ' needs'} {_format_bytes(needed)} of shared memory and "
        f"{_format_bytes(free)} are free: batches go through pipes instead, which is slower (docker run --shm-size "
        "gives more; so do fewer --workers or a smaller --micro-batch-size need less)"
    )


def needs_pipes(bytes_per_batch: int, workers: int, num_in_use: int) -> bool:
    """Whether shared memory is too small for the readers' batches; prints why, once.

    Under torchrun all processes of a machine read the same amount, and only the process of rank 0 prints.

    Args:
        bytes_per_batch, workers, num_in_use: see `pipes_reason`; of this process.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    reason = pipes_reason(bytes_per_batch, workers * processes, num_in_use * processes)
    if reason is not None and not _printed and os.environ.get("RANK", "0") == "0":
        _printed.append(reason)
        print(f"readers    {reason}", flush=True)
    return reason is not None


_printed = list[str]()


def allocate_batch(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor for a batch: in a reader process in shared memory, if enough is free."""
    empty = torch.empty(0, dtype=dtype)
    if torch.utils.data.get_worker_info() is None or _uses_pipes:
        return empty.new_empty(shape)
    needed, free = math.prod(shape) * empty.element_size(), free_shared_memory()
    if free is not None and free < needed:
        return empty.new_empty(shape)
    try:
        shared = empty.untyped_storage()._new_shared(needed, device="cpu")
    except RuntimeError:  # another process took the memory in between
        return empty.new_empty(shape)
    return empty.set_(shared, 0, shape)  # type: ignore[call-overload]


_uses_pipes = False  # whether all batches of this reader process go through its pipe


def configure_transfer(use_pipes: bool) -> None:
    """Set up how this reader process sends tensors: those in shared memory by reference, all others through the pipe.

    torch by default moves every tensor to shared memory, in a thread where a failure ends in a traceback and a batch
    that never arrives.
    """
    global _uses_pipes
    _uses_pipes = use_pipes
    ForkingPickler.register(Tensor, _reduce)


def _reduce(tensor: Tensor) -> tuple[Any, ...]:
    return reduce_tensor(tensor) if tensor.is_shared() else (torch.from_numpy, (tensor.numpy(),))


def _format_bytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
