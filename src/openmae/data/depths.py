"""The number types of a data set's images, and how many bits their values use."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openmae.data.decoding.decode import BadImage
from openmae.data.randomness import Permutation
from openmae.data.sources.open import Source
from openmae.data.sources.tiles import is_blank
from openmae.data.sources.views import are_tiles, grouped_by_image, root_of

BIT_DEPTHS = (8, 10, 12, 14, 16)  # of cameras, scanners and detectors
NUM_SURVEYED = 64  # images of each source


@dataclass(frozen=True)
class BitDepths:
    """Number types and bit depths of some images.

    Attributes:
        counts: images of each number type.
        highest: the highest value of each type.
        bits: how many uint16 images need each number of bits for their highest value.
    """

    counts: dict[str, int] = field(default_factory=dict)
    highest: dict[str, float] = field(default_factory=dict)
    bits: dict[int, int] = field(default_factory=dict)

    @classmethod
    def from_images(cls, images: Iterable[NDArray]) -> "BitDepths":
        """Measure decoded images, H × W × C."""
        counts, highest, bits = Counter[str](), dict[str, float](), Counter[int]()
        for image in images:
            kind = str(image.dtype)
            # Most images have 8 bits, and their highest value decides nothing, so it is not computed.
            top = 255.0 if kind == "uint8" else float(image.max())
            counts[kind] += 1
            highest[kind] = max(highest.get(kind, top), top)
            if kind == "uint16":
                bits[bits_for(top)] += 1
        return cls(dict(counts), highest, dict(sorted(bits.items())))

    def __add__(self, other: "BitDepths") -> "BitDepths":
        counts, bits = Counter(self.counts) + Counter(other.counts), Counter(self.bits) + Counter(other.bits)
        highest = {**other.highest, **{k: max(v, other.highest.get(k, v)) for k, v in self.highest.items()}}
        return BitDepths(dict(counts), highest, dict(sorted(bits.items())))

    @property
    def count(self) -> int:
        """How many images were measured."""
        return sum(self.counts.values())

    def describe_mixture(self) -> str | None:
        """A line about several number types or bit depths in one data set; None where all are alike."""
        if len(self.counts) > 1:
            kinds = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
            text = ", ".join(f"{n} {kind}{self._highest_text(kind)}" for kind, n in kinds)
            return f"of {self.count} images looked at {text}"
        if len(self.bits) > 1:
            text = ", ".join(f"{bits} bits in {n}" for bits, n in self.bits.items())
            return f"uint16 images of several depths, by the highest value of each: {text}"
        return None

    def _highest_text(self, kind: str) -> str:
        return "" if kind == "uint8" else f" (up to {self.highest[kind]:g})"


def survey_depths(sources: Iterable[Source], limit: int = NUM_SURVEYED) -> BitDepths:
    """Measure the bit depths of up to `limit` images of each source, randomly drawn; unreadable ones are left out.

    Several views of one source count once. Blank tiles are left out: they may hold a scanner's fill value.
    """

    def images() -> Iterable[NDArray]:
        seen: list[Source] = []
        for source in sources:
            if any(root_of(source) is root for root in seen):
                continue
            seen.append(root_of(source))
            indices = Permutation(len(source), 0)(np.arange(min(limit, len(source)))).tolist()
            is_tiled = are_tiles(source)
            for index in grouped_by_image(source, indices) if is_tiled else indices:
                try:
                    image = source.read(index)
                except BadImage:  # reported when it is read for training
                    continue
                if not (is_tiled and is_blank(image)):
                    yield image

    return BitDepths.from_images(images())


def bits_for(highest: float) -> int:
    """The smallest of `BIT_DEPTHS` that holds a value."""
    return next((bits for bits in BIT_DEPTHS if highest <= 2**bits - 1), BIT_DEPTHS[-1])
