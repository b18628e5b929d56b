"""Settings of `openmae inspect`."""

import os
from dataclasses import dataclass, field

from openmae.config.checks import MAX_PIXELS, NONE_IS_OFF, check_images, check_range, check_tiles, check_types
from openmae.config.dataset import Dataset, SplitSettings
from openmae.config.training.segment import MAX_STORED_VALUE
from openmae.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class InspectConfig(SplitSettings):
    """Look at a data set, a run or a model before you rely on it: what it is, what is wrong with it, what to do."""

    path: str | None = None
    """A data set (folder of images, parquet, embedded:NAME), a run folder, or a checkpoint of any kind."""
    out: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Folder to make, for the full report as JSON and pictures; without it nothing is written."""
    limit: int | None = field(default=None, metadata=NONE_IS_OFF)
    """Look at this many random images of each split of a data set; at all of them unless given."""
    tiles: int | None = field(default=None, metadata=NONE_IS_OFF)
    """Side in pixels of the tiles that larger images would be cut into: count them, and the blank ones among them."""
    workers: int | None = None
    """Processes that read images; by default one for each core, 16 at most."""
    value_range: tuple[float, float] | None = None
    """Raw values that become 0 and 1, such as 0 4095 for 12-bit images in 16 bits; unless given those stored in a pack,
    0 255 for 8-bit images, else measured."""
    axes: str | None = None
    """The order of the axes of 3-D .npy arrays (channels, rows, columns): CYX or YXC; by their shapes unless given."""
    class_names: str | None = field(default=None, metadata=NONE_IS_OFF)
    """For images with masks: a file of the classes' names, one a line from class 0 on, a CSV of id,name, or JSON."""
    palette: str | None = field(default=None, metadata=NONE_IS_OFF)
    """For masks in colours: a file with a line for each class, red green blue and its name."""
    ignore_index: int | None = None
    """Value in a mask of pixels without a class; 255 unless given, -1: there is none."""
    reduce_zero_label: bool = False
    """Value 0 of masks is no class, and value 1 the first one (ADE20K)."""
    max_pixels: int = MAX_PIXELS
    """Images of more pixels are refused: they may be decompression bombs."""
    seed: int = 0
    """Seed of the random choice of images, for --limit and the contact sheet."""

    def __post_init__(self) -> None:
        check_types(self)
        check_tiles(self.tiles, None)
        self.check_split_paths(self.path, "PATH")
        if self.path is not None and os.fspath(self.path) == "":  # a Path is taken, too
            raise RequestError("inspect got an empty path: name a data set, a run folder or a checkpoint")
        check_range("--limit", self.limit, 1)
        check_range("--workers", self.workers, 0)
        check_range("--ignore-index", self.ignore_index, -1, MAX_STORED_VALUE)
        check_images(self)
        check_range("--seed", self.seed, 0, 2**63 - 1)

    @property
    def dataset(self) -> Dataset:
        """PATH, or the paths of the splits."""
        return self.split_paths if self.path is None else self.path
