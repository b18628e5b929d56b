"""The files of a pack: parquet files of JPEGs, one .npy, nodata masks, the index, and the journal for resuming."""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from openmae.data.labels.numbers import non_class_numbers
from openmae.data.sources.open import Source
from openmae.data.sources.pack import PackedBatch
from openmae.data.sources.views import tile_image_ids
from openmae.machine.files import PARTIAL_PREFIX, atomic_write, json_bytes, sync
from openmae.training.telemetry import read_lines

ROW_GROUP = 128  # images; other programs, which do not know the offsets, read a whole group for one image
JOURNAL = PARTIAL_PREFIX + "journal.jsonl"


class Journal:
    """The finished parts of a pack, one line each, for resuming."""

    def __init__(self, out: Path) -> None:
        self.path = out / JOURNAL
        self.lines = read_lines(self.path)
        with atomic_write(self.path) as partial:  # without a last line that a crash truncated
            partial.write_bytes(b"".join(map(_line, self.lines)))

    def add(self, **values: Any) -> None:
        self.lines.append(values)
        with open(self.path, "ab") as file:
            file.write(_line(values))
            file.flush()
            os.fsync(file.fileno())

    def lines_of(self, split: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["split"] == split]

    @property
    def bad(self) -> dict[tuple[str, int], str]:
        """The reason, by split and index, of each input that could not be packed."""
        return {(line["split"], int(i)): reason for line in self.lines for i, reason in line["bad"].items()}


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


class ShardWriter:
    """One parquet file in the Hugging Face image layout, uncompressed, so that the bytes of an image are contiguous.

    Attributes:
        places: offset and length of each image in the file so far.
    """

    def __init__(
        self, file: BinaryIO, classes: Sequence[str] | None, is_labelled: bool, has_numbers: bool = False
    ) -> None:
        self.file, self.is_labelled = file, is_labelled
        self.label_type = pa.float64() if has_numbers else pa.int64()
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns, features = [("image", image)], dict[str, Any](image={"_type": "Image"})
        if is_labelled:
            columns.append(("label", self.label_type))
            class_label = {"names": list(map(_text, classes)), "_type": "ClassLabel"} if classes else None
            features["label"] = class_label or {"dtype": "float64" if has_numbers else "int64", "_type": "Value"}
        metadata = json.dumps({"info": {"features": features}})
        self.schema = pa.schema(columns, metadata={"huggingface": metadata})
        # Column statistics of `bytes` would contain whole images.
        self.writer = pq.ParquetWriter(
            file, self.schema, compression="none", use_dictionary=False, write_statistics=False
        )
        self.rows: list[tuple[bytes, str, int | float | None]] = []
        self.places: list[tuple[int, int]] = []

    def add(self, data: bytes, name: str, label: int | float | None) -> None:
        self.rows.append((data, name, label))
        if len(self.rows) == ROW_GROUP:
            self._write()

    def _write(self) -> None:
        if not self.rows:
            return
        images, names, labels = zip(*self.rows, strict=True)
        struct = pa.StructArray.from_arrays(
            [pa.array(images, pa.binary()), pa.array(list(map(_text, names)), pa.string())], ["bytes", "path"]
        )
        columns = [struct] + [pa.array(labels, self.label_type)] * self.is_labelled
        start = self.file.tell()
        self.writer.write_table(pa.Table.from_arrays(columns, schema=self.schema), row_group_size=len(images))
        end = self.file.tell()
        self.file.seek(start)
        group = self.file.read(end - start)
        self.file.seek(end)
        position = 0
        for data in images:  # plain encoding: each value behind its length in four bytes, page headers between some
            position = group.index(len(data).to_bytes(4, "little") + data, position) + 4
            self.places.append((start + position, len(data)))
            position += len(data)
        self.rows = []

    def abandon(self) -> None:
        """Leave the file unfinished: Arrow's writer would otherwise finish it when garbage-collected, and may fail."""
        self.writer.is_open = False

    def close(self) -> NDArray[np.int64]:
        """Finish the file; offset and length of its images: (rows, 2)."""
        self._write()
        self.writer.close()
        return np.array(self.places, np.int64).reshape(-1, 2)


def _text(name: str) -> str:
    """A name as UTF-8 for other programs; the index keeps the original bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class RawFile:
    """A `.npy` to which rows are appended; the header is rewritten at the end, when their number is known.

    Args:
        row: shape of an image.
        rows: how many rows of an existing file are kept; it is truncated after them.
    """

    def __init__(self, path: Path, row: tuple[int, ...], dtype: str, rows: int) -> None:
        self.row, self.dtype, self.rows = row, np.dtype(dtype), rows
        header = self._header(0)
        self.file = open(path, "r+b" if rows else "w+b")  # noqa: SIM115 (closed by `close`)
        self.row_bytes = int(np.prod(row)) * self.dtype.itemsize
        end = len(header) + rows * self.row_bytes
        if rows == 0:
            self.file.write(header)
        elif os.fstat(self.file.fileno()).st_size < end:
            raise ValueError("the file is shorter than the journal says")
        self.file.truncate(end)
        self.file.seek(end)

    def _header(self, rows: int) -> bytes:
        buffer = io.BytesIO()
        description = {"descr": self.dtype.newbyteorder("<").str, "fortran_order": False, "shape": (rows, *self.row)}
        np.lib.format.write_array_header_1_0(
            buffer, description
        )  # NumPy pads the header so that the first axis can grow
        return buffer.getvalue()

    def add(self, images: Iterable[Tensor | bytes]) -> None:
        for image in images:
            data = image if isinstance(image, bytes) else image.numpy().data
            self.file.write(data)
            self.rows += len(data) // self.row_bytes

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def finish(self) -> None:
        """Write the number of rows into the header."""
        self.file.seek(0)
        self.file.write(self._header(self.rows))
        self.sync()

    def close(self) -> None:
        self.file.close()


class EmptyFile:
    """The nodata mask of a raw pack of integers: for each row with nodata its number, and a bit for each value.

    Created with the first such row, and finished before the pack's rows are.

    Args:
        lines: the journal's lines of this split.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], lines: list[dict[str, Any]]) -> None:
        self.path, self._partial = path, path.with_name(PARTIAL_PREFIX + path.name)
        self._width = 8 + -(-int(np.prod(shape)) // 8)
        self._file: RawFile | None = None
        self._new = 0  # images with nodata since the journal's last line, floats included, which are NaN there
        if (num_rows := sum(line.get("empty", 0) for line in lines)) and self._partial.exists():
            self._file = RawFile(self._partial, (self._width,), "uint8", num_rows)

    def add(self, batch: PackedBatch, row: int) -> None:
        """Write the masks of a batch.

        Args:
            row: the row of its first image in the pack.
        """
        self._new += len(batch.empty)
        for index, bits in sorted(batch.empty.items()):
            if not bits:
                continue
            if self._file is None:
                self._file = RawFile(self._partial, (self._width,), "uint8", 0)
            missing = sum(other < index for other in batch.bad)
            self._file.add([(row + index - batch.start - missing).to_bytes(8, "little") + bits])

    def sync(self) -> dict[str, int]:
        """Flush the file; how many images with nodata are new, for the journal, or nothing."""
        if self._file is not None:
            self._file.sync()
        new, self._new = self._new, 0
        return {"empty": new} if new else {}

    def finish(self) -> None:
        """Finish the file and rename it, if there is one."""
        if self._file is not None:
            self._file.finish()
            self._partial.replace(self.path)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def write_index(path: Path, source: Source, kept: NDArray[np.int64], places: NDArray[np.int64] | None) -> None:
    """Write names, labels, numeric labels and file offsets of a split's images. Equal content gives equal bytes.

    Args:
        kept: indices in the source of the images in the pack.
        places: (n, 3) file, offset and length; None for a raw pack.
    """
    names = [os.fsencode(source.name(i)) for i in kept.tolist()]
    labels = np.array([-1 if (label := source.label(i)) is None else label for i in kept.tolist()], np.int64)
    arrays: dict[str, NDArray] = {
        "names": np.frombuffer(b"".join(names), np.uint8),
        "name_ends": np.cumsum([len(name) for name in names], dtype=np.int64),
        "labels": labels,
    }
    if (numbers := non_class_numbers(source)) is not None:
        arrays["numbers"] = numbers[kept]
    if places is not None:
        arrays["places"] = places
    if (image_ids := tile_image_ids(source)) is not None:  # keeps tiles of one image on one side of a split
        arrays["image_numbers"] = image_ids[kept]
    with atomic_write(path) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def file_entry(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, for the manifest."""
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_manifest(path: Path, values: dict[str, Any]) -> None:
    """Write a manifest atomically (written aside, then renamed) and sync it and its folder to the disk."""
    with atomic_write(path) as partial:
        partial.write_bytes(json_bytes(values))
    sync(path.parent)
