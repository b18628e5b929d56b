"""Rows of parquet files in the Hugging Face image layout."""

import hashlib
import io
import itertools
import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openmae.config.checks import OFF
from openmae.data.decoding.decode import MAX_PIXELS, BadImage, decode
from openmae.data.decoding.headers import read_size
from openmae.data.sources.axes import BY_SHAPE, Axes
from openmae.data.sources.folder import Ignored
from openmae.errors import RequestError, shown

NUM_SURVEYED = 8  # rows from which the order of axes is inferred


class ParquetSource:
    """Rows of parquet files: `image` (struct{bytes, path} or binary) and perhaps `label` (a number).

    Labels are class ids where they are integers from 0 on; `numbers` has their original values, unless there are class
    names.

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
        axes: Axes = BY_SHAPE,
        nodata: float | str = OFF,
    ) -> None:
        self._files = [Path(os.path.abspath(file)) for file in files]
        base = os.path.abspath(root) if root else None
        self._names = [os.path.relpath(file, base) if base else file.name for file in self._files]
        self._options, self.axes, self.nodata = (background, max_pixels, axes.order, nodata), axes, nodata
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[int, _Rows] = OrderedDict()
        self.ignored = Ignored()
        opened = [_open_table(file) for file in self._files]
        kinds = {(table.classes, table.kind) for table in opened}
        if len(kinds) > 1:
            raise RequestError(f"{shown(self._files[0])} and the files beside it differ in labels or class names")
        self.classes = opened[0].classes
        numbers = [table.numbers for table in opened if table.numbers is not None]
        self.numbers = np.concatenate(numbers) if numbers else None
        labels = [table.labels for table in opened if table.labels is not None]
        self._labels = np.concatenate(labels or [np.empty(0)])
        self._has_labels = bool(labels)
        if opened[0].kind == "fractional" and self.numbers is not None and are_classes(self.numbers):
            self._labels, self._has_labels = np.nan_to_num(self.numbers, nan=-1).astype(np.int64), True
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
        return {**self.__dict__, "_cache": OrderedDict()}  # not pickled: a worker process fills its own

    @property
    def files(self) -> list[Path]:
        """The files whose rows these are, in their order."""
        return list(self._files)

    def __len__(self) -> int:
        return self._starts[-1]

    def name(self, index: int) -> str:
        file = bisect_right(self._file_starts, index) - 1
        return f"{self._names[file]}#{index - self._file_starts[file]}"

    def label(self, index: int) -> int | None:
        """The row's class; None where it is null or, as Hugging Face marks hidden ones, negative, or there are none."""
        label = int(self._labels[index]) if self._has_labels else -1
        return label if label >= 0 else None

    def read(self, index: int) -> np.ndarray:
        return self.decoded(self.encoded(index))

    def decoded(self, data: bytes) -> np.ndarray:
        """The image that a row's bytes hold. Raises BadImage."""
        return decode(data, *self._options)

    def encoded(self, index: int) -> bytes:
        """The row's bytes. Raises BadImage where it has none."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = bisect_right(self._starts, index) - 1
        return self._rows(group)[index - self._starts[group]]

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels, from the header. Raises BadImage where it cannot be read."""
        return read_size(io.BytesIO(self.encoded(index)), *self._options[1:3])

    def fingerprint(self) -> str:
        return self._fingerprint

    def _rows(self, group: int) -> "_Rows":
        rows = self._cache.get(group)
        if rows is None:
            file, number, count = self._groups[group]
            rows = self._cache[group] = _read_rows(self._files[file], number, count)
            cached = sum(other.nbytes for other in self._cache.values())
            while cached > self._cache_bytes and len(self._cache) > 1:
                cached -= self._cache.popitem(last=False)[1].nbytes
        else:
            self._cache.move_to_end(group)
        return rows


@dataclass(frozen=True, kw_only=True)
class _Table:
    """What is read of a parquet file when it is opened.

    Attributes:
        kind: type of the labels: none, whole or fractional.
        labels: integer labels, -1 for null.
        numbers: the original values of labels without class names, NaN for null.
    """

    classes: tuple[str, ...] | None
    kind: str
    labels: np.ndarray | None
    numbers: np.ndarray | None
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


def first_images(file: Path) -> Generator[tuple[str, bytes], None, None]:
    """Names and bytes of the first images of a file, as many as one page or so holds; none where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(file, "rb") as stream, pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 16) as table:
            name = _image_column(table.schema_arrow.names)
            is_struct = pa.types.is_struct(table.schema_arrow.field(name).type)
            wanted = [f"{name}.bytes" if is_struct else name]
            batch = next(table.iter_batches(batch_size=NUM_SURVEYED, row_groups=[0], columns=wanted, use_threads=False))
            column = batch.column(0).flatten()[0] if is_struct else batch.column(0)
            for row, value in enumerate(column):
                if isinstance(data := value.as_py(), bytes):
                    yield f"{file.name}#{row}", data
    except Exception:  # reported when the file is opened
        return


def _open_table(file: Path) -> _Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(file, "rb") as stream, pq.ParquetFile(stream) as table:
            schema = table.schema_arrow
            columns = {column.name: column.type for column in schema}
            image, label = columns.get(_image_column(columns)), columns.get("label")
            group_rows = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
            found = ", ".join(f"{name}: {kind}" for name, kind in columns.items())
            if not _is_image(image):
                raise RequestError(f"{shown(file)} has {shown(found)}; expected image: struct<bytes: binary, path>")
            if label is not None and not (pa.types.is_integer(label) or pa.types.is_floating(label)):
                raise RequestError(f"{shown(file)} has label: {label}; expected a number")
            if sum(group_rows) == 0:
                raise RequestError(f"{shown(file)} has no rows; expected at least one image")
            labels, numbers, kind = None, None, "none"
            classes = _hugging_face_classes(schema.metadata)
            if label is not None:
                kind = "whole" if pa.types.is_integer(label) else "fractional"
                column = table.read(columns=["label"], use_threads=False)["label"]
                if kind == "whole":
                    labels = column.cast(pa.int64()).fill_null(-1).to_numpy()
                if kind == "fractional" or not classes:
                    numbers = column.cast(pa.float64(), safe=False).fill_null(float("nan")).to_numpy()
            if classes and labels is not None and labels.max() >= len(classes):
                raise RequestError(f"{shown(file)} has label {labels.max()} but only {len(classes)} class names")
            size = stream.seek(0, os.SEEK_END)
            stream.seek(size - 8)
            length = int.from_bytes(stream.read(4), "little")
            stream.seek(max(0, size - 8 - length))
            return _Table(
                classes=classes if kind == "whole" else None,
                kind=kind,
                labels=labels,
                numbers=numbers,
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


def are_classes(numbers: np.ndarray) -> bool:
    """Whether numbers (NaN where there is none) can be class ids: integers from 0 on."""
    known = numbers[~np.isnan(numbers)]
    return bool((known >= 0).all() and (known == np.floor(known)).all() and (known < 2**53).all())


def _read_rows(file: Path, group: int, count: int) -> _Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # No threads, no pre-buffering: Arrow's pools do not survive a fork.
        with open(file, "rb") as stream, pq.ParquetFile(stream, pre_buffer=False) as table:
            name = _image_column(table.schema_arrow.names)
            is_struct = pa.types.is_struct(table.schema_arrow.field(name).type)
            column = table.read_row_group(group, columns=[f"{name}.bytes" if is_struct else name], use_threads=False)
        image = column[name]
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


def _image_column(names: Iterable[str]) -> str:
    """`image`, or `img` as some data sets on the Hub call it."""
    return "img" if "img" in names and "image" not in names else "image"


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
