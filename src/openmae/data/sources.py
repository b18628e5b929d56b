"""Where samples come from: a folder of images, parquet in the Hugging Face layout, photographs inside the wheel.

A source is an index -> sample table that is cheap to open, keeps no file open, and may be pickled or forked.
"""

import hashlib
import itertools
import json
import os
import re
import stat
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from openmae.data.decode import EXTENSIONS, MAX_PIXELS, BadImage, decode
from openmae.errors import RequestError

SPLITS = ("train", "val", "test")
MAX_FILE_BYTES = 4 << 30
_SPLIT = re.compile(rb"(train(ing)?|val(id(ation)?)?|test(ing)?)([^a-z].*)?", re.IGNORECASE | re.DOTALL)
_MAX_NAMED = 100  # kinds of ignored files, and unusable ones, that are named; the rest is counted


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """What a scan left out: files by extension, and names that cannot be used with the reason why."""

    extensions: dict[str, int] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)  # folder, pipe, dangling link ... -> reason

    @property
    def count(self) -> int:
        return sum(self.extensions.values()) + len(self.unusable)

    def __str__(self) -> str:
        common = sorted(self.extensions.items(), key=lambda item: (-item[1], item[0]))[:5]
        parts = [f"{count} {extension}" for extension, count in common]
        parts += [f"{shown(name)} ({reason})" for name, reason in itertools.islice(self.unusable.items(), 3)]
        return ", ".join(parts) or "nothing"

    def _add_extension(self, extension: str) -> None:
        key = extension or "without extension"
        key = key if key in self.extensions or len(self.extensions) < _MAX_NAMED else "others"
        self.extensions[key] = self.extensions.get(key, 0) + 1

    def _add_unusable(self, path: bytes, reason: str | None) -> None:
        if len(self.unusable) < _MAX_NAMED:
            self.unusable[os.fsdecode(path)] = reason or "unreadable"


class Source(Protocol):
    """A table of samples.

    `classes` are the class names where they are known; a source may have labels without them.
    """

    classes: tuple[str, ...] | None
    ignored: Ignored

    def __len__(self) -> int: ...
    def name(self, index: int) -> str:
        """A stable, unique name: the path within the data, or `file.parquet#row`. May hold any character."""
        ...

    def label(self, index: int) -> int | None: ...
    def read(self, index: int) -> np.ndarray:
        """The decoded sample, H x W x C. Raises BadImage, also for a file that has vanished."""
        ...

    def fingerprint(self) -> str:
        """A hash that changes when the data does; cheap, so it looks at names and sizes, not at contents."""
        ...


def open_source(
    data: str, split: str = "train", *, background: float = 1.0, max_pixels: int = MAX_PIXELS
) -> Source | None:
    """Open the `split` (train, val or test) of DATA: a folder, a parquet file, a folder of them, `embedded:NAME`.

    Children called train*, val*, test* are splits if all children that hold data are called so; otherwise everything is
    `train`. One folder around them all is looked through. Returns None for a val or test that is not there.
    Raises RequestError, one line, for DATA that cannot be used or has splits but no train.
    """
    if split not in SPLITS:
        raise RequestError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    if data.startswith("embedded:"):
        from openmae.data.embedded import embedded_source

        return embedded_source(data.removeprefix("embedded:"), split)
    options: dict[str, Any] = {"background": background, "max_pixels": max_pixels}
    try:
        mode = os.stat(data).st_mode
        if stat.S_ISREG(mode):
            if not _is_parquet(data):
                what = "is a single file" if Path(data).suffix.lower() in EXTENSIONS else "is not a parquet file"
                raise RequestError(f"{shown(data)} {what}: give the folder that holds the images, or a .parquet file")
            return ParquetSource([Path(data)], **options) if split == "train" else None
        if not stat.S_ISDIR(mode):
            raise RequestError(f"{shown(data)} is neither a folder nor a file: give the folder that holds the images")
    except FileNotFoundError:
        raise RequestError(f"no such file or folder: {shown(data)}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"cannot open {shown(data)}: {getattr(error, 'strerror', None) or error}") from None
    return _open_folder(Path(data), split, options)


def _open_folder(root: Path, split: str, options: dict[str, Any]) -> Source | None:
    images, tables, ignored = _scan(root)
    files = images or tables
    if not files:
        if ignored.count == 0:
            raise RequestError(f"{shown(root)} is empty: give a folder of images or parquet files")
        raise RequestError(f"no images in {shown(root)}: found {ignored}; .jpg, .png, .tif, .npy and .parquet are read")
    groups, depth = _split_groups(files, is_table=not images)
    if "train" not in groups and split == "train":
        raise RequestError(f"{shown(root)} holds {' and '.join(groups)} but no train: give the split's folder itself")
    if split not in groups:
        return None
    if not images:
        return ParquetSource([root / os.fsdecode(file) for file in groups[split]], root=root, **options)
    for table in tables:  # a metadata.parquet beside images
        ignored._add_extension(os.fsdecode(os.path.splitext(table)[1].lower()))
    # One list of classes for all splits, so that a class absent from one of them shifts no label.
    per_split = [_class_names(group, depth) for group in groups.values()]
    classes = sorted({name for names in per_split for name in names or ()})
    return FolderSource(root, groups[split], class_depth=depth, classes=classes or None, ignored=ignored, **options)


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
    ) -> None:
        paths = sorted(os.fsencode(file) for file in files)
        self._root = os.fsencode(os.path.abspath(root))
        self._ends = np.cumsum([len(path) for path in paths], dtype=np.int64)
        self._block = b"".join(paths)
        self._options = (background, max_pixels)
        self.ignored = ignored or Ignored()
        self.classes: tuple[str, ...] | None = None
        self._labels: np.ndarray | None = None
        found = _class_names(paths, class_depth)
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
        path = os.path.join(self._root, self._path(index))
        try:
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):  # it was when the folder was read; opening a pipe would wait for ever
                raise BadImage("not a regular file")
            if found.st_size > MAX_FILE_BYTES:
                raise BadImage(f"a file of {found.st_size} bytes, the limit is {MAX_FILE_BYTES}")
            with open(path, "rb", buffering=0) as file:
                data = file.read()
        except OSError as error:
            raise BadImage(error.strerror or type(error).__name__) from error
        return decode(data, *self._options)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for i in range(len(self)):
            path = self._path(i)
            try:
                size = os.stat(os.path.join(self._root, path)).st_size
            except OSError:
                size = -1
            digest.update(b"%d:%d:%b" % (size, len(path), path))
        return digest.hexdigest()


class ParquetSource:
    """Rows of parquet files: `image` (struct{bytes, path} or binary) and perhaps `label` (integer).

    A row's encoded bytes come from a decoded row group; row groups are kept, least recently used out, up to
    `cache_bytes` in each process, and at least one. No path in a row is ever opened. Names are relative to `root`.
    Raises RequestError for a file that is damaged, empty or of another schema.
    """

    def __init__(
        self,
        files: Iterable[Path],
        *,
        root: Path | None = None,
        cache_bytes: int = 2 << 30,
        background: float = 1.0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._files = [Path(os.path.abspath(file)) for file in files]
        base = os.path.abspath(root) if root else None
        self._names = [os.path.relpath(file, base) if base else file.name for file in self._files]
        self._options = (background, max_pixels)
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[int, _Rows] = OrderedDict()
        self.ignored = Ignored()
        opened = [_open_table(file) for file in self._files]
        kinds = {(table.classes, table.labels is None) for table in opened}
        if len(kinds) > 1:
            raise RequestError(f"{shown(self._files[0])} and the files beside it differ in labels or class names")
        self.classes = opened[0].classes
        self._has_labels = opened[0].labels is not None
        self._labels = np.concatenate([table.labels for table in opened if table.labels is not None] or [np.empty(0)])
        self._groups = [(i, g, n) for i, table in enumerate(opened) for g, n in enumerate(table.group_rows)]
        self._starts = [
            0,
            *itertools.accumulate(n for _, _, n in self._groups),
        ]  # first row of each group, then the end
        self._file_starts = [0, *itertools.accumulate(sum(table.group_rows) for table in opened)]
        digest = hashlib.sha256()
        for name, table in zip(self._names, opened, strict=True):
            digest.update(
                f"{os.fsencode(name)!r} {table.size} {table.group_rows} {table.schema}".encode() + table.footer
            )
        self._fingerprint = digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}  # a worker reads its own; images are no luggage

    def __len__(self) -> int:
        return self._starts[-1]

    def name(self, index: int) -> str:
        file = bisect_right(self._file_starts, index) - 1
        return f"{self._names[file]}#{index - self._file_starts[file]}"

    def label(self, index: int) -> int | None:
        """The row's label; None where it is null or, as Hugging Face marks hidden ones, negative."""
        label = int(self._labels[index]) if self._has_labels else -1
        return label if label >= 0 else None

    def read(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = bisect_right(self._starts, index) - 1
        return decode(self._rows(group)[index - self._starts[group]], *self._options)

    def fingerprint(self) -> str:
        return self._fingerprint

    def _rows(self, group: int) -> "_Rows":
        rows = self._cache.get(group)
        if rows is None:
            file, number, count = self._groups[group]
            rows = self._cache[group] = _read_rows(self._files[file], number, count)
            kept = sum(other.nbytes for other in self._cache.values())
            while kept > self._cache_bytes and len(self._cache) > 1:
                kept -= self._cache.popitem(last=False)[1].nbytes
        else:
            self._cache.move_to_end(group)
        return rows


@dataclass(frozen=True, kw_only=True)
class _Table:
    """What is kept of a parquet file when it is opened; `labels` has -1 for null."""

    classes: tuple[str, ...] | None
    labels: np.ndarray | None
    group_rows: list[int]
    schema: str
    size: int
    footer: bytes


@dataclass(frozen=True)
class _Rows:
    """One row group's column of bytes; slicing Arrow's buffer takes 1 us, `column[i].as_py()` 4."""

    ends: np.ndarray  # (rows + 1,) int64
    block: memoryview
    valid: np.ndarray  # (rows,) bool

    @property
    def nbytes(self) -> int:
        return len(self.block) + self.ends.nbytes

    def __getitem__(self, row: int) -> bytes:
        if not self.valid[row]:
            raise BadImage("no image bytes in this row")
        return bytes(self.block[self.ends[row] : self.ends[row + 1]])


def _open_table(file: Path) -> _Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(file, "rb") as stream, pq.ParquetFile(stream) as table:
            schema = table.schema_arrow
            columns = {column.name: column.type for column in schema}
            image, label = columns.get("image"), columns.get("label")
            group_rows = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
            found = ", ".join(f"{name}: {kind}" for name, kind in columns.items())
            if not _is_image(image):
                raise RequestError(f"{shown(file)} has {shown(found)}; expected image: struct<bytes: binary, path>")
            if label is not None and not pa.types.is_integer(label):
                raise RequestError(f"{shown(file)} has label: {label}; expected an integer")
            if sum(group_rows) == 0:
                raise RequestError(f"{shown(file)} has no rows; expected at least one image")
            labels = None
            if label is not None:
                column = table.read(columns=["label"], use_threads=False)["label"]
                labels = column.cast(pa.int64()).fill_null(-1).to_numpy()
            classes = _hugging_face_classes(schema.metadata)
            if classes and labels is not None and labels.max() >= len(classes):
                raise RequestError(f"{shown(file)} has label {labels.max()} but only {len(classes)} class names")
            size = stream.seek(0, os.SEEK_END)
            stream.seek(size - 8)
            length = int.from_bytes(stream.read(4), "little")
            stream.seek(max(0, size - 8 - length))
            return _Table(
                classes=classes if label is not None else None,
                labels=labels,
                group_rows=group_rows,
                schema=str(schema),
                size=size,
                footer=stream.read(length),
            )
    except RequestError:
        raise
    except Exception as error:  # Arrow raises OSError, ArrowInvalid, ArrowNotImplementedError, ...
        reason = " ".join(str(error).split())[:120]
        raise RequestError(f"{shown(file)} is no parquet file that can be read (cut off?): {shown(reason)}") from None


def _read_rows(file: Path, group: int, count: int) -> _Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # No threads, no pre-buffering: Arrow's pools do not survive a fork.
        with open(file, "rb") as stream, pq.ParquetFile(stream, pre_buffer=False) as table:
            is_struct = pa.types.is_struct(table.schema_arrow.field("image").type)
            column = table.read_row_group(group, columns=["image.bytes" if is_struct else "image"], use_threads=False)
        image = column["image"]
        image = image.flatten()[0] if is_struct else image  # flatten, unlike field, keeps the struct's own nulls
        array = image.cast(pa.large_binary()).combine_chunks()
        array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        if len(array) != count:
            raise BadImage("the parquet file has changed")
        ends = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + count + 1]
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        return _Rows(ends, memoryview(array.buffers()[2] or b""), valid)
    except BadImage:
        raise
    except Exception as error:
        detail = getattr(error, "strerror", None) or type(error).__name__
        raise BadImage(f"row group {group} cannot be read: {detail}") from error


def _is_image(kind: Any) -> bool:
    import pyarrow as pa

    if kind is not None and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _hugging_face_classes(metadata: dict[bytes, bytes] | None) -> tuple[str, ...] | None:
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _is_parquet(path: str) -> bool:
    if path.lower().endswith(".parquet"):
        return True
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def _scan(root: Path) -> tuple[list[bytes], list[bytes], Ignored]:
    """All images and all parquet files below `root`, relative to it and sorted by bytes, and what was left out.

    Names that start with a dot are skipped. Links are followed; a folder is entered once, by its own name rather than a
    link's, which ends loops and keeps an image from counting twice. Only regular files are taken.
    """
    images: list[bytes] = []
    tables: list[bytes] = []
    ignored = Ignored()
    entered: set[tuple[int, int]] = set()
    folders, links = [b""], list[bytes]()
    while folders or links:
        if not folders:
            links.sort(reverse=True)
            folders.append(links.pop())
        folder = folders.pop()
        try:
            here = os.path.join(os.fsencode(root), folder)
            found = os.stat(here)
            if (found.st_dev, found.st_ino) in entered:
                continue
            entered.add((found.st_dev, found.st_ino))
            with os.scandir(here) as entries:
                for entry in entries:
                    _sort_entry(entry, os.path.join(folder, entry.name), images, tables, folders, links, ignored)
        except OSError as error:  # a folder that may not be read costs its files, not the run
            ignored._add_unusable(folder or b".", error.strerror)
    return sorted(images), sorted(tables), ignored


def _sort_entry(
    entry: os.DirEntry[bytes],
    path: bytes,
    images: list[bytes],
    tables: list[bytes],
    folders: list[bytes],
    links: list[bytes],
    ignored: Ignored,
) -> None:
    """Append `path` to the list it belongs to."""
    if entry.name.startswith(b"."):
        return
    extension = os.fsdecode(os.path.splitext(entry.name)[1].lower())
    try:
        if entry.is_dir():
            (links if entry.is_symlink() else folders).append(path)
        elif extension != ".parquet" and extension not in EXTENSIONS:
            ignored._add_extension(extension)
        elif entry.is_file():
            (tables if extension == ".parquet" else images).append(path)
        else:
            ignored._add_unusable(path, "dangling link" if entry.is_symlink() else "not a regular file")
    except OSError as error:
        ignored._add_unusable(path, error.strerror)


def _split_groups(files: list[bytes], is_table: bool) -> tuple[dict[str, list[bytes]], int]:
    """Files by split, and the depth at which their class folders would be; without splits all are train, at depth 0."""
    for depth in itertools.count():
        heads = _heads(files, depth)
        names = {head: _split_name(head, is_file) for head, is_file in heads.items()}
        # Image files, unlike folders and tables, need two splits among them: test_001.png ... alone are no test set.
        convincing = is_table or not all(heads.values()) or len(set(names.values())) > 1
        if all(names.values()) and convincing:
            groups: dict[str, list[bytes]] = {}
            for file in files:
                groups.setdefault(str(names[file.split(b"/", depth + 1)[depth]]), []).append(file)
            return {split: groups[split] for split in SPLITS if split in groups}, depth + 1
        if len(heads) > 1 or any(heads.values()):
            break
    return {"train": files}, 0


def _heads(files: list[bytes], depth: int) -> dict[bytes, bool]:
    """The names at `depth` of the files' paths, each with whether it is a file."""
    return {parts[depth]: len(parts) == depth + 1 for parts in (file.split(b"/", depth + 1) for file in files)}


def _split_name(name: bytes, is_file: bool) -> str | None:
    match = _SPLIT.fullmatch(os.path.splitext(name)[0] if is_file else name)
    return next(split for split in SPLITS if match[1].lower().startswith(split.encode())) if match else None


def _class_names(files: Iterable[bytes], depth: int) -> set[str] | None:
    """The folder names at `depth`, or None if some file lies above such a folder."""
    names = set()
    for file in files:
        parts = file.split(b"/", depth + 1)
        if len(parts) < depth + 2:
            return None
        names.add(parts[depth])
    return {os.fsdecode(name) for name in names}


def shown(path: str | Path) -> str:
    """A path for a message of one line: bytes that are no UTF-8, and line ends, as escapes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
