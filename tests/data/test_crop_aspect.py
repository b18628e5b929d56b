"""What training sees of an image is shaped as what evaluation sees, and comes from all of it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openmae.config import Preprocessing
from openmae.data.augment import (
    CROP_ATTEMPTS,
    CROP_RATIO,
    NUM_UNIFORMS,
    Augmentation,
    Box,
    evaluation_box,
    random_size_box,
)
from openmae.data.device_crop import crop_and_normalise
from openmae.data.loader import Stream, collate
from openmae.data.randomness import uniforms

from .test_randomness import MANY, Memory

SCALES = st.sampled_from([(0.2, 1.0), (0.08, 1.0), (0.5, 1.0), (0.9, 1.0)])
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def sizes(draw: st.DrawFn, shortest: int, longest: int) -> tuple[int, int]:
    """Height and width, 1:16 to 16:1, of a short side from `shortest` to `longest` px."""
    short = draw(st.integers(shortest, longest))
    long = draw(st.integers(short, 16 * short))
    return (short, long) if draw(st.booleans()) else (long, short)


def attempts(seed: int, place: float | None = None) -> np.ndarray:
    """The numbers of a sample's attempts; areas and aspects by chance, all at one place if it is given."""
    chance = np.random.default_rng(seed).random((CROP_ATTEMPTS, 4))
    if place is not None:
        chance[:, 2:] = place
    return chance


def boxes_everywhere(image: tuple[int, int], aspect: float | None, scale: tuple[float, float], seed: int) -> list[Box]:
    """The box that a sample's areas and aspects give, at every place that it may have but for overlaps."""
    _, _, height, width = random_size_box(*image, scale, attempts(seed, 0.0), aspect)
    count = max(math.ceil(image[0] / height), math.ceil(image[1] / width))
    places = np.linspace(0, np.nextafter(1, 0), 2 * count + 1)
    return [random_size_box(*image, scale, attempts(seed, place), aspect) for place in places]


@MANY
@given(sizes(16, 300), sizes(8, 64), SCALES, SEEDS)
def test_a_crop_is_stretched_by_a_third_at_most_against_evaluation(image, model, scale, seed):
    """But for rounding the box's sides, half a pixel each."""
    aspect = model[1] / model[0]
    top, left, height, width = random_size_box(*image, scale, attempts(seed), aspect)
    assert 0 <= top <= top + height <= image[0]
    assert 0 <= left <= left + width <= image[1]
    assert (width + 0.5) / (height - 0.5) >= CROP_RATIO[0] * aspect
    assert (width - 0.5) / (height + 0.5) <= CROP_RATIO[1] * aspect
    # An evaluation shows the image as it is.
    _, _, height, width = evaluation_box(np.empty((*image, 1), np.uint8), model, 1.0)
    assert (width - 0.5) / (height + 0.5) <= aspect <= (width + 0.5) / max(height - 0.5, 1e-9)


@MANY
@given(sizes(16, 100), sizes(8, 64), SCALES, SEEDS)
def test_every_row_and_column_can_be_seen(image, model, scale, seed):
    rows, columns = np.zeros(image[0], bool), np.zeros(image[1], bool)
    for top, left, height, width in boxes_everywhere(image, model[1] / model[0], scale, seed):
        rows[top : top + height] = True
        columns[left : left + width] = True
    assert rows.all()
    assert columns.all()


@MANY
@given(sizes(16, 300), SCALES, SEEDS)
def test_of_square_models_only_what_falls_back_has_changed(image, scale, seed):
    """A box that no attempt gave has the size that it had, and lies where the last attempt would have lain."""
    chance = attempts(seed)
    before, now = random_size_box(*image, scale, chance), random_size_box(*image, scale, chance, 1.0)
    assert now[2:] == before[2:]
    if now == before:
        return
    height, width = now[2:]
    # Every attempt was too high or too wide; what was the centre is drawn.
    for number in range(CROP_ATTEMPTS):
        area = image[0] * image[1] * (scale[0] + chance[number, 0] * (scale[1] - scale[0]))
        ratio = CROP_RATIO[0] * (CROP_RATIO[1] / CROP_RATIO[0]) ** chance[number, 1]
        assert round(math.sqrt(area * ratio)) > image[1] or round(math.sqrt(area / ratio)) > image[0]
    assert before[:2] == ((image[0] - height) // 2, (image[1] - width) // 2)
    assert now[:2] == (int(chance[-1, 2] * (image[0] - height + 1)), int(chance[-1, 3] * (image[1] - width + 1)))


@pytest.mark.parametrize(
    ("image", "model", "stretch_before", "seen_before"),
    [((48, 160), (32, 96), 4.0, 1.0), ((50, 600), (32, 32), 4 / 3, 0.11), ((128, 1024), (32, 32), 4 / 3, 0.17)],
)
def test_long_images_are_seen_from_end_to_end(image, model, stretch_before, seen_before):
    """Of 4,000 crops; an outermost column is in one of W - w of them. Before: stretched up to `stretch_before`."""
    chances = uniforms(range(4000), 4 * CROP_ATTEMPTS, "augment").reshape(-1, CROP_ATTEMPTS, 4)
    aspect = model[1] / model[0]
    for of_model, is_new in ((aspect, True), (None, False)):
        seen, stretches = np.zeros(image[1], bool), []
        for chance in chances:
            _, left, height, width = random_size_box(*image, (0.2, 1.0), chance, of_model)
            seen[left : left + width] = True
            stretches.append(max(aspect * height / width, width / height / aspect))
        if is_new:
            assert seen.mean() > 0.99
            assert max(stretches) < 4 / 3 * 1.06  # boxes of 20 px and more: half a pixel on each side
        else:
            assert seen.mean() == pytest.approx(seen_before, abs=0.01)
            assert max(stretches) == pytest.approx(stretch_before, rel=0.06)


def test_the_setting_reaches_the_crop():
    image = np.random.default_rng(0).integers(0, 256, (48, 160, 3), dtype=np.uint8)
    for chance in uniforms(range(50), NUM_UNIFORMS, "augment"):
        crops = [Augmentation(crop_aspect=kind).crop(image, (32, 96), chance) for kind in ("model", "square")]
        numbers = chance[: 4 * CROP_ATTEMPTS].reshape(CROP_ATTEMPTS, 4)
        for crop, aspect in zip(crops, (3.0, None), strict=True):
            assert crop.box == random_size_box(48, 160, (0.2, 1.0), numbers, aspect)
            assert crop.is_flipped == (chance[4 * CROP_ATTEMPTS] < 0.5)
    assert Augmentation().crop_aspect == "model"


class Long(Memory):
    """Smooth pictures of 24 × 120 pixels."""

    def read(self, index: int) -> np.ndarray:
        row, column = np.mgrid[:24, :120]
        waves = [127 + 100 * np.sin((0.1 + 0.02 * index) * column / (1 + c) + 0.2 * row) for c in range(3)]
        return np.stack(waves, -1).astype(np.uint8)


@settings(max_examples=10)
@given(st.sampled_from([(16, 64), (16, 16), (32, 8)]), st.integers(0, 100))
def test_crops_on_the_device_are_those_of_a_reader(size, seed):
    """The same boxes and flips; pixels differ by what a reader rounds. Measured: 1.1 grey levels at most, .31 in the
    mean."""
    p = Preprocessing(channels=3, value_range=(0.0, 1.0), mean=(0.0,) * 3, std=(1.0,) * 3, image_size=size)
    streams = [
        Stream(Long(8), p, Augmentation(), seed, 4, crop_on_device=crop_on_device) for crop_on_device in (True, False)
    ]
    whole, cut = (collate(stream.__getitems__(range(16))) for stream in streams)
    assert whole.crops is not None
    for height, width in whole.crops.boxes[:, 2:].tolist():
        assert (width - 0.5) / (height + 0.5) <= 4 / 3 * size[1] / size[0] <= 16 / 9 * (width + 0.5) / (height - 0.5)
    difference = (crop_and_normalise(whole.images, whole.crops, replace(p)) - cut.images.float()).abs()
    assert torch.equal(whole.keys, cut.keys)
    assert difference.max() <= 2
    assert difference.mean() <= 0.5
