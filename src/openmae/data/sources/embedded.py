"""Data inside the wheels of scikit-image and scikit-learn: for a demo without a download."""

import gzip
import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from openmae.data.decoding.decode import decode
from openmae.data.sources.folder import Ignored
from openmae.data.sources.named import check_embedded
from openmae.errors import RequestError

_SKIMAGE, _SKLEARN = ("skimage", "data"), ("sklearn", "datasets/images")
# Each photograph, and the side on which a band of 28 % is held out: the one that shows most.
_PHOTOS = (
    (*_SKIMAGE, "astronaut.png", "right"),
    (*_SKIMAGE, "chelsea.png", "left"),
    (*_SKLEARN, "china.jpg", "lower"),
    (*_SKIMAGE, "coffee.png", "lower"),
    (*_SKLEARN, "flower.jpg", "lower"),
    (*_SKIMAGE, "hubble_deep_field.jpg", "right"),
    (*_SKIMAGE, "ihc.png", "lower"),  # tissue under a microscope
    (*_SKIMAGE, "motorcycle_left.png", "right"),
    (*_SKIMAGE, "retina.jpg", "right"),
    (*_SKIMAGE, "rocket.jpg", "lower"),
)
_HELD_OUT = 0.28
_SIDES = (96, 224)  # pixels, both included
_LENGTHS = {"train": 4096, "val": 128}


def embedded_source(name: str, split: str) -> "EmbeddedPhotos | EmbeddedDigits | None":
    """`photos` (crops of colour photographs) or `digits` (8 x 8, labelled), split train or val; None for test.

    Raises RequestError for another name, or if the package that carries the data is not installed.
    """
    sources: dict[str, type[EmbeddedPhotos] | type[EmbeddedDigits]] = {
        "photos": EmbeddedPhotos,
        "digits": EmbeddedDigits,
    }
    check_embedded(name)
    return None if split == "test" else sources[name](split)


@dataclass(frozen=True)
class Region:
    """The part of a photograph that one split may see, in pixels."""

    path: Path
    x: int
    y: int
    width: int
    height: int


class EmbeddedPhotos:
    """Square crops, 96 to 224 pixels wide, of ten photographs; the splits share no pixel.

    Index -> crop is a pure function of (split, index). Training draws photographs by the square root of their area
    (by area, the retina and the galaxies would be 60 % of all crops); validation takes them in turn.
    """

    def __init__(self, split: str) -> None:
        self.classes: tuple[str, ...] | None = None
        self.ignored = Ignored()
        self._split = split
        self.regions = [_region(*photo, split) for photo in _PHOTOS]
        weights = np.sqrt([region.width * region.height for region in self.regions])
        # Integers out of 2^32, so that no rounding of floats decides which photograph an index gets.
        self._shares = [int(share) for share in (weights.cumsum() / weights.sum() * 2**32).astype(np.int64)]

    def __len__(self) -> int:
        return _LENGTHS[self._split]

    def crop(self, index: int) -> tuple[Region, int, int, int]:
        """The region, and x, y, side of the crop in its photograph's pixels."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        draws = _draws(f"photos/{self._split}/{index}")
        if self._split == "val":
            region = self.regions[index % len(self.regions)]
        else:
            region = next(r for r, share in zip(self.regions, self._shares, strict=True) if draws[0] < share)
        low, high = _SIDES[0], min(_SIDES[1], region.width, region.height)
        side = low + draws[1] % (high - low + 1)
        x = region.x + draws[2] % (region.width - side + 1)
        y = region.y + draws[3] % (region.height - side + 1)
        return region, x, y, side

    def name(self, index: int) -> str:
        region, x, y, side = self.crop(index)
        return f"{region.path.name}@{x},{y},{side}"

    def label(self, index: int) -> None:
        return None

    def read(self, index: int) -> np.ndarray:
        region, x, y, side = self.crop(index)
        return np.ascontiguousarray(photograph(region.path)[y : y + side, x : x + side])

    def fingerprint(self) -> str:
        seen = [(r.path.name, r.path.stat().st_size, r.x, r.y, r.width, r.height) for r in self.regions]
        return hashlib.sha256(repr((self._split, len(self), _SIDES, seen)).encode()).hexdigest()


class EmbeddedDigits:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 x 1 uint8, a fifth of them (by a hash of the row) held out."""

    def __init__(self, split: str) -> None:
        self.classes: tuple[str, ...] | None = tuple("0123456789")
        self.ignored = Ignored()
        rows = _digits()  # (1797, 65): 64 values of 0..16, and the digit
        self._ids = [i for i in range(len(rows)) if (_draws(f"digits/{i}")[0] % 5 == 0) == (split == "val")]
        self._images = ((rows[self._ids, :64] * 255 + 8) // 16).astype(np.uint8).reshape(-1, 8, 8, 1)
        self._labels = rows[self._ids, 64]

    def __len__(self) -> int:
        return len(self._ids)

    def name(self, index: int) -> str:
        return f"digits#{self._ids[index]}"

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def read(self, index: int) -> np.ndarray:
        return self._images[index]

    def fingerprint(self) -> str:
        return hashlib.sha256(self._images.tobytes() + self._labels.tobytes()).hexdigest()


def _draws(key: str) -> tuple[int, int, int, int]:
    """Four 32-bit integers that depend on the key alone: not on process, order, platform or library."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    a, b, c, d = (int.from_bytes(digest[i : i + 4], "little") for i in (0, 4, 8, 12))
    return a, b, c, d


def _packaged(package: str, path: str) -> Path:
    """A file within an installed package, found without importing it (which takes a second)."""
    spec = importlib.util.find_spec(package)
    file = Path(spec.origin).parent / path if spec and spec.origin else None
    if file is None or not file.is_file():
        raise RequestError(f"{package}/{path} is missing: install scikit-image and scikit-learn for embedded data")
    return file


@cache
def photograph(path: Path) -> np.ndarray:
    """The decoded photograph, H x W x C, which is kept in memory."""
    return decode(path.read_bytes())


def _region(package: str, folder: str, file: str, held_out: str, split: str) -> Region:
    from PIL import Image

    path = _packaged(package, f"{folder}/{file}")
    with Image.open(path, formats=("PNG", "JPEG")) as image:  # the header only
        width, height = image.size
    cut_x, cut_y = round(width * (1 - _HELD_OUT)), round(height * (1 - _HELD_OUT))
    bands = {  # (held-out, training), each x, y, width, height
        "left": ((0, 0, width - cut_x, height), (width - cut_x, 0, cut_x, height)),
        "right": ((cut_x, 0, width - cut_x, height), (0, 0, cut_x, height)),
        "lower": ((0, cut_y, width, height - cut_y), (0, 0, width, cut_y)),
    }
    return Region(path, *bands[held_out][split == "train"])


@cache
def _digits() -> np.ndarray:
    with gzip.open(_packaged("sklearn", "datasets/data/digits.csv.gz"), "rt") as file:
        return np.loadtxt(file, delimiter=",").astype(np.int64)
