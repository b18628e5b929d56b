"""Views of a source: subsets and permutations that are sources themselves."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmae.data.decoding.regions import StoredImage, stored_image_of
from openmae.data.randomness import Permutation
from openmae.data.sources.axes import BY_SHAPE, Axes
from openmae.data.sources.folder import Ignored
from openmae.data.sources.open import Label, Source
from openmae.data.sources.packed import PackedSource
from openmae.data.sources.tiles import Tiled

_SPLIT_KEY = 0x5EED  # fixed, so that the held-out split does not depend on the seed of a run


class SourceView(ABC):
    """A view of `source`: entry i is its entry number `source_index(i)`."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.classes: tuple[str, ...] | None = source.classes
        self.ignored: Ignored = source.ignored

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def source_index(self, index: int) -> int:
        """The index in `source` of entry 0 <= index < len(self)."""

    @abstractmethod
    def fingerprint(self) -> str: ...

    def name(self, index: int) -> str:
        return self.source.name(self._checked(index))

    def label(self, index: int) -> Label:
        return self.source.label(self._checked(index))

    def read(self, index: int) -> np.ndarray:
        return self.source.read(self._checked(index))

    def stored_image(self, index: int) -> StoredImage | None:
        return stored_image_of(self.source, self._checked(index))

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.source_index(index)


class IndexedSubset(SourceView):
    """The images of `source` at `indices`, in that order."""

    def __init__(self, source: Source, indices: ArrayLike) -> None:
        super().__init__(source)
        self.indices = np.array(indices, np.int64)
        assert self.indices.ndim == 1 and (self.indices >= 0).all() and (self.indices < len(source)).all()

    def __len__(self) -> int:
        return len(self.indices)

    def source_index(self, index: int) -> int:
        return int(self.indices[index])

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint()}[{hashlib.sha256(self.indices.tobytes()).hexdigest()}]"


class PermutedSubset(SourceView):
    """`count` entries of a fixed permutation, from `start` on, in O(1) memory."""

    def __init__(self, source: Source, start: int, count: int) -> None:
        super().__init__(source)
        self.start, self.count = start, count
        self.permutation = Permutation(len(source), _SPLIT_KEY)

    def __len__(self) -> int:
        return self.count

    def source_index(self, index: int) -> int:
        return int(self.permutation(self.start + index)[0])

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint()}[{self.start}:{self.start + self.count}]"


def split_held_out(source: Source, held_out: int) -> tuple[PermutedSubset, PermutedSubset]:
    """Split `held_out` images off a source: (the rest, the held-out ones), the same in every run."""
    assert 0 < held_out < len(source)
    return PermutedSubset(source, held_out, len(source) - held_out), PermutedSubset(source, 0, held_out)


def tile_image_ids(source: Source) -> NDArray[np.int64] | None:
    """The index of the image that each entry is a tile of, (n,); None where entries are whole images."""
    if isinstance(source, Tiled | PackedSource):
        return source.image_numbers
    inner = getattr(source, "source", None)
    numbers = None if inner is None else tile_image_ids(inner)
    if numbers is None or not isinstance(source, SourceView):
        return numbers
    return numbers[np.array([source.source_index(i) for i in range(len(source))], np.int64)]


def split_by_image(numbers: NDArray[np.int64], held_out: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split `held_out` images off, each with all its tiles: sorted indices of entries (the rest, the held-out ones).

    The same in every run.

    Args:
        numbers: (n,) the image that each entry is a tile of, see `tile_image_ids`.
    """
    images = np.unique(numbers)
    assert 0 < held_out < len(images)
    held_out_images = images[Permutation(len(images), _SPLIT_KEY)(np.arange(held_out))]
    is_held_out = np.isin(numbers, held_out_images)
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def split_tiles(source: Tiled | PackedSource, held_out: int) -> tuple[Source, Source]:
    """Split `held_out` images off a source of tiles, each with all its tiles: (the rest, the held-out ones).

    The same in every run.
    """
    if isinstance(source, Tiled):
        splits = split_by_image(np.arange(len(source.sizes)), held_out)
        rest, held_out_tiles = (
            Tiled(IndexedSubset(source.source, ids), source.size, source.sizes[ids]) for ids in splits
        )
        return rest, held_out_tiles
    assert source.image_numbers is not None
    rest_ids, held_out_ids = split_by_image(source.image_numbers, held_out)
    return IndexedSubset(source, rest_ids), IndexedSubset(source, held_out_ids)


def subsample(source: Source, count: int) -> Source:
    """A fixed random sample of at most `count` entries of a source, in its order."""
    if len(source) <= count:
        return source
    return IndexedSubset(source, np.sort(Permutation(len(source), _SPLIT_KEY)(np.arange(count))))


def root_of(source: Source) -> Source:
    """The innermost source behind all views and wrappers."""
    while hasattr(source, "source"):
        source = source.source
    return source


def are_tiles(source: Source) -> bool:
    """Whether the entries of a source are tiles that are cut from images when they are read (`Tiled`)."""
    while isinstance(source, SourceView):
        source = source.source
    return isinstance(source, Tiled)


def grouped_by_image(source: Source, indices: list[int]) -> list[int]:
    """The same indices with the tiles of one image next to each other, so that it is decoded once."""
    positions = indices
    while isinstance(source, SourceView):
        positions, source = [source.source_index(position) for position in positions], source.source
    return [index for _, index in sorted(zip(positions, indices, strict=True))]


def raw_shape(source: Source) -> tuple[int, int, int] | None:
    """Height, width and channels of all images of a raw pack; None for other sources."""
    while isinstance(source, SourceView):
        source = source.source
    if isinstance(source, Tiled):  # of images of one shape
        whole = raw_shape(source.source)
        return None if whole is None else (min(whole[0], source.size), min(whole[1], source.size), whole[2])
    return source.shape if isinstance(source, PackedSource) else None


def axes_of(sources: Iterable[Source]) -> Axes:
    """The order of axes that was decided for the data set of which these are splits."""
    all_axes = (getattr(root_of(source), "axes", BY_SHAPE) for source in sources)
    return next((axes for axes in all_axes if axes.order is not None), BY_SHAPE)


def nodata_in(source: Source) -> float | str | None:
    """The nodata setting with which a source reads images; None where it has no such setting."""
    return getattr(root_of(source), "nodata", None)
