"""The sizes of all images of a source, from their headers; cutting a source into tiles (`--tiles`)."""

from collections.abc import Sequence
from contextlib import closing
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from openmae.data.decoding.pixels import BadImage
from openmae.data.readers import iterate_batches, make_loader
from openmae.data.sources.open import Source
from openmae.data.sources.packed import PackedSource
from openmae.data.sources.tiles import Tiled
from openmae.errors import RequestError, shown

_BATCH = 256
_PARALLEL_FROM = 4096  # images; for fewer, starting readers takes longer than reading
_MAX_READERS = 8


@runtime_checkable
class Sized(Protocol):
    """A source that knows an image's size without decoding it."""

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels. Raises BadImage where the header does not say."""
        ...


def sizes_of(source: Source, workers: int = 0) -> NDArray[np.int32]:
    """Height and width of every image: (n, 2); zeros for unreadable ones.

    An image is decoded only where its header cannot be read.

    Args:
        workers: reader processes, used only for many images.
    """
    count = len(source)
    readers = min(workers, _MAX_READERS) if count >= _PARALLEL_FROM else 0
    batches = [list(range(start, min(start + _BATCH, count))) for start in range(0, count, _BATCH)]
    dataset = _Sizes(source)
    with closing(
        iterate_batches(make_loader(dataset, batches, np.asarray, workers=readers, pin_memory=False))
    ) as parts:
        return np.concatenate([np.empty((0, 2), np.int32), *parts])


def cut_into_tiles(source: Source, size: int, data: str, workers: int = 0) -> Tiled:
    """The source with each image that is larger than `size` as its tiles.

    Args:
        size: the side of a tile in pixels.
        data: the name of the data set, for messages.

    Raises:
        RequestError: the source is a pack of tiles, or a pack of images no larger than a tile.
    """
    if isinstance(source, PackedSource) and source.image_numbers is not None:
        raise RequestError(f"--tiles got {size}, but {shown(data)} is a pack of tiles already: leave it out")
    tiled = Tiled(source, size, sizes_of(source, workers))
    if isinstance(source, PackedSource) and not tiled.num_cut:
        largest = int(tiled.sizes.max(initial=0))
        raise RequestError(
            f"--tiles got {size}, but no image of the pack {shown(data)} is larger than {largest} px: leave it out, or "
            f"cut the images themselves with openmae pack --tiles {size}"
        )
    return tiled


class _Sizes(Dataset):
    """Sizes instead of images, read in the reader processes."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitems__(self, indices: Sequence[int]) -> NDArray[np.int32]:
        return np.array([self._size(index) for index in indices], np.int32).reshape(-1, 2)

    def _size(self, index: int) -> tuple[int, int]:
        try:
            if isinstance(self.source, Sized):
                return self.source.size(index)
        except BadImage:  # an unsupported header: decoding may still succeed
            pass
        try:
            height, width = self.source.read(index).shape[:2]
        except BadImage:
            return 0, 0
        return height, width
