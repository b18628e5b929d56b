"""One pass over every image of a source: a record of 128 bytes for each, and running sums of the channels.

A million images are one array of 128 MB; only unreadable images are kept as Python objects.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.formats import claimed_format, format_of, has_exif_rotation, is_transparent
from openmae.data.decoding.nodata import filled, nodata_mask, valid_values
from openmae.data.reader_process import identity_collate
from openmae.data.readers import iterate_batches, make_loader
from openmae.data.sources.open import Source
from openmae.data.sources.tiles import count_blank
from openmae.data.survey.perceptual import SIDE, THUMB, perceptual_hashes, shrink

BATCH = 64
# Records store the index of a name in these.
DTYPES = ("uint8", "uint16", "float32")
# fmt: off
FORMATS = (
    "", "JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PNM", "JPEG2000", "AVIF", "NPY", "HEIC", "PDF", "ZIP", "GZIP",
    "HDF5", "PSD", "HTML", "XML", "SVG", "LFS", "empty", "unknown",
)
# fmt: on
READABLE, EXIF_ROTATED, TRANSPARENT, WRONG_EXTENSION, BLANK, LOW_DETAIL = (1 << bit for bit in range(6))
# Detail, in 0..255, below which the perceptual hash is that of a smooth gradient, which many images share: parts of
# blurred backgrounds have 2 to 3, the plainest of 256 photographs 6, that of CIFAR-10's 10,000 test images 3.9.
MIN_DETAIL = 3.5
RECORD = np.dtype(
    [
        ("index", np.int64),  # in the source
        ("height", np.int32),
        ("width", np.int32),
        ("bytes", np.int64),  # size of the file; -1 where there is none
        ("digest", np.uint8, 16),  # of SHA-256 of the bytes, or of the pixels where there are none
        ("hash", np.uint64),
        ("thumb", np.uint8, THUMB * THUMB * 3),
        ("channels", np.uint8),
        ("dtype", np.uint8),
        ("top", np.float32),  # the highest value
        ("empty", np.float32),  # the fraction of nodata values
        ("format", np.uint8),
        ("flags", np.uint8),  # READABLE; BLANK: one value only; LOW_DETAIL: see MIN_DETAIL
    ]
)
VALUES_AT_ONCE = 1 << 20  # of an image that are converted to float64 at a time


@runtime_checkable
class Encoded(Protocol):
    """A source of encoded images, whose bytes can be read."""

    def encoded(self, index: int) -> bytes: ...
    def decoded(self, data: bytes) -> np.ndarray: ...


@dataclass
class Sums:
    """Running sums over images of one kind (channels, number type); every image has the same weight, whatever its size.

    Attributes:
        mean, square: sums over images of the means of values and of squared values, (C,) float64.
        low, high: (C,) the lowest and the highest value.
    """

    count: int
    mean: NDArray[np.float64]
    square: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def add(self, other: "Sums") -> None:
        self.count += other.count
        self.mean, self.square = self.mean + other.mean, self.square + other.square
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)

    def statistics(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation by channel, of raw values."""
        mean = self.mean / self.count
        return mean, np.sqrt(np.maximum(self.square / self.count - mean**2, 0))


@dataclass
class Census:
    """The result of a pass.

    Attributes:
        records: (n,) of RECORD, in the order of the requested indices.
        sums: by (channels, number type).
        bad: the reason, by index, of each unreadable image.
        num_tiles, blank_tiles: of the readable images, where tiles are counted.
    """

    records: NDArray
    sums: dict[tuple[int, str], Sums] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    num_tiles: int = 0
    blank_tiles: int = 0

    @property
    def readable(self) -> NDArray:
        """The records of the readable images."""
        return self.records[(self.records["flags"] & READABLE) > 0]


class _Examined(Dataset):
    """A census of each batch instead of its images, made in the reader processes, so that no pixels are transferred."""

    def __init__(self, source: Source, tiles: int | None) -> None:
        self.source, self.tiles = source, tiles
        self.files = source if isinstance(source, Encoded) else None

    def __getitems__(self, indices: Sequence[int]) -> Census:
        census = Census(np.zeros(len(indices), RECORD))
        records = census.records
        records["index"], records["bytes"] = indices, -1
        shrunk = np.zeros((len(indices), SIDE, SIDE, 3), np.float32)
        for position, index in enumerate(indices):
            try:
                shrunk[position] = self._examine(index, records[position], census)
            except BadImage as error:
                census.bad[index] = str(error)
        records["hash"], thumbs, detail = perceptual_hashes(shrunk)
        records["thumb"] = thumbs.reshape(len(indices), -1)
        records["flags"] |= LOW_DETAIL * (detail < MIN_DETAIL).astype(np.uint8)
        return census

    def _examine(self, index: int, record: NDArray, census: Census) -> NDArray[np.float32]:
        """Fill in the record of one image, add it to the batch's sums, and return it shrunk (`shrink`)."""
        if self.files is not None:
            data = self.files.encoded(index)
            _describe_file(record, data, self.source.name(index))
            image = self.files.decoded(data)
        else:
            image = self.source.read(index)
            record["digest"] = _digest(f"{image.shape} {image.dtype} ".encode() + image.tobytes())
        sums, dtype = image_sums(image), str(image.dtype)
        record["empty"] = 0.0 if (mask := nodata_mask(image)) is None else mask.mean()
        _add(census.sums, (image.shape[2], dtype), sums)
        if self.tiles is not None:
            num_tiles, blank_tiles = count_blank(image, self.tiles)
            census.num_tiles += num_tiles
            census.blank_tiles += blank_tiles
        record["height"], record["width"], record["channels"] = image.shape
        record["dtype"], record["top"] = DTYPES.index(dtype), sums.high.max()
        record["flags"] |= READABLE | BLANK * int((sums.low == sums.high).all())
        return shrink(filled(image))


def examine(
    source: Source,
    indices: NDArray[np.int64],
    *,
    workers: int,
    tiles: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Census:
    """Read the images at `indices` once; the result does not depend on the number of workers.

    Args:
        tiles: count the tiles of this side, and the blank ones among them.
        on_progress: called after each batch with the number of images that are done.
    """
    dataset = _Examined(source, tiles)
    batches = [indices[start : start + BATCH].tolist() for start in range(0, len(indices), BATCH)]
    whole = Census(np.empty(len(indices), RECORD))
    done = 0
    with closing(
        iterate_batches(make_loader(dataset, batches, identity_collate, workers=workers, pin_memory=False))
    ) as censuses:
        for census in censuses:
            whole.records[done : done + len(census.records)] = census.records
            whole.bad |= census.bad
            whole.num_tiles += census.num_tiles
            whole.blank_tiles += census.blank_tiles
            for kind, sums in census.sums.items():
                _add(whole.sums, kind, sums)
            done += len(census.records)
            on_progress(done)
    return whole


def image_sums(image: NDArray) -> Sums:
    """The sums of one image; exact for uint8, where they come from histograms."""
    channels = image.shape[2]
    if nodata_mask(image) is not None:
        return _image_sums_without_nodata(image)
    if image.dtype == np.uint8 and channels in (1, 3):
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        counts = np.array(picture.histogram(), np.int64).reshape(channels, 256)
        values = np.arange(256)
        total = image.shape[0] * image.shape[1]
        is_present = counts > 0
        return Sums(
            1,
            counts @ values / total,
            counts @ values**2 / total,
            is_present.argmax(1).astype(np.float64),
            255.0 - is_present[:, ::-1].argmax(1),
        )
    pixels = image.reshape(-1, channels)
    step = max(1, VALUES_AT_ONCE // channels)
    mean, square = np.zeros(channels), np.zeros(channels)
    for start in range(0, len(pixels), step):
        values = pixels[start : start + step].astype(np.float64)
        mean += values.sum(0)
        square += (values**2).sum(0)
    return Sums(
        1,
        mean / len(pixels),
        square / len(pixels),
        pixels.min(0).astype(np.float64),
        pixels.max(0).astype(np.float64),
    )


def _image_sums_without_nodata(image: NDArray) -> Sums:
    """The sums without nodata; a channel that is all nodata gets those of all other values."""
    channels = valid_values(image)
    all_values = np.concatenate(channels)
    valid = [(values if len(values) else all_values).astype(np.float64) for values in channels]
    mean, square, low, high = (
        np.array([function(values) for values in valid])
        for function in (np.mean, lambda values: np.mean(values**2), np.min, np.max)
    )
    return Sums(1, mean, square, low, high)


def _describe_file(record: NDArray, data: bytes, name: str) -> None:
    form = format_of(data)
    record["bytes"], record["format"], record["digest"] = len(data), FORMATS.index(form), _digest(data)
    claimed = claimed_format(name)
    is_wrong = claimed is not None and claimed != form and form not in ("empty", "unknown")
    record["flags"] = (
        EXIF_ROTATED * has_exif_rotation(data, form)
        | TRANSPARENT * is_transparent(data, form)
        | WRONG_EXTENSION * is_wrong
    )


def _digest(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(data).digest()[:16], np.uint8)


def _add(sums: dict[tuple[int, str], Sums], kind: tuple[int, str], more: Sums) -> None:
    if kind in sums:
        sums[kind].add(more)
    else:
        sums[kind] = more
