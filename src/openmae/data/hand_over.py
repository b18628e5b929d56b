"""How a reader process hands a batch over: in memory that both share, or through a pipe where there is too little.

A container has 64 MB of shared memory unless told otherwise (Docker's --shm-size), and four readers of a raw pack need
more. A pipe copies each batch a few times more and has no such limit.
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
PREFETCHED = 2  # batches that each reader has ready or is making


def free_shared_memory() -> int | None:
    """Bytes of shared memory that are free; None where the system has no such place (macOS)."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def pipes_reason(bytes_per_batch: int, workers: int, held: int) -> str | None:
    """The line that says why batches go through pipes; None where shared memory holds them.

    Args:
        bytes_per_batch: of a micro-batch as readers make it.
        workers: of all processes on this machine.
        held: micro-batches that the main processes still hold.
    """
    free = free_shared_memory()
    needed = (PREFETCHED * workers + held) * bytes_per_batch
    if free is None or workers == 0 or needed <= free:
        return None
    return (
        f"{workers} reader{'s need' if workers > 1 else ' needs'} {_size(needed)} of shared memory and {_size(free)} "
        "are free: batches go through pipes instead, which is slower (docker run --shm-size gives more; so do fewer "
        "--workers or a smaller --micro-batch-size need less)"
    )


def needs_pipes(bytes_per_batch: int, workers: int, held: int) -> bool:
    """Whether shared memory is too small for what readers make; the first time that it is, a line says why.

    Under torchrun all processes of a machine read alike, and the first of all speaks.

    Args:
        bytes_per_batch, workers, held: as of `pipes_reason`, of this process.
    """
    alike = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    reason = pipes_reason(bytes_per_batch, workers * alike, held * alike)
    if reason is not None and not _said and os.environ.get("RANK", "0") == "0":
        _said.append(reason)
        print(f"readers    {reason}", flush=True)
    return reason is not None


_said = list[str]()


def allocate_batch(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor: in a reader process in memory that it shares, if there is some left."""
    empty = torch.empty(0, dtype=dtype)
    if torch.utils.data.get_worker_info() is None or _uses_pipes:
        return empty.new_empty(shape)
    needed, free = math.prod(shape) * empty.element_size(), free_shared_memory()
    if free is not None and free < needed:
        return empty.new_empty(shape)
    try:
        shared = empty.untyped_storage()._new_shared(needed, device="cpu")
    except RuntimeError:  # another process took it in between
        return empty.new_empty(shape)
    return empty.set_(shared, 0, shape)  # type: ignore[call-overload]


_uses_pipes = False  # all of this reader process's batches


def hand_over(use_pipes: bool) -> None:
    """How this reader process hands over what it makes: only what lies in shared memory already goes that way.

    torch would move every tensor there, in a thread where a failure is a traceback and a batch that never comes.
    """
    global _uses_pipes
    _uses_pipes = use_pipes
    ForkingPickler.register(Tensor, _reduced)


def _reduced(tensor: Tensor) -> tuple[Any, ...]:
    return reduce_tensor(tensor) if tensor.is_shared() else (torch.from_numpy, (tensor.numpy(),))


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
