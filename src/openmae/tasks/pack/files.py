"""The files of a pack: parquet of JPEGs with the place of each, one .npy, the index, and the journal to go on from."""

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
from openmae.machine.files import PARTIAL, json_bytes, sync, written_aside
from openmae.training.telemetry import read_lines

ROW_GROUP = 128  # images; other readers, which know no places, fetch a whole group for one image
JOURNAL = PARTIAL + "journal.jsonl"


class Journal:
    """What of a pack is on the disk for good, a line a finished part."""

    def __init__(self, out: Path) -> None:
        self.path = out / JOURNAL
        self.lines = read_lines(self.path)
        with written_aside(self.path) as partial:  # without the line that a crash cut short
            partial.write_bytes(b"".join(map(_line, self.lines)))

    def add(self, **values: Any) -> None:
        self.lines.append(values)
        with open(self.path, "ab") as file:
            file.write(_line(values))
            file.flush()
            os.fsync(file.fileno())

    def of(self, split: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["split"] == split]

    @property
    def bad(self) -> dict[tuple[str, int], str]:
        """Why an input is missing, by split and index."""
        return {(line["split"], int(i)): reason for line in self.lines for i, reason in line["bad"].items()}


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


class ShardWriter:
    """One parquet file in the Hugging Face image layout, nothing compressed, so that an image is one stretch of bytes.

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
            named = {"names": list(map(_text, classes)), "_type": "ClassLabel"} if classes else None
            features["label"] = named or {"dtype": "float64" if has_numbers else "int64", "_type": "Value"}
        about = json.dumps({"info": {"features": features}})
        self.schema = pa.schema(columns, metadata={"huggingface": about})
        # Statistics of `bytes` would be whole images.
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
        at = 0
        for data in images:  # a value is its length in four bytes and itself, in order, with page headers between some
            at = group.index(len(data).to_bytes(4, "little") + data, at) + 4
            self.places.append((start + at, len(data)))
            at += len(data)
        self.rows = []

    def abandon(self) -> None:
        """Leave the file as it is: Arrow's writer would else end it when it is collected, and may not be able to."""
        self.writer.is_open = False

    def close(self) -> NDArray[np.int64]:
        """Finish the file; the places of its images: (rows, 2)."""
        self._write()
        self.writer.close()
        return np.array(self.places, np.int64).reshape(-1, 2)


def _text(name: str) -> str:
    """A name as UTF-8 for other programs; the index keeps its bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class RawFile:
    """One `.npy` that grows: rows are appended, the header is written again when their number is known.

    Args:
        row: shape of an image.
        rows: that are in the file already; what lies behind them is cut off.
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
        np.lib.format.write_array_header_1_0(buffer, description)  # NumPy leaves room for the first axis to grow
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
    """Where rows of a raw pack's integers are empty: the number of each such row, and a bit for each of its values.

    Made with the first of them; it is in place before the rows are.

    Args:
        lines: of the journal for this split.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], lines: list[dict[str, Any]]) -> None:
        self.path, self._partial = path, path.with_name(PARTIAL + path.name)
        self._width = 8 + -(-int(np.prod(shape)) // 8)
        self._file: RawFile | None = None
        self._new = 0  # images since the journal's last line; floats among them, which are NaN where they are empty
        if (noted := sum(line.get("empty", 0) for line in lines)) and self._partial.exists():
            self._file = RawFile(self._partial, (self._width,), "uint8", noted)

    def add(self, found: PackedBatch, row: int) -> None:
        """Note what is empty of some images.

        Args:
            row: of the first of them in the pack.
        """
        self._new += len(found.empty)
        for index, bits in sorted(found.empty.items()):
            if not bits:
                continue
            if self._file is None:
                self._file = RawFile(self._partial, (self._width,), "uint8", 0)
            missing = sum(other < index for other in found.bad)
            self._file.add([(row + index - found.start - missing).to_bytes(8, "little") + bits])

    def sync(self) -> dict[str, int]:
        """What the journal says of it: how many images are new; nothing without any."""
        if self._file is not None:
            self._file.sync()
        new, self._new = self._new, 0
        return {"empty": new} if new else {}

    def finish(self) -> None:
        """Put it in place, if there is anything in it."""
        if self._file is not None:
            self._file.finish()
            self._partial.replace(self.path)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def write_index(path: Path, source: Source, kept: NDArray[np.int64], places: NDArray[np.int64] | None) -> None:
    """Names, labels, numbers that are no classes, and places of a split's images. Equal content gives equal bytes."""
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
    if (apart := tile_image_ids(source)) is not None:  # or a split would put tiles of one image on both sides
        arrays["image_numbers"] = apart[kept]
    with written_aside(path) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def file_entry(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, for the manifest."""
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_manifest(path: Path, values: dict[str, Any]) -> None:
    """Write a manifest of a pack aside, rename it, and see it and its folder to the disk."""
    with written_aside(path) as partial:
        partial.write_bytes(json_bytes(values))
    sync(path.parent)
