"""How many bits the images of a data set use, by number type."""

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

BITS = (8, 10, 12, 14, 16)  # what cameras, scanners and detectors have
NUM_SURVEYED = 64  # images of a part of the data


@dataclass(frozen=True)
class BitDepths:
    """Number types of some images and how far their values reach.

    Attributes:
        counts: images of each number type.
        highest: the highest value of each type.
        bits: how many uint16 images need so many bits for their own highest value.
    """

    counts: dict[str, int] = field(default_factory=dict)
    highest: dict[str, float] = field(default_factory=dict)
    bits: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, images: Iterable[NDArray]) -> "BitDepths":
        """Of decoded images, H × W × C."""
        counts, highest, bits = Counter[str](), dict[str, float](), Counter[int]()
        for image in images:
            kind = str(image.dtype)
            # The highest of 8 bits decides nothing, and most images have 8.
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
        """Images that were looked at and could be read."""
        return sum(self.counts.values())

    def describe_mixture(self) -> str | None:
        """That one folder holds several depths, in words; None where it does not."""
        if len(self.counts) > 1:
            kinds = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
            told = ", ".join(f"{n} {kind}{self._reach(kind)}" for kind, n in kinds)
            return f"of {self.count} images looked at {told}"
        if len(self.bits) > 1:
            told = ", ".join(f"{bits} bits in {n}" for bits, n in self.bits.items())
            return f"uint16 images of several depths, by the highest value of each: {told}"
        return None

    def _reach(self, kind: str) -> str:
        return "" if kind == "uint8" else f" (up to {self.highest[kind]:g})"


def survey_depths(sources: Iterable[Source], limit: int = NUM_SURVEYED) -> BitDepths:
    """Decode up to `limit` images of each source, evenly drawn, and measure their depths; unreadable ones are left out.

    Views of one source are looked at once. Blank tiles are left out: they may be what a scanner fills with.
    """

    def images() -> Iterable[NDArray]:
        seen: list[Source] = []
        for source in sources:
            if any(root_of(source) is root for root in seen):
                continue
            seen.append(root_of(source))
            chosen = Permutation(len(source), 0)(np.arange(min(limit, len(source)))).tolist()
            is_cut = are_tiles(source)
            for index in grouped_by_image(source, chosen) if is_cut else chosen:
                try:
                    image = source.read(index)
                except BadImage:  # whoever reads it for good says so
                    continue
                if not (is_cut and is_blank(image)):
                    yield image

    return BitDepths.of(images())


def bits_for(highest: float) -> int:
    """The smallest usual number of bits that holds a value."""
    return next((bits for bits in BITS if highest <= 2**bits - 1), BITS[-1])
