"""One pass over all masks of a source: which values they hold, on how many pixels, and which cannot be used."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from openmae.data.decoding.decode import BadImage
from openmae.data.masks.source import MaskedSource

_IMAGES_AT_ONCE = 32  # of a thread, so that few futures are waiting


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


def survey_masks(source: MaskedSource, threads: int) -> MaskSurvey:
    """Decode every mask of a source once, in threads, and check its size against the image's header.

    Values that are no classes are no reason to be bad here: what is a class is decided by what is found.
    """
    counted = list(_in_threads(source, threads))
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


def _in_threads(source: MaskedSource, threads: int) -> Iterator[_Counted]:
    """Each mask in order. Ctrl-C waits for the few that are being decoded."""

    def some(start: int) -> list[_Counted]:
        return [_count(source, i) for i in range(start, min(start + _IMAGES_AT_ONCE, len(source)))]

    threads = max(1, threads)
    pool = ThreadPoolExecutor(threads)
    try:
        starts = iter(range(0, len(source), _IMAGES_AT_ONCE))
        waiting: list[Future[list[_Counted]]] = [pool.submit(some, start) for start in islice(starts, 2 * threads)]
        while waiting:
            yield from waiting.pop(0).result()
            waiting += [pool.submit(some, start) for start in islice(starts, 1)]
    finally:
        pool.shutdown(cancel_futures=True)


def _count(source: MaskedSource, index: int) -> _Counted:
    try:
        stored = source.stored_labels(index)
    except BadImage as error:
        return _Counted(reason=str(error))
    counts = np.bincount(stored.ravel() + 1)  # the lowest value is -1, a colour that the palette ignores
    values = np.flatnonzero(counts)
    height, width = stored.shape
    return _Counted((height, width), (values - 1).astype(np.int32), counts[values])
