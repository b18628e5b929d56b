"""Image and patch size where the person left them open: a square, or for long images a box of their aspect."""

import math

import numpy as np

from openmae.data.preprocess import DataFacts

LONG = 2.0  # long side over short side, beyond which a square would show less than half of an image
MIN_PATCHES = 4  # of which three can be hidden
MAX_PATCH = 16


def image_size_for(
    facts: DataFacts, largest: int, patch: int | None, *, is_huge: bool, device: str
) -> tuple[int, int | tuple[int, int], str]:
    """The patch's side, the image size, in pixels, and why that size.

    Args:
        largest: the largest side of a square, in pixels.
        patch: the patch's side where it is given.
        is_huge: of a ViT-H, whose patches have 14 px where the images allow it.
        device: cpu, cuda or mps.
    """
    side, is_given = min(facts.short_side, largest), patch is not None
    patch = patch or (14 if is_huge and facts.short_side >= 224 else usual_patch(side))
    side = max(patch, side // patch * patch)
    if 1 / LONG <= facts.aspect <= LONG:
        if is_given:
            return patch, side, f"what {patch} px patches divide"
        return patch, side, "the images' own size" if side > facts.short_side - patch else f"usual for {device}"
    most = (side // patch) ** 2
    rows, columns = long_grid(facts.aspect, most)
    # The patches of a square are small for small images; a long image has more in it than its short side tells.
    while not is_given and patch * 2 <= MAX_PATCH and min(rows, columns) * patch * 2 <= facts.short_side:
        patch *= 2
    why = f"the median aspect is {aspect_words(facts.aspect)}; {rows * columns} patches, a square would have {most}"
    return patch, (rows * patch, columns * patch), why


def usual_patch(side: int) -> int:
    """Side of a patch, in pixels, for square images of `side` px."""
    return 1 if side < 4 else 2 if side < 8 else 4 if side < 64 else 8 if side <= 128 else 16


def long_grid(aspect: float, most: int) -> tuple[int, int]:
    """Rows and columns of at most so many patches that show images of an aspect (width over height) best.

    The more patches the better, but for an aspect that is a tenth off half of them are given up.
    """
    grids = [
        (rows, columns)
        for rows in range(1, most + 1)
        for columns in (math.floor(rows * aspect), math.ceil(rows * aspect), most // rows)
        if min(most, MIN_PATCHES) <= rows * columns <= most
    ]
    return max(grids, key=lambda grid: math.prod(grid) * seen_of(aspect, grid) ** 8)


def packed_size(facts: DataFacts, largest: int) -> int | tuple[int, int]:
    """What a raw pack keeps of each image: the side of a square or, for long images, height and width; in pixels.

    Args:
        largest: the largest side of a square; a box has at most as many pixels.
    """
    if 1 / LONG <= facts.aspect <= LONG:
        return min(largest, facts.short_side)
    aspect = max(facts.aspect, 1 / facts.aspect)
    short = min(facts.short_side, max(1, math.isqrt(int(largest**2 / aspect))))
    long = round(short * aspect)
    return (short, long) if facts.aspect > 1 else (long, short)


def seen_of(aspect: float, box: tuple[int, int]) -> float:
    """The share of an image of an aspect that its largest box of height × width like `box` covers."""
    of_box = box[1] / box[0]
    return min(aspect / of_box, of_box / aspect)


def share_seen(facts: DataFacts, size: tuple[int, int]) -> float:
    """`seen_of` the images that were looked at, in the mean."""
    return float(np.mean([seen_of(aspect, size) for aspect in facts.aspects]))


def seen_words(facts: DataFacts, size: tuple[int, int], crop_fraction: float = 1.0) -> str:
    """How much of the images a model of `size` sees, for a person.

    Args:
        margin: what evaluation keeps of the largest box, along each side.
    """
    share = crop_fraction**2 * share_seen(facts, size)
    return (
        f"{100 * share:.0f} % of an image in the mean, by an evaluation at {size[0]}x{size[1]} px; the images' median "
        f"aspect is {aspect_words(facts.aspect)}"
    )


def aspect_words(aspect: float) -> str:
    """Width to height in words: 3.33:1, or 1:8 for a tall image."""
    return f"{aspect:.3g}:1" if aspect >= 1 else f"1:{1 / aspect:.3g}"
