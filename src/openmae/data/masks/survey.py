"""One pass over all masks of a source: which values they hold, on how many pixels, and which cannot be used."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from openmae.data.decoding.decode import BadImage
from openmae.data.masks.label_map import count_values
from openmae.data.masks.memory_budget import MemoryBudget
from openmae.data.masks.source import MaskedSource
from openmae.machine.device import free_memory
from openmae.machine.parallel import Processes

_IMAGES_AT_ONCE = 32  # of a thread, so that few futures are waiting
_MEMORY_SHARE = 0.5  # of the free memory, for masks being decoded
_BYTES_PER_PIXEL, _BYTES_PER_COLOUR = 6, 14  # at the peak of decoding numbers (16 bits; of 8 bits 3), and colours


@dataclass(frozen=True, kw_only=True)
class MaskSurvey:
    """The values that the masks of a source store. An entry is one value of one mask; entries are in order of images.

    Attributes:
        sizes: (n, 2) height and width of each mask; 0 for a bad one.
        images, values, pixels: (m,) of each entry the image's index, the stored value, the number of pixels.
        bad: the reason, by name of the image, for each pair that cannot be used.
    """

    sizes: NDArray[np.int32]
    images: NDArray[np.int32]
    values: NDArray[np.int32]
    pixels: NDArray[np.int64]
    bad: dict[str, str]

    @property
    def is_readable(self) -> NDArray[np.bool_]:
        """Which pairs can be used: (n,)."""
        return self.sizes[:, 0] > 0

    @property
    def pixels_by_value(self) -> dict[int, int]:
        """The number of pixels of each stored value, in order of values."""
        values, inverse = np.unique(self.values, return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, inverse, self.pixels)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    @property
    def images_by_value(self) -> dict[int, int]:
        """The number of masks that hold each stored value, in order of values."""
        values, counts = np.unique(self.values, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))


@dataclass(frozen=True)
class _Counted:
    """A mask's size, values and their pixels; or why it is bad."""

    size: tuple[int, int] = (0, 0)
    values: NDArray[np.int32] | None = None
    pixels: NDArray[np.int64] | None = None
    reason: str = ""


def survey_masks(source: MaskedSource, threads: int, processes: Processes | None = None) -> MaskSurvey:
    """Decode every mask of a source once, in threads, and check its size against the image's header.

    Values that are no classes are no reason to be bad here: what is a class is decided by what is found.

    Args:
        threads: at most; fewer decode at a time where masks are so large that memory would not do.
        processes: each decodes its share, and all get the same survey; None: this one decodes all.
    """
    share = range(len(source)) if processes is None else processes.share(len(source))
    counted = list(_in_threads(source, share, threads, 1 if processes is None else processes.local_count))
    if processes is not None:  # shares follow each other in the order of ranks
        counted = [one for of_process in processes.gather(counted) for one in of_process]
    none, no_pixels = np.empty(0, np.int32), np.empty(0, np.int64)
    values = [none if one.values is None else one.values for one in counted]
    pixels = [no_pixels if one.pixels is None else one.pixels for one in counted]
    return MaskSurvey(
        sizes=np.array([one.size for one in counted], np.int32).reshape(-1, 2),
        images=np.repeat(np.arange(len(counted), dtype=np.int32), [len(of_image) for of_image in values]),
        values=np.concatenate([none, *values]),
        pixels=np.concatenate([no_pixels, *pixels]),
        bad={source.name(i): one.reason for i, one in enumerate(counted) if one.reason},
    )


def _in_threads(source: MaskedSource, share: range, threads: int, num_processes: int) -> Iterator[_Counted]:
    """Each mask of the share in order; `num_processes` share the memory.

    Ctrl-C waits for the few that are being decoded.
    """
    free = free_memory()
    budget = MemoryBudget(None if free is None else int(_MEMORY_SHARE * free / num_processes))

    def some(indices: range) -> list[_Counted]:
        return [_count(source, i, budget) for i in indices]

    threads = max(1, threads)
    pool = ThreadPoolExecutor(threads)
    try:
        parts = (share[start : start + _IMAGES_AT_ONCE] for start in range(0, len(share), _IMAGES_AT_ONCE))
        waiting: list[Future[list[_Counted]]] = [pool.submit(some, part) for part in islice(parts, 2 * threads)]
        while waiting:
            yield from waiting.pop(0).result()
            waiting += [pool.submit(some, part) for part in islice(parts, 1)]
    finally:
        pool.shutdown(cancel_futures=True)


def _count(source: MaskedSource, index: int, budget: MemoryBudget) -> _Counted:
    num_bytes = _BYTES_PER_PIXEL if source.palette is None else _BYTES_PER_COLOUR
    with budget.take(num_bytes * source.mask_pixels(index)):
        try:
            stored = source.stored_labels(index)
        except BadImage as error:
            return _Counted(reason=str(error))
        values, pixels = count_values(stored)
    height, width = stored.shape
    return _Counted((height, width), values.astype(np.int32), pixels)
