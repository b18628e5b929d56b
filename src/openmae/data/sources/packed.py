"""Packs, the output of `openmae pack`, as a source: each image is one read of the disk.

A pack is a folder with `pack.json` (settings, files, checksums) and, for each split, `SPLIT.index.npz` (names, labels,
positions in the files) and the images: parquet files of JPEGs in the Hugging Face layout, or one plain `SPLIT.npy`,
N × H × W × C, with `SPLIT.empty.npy`, the nodata mask, where integers have nodata.
"""

import hashlib
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmae.config.checks import OFF
from openmae.data.decoding.decode import MAX_PIXELS, BadImage, decode, masked_array
from openmae.data.decoding.headers import read_size
from openmae.data.decoding.nodata import check_floats
from openmae.data.sources.folder import Ignored
from openmae.data.sources.manifest import MANIFEST, require, stated_range
from openmae.errors import RequestError, quoted, shown


def find_damage(root: Path, manifest: dict[str, Any]) -> list[str]:
    """The files of a pack that do not match its manifest, a line for each; reads every byte."""
    lines = []
    for name, entry in manifest["files"].items():
        try:
            with open(root / name, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            lines.append(f"{name}: {error.strerror}")
            continue
        if digest != entry["sha256"]:
            lines.append(f"{name}: its bytes have changed")
    return lines


class PackedSource:
    """One split of a pack. Reader processes share the pages of its memory-mapped file.

    Attributes:
        shape: height, width and channels of every image of a raw pack; None for JPEGs.
        value_range: the raw values that become 0 and 1, where they were given when it was packed.
        image_numbers: of which image each entry is a tile, (n,); None where entries are images.

    Raises:
        RequestError: a file is missing or of another size than the manifest says.
    """

    def __init__(
        self,
        root: Path,
        manifest: dict[str, Any],
        split: str,
        *,
        background: float = 1.0,
        max_pixels: int = MAX_PIXELS,
        nodata: float | str = OFF,
    ) -> None:
        entry = manifest["splits"][split]
        self._root, self._options, self.nodata = Path(os.path.abspath(root)), (background, max_pixels), nodata
        self._count, self._files = int(entry["images"]), [str(name) for name in entry["data"]]
        self.shape: tuple[int, int, int] | None = tuple(manifest["shape"]) if manifest["format"] == "raw" else None
        self._dtype = str(manifest["dtype"])
        self.value_range = stated_range(manifest)
        self._map: NDArray | None = None
        self.ignored = Ignored()
        self.classes: tuple[str, ...] | None = tuple(entry["classes"]) if entry["classes"] else None
        empty_file = [str(entry["empty"])] if "empty" in entry else []
        for name in (*self._files, entry["index"], *empty_file):
            self._check_size(name, manifest["files"][name]["bytes"])
        try:
            self._read_index(self._root / entry["index"], manifest["files"])
            if self.shape is not None:
                self._open_map()
            self._empty_rows, self._empty_bits = np.empty(0, np.int64), np.empty((0, 0), np.uint8)
            for name in empty_file:
                self._read_empty(self._root / name)
        except (OSError, ValueError, KeyError, EOFError, AssertionError) as error:
            reason = " ".join(str(error).split())[:100] or type(error).__name__
            raise RequestError(
                f"{shown(self._root)} is damaged ({reason}): openmae pack {quoted(self._root)} --verify says where"
            ) from None
        canonical = json.dumps(manifest, sort_keys=True)
        self._fingerprint = hashlib.sha256(f"{split} {canonical}".encode()).hexdigest()

    def _check_size(self, name: str, size: int) -> None:
        try:
            actual = os.stat(self._root / name).st_size
        except OSError as error:
            raise RequestError(f"{shown(self._root / name)}, a part of the pack: {error.strerror}") from None
        if actual != size:
            raise RequestError(
                f"{shown(self._root / name)} has {actual} bytes, {MANIFEST} says {size}: copy it again, or pack again"
            )

    def _read_index(self, path: Path, files: dict[str, Any]) -> None:
        with np.load(path, allow_pickle=False) as index:
            self._names = index["names"].astype(np.uint8, casting="safe").tobytes()
            self._ends = index["name_ends"].astype(np.int64, casting="safe")
            self._labels = index["labels"].astype(np.int64, casting="safe")
            self.numbers = index["numbers"].astype(np.float64, casting="safe") if "numbers" in index else None
            places = None if self.shape is not None else index["places"].astype(np.int64, casting="safe")
            numbers = index["image_numbers"].astype(np.int64, casting="safe") if "image_numbers" in index else None
        require(numbers is None or numbers.shape == (self._count,), "image numbers")
        self.image_numbers: NDArray[np.int64] | None = numbers
        require(self._ends.shape == self._labels.shape == (self._count,), "an index of another length")
        require(self.numbers is None or self.numbers.shape == (self._count,), "an index of another length")
        require((np.diff(self._ends, prepend=0) >= 0).all() and self._ends[-1] <= len(self._names), "names")
        self._places = places  # (N, 3): file, offset, length
        if places is not None:
            require(places.shape == (self._count, 3) and (places >= 0).all(), "places")
            require((places[:, 0] < len(self._files)).all(), "places")
            sizes = np.array([files[name]["bytes"] for name in self._files], np.int64)
            require((places[:, 1] + places[:, 2] <= sizes[places[:, 0]]).all(), "places beyond the end of a file")

    def _read_empty(self, path: Path) -> None:
        """Read the nodata mask: for each row with nodata its number in 8 bytes and a bit for each value."""
        rows = np.load(path, allow_pickle=False)
        assert self.shape is not None
        require(rows.dtype == np.uint8, "empty values")
        require(rows.ndim == 2 and rows.shape[1] == 8 + -(-math.prod(self.shape) // 8), "empty values")
        self._empty_rows = np.ascontiguousarray(rows[:, :8]).view("<i8").ravel().astype(np.int64)
        self._empty_bits = rows[:, 8:]
        require((np.diff(self._empty_rows, prepend=-1) > 0).all(), "empty values")
        require(not len(rows) or self._empty_rows[-1] < self._count, "empty values")

    def _empty(self, index: int) -> NDArray[np.bool_] | None:
        """The nodata mask of a raw image of integers; None where it has none."""
        position = int(np.searchsorted(self._empty_rows, index))
        if position == len(self._empty_rows) or self._empty_rows[position] != index:
            return None
        assert self.shape is not None
        return np.unpackbits(self._empty_bits[position], count=math.prod(self.shape)).astype(bool).reshape(self.shape)

    def _open_map(self) -> NDArray:
        """The memory-mapped images; mapped again after unpickling in another process."""
        if self._map is None:
            images = np.load(self._root / self._files[0], mmap_mode="r", allow_pickle=False)
            require(images.shape == (self._count, *(self.shape or ())), f"shape {images.shape}")
            require(images.dtype.name == self._dtype and images.dtype.isnative, f"type {images.dtype}")
            self._map = images.view(np.ndarray)  # slicing an np.memmap takes 10 times as long
        return self._map

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def __len__(self) -> int:
        return self._count

    def _checked(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return index

    def name(self, index: int) -> str:
        """The name that the image had in the data that was packed."""
        start = self._ends[index - 1] if self._checked(index) else 0
        return os.fsdecode(self._names[start : self._ends[index]])

    def label(self, index: int) -> int | None:
        label = int(self._labels[self._checked(index)])
        return label if label >= 0 else None

    def read(self, index: int) -> np.ndarray:
        self._checked(index)
        if self._places is None:
            row = self._open_map()[index]
            if self.nodata != OFF:
                return masked_array(row, self.nodata, self._empty(index))
            check_floats(row, None)
            return row
        return decode(self._encoded(index), *self._options, nodata=self.nodata)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels, from the header. Raises BadImage where it cannot be read."""
        self._checked(index)
        if self.shape is not None:
            return self.shape[:2]
        return read_size(io.BytesIO(self._encoded(index)), self._options[1])

    def _encoded(self, index: int) -> bytes:
        assert self._places is not None
        file, offset, length = self._places[index].tolist()
        try:
            descriptor = os.open(self._root / self._files[file], os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BadImage(error.strerror or type(error).__name__) from error
        return data

    def fingerprint(self) -> str:
        """A hash of the manifest, which has checksums of all files; so it stays the same when a pack is moved."""
        return self._fingerprint
