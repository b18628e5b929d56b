"""Which axis of a three-dimensional `.npy` holds the channels: decided once for a data set, or given by `--axes`.

TIFF states it. NumPy's files do not: 12 × 64 × 64 is most likely 12 channels of 64 × 64 pixels, but may be
12 × 64 pixels of 64 channels.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openmae.data.decoding.npy import CHANNELS_FIRST, CHANNELS_LAST, NPY, evident_order, shape_of
from openmae.data.randomness import Permutation
from openmae.errors import RequestError, shown

NUM_SURVEYED = 256  # files whose headers are read
HEADER_BYTES = 10_240
AXES_ADVICE = f"--axes {CHANNELS_FIRST} (channels first) or --axes {CHANNELS_LAST} (channels last) says it"


@dataclass(frozen=True)
class Axes:
    """The order of axes in a data set's `.npy` files, and the reason for it.

    Attributes:
        order: C, Y and X in the order of the axes; None where there is no file of three dimensions.
        why: the reason; None where there is no such file.
    """

    order: str | None
    why: str | None = None

    @property
    def lines(self) -> list[str]:
        """The line about it in a plan."""
        return [] if self.why is None else [f"axes       {self.order}: {self.why}"]


BY_SHAPE = Axes(None)


def decide_axes(
    named_shapes: Iterable[tuple[str, tuple[int, ...]]], requested: str | None, default: str | None
) -> Axes:
    """Decide the order of axes of a data set.

    Args:
        named_shapes: names and shapes of some files; only those of three dimensions count.
        requested: by `--axes`; it always wins.
        default: the order of a model's training data, where the shapes are ambiguous.

    Raises:
        RequestError: the shapes contradict each other, or are ambiguous without `requested` and `default`.
    """
    shapes = {shape: name for name, shape in named_shapes if len(shape) == 3}
    if not shapes:
        return Axes(requested)
    if requested is not None:
        return Axes(requested, "as --axes says")
    evident = {order: (shape, name) for shape, name in shapes.items() if (order := evident_order(shape)) is not None}
    if len(evident) > 1:
        examples = " and ".join(f"{shown(name)} is {_times(shape)}" for shape, name in evident.values())
        raise RequestError(f"the channels seem to be now first, now last: {examples}; {AXES_ADVICE}")
    if evident:
        order, (shape, _) = next(iter(evident.items()))
        which = "first" if order == CHANNELS_FIRST else "last"
        return Axes(order, f"the {which} axis of {_times(shape)} is the smallest (--axes says otherwise)")
    shape, name = next(iter(shapes.items()))
    if default is not None:
        return Axes(default, f"as the model had them, for {_times(shape)} does not tell (--axes says otherwise)")
    raise RequestError(f"{shown(name)} is {_times(shape)}: which axis holds the channels is not clear; {AXES_ADVICE}")


def shapes_of_files(root: Path, files: Iterable[bytes]) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a random sample of `.npy` files, from their headers; unreadable ones are left out."""
    arrays = [file for file in files if file.lower().endswith(b".npy")]
    count = min(NUM_SURVEYED, len(arrays))
    for index in Permutation(len(arrays), 0)(np.arange(count)).tolist() if count else ():
        try:
            with open(os.path.join(os.fsencode(root), arrays[index]), "rb", buffering=0) as file:
                shape = shape_of(file.read(HEADER_BYTES))
        except OSError:
            continue
        if shape is not None:
            yield os.fsdecode(arrays[index]), shape


def shapes_of_bytes(named: Iterable[tuple[str, bytes]]) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Names and shapes of `.npy` files in memory, given by name and bytes."""
    for name, data in named:
        shape = shape_of(data[:HEADER_BYTES]) if data.startswith(NPY) else None
        if shape is not None:
            yield name, shape


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
