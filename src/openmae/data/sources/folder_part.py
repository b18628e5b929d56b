"""A part of a data set that lies in files: known by its paths, not yet opened."""

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
    """Images or tables below a folder, with the depth of their class folders."""

    root: Path
    files: list[bytes]
    depth: int
    is_table: bool
    ignored: Ignored

    @property
    def class_names(self) -> set[str]:
        """Those of its folders; none where some image lies in no class folder, and of tables."""
        return set() if self.is_table else class_names(self.files, self.depth) or set()

    def shapes(self) -> Iterable[tuple[str, tuple[int, ...]]]:
        """Names and shapes of some of its `.npy` files."""
        if self.is_table:
            return shapes_of_bytes(first_images(self.root / os.fsdecode(self.files[0])))
        return shapes_of_files(self.root, self.files)

    def open(self, classes: list[str], options: dict[str, Any]) -> FolderSource | ParquetSource:
        """Open it, with one list of classes for all parts. Raises RequestError for a table that cannot be used."""
        if not self.is_table:
            return FolderSource(
                self.root, self.files, class_depth=self.depth, classes=classes or None, ignored=self.ignored, **options
            )
        source = ParquetSource([self.root / os.fsdecode(file) for file in self.files], root=self.root, **options)
        source.ignored = self.ignored
        return source

    def identities(self) -> list[Identity]:
        """Of its files, whatever name they are reached by; without those that are gone."""
        found = []
        for file in self.files:
            try:
                status = os.stat(os.path.join(os.fsencode(self.root), file))
            except OSError:
                continue
            found.append((status.st_dev, status.st_ino))
        return found


def leak_warnings(parts: Mapping[str, FolderPart]) -> list[str]:
    """A line for each evaluation part with images that are reached from train, too."""
    if "train" not in parts:
        return []
    of_train = set(parts["train"].identities())
    warnings = []
    for split, part in parts.items():
        of_part = part.identities()
        count = sum(identity in of_train for identity in of_part)
        if split != "train" and count:
            unit = "tables" if part.is_table else "images"
            warnings.append(leak_warning(split, f"{count:,} of {len(of_part):,} {unit} of {split} are"))
    return warnings


def leak_warning(split: str, what: str) -> str:
    """The warning that a figure is not what it seems."""
    return f"{what} in train too, through a link or as they were named: a figure on {split} is on training images"
