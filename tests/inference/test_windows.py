"""Windows cover every pixel, their logits are averaged, and the class map is that of F.interpolate."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from openmae.errors import Fault, RequestError
from openmae.inference.windows import resized_class_map, sliding_logits, window_starts


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        (512, 512, 341, [0]),
        (300, 512, 341, [0]),
        (513, 512, 341, [0, 1]),
        (853, 512, 341, [0, 341]),
        (854, 512, 341, [0, 341, 342]),
        (683, 512, 341, [0, 171]),
        (6, 2, 2, [0, 2, 4]),
        (1, 1, 1, [0]),
    ],
)
def test_starts_by_hand(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_windows_cover_every_pixel_and_stay_inside(length, window, data):
    stride = data.draw(st.integers(1, window))
    starts = window_starts(length, window, stride)
    covered = {place for start in starts for place in range(start, min(start + window, length))}
    assert covered == set(range(length))
    assert starts == sorted(set(starts))
    assert starts[-1] == max(0, length - window)
    assert all(after - before <= stride for before, after in pairwise(starts))


@pytest.mark.parametrize("stride", [0, -1, 9])
def test_windows_that_would_leave_pixels_out_are_refused(stride):
    with pytest.raises(RequestError, match=f"a stride of {stride} with windows of 8 pixels"):
        window_starts(20, 8, stride)


@pytest.mark.parametrize("windows_at_once", [1, 4, 100])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (13, 21), (5, 30), (30, 5), (3, 3)])
def test_a_model_that_sees_single_pixels_gains_nothing_from_windows(height, width, windows_at_once):
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    seen = []

    def segment(crops):
        seen.append(tuple(crops.shape))
        return torch.cat([crops, crops.sum(1, keepdim=True)], 1)

    found = sliding_logits(segment, images, (8, 8), (5, 6), 4, windows_at_once)
    # Measured: at most 4.8e-7 apart.
    assert torch.allclose(found, torch.cat([images, images.sum(1, keepdim=True)], 1), atol=1e-6)
    assert {shape[2:] for shape in seen} == {(min(8, height), min(8, width))}
    assert max(shape[0] for shape in seen) <= windows_at_once


def test_overlapping_logits_are_averaged():
    count = iter(range(1, 100))
    found = sliding_logits(
        lambda crops: torch.stack([torch.full((1, 1, 4), float(next(count))) for _ in crops]),
        torch.zeros(1, 3, 1, 8),
        (4, 4),
        (3, 3),
        1,
    )
    # Windows at 0, 3 and 4 say 1, 2 and 3.
    assert found.flatten().tolist() == [1, 1, 1, 1.5, 2.5, 2.5, 2.5, 3]


def test_half_precision_is_summed_in_single():
    found = sliding_logits(
        lambda crops: torch.full((len(crops), 1, 4, 4), 257 / 256, dtype=torch.bfloat16) * 300,
        torch.zeros(1, 3, 4, 40),
        (4, 4),
        (1, 1),
        1,
    )
    assert found.dtype == torch.float32
    assert found.unique().tolist() == [300.0]  # a sum of four in bfloat16 would be off by up to 4


@pytest.mark.parametrize(
    ("num_classes", "old", "new"),
    [
        (7, (5, 9), (23, 17)),
        (3, (20, 20), (7, 50)),
        (150, (16, 24), (101, 133)),
        (4, (8, 8), (8, 8)),
        (5, (1, 1), (9, 4)),
        (2, (32, 1), (1, 32)),
        (6, (13, 13), (13, 40)),
    ],
)
@pytest.mark.parametrize("strip", [1, 3, 1000])
def test_a_class_map_in_strips_is_that_of_the_whole(num_classes, old, new, strip):
    logits = torch.randn(1, num_classes, *old, generator=torch.Generator().manual_seed(1))
    whole = F.interpolate(logits, new, mode="bilinear", align_corners=False)[0]
    found = resized_class_map(logits, new, values_at_once=strip * num_classes * max(new[1], old[1]))
    assert found.shape == new
    assert found.dtype == torch.int64
    # The chosen class has the highest logit up to rounding; measured: no pixel differs from argmax.
    assert torch.all(whole.max(0).values - whole.gather(0, found[None])[0] < 1e-5)


def test_scores_that_are_not_finite_are_a_fault():
    logits = torch.zeros(1, 3, 4, 4)
    logits[0, 1, 2, 3] = torch.nan
    with pytest.raises(Fault, match="not finite"):
        resized_class_map(logits, (8, 8))
