"""Image files below a folder as a source. User files are never changed."""

import contextlib
import hashlib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from openmae.config.checks import OFF
from openmae.data.decoding.decode import MAX_PIXELS, BadImage, decode
from openmae.data.decoding.headers import Header, read_header
from openmae.data.decoding.nodata import Nodata
from openmae.data.decoding.regions import StoredImage, open_stored_image
from openmae.data.resize import LARGE_PIXELS
from openmae.data.sources.axes import BY_SHAPE, Axes
from openmae.errors import shown

MAX_FILE_BYTES = 4 << 30
STREAMED_BYTES = 8 << 20  # larger files are decoded from the open file, not from their bytes in memory
_PLAIN = (b".npy", b".tif", b".tiff")  # files of which crops may be readable alone
_MAX_NAMED = 100  # extensions and unusable files that are named; more are only counted


@dataclass(kw_only=True)
class Ignored:
    """What a scan of a folder left out.

    Attributes:
        extensions: how many files of each other extension.
        unusable: the reason, by path, for folders, pipes, dangling links …
        unnamed: how many more are unusable than `unusable` lists.
        hidden: how many files and folders have names that start with a dot.
    """

    extensions: dict[str, int] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    unnamed: int = 0
    hidden: int = 0

    @property
    def count(self) -> int:
        """How many files were left out, without hidden ones."""
        return sum(self.extensions.values()) + len(self.unusable) + self.unnamed

    def __str__(self) -> str:
        common = sorted(self.extensions.items(), key=lambda item: (-item[1], item[0]))[:5]
        parts = [f"{count} {extension}" for extension, count in common]
        if others := sum(self.extensions.values()) - sum(count for _, count in common):
            parts.append(f"{others} others")
        named = list(itertools.islice(self.unusable.items(), 3))
        parts += [f"{shown(name)} ({shown(reason)})" for name, reason in named]
        if more := len(self.unusable) - len(named) + self.unnamed:
            parts.append(f"and {more} more that cannot be used")
        return ", ".join(parts) or "nothing"

    @property
    def line(self) -> str:
        """All of it as text, hidden names too; empty where nothing was left out."""
        parts = [str(self)] if self.count else []
        parts += [f"{self.hidden} hidden (their names start with a dot)"] if self.hidden else []
        return ", ".join(parts)

    def add_extension(self, extension: str) -> None:
        key = extension or "without extension"
        key = key if key in self.extensions or len(self.extensions) < _MAX_NAMED else "others"
        self.extensions[key] = self.extensions.get(key, 0) + 1

    def add_unusable(self, path: bytes, reason: str | None) -> None:
        if len(self.unusable) < _MAX_NAMED:
            self.unusable[os.fsdecode(path)] = reason or "unreadable"
        else:
            self.unnamed += 1

    def add(self, other: "Ignored") -> None:
        """Count what another scan left out, too."""
        for extension, count in other.extensions.items():
            self.extensions[extension] = self.extensions.get(extension, 0) + count
        self.unusable |= other.unusable
        self.unnamed += other.unnamed
        self.hidden += other.hidden


class FolderSource:
    """Image files below a root.

    `files` are paths relative to it. If all of them lie in folders, the path's component number `class_depth` is the
    class; labels index `classes`, by default the sorted names found here. A million paths are one block of bytes:
    worker processes share it, where a list of strings would be copied page by page as its counters change.
    """

    def __init__(
        self,
        root: Path,
        files: Iterable[str | bytes],
        *,
        class_depth: int = 0,
        classes: Sequence[str] | None = None,
        ignored: Ignored | None = None,
        background: float = 1.0,
        max_pixels: int = MAX_PIXELS,
        axes: Axes = BY_SHAPE,
        nodata: float | str = OFF,
    ) -> None:
        paths = sorted(os.fsencode(file) for file in files)
        self._root = os.fsencode(os.path.abspath(root))
        self._ends = np.cumsum([len(path) for path in paths], dtype=np.int64)
        self._block = b"".join(paths)
        self._options, self.axes, self.nodata = (background, max_pixels, axes.order, nodata), axes, nodata
        self.ignored = ignored or Ignored()
        self.classes: tuple[str, ...] | None = None
        self._labels: np.ndarray | None = None
        found = class_names(paths, class_depth)
        if found:
            self.classes = tuple(classes or sorted(found, key=os.fsencode))
            ids = {os.fsencode(name): i for i, name in enumerate(self.classes)}
            self._labels = np.array([ids[path.split(b"/")[class_depth]] for path in paths], dtype=np.int32)

    def __len__(self) -> int:
        return len(self._ends)

    def _path(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._block[self._ends[index - 1] if index else 0 : self._ends[index]]

    def name(self, index: int) -> str:
        return os.fsdecode(self._path(index))

    def label(self, index: int) -> int | None:
        return None if self._labels is None else int(self._labels[index])

    def read(self, index: int) -> np.ndarray:
        with self._opened(index) as (file, size):
            return self.decoded(file if size >= STREAMED_BYTES else file.read())

    def stored_image(self, index: int) -> StoredImage | None:
        """A large image whose crops can be read alone, else None. Raises BadImage, see `read`."""
        path = self._path(index)
        if not path.lower().endswith(_PLAIN) or self._num_bytes(path) <= LARGE_PIXELS:  # saves opening most files
            return None
        with self._opened(index, is_buffered=True) as (file, _):
            _, max_pixels, axes, nodata = self._options
            return open_stored_image(file, max_pixels, axes, Nodata.from_setting(nodata))

    def decoded(self, data: bytes | BinaryIO) -> np.ndarray:
        """Decode a file or its bytes. Raises BadImage."""
        return decode(data, *self._options)

    def encoded(self, index: int) -> bytes:
        """The file's bytes. Raises BadImage where it cannot be read."""
        with self._opened(index) as (file, _):
            return file.read()

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels, from the file's header. Raises BadImage where it cannot be read."""
        return self.header(index).size

    def header(self, index: int) -> Header:
        """The file's header. Raises BadImage where it cannot be read, or its size is beyond the limit."""
        with self._opened(index, is_buffered=True) as (file, _):
            return read_header(file, *self._options[1:3])

    @contextlib.contextmanager
    def _opened(self, index: int, is_buffered: bool = False) -> Iterator[tuple[BinaryIO, int]]:
        """The file and its size in bytes. Raises BadImage where it cannot be read."""
        path = os.path.join(self._root, self._path(index))
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):  # it was one when the folder was scanned; opening a pipe would block
                raise BadImage("not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise BadImage(f"a file of {status.st_size} bytes, the limit is {MAX_FILE_BYTES}")
            with open(path, "rb", buffering=-1 if is_buffered or status.st_size >= STREAMED_BYTES else 0) as file:
                yield file, status.st_size
        except OSError as error:
            raise BadImage(error.strerror or type(error).__name__) from error

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for i in range(len(self)):
            path = self._path(i)
            digest.update(b"%d:%d:%b" % (self._num_bytes(path), len(path), path))
        return digest.hexdigest()

    def _num_bytes(self, path: bytes) -> int:
        """The size of a file; -1 where it does not exist."""
        try:
            return os.stat(os.path.join(self._root, path)).st_size
        except OSError:
            return -1


def class_names(files: Iterable[bytes], depth: int) -> set[str] | None:
    """The folder names at `depth`, or None if some file lies above such a folder."""
    names = set()
    for file in files:
        parts = file.split(b"/", depth + 1)
        if len(parts) < depth + 2:
            return None
        names.add(parts[depth])
    return {os.fsdecode(name) for name in names}
