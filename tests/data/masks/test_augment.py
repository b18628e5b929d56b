"""The joint augmentation: labels stay with their pixels, and everything derives from the sample's numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from openmae.data.masks.augment import (
    NUM_MASK_UNIFORMS,
    MaskAugmentation,
    crop_box,
    largest_share,
    nearest,
    padded,
    padded_labels,
    scaled_size,
)
from openmae.data.masks.palette import IGNORED

FILL = (1.0, 2.0, 3.0)


def draws(seed: int, **fixed: float) -> np.ndarray:
    """Numbers of a sample; `scale` and `flip` may be fixed."""
    numbers = np.random.default_rng(seed).uniform(size=NUM_MASK_UNIFORMS)
    for place, name in enumerate(("scale", "flip")):
        numbers[place] = fixed.get(name, numbers[place])
    return numbers


def coded_pair(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of 8 × 8 px squares in grey, each with the label that its grey says."""
    rows, columns = np.mgrid[:height, :width] // 8
    labels = ((rows * 3 + columns * 5) % 7).astype(np.int32)
    return np.repeat((labels * 30 + 20).astype(np.uint8)[..., None], 3, axis=2), labels


@settings(max_examples=60)
@given(st.integers(40, 150), st.integers(40, 150), st.integers(0, 10**6), st.sampled_from([(32, 32), (24, 48)]))
def test_labels_stay_with_their_pixels(height, width, seed, size):
    image, labels = coded_pair(height, width)
    pixels, cropped = MaskAugmentation(kind="crop")(image, labels, size, draws(seed), (0, 255), FILL)
    assert pixels.shape == (3, *size)
    assert pixels.dtype == torch.uint8
    assert cropped.shape == size
    expected = torch.from_numpy(np.where(cropped == IGNORED, 0, cropped * 30 + 20)).float()
    # At the squares' edges resizing mixes greys: compared where a pixel's neighbourhood has one label.
    # Likewise at the crop's own edges, where a row of the next square may be averaged in.
    known = F.pad(torch.from_numpy(cropped.astype(np.float32))[None], (3, 3, 3, 3), value=99)
    alike = (F.max_pool2d(known, 7, 1) == -F.max_pool2d(-known, 7, 1))[0] & torch.from_numpy(cropped != IGNORED)
    difference = (pixels[0].float() - expected).abs()[alike]
    assert difference.numel() == 0 or difference.max() <= 12  # bicubic resizing overshoots


def test_beyond_a_small_image_nothing_is_labelled():
    image, labels = coded_pair(40, 40)
    pixels, cropped = MaskAugmentation(kind="crop")(image, labels, (64, 64), draws(3, scale=0.0), (0, 255), FILL)
    assert (cropped == IGNORED).sum() == 64 * 64 - 32 * 32  # the image was scaled by one half
    assert (cropped[:32, :32] != IGNORED).all()
    assert pixels[:, 40, 40].tolist() == [1, 2, 3]


def test_a_flip_mirrors_both():
    image, labels = coded_pair(64, 64)
    straight = MaskAugmentation(kind="crop")(image, labels, (32, 32), draws(5, flip=0.9), (0, 255), FILL)
    mirrored = MaskAugmentation(kind="crop")(image, labels, (32, 32), draws(5, flip=0.1), (0, 255), FILL)
    assert torch.equal(straight[0].flip(-1), mirrored[0])
    assert np.array_equal(straight[1][:, ::-1], mirrored[1])


def test_equal_numbers_give_equal_samples_and_others_do_not():
    image, labels = coded_pair(90, 70)
    augment = MaskAugmentation(kind="crop-jitter")
    one, same, other = (augment(image, labels, (32, 32), draws(seed), (0, 255), FILL) for seed in (1, 1, 2))
    assert torch.equal(one[0], same[0])
    assert np.array_equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])


def test_without_augmentation_the_middle_is_taken():
    image, labels = coded_pair(64, 128)
    pixels, cropped = MaskAugmentation(kind="none")(image, labels, (64, 64), draws(0, flip=0.1), (0, 255), FILL)
    assert np.array_equal(cropped, labels[:, 32:96])
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), image[:, 32:96])


def test_a_crop_of_nearly_one_class_is_drawn_again():
    """Of 200 crops of an image that is three quarters one class, fewer are of it alone than with every crop taken."""
    image = np.zeros((64, 256, 3), np.uint8)
    labels = np.zeros((64, 256), np.int32)
    labels[:, 192:] = 1

    def count(limit: float) -> int:
        augment = MaskAugmentation(kind="crop", resize_range=(1.0, 1.0), max_class_share=limit)
        crops = [augment(image, labels, (64, 64), draws(seed), (0, 255), FILL)[1] for seed in range(200)]
        return sum(largest_share(crop) > 0.75 for crop in crops)

    assert count(1.0) > 120
    assert count(0.75) < 50  # each crop fails with a chance of .83, ten in a row with .16


def test_ignored_pixels_do_not_count_in_a_class_share():
    labels = np.array([[IGNORED, IGNORED, 0, 1]])
    assert largest_share(labels) == 0.5
    assert largest_share(np.full((2, 2), IGNORED)) == 1


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.5, 2))
def test_short_and_long_side_of_a_scaled_image(height, width, factor):
    """512 beside at most 2048, times the factor, whichever is reached first (table 5's (2048, 512))."""
    rows, columns = scaled_size((height, width), (512, 512), factor)
    short, long = min(rows, columns), max(rows, columns)
    assert long <= round(2048 * factor) + 1
    assert short == pytest.approx(512 * factor, abs=1) or long == pytest.approx(2048 * factor, abs=1)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 600), st.integers(1, 600))
def test_an_image_covers_the_crop(height, width, rows, columns):
    """At a factor of 1 it is as small as covers the crop, unless it is so long that its long side is limited."""
    found = scaled_size((height, width), (rows, columns))
    if max(height * max(rows / height, columns / width), width * max(rows / height, columns / width)) <= 4 * max(
        rows, columns
    ):
        assert found[0] >= rows
        assert found[1] >= columns
        assert found[0] == rows or found[1] == columns
    assert max(found) <= 4 * max(rows, columns)


def test_a_wide_crop_of_a_portrait_is_full():
    image, labels = coded_pair(150, 100)
    augment = MaskAugmentation(kind="crop", resize_range=(1.0, 1.0))
    for seed in range(5):
        _, cropped = augment(image, labels, (24, 48), draws(seed), (0, 255), FILL)
        assert (cropped != IGNORED).all()


@given(st.integers(1, 200), st.integers(1, 200), st.floats(0, 1), st.floats(0, 1), st.floats(0.3, 3))
def test_boxes_lie_in_the_image(height, width, top, left, factor):
    scaled = scaled_size((height, width), (32, 32), factor)
    inner = min(scaled[0], 32), min(scaled[1], 32)
    y, x, rows, columns = crop_box((height, width), scaled, inner, top, left)
    assert rows >= 1
    assert columns >= 1
    assert 0 <= y <= height - rows
    assert 0 <= x <= width - columns


def test_nearest_labels_are_those_of_torch():
    """`nearest-exact` takes the label at a pixel's centre, as `nearest` here."""
    labels = np.random.default_rng(0).integers(0, 9, (37, 53)).astype(np.int32)
    ours = nearest(labels, (0, 0, 37, 53), (20, 90))
    theirs = F.interpolate(torch.from_numpy(labels)[None, None].float(), (20, 90), mode="nearest-exact")
    assert np.array_equal(ours, theirs[0, 0].numpy())


def test_padding():
    image = torch.full((3, 2, 2), 9, dtype=torch.uint8)
    assert padded(image, (2, 2), FILL) is not None
    assert padded(image, (3, 4), (1.4, 300.0, -5.0))[:, 2, 3].tolist() == [
        1,
        255,
        0,
    ]
    assert padded(image.float(), (3, 4), (1.5, 2.0, 3.0))[0, 2, 3] == 1.5
    assert padded_labels(np.zeros((2, 2), np.int16), (3, 3)).tolist() == [[0, 0, -1], [0, 0, -1], [-1, -1, -1]]
