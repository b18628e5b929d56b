"""Image and patch size where the user left them open: a square or, for long images, a rectangle of their aspect."""

import math

import numpy as np

from openmae.data.preprocess import DataFacts

LONG_ASPECT = 2.0  # long side / short side; of longer images a square crop would show less than half
MIN_PATCHES = 4  # so that three of them can be masked
MAX_PATCH = 16


def image_size_for(
    facts: DataFacts, largest: int, patch: int | None, *, is_huge: bool, device: str
) -> tuple[int, int | tuple[int, int], str]:
    """The patch size and the image size, both in pixels, and the reason for that image size.

    Args:
        largest: the largest side of a square image, in pixels.
        patch: the patch size where it is given.
        is_huge: whether the model is a ViT-H, whose patches have 14 px where the images are large enough.
        device: cpu, cuda or mps.
    """
    side, is_given = min(facts.short_side, largest), patch is not None
    patch = patch or (14 if is_huge and facts.short_side >= 224 else default_patch_size(side))
    side = max(patch, side // patch * patch)
    if 1 / LONG_ASPECT <= facts.aspect <= LONG_ASPECT:
        if is_given:
            return patch, side, f"what {patch} px patches divide"
        return patch, side, "the images' own size" if side > facts.short_side - patch else f"usual for {device}"
    max_patches = (side // patch) ** 2
    rows, columns = grid_for_aspect(facts.aspect, max_patches)
    # The patch size was chosen by the short side, and a long image has room for larger patches than that.
    while not is_given and patch * 2 <= MAX_PATCH and min(rows, columns) * patch * 2 <= facts.short_side:
        patch *= 2
    median = f"the median aspect is {format_aspect(facts.aspect)}"
    why = f"{median}; {rows * columns} patches, a square would have {max_patches}"
    return patch, (rows * patch, columns * patch), why


def default_patch_size(side: int) -> int:
    """The patch size, in pixels, for square images of `side` px."""
    return 1 if side < 4 else 2 if side < 8 else 4 if side < 64 else 8 if side <= 128 else 16


def grid_for_aspect(aspect: float, max_patches: int) -> tuple[int, int]:
    """The grid of patches, (rows, columns), that suits images of an aspect (width / height) best.

    More patches are better, but half as many are as good where the grid's aspect is nearer by a tenth.
    """
    grids = [
        (rows, columns)
        for rows in range(1, max_patches + 1)
        for columns in (math.floor(rows * aspect), math.ceil(rows * aspect), max_patches // rows)
        if min(max_patches, MIN_PATCHES) <= rows * columns <= max_patches
    ]
    return max(grids, key=lambda grid: math.prod(grid) * box_coverage(aspect, grid) ** 8)


def pack_image_size(facts: DataFacts, largest: int) -> int | tuple[int, int]:
    """The size of the images in a raw pack, in pixels: the side of a square or, for long images, (height, width).

    Args:
        largest: the largest side of a square; a rectangle has at most as many pixels.
    """
    if 1 / LONG_ASPECT <= facts.aspect <= LONG_ASPECT:
        return min(largest, facts.short_side)
    aspect = max(facts.aspect, 1 / facts.aspect)
    short = min(facts.short_side, max(1, math.isqrt(int(largest**2 / aspect))))
    long = round(short * aspect)
    return (short, long) if facts.aspect > 1 else (long, short)


def box_coverage(aspect: float, box: tuple[int, int]) -> float:
    """The share of an image's area that its largest crop of another aspect covers.

    Args:
        aspect: the image's, width / height.
        box: height and width of the crop, in any unit.
    """
    box_aspect = box[1] / box[0]
    return min(aspect / box_aspect, box_aspect / aspect)


def mean_coverage(facts: DataFacts, size: tuple[int, int]) -> float:
    """`box_coverage`, averaged over the images that were surveyed."""
    return float(np.mean([box_coverage(aspect, size) for aspect in facts.aspects]))


def coverage_text(facts: DataFacts, size: tuple[int, int], crop_fraction: float = 1.0) -> str:
    """A text that says how much of the images a model of image size `size` sees.

    Args:
        crop_fraction: of the largest crop, along each side, that evaluation keeps.
    """
    share = crop_fraction**2 * mean_coverage(facts, size)
    return (
        f"{100 * share:.0f} % of an image in the mean, by an evaluation at {size[0]}x{size[1]} px; the images' median "
        f"aspect is {format_aspect(facts.aspect)}"
    )


def format_aspect(aspect: float) -> str:
    """Width to height as text: 3.33:1, or 1:8 for a tall image."""
    return f"{aspect:.3g}:1" if aspect >= 1 else f"1:{1 / aspect:.3g}"
