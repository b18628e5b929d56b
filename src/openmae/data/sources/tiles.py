"""Tiles of large images as samples of their own (`--tiles SIZE`): their positions, names and pixels."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from openmae.data.decoding.nodata import contiguous, nodata_mask, valid_values
from openmae.data.decoding.pixels import BadImage
from openmae.data.decoding.regions import open_pixels
from openmae.data.randomness import Permutation
from openmae.data.resize import Pixels
from openmae.data.sources.folder import Ignored
from openmae.data.sources.open import Label, Source

BLANK = "blank tile"  # the reason that is recorded for a blank tile
_REPLACEMENT_KEY = 0x711E
_COARSE = 16  # rows and columns are first compared at this stride


def tiles_along(lengths: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """How many tiles of `size` cover sides of these lengths, at least 1."""
    return np.maximum(1, -(-lengths // size))


def span(length: int, size: int, number: int) -> tuple[int, int]:
    """Start and length of tile `number` along a side: the last shifts inward, a side shorter than a tile is whole."""
    extent = min(size, length)
    return min(number * size, length - extent), extent


def is_blank(tile: NDArray) -> bool:
    """Whether every channel has one value throughout, NaN counting as a value: nothing can be learnt from it."""
    if nodata_mask(tile) is not None:
        return _is_plain(tile)
    for part in (tile[::_COARSE, ::_COARSE], tile):  # a few pixels show that most tiles are not blank
        first = part[:1, :1]
        same = part == first
        if tile.dtype.kind == "f":
            same |= np.isnan(part) & np.isnan(first)
        if not same.all():
            return False
    return True


def _is_plain(tile: NDArray) -> bool:
    """Whether each channel has one value where it is not nodata, or only nodata."""
    return all((values == values[:1]).all() for values in valid_values(tile))


class Tiled:
    """A source with each image that is larger than `size` x `size` replaced by its tiles.

    The tiles of an image are consecutive, row by row, and named `name#row,column`, counted from 0. All
    tiles of an image have one shape: `size` x `size` or, where only one side is longer than that, `size` along it and
    the image's own length along the other. The last row and column begin where they end with the image, and so overlap
    the ones before. A smaller image stays whole. A tile has its image's label.

    Each process caches the image that it decoded last, so tiles that are read in order decode it once. Where crops of
    an image can be read alone, only the tile is read.

    Args:
        sizes: (n, 2) height and width of each of the source's images; 0 where it is unknown.
    """

    def __init__(self, source: Source, size: int, sizes: NDArray[np.int32]) -> None:
        assert size > 0 and sizes.shape == (len(source), 2)
        self.source, self.size, self.sizes = source, size, sizes
        self.classes: tuple[str, ...] | None = source.classes
        self.ignored: Ignored = source.ignored
        self._grids = tiles_along(sizes.astype(np.int64), size)  # (n, 2): rows and columns of tiles
        self._starts = np.concatenate([[0], np.cumsum(self._grids.prod(axis=1))])  # the first tile of each image
        self._cached: tuple[int, Pixels] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cached": None}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def num_cut(self) -> int:
        """Images that are larger than a tile."""
        return int((np.diff(self._starts) > 1).sum())

    @property
    def image_numbers(self) -> NDArray[np.int64]:
        """Which of the source's images each tile is of: (len,)."""
        return np.repeat(np.arange(len(self.sizes)), np.diff(self._starts))

    def locate(self, index: int) -> tuple[int, int, int]:
        """The image, and the row and column of the tile in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        image = int(np.searchsorted(self._starts, index, side="right")) - 1
        row, column = divmod(index - int(self._starts[image]), int(self._grids[image, 1]))
        return image, row, column

    def name(self, index: int) -> str:
        image, row, column = self.locate(index)
        name = self.source.name(image)
        return f"{name}#{row},{column}" if self._is_cut(image) else name

    def label(self, index: int) -> Label:
        return self.source.label(self.locate(index)[0])

    def read(self, index: int) -> NDArray:
        image, row, column = self.locate(index)
        pixels = self._image(image)
        if not self._is_cut(image):
            return pixels[:, :]
        (top, height), (left, width) = (
            span(int(length), self.size, number)
            for length, number in zip(self.sizes[image], (row, column), strict=True)
        )
        return contiguous(pixels[top : top + height, left : left + width])

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint()}[tiles {self.size} {hashlib.sha256(self.sizes.tobytes()).hexdigest()}]"

    def replacements(self, index: int) -> Iterator[Iterable[int]]:
        """Candidates to read for tile `index`, itself first: the tiles of its image, then those of the next images.

        The order of an image's tiles is a permutation that depends on the index: in plain order, the first tile after a
        run of blank ones would be seen far more often than others.
        """
        image, _, _ = self.locate(index)
        for offset in range(len(self.sizes)):
            start, stop = self._starts[(image + offset) % len(self.sizes) :][:2].tolist()
            order = start + Permutation(stop - start, _REPLACEMENT_KEY, index)(np.arange(stop - start))
            yield order.tolist() if offset else [index, *order[order != index].tolist()]

    def _is_cut(self, image: int) -> bool:
        return bool(self._starts[image + 1] - self._starts[image] > 1)

    def _image(self, image: int) -> Pixels:
        if self._cached is not None and self._cached[0] == image:
            return self._cached[1]
        self._cached = None  # frees it before the next is decoded
        pixels: Pixels = open_pixels(self.source, image) if self._is_cut(image) else self.source.read(image)
        height, width = self.sizes[image].tolist()
        if pixels.shape[:2] != (height, width):
            raise BadImage(f"{pixels.shape[0]} x {pixels.shape[1]} px, its tiles were counted for {height} x {width}")
        if self._is_cut(image):
            self._cached = image, pixels
        return pixels


def replacements(source: Source, index: int) -> Iterator[Iterable[int]]:
    """Candidates to read for sample `index`, itself first, grouped by image: of a bad image all tiles are bad."""
    if isinstance(source, Tiled):
        return source.replacements(index)
    return (((index + attempt) % len(source),) for attempt in range(len(source)))


def count_blank(image: NDArray, size: int) -> tuple[int, int]:
    """The number of an image's tiles, and how many of them are blank."""
    height, width = image.shape[:2]
    rows, columns = tiles_along(np.array([height, width]), size).tolist()
    boxes = ((span(height, size, row), span(width, size, column)) for row in range(rows) for column in range(columns))
    blank = sum(is_blank(image[top : top + tall, left : left + wide]) for (top, tall), (left, wide) in boxes)
    return rows * columns, blank
