"""The colours of classes, for masks that are coloured pictures (`--palette FILE`)."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from openmae.config.segmenter_shape import MAX_SEGMENT_CLASSES
from openmae.data.decoding.pixels import BadImage
from openmae.data.decoding.strips import in_strips
from openmae.data.masks.text_file import read_text
from openmae.errors import RequestError, shown

IGNORED = -1  # the label of a pixel that counts for nothing: neither in the loss nor in a metric
IGNORED_NAMES = ("ignore", "ignored", "void", "unlabeled", "unlabelled")

_BETWEEN = r"[\s,;]+"
_NUMBERS = rf"(?P<red>\d{{1,9}}){_BETWEEN}(?P<green>\d{{1,9}}){_BETWEEN}(?P<blue>\d{{1,9}})"
_NUMBERS_FIRST = re.compile(rf"{_NUMBERS}{_BETWEEN}(?P<name>.+)", re.ASCII)
_NAME_FIRST = re.compile(rf"(?P<name>.+?){_BETWEEN}{_NUMBERS}", re.ASCII)

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Palette:
    """The colour of each class, red, green and blue from 0 to 255.

    Attributes:
        names: of the classes, whose numbers are their positions.
        colours: of the classes, in the same order.
        ignored: the colours of pixels without a class.
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    ignored: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        known = (*self.colours, *self.ignored)
        if len(self.names) != len(self.colours):
            raise RequestError(f"a palette of {len(self.names)} names and {len(self.colours)} colours: give one each")
        if len(self.names) > MAX_SEGMENT_CLASSES:
            raise RequestError(f"a palette of {len(self.names)} classes: a model has at most {MAX_SEGMENT_CLASSES}")
        if len(set(known)) < len(known):
            raise RequestError("a palette in which two classes have one colour: give each its own")

    def ids_of(self, pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
        """The class of each pixel, from its colour: (H, W, 3) to (H, W), `IGNORED` for an ignored colour.

        Raises BadImage for colours that are not in the palette.
        """
        unknown = Counter[int]()
        ids = in_strips(pixels.shape, lambda rows: self._ids_of(pixels[rows], unknown))
        if unknown:
            (most, count), *others = sorted(unknown.items(), key=lambda found: (-found[1], found[0]))
            colour = " ".join(str(most >> shift & 255) for shift in (16, 8, 0))
            beside = f" and {len(others)} other colours" if others else ""
            raise BadImage(f"colour {colour} ({count} pixels){beside} not in --palette")
        return ids

    def _ids_of(self, pixels: NDArray[np.uint8], unknown: Counter[int]) -> NDArray[np.int16]:
        """`ids_of` some rows, that counts the pixels of colours that are not in the palette, as 24-bit numbers."""
        packed = pixels[..., 0].astype(np.int32) << 16
        packed |= pixels[..., 1].astype(np.int32) << 8
        packed |= pixels[..., 2]
        keys, ids = self._table
        positions = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
        is_known = keys[positions] == packed
        if not is_known.all():
            found, counts = np.unique(packed[~is_known], return_counts=True)
            unknown.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        return ids[positions]

    @cached_property
    def _table(self) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
        """All colours as sorted 24-bit numbers, and their classes."""
        colours = np.array((*self.colours, *self.ignored), np.int32)
        packed = colours @ np.array([1 << 16, 1 << 8, 1], np.int32)
        order = np.argsort(packed)
        ids = np.array([*range(len(self.colours)), *[IGNORED] * len(self.ignored)], np.int16)
        return packed[order], ids[order]


def read_palette(path: str) -> Palette:
    """Read a palette: a line for each class, three numbers from 0 to 255 and its name, in either order.

    They are separated by commas, tabs or blanks. The order of lines is that of the classes, counted from 0; a name that
    says so (`IGNORED_NAMES`) makes its pixels ignored, and takes no number. A first line without digits is a header.

    Raises:
        RequestError: it cannot be read, a line is something else, or a colour or name stands twice.
    """
    names: dict[str, Colour] = {}
    lines_of: dict[Colour, int] = {}
    ignored: list[Colour] = []
    for number, name, colour in _entries(path):
        where = f"--palette {shown(path)}, line {number}"
        if colour in lines_of:
            raise RequestError(
                f"{where}: {' '.join(map(str, colour))} is the colour of line {lines_of[colour]} too: give each its own"
            )
        lines_of[colour] = number
        if name.lower() in IGNORED_NAMES:
            ignored.append(colour)
        elif names.setdefault(name, colour) != colour:
            raise RequestError(f"{where}: {shown(name)} is listed before with another colour: name each class once")
    if not names:
        raise RequestError(f"--palette {shown(path)} lists no classes: give lines such as 128 64 128 road")
    return Palette(names=tuple(names), colours=tuple(names.values()), ignored=tuple(ignored))


def _entries(path: str) -> Iterator[tuple[int, str, Colour]]:
    """Line number, name and colour of each line. Raises RequestError, see `read_palette`."""
    is_first = True
    for number, line in enumerate(read_text(path, "--palette").splitlines(), 1):
        text = line.replace('"', "").strip()
        if not text or text.startswith("#"):
            continue
        match = _NUMBERS_FIRST.fullmatch(text) or _NAME_FIRST.fullmatch(text)
        is_header, is_first = is_first and not re.search(r"\d", text), False
        if is_header:
            continue
        colour = (0, 0, 0) if match is None else (int(match["red"]), int(match["green"]), int(match["blue"]))
        if match is None or re.search(r"[,\t;]", match["name"]) or max(colour) > 255:
            raise RequestError(
                f"--palette {shown(path)}, line {number}: got {shown(text[:60])}, expected three numbers from 0 to 255 "
                "and a name without commas, as 128 64 128 road"
            )
        yield number, match["name"].strip(), colour
