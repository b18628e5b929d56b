"""A split of a data set by its paths, not yet opened; and warnings about training images in other splits."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmae.data.sources.axes import shapes_of_bytes, shapes_of_files
from openmae.data.sources.folder import FolderSource, Ignored, class_names
from openmae.data.sources.parquet import ParquetSource, first_images
from openmae.data.sources.scan import Identity


@dataclass(frozen=True, kw_only=True)
class FolderPart:
    """A split: image files or parquet files below a folder.

    Attributes:
        files: paths relative to `root`.
        depth: which component of the paths is the class.
        is_table: the files are parquet files.
    """

    root: Path
    files: list[bytes]
    depth: int
    is_table: bool
    ignored: Ignored

    @property
    def class_names(self) -> set[str]:
        """The names of the class folders; empty where some image lies outside of one, and for parquet files."""
        return set() if self.is_table else class_names(self.files, self.depth) or set()

    def shapes(self) -> Iterable[tuple[str, tuple[int, ...]]]:
        """Names and shapes of some of its `.npy` files."""
        if self.is_table:
            return shapes_of_bytes(first_images(self.root / os.fsdecode(self.files[0])))
        return shapes_of_files(self.root, self.files)

    def open(self, classes: list[str], options: dict[str, Any]) -> FolderSource | ParquetSource:
        """Open the split, with the classes of all splits. Raises RequestError for a table that cannot be used."""
        if not self.is_table:
            return FolderSource(
                self.root, self.files, class_depth=self.depth, classes=classes or None, ignored=self.ignored, **options
            )
        source = ParquetSource([self.root / os.fsdecode(file) for file in self.files], root=self.root, **options)
        source.ignored = self.ignored
        return source

    def identities(self) -> list[Identity]:
        """Device and inode of its files, which links do not change; files that no longer exist are left out."""
        identities = []
        for file in self.files:
            try:
                status = os.stat(os.path.join(os.fsencode(self.root), file))
            except OSError:
                continue
            identities.append((status.st_dev, status.st_ino))
        return identities


def leak_warnings(parts: Mapping[str, FolderPart]) -> list[str]:
    """A line for each evaluation split with images that are in the train split, too."""
    if "train" not in parts:
        return []
    train_ids = set(parts["train"].identities())
    warnings = []
    for split, part in parts.items():
        split_ids = part.identities()
        count = sum(identity in train_ids for identity in split_ids)
        if split != "train" and count:
            unit = "tables" if part.is_table else "images"
            warnings.append(leak_warning(split, f"{count:,} of {len(split_ids):,} {unit} of {split} are"))
    return warnings


def leak_warning(split: str, what: str) -> str:
    """The warning that a metric on `split` would be measured on training images."""
    return f"{what} in train too, through a link or as they were named: a figure on {split} is on training images"
