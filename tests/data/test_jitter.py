"""Photometric distortion: what each of its numbers does, in which order, within which range."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openmae.data.jitter import BRIGHTNESS, NUM_DISTORTIONS, photometric_distortion

NEVER = [0.9] * NUM_DISTORTIONS
GREY = torch.tensor([[40, 90], [120, 200]], dtype=torch.uint8)
IMAGE = torch.stack([GREY, GREY + 10, GREY + 20])


def distorted(image, value_range=(0, 255), **chances):
    """Names are places: b0 and b1 whether and how much brightness, c contrast, s saturation, h hue; order."""
    places = {name: place for place, name in enumerate(("b0", "b1", "c0", "c1", "s0", "s1", "h0", "h1", "order"))}
    numbers = list(NEVER)
    for name, number in chances.items():
        numbers[places[name]] = number
    return photometric_distortion(image, numbers, value_range)


def test_without_luck_nothing_changes():
    assert torch.equal(distorted(IMAGE), IMAGE)


@pytest.mark.parametrize(("amount", "added"), [(0.0, -32), (0.5, 0), (1.0, 32)])
def test_brightness_is_added(amount, added):
    expected = (IMAGE.int() + added).clamp(0, 255)
    assert torch.equal(distorted(IMAGE, b0=0.1, b1=amount).int(), expected)


@pytest.mark.parametrize(("amount", "factor"), [(0.0, 0.5), (0.5, 1.0), (1.0, 1.5)])
@pytest.mark.parametrize("order", [0.1, 0.9])
def test_contrast_is_a_factor(amount, factor, order):
    expected = (IMAGE.double() * factor).clamp(0, 255)
    found = distorted(IMAGE, c0=0.1, c1=amount, order=order).double()
    assert (found - expected).abs().max() <= 0.5  # rounded once


def test_saturation_moves_from_grey_and_spares_it():
    colour = torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None].expand(3, 2, 2)
    spread = [int(np.ptp(distorted(colour, s0=0.1, s1=amount)[:, 0, 0].numpy())) for amount in (0.0, 0.5, 1.0)]
    assert spread[0] == 75  # half of 150
    assert spread[1] == 150
    assert spread[2] > 150
    grey = torch.full((3, 2, 2), 77, dtype=torch.uint8)
    assert torch.equal(distorted(grey, s0=0.1, s1=1.0, h0=0.1, h1=1.0), grey)


def test_hue_turns_by_18_degrees_at_most():
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 1, 1)
    assert distorted(red, h0=0.1, h1=1.0).flatten().tolist() == [255, 76, 0]  # 18 of 60 degrees towards yellow
    assert distorted(red, h0=0.1, h1=0.0).flatten().tolist() == [255, 0, 77]  # 76.5, rounded either way
    assert distorted(red, h0=0.1, h1=0.5).flatten().tolist() == [255, 0, 0]


def test_contrast_comes_before_or_after_colour():
    """Contrast cuts off what is too bright; of a colour that is paler by then nothing is cut off."""
    bright = torch.tensor([250, 100, 100], dtype=torch.uint8)[:, None, None].expand(3, 1, 1)
    first, last = (distorted(bright, c0=0.1, c1=1.0, s0=0.1, s1=0.0, order=order) for order in (0.1, 0.9))
    assert not torch.equal(first, last)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=9, max_size=9), st.sampled_from([1, 3, 5]), st.booleans())
def test_it_stays_within_the_range(chance, channels, is_float):
    low, high = (-2.0, 6.0) if is_float else (0, 255)
    image = torch.linspace(low, high, channels * 12).reshape(channels, 3, 4)
    image = image if is_float else image.round().to(torch.uint8)
    found = photometric_distortion(image, chance, (low, high))
    assert found.dtype == image.dtype
    assert found.shape == image.shape
    assert found.min() >= low - 1e-5
    assert found.max() <= high + 1e-5


def test_floats_are_scaled_by_their_range():
    image = torch.tensor([[[-1.0, 0.0, 0.5]]])
    found = distorted(image, (-1.0, 1.0), b0=0.1, b1=1.0)
    torch.testing.assert_close(found, image + 2 * BRIGHTNESS)
    assert torch.equal(distorted(IMAGE, (0, 1), b0=0.1, b1=1.0), distorted(IMAGE, b0=0.1, b1=1.0))  # of floats alone


def test_grey_has_brightness_and_contrast_alone():
    grey = IMAGE[:1]
    assert torch.equal(distorted(grey, s0=0.1, s1=0.0, h0=0.1, h1=0.0), grey)
    assert not torch.equal(distorted(grey, b0=0.1, b1=0.0), grey)
