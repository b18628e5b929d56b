"""How a reader process hands a batch over: in memory that both share, or through a pipe where there is too little.

A container has 64 MB of shared memory unless told otherwise (Docker's --shm-size), and four readers of a raw pack need
more. A pipe copies each batch a few times more and has no such limit.
"""

import io
import math
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHARED_MEMORY = Path("/dev/shm")
PREFETCHED = 2  # batches that each reader has ready or is making
SPARE = 1 << 20  # bytes of shared memory that stay free, for the small tensors of a batch

# In a reader process: whether the batch that is being made found no room in shared memory.
_found_no_room = False


def free_shared_memory() -> int | None:
    """Bytes of shared memory that are free; None where the system has no such place (macOS)."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def why_through_pipes(bytes_per_batch: int, workers: int) -> str | None:
    """The line that says why batches go through pipes; None where shared memory holds them.

    Args:
        bytes_per_batch: of a micro-batch as readers make it.
    """
    free = free_shared_memory()
    needed = (PREFETCHED * workers + 2) * bytes_per_batch  # two: being copied, and being trained on
    if free is None or workers == 0 or needed + SPARE <= free:
        return None
    return (
        f"{workers} reader{'s need' if workers > 1 else ' needs'} {_size(needed)} of shared memory and {_size(free)} "
        "are free: batches go through pipes instead, which is slower (docker run --shm-size gives more; so do fewer "
        "--workers or a smaller --micro-batch-size need less)"
    )


def room(shape: tuple[int, ...], dtype: torch.dtype, is_shared: bool = True) -> Tensor:
    """An empty tensor: in a reader process in memory that it shares, if there is some left."""
    global _found_no_room
    if torch.utils.data.get_worker_info() is None or not is_shared:
        return torch.empty(shape, dtype=dtype)
    empty = torch.empty(0, dtype=dtype)
    needed = math.prod(shape) * empty.element_size()
    free = free_shared_memory()
    if free is not None and free < needed + SPARE:
        _found_no_room = True
        return torch.empty(shape, dtype=dtype)
    try:
        shared = empty.untyped_storage()._new_shared(needed, device="cpu")
    except RuntimeError:  # another process took it in between
        _found_no_room = True
        return torch.empty(shape, dtype=dtype)
    return empty.set_(shared, 0, shape)  # type: ignore[call-overload]


class Pickled:
    """A batch as bytes, which a pipe carries whole.

    Handing over tensors as they are would put them into shared memory.
    """

    def __init__(self, batch: Any) -> None:
        stream = io.BytesIO()
        _Pickler(stream, protocol=5).dump(batch)
        self._bytes = stream.getbuffer()

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_bytes, (bytes(self._bytes),)

    def load(self) -> Any:
        return pickle.loads(self._bytes)

    def pin_memory(self) -> Any:
        """The batch in page-locked memory: what DataLoader's thread asks for."""
        batch = self.load()
        return batch.pin_memory() if hasattr(batch, "pin_memory") else batch


def handed_over(batch: Any, through_pipe: bool) -> Any:
    """The batch as a reader process returns it."""
    global _found_no_room
    through_pipe, _found_no_room = through_pipe or _found_no_room, False
    return Pickled(batch) if through_pipe else batch


def received(batch: Any) -> Any:
    """The batch that a reader returned."""
    return batch.load() if isinstance(batch, Pickled) else batch


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def _from_bytes(data: bytes) -> Pickled:
    pickled = Pickled.__new__(Pickled)
    pickled._bytes = memoryview(data)
    return pickled


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
