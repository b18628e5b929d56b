"""A colour for each class: distinct, always the same, and told apart on photographs."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

NUM_CHOSEN = 256  # colours chosen to be as different as possible; of more classes the rest are merely distinct
LEVELS = 16  # of each channel, among which they are chosen
LIGHTNESS, MIN_CHROMA = (30, 92), 25  # in CIELAB: neither black, nor white, nor grey, which photographs are full of
NUM_COLOURS = 2**24
STEP = 0x9E3779  # odd, so that its multiples modulo NUM_COLOURS go through all colours


def class_colours(num_classes: int) -> NDArray[np.uint8]:
    """(num_classes, 3) RGB colours, all distinct; those of the first classes do not depend on how many follow."""
    chosen = _chosen()
    if num_classes <= len(chosen):
        return chosen[:num_classes].copy()
    assert num_classes <= NUM_COLOURS, num_classes
    codes = np.arange(min(num_classes + len(chosen), NUM_COLOURS), dtype=np.int64) * STEP % NUM_COLOURS
    is_chosen = np.isin(codes, chosen.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1]))
    rest = codes[~is_chosen][: num_classes - len(chosen)]
    return np.concatenate([chosen, np.stack([rest >> 16, rest >> 8 & 255, rest & 255], axis=1).astype(np.uint8)])


@cache
def _chosen() -> NDArray[np.uint8]:
    """Each colour is, of those left, the one furthest from all before it (in CIELAB, where distances are seen)."""
    from skimage.color import rgb2lab

    channel = np.linspace(0, 255, LEVELS).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(channel, channel, channel, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = rgb2lab(colours)
    is_readable = (LIGHTNESS[0] <= lab[:, 0]) & (lab[:, 0] <= LIGHTNESS[1]) & (np.hypot(*lab[:, 1:].T) >= MIN_CHROMA)
    # Integers, so that rounding on another machine changes no choice.
    colours, places = colours[is_readable], np.rint(100 * lab[is_readable]).astype(np.int64)
    ids = [int(np.abs(places[:, 1:]).sum(1).argmax())]  # the most colourful one
    distance = np.full(len(places), np.iinfo(np.int64).max)
    while len(ids) < NUM_CHOSEN:
        distance = np.minimum(distance, np.square(places - places[ids[-1]]).sum(1))
        ids.append(int(distance.argmax()))
    return colours[ids]
