"""PSNR and its two baselines, each worked out by hand."""

import math

import pytest
import torch

from openmae.inference.psnr import interpolate_visible, mean_of_visible, psnr


def everywhere(images):
    return torch.ones(len(images), 1, *images.shape[2:], dtype=torch.bool)


def test_psnr_by_hand():
    truth = torch.zeros(1, 1, 1, 4)
    prediction = torch.tensor([0.1, 0.2, 0.0, 0.3]).view(1, 1, 1, 4)
    assert psnr(prediction, truth, everywhere(truth)) == pytest.approx(
        -10 * math.log10((0.01 + 0.04 + 0.09) / 4), abs=1e-5
    )


def test_errors_are_pooled_before_the_logarithm():
    truth = torch.zeros(2, 1, 1, 1)
    prediction = torch.tensor([0.1, 0.5]).view(2, 1, 1, 1)
    assert psnr(prediction, truth, everywhere(truth)) == pytest.approx(-10 * math.log10((0.01 + 0.25) / 2), abs=1e-5)


def test_values_are_clipped_to_what_can_be_shown():
    truth = torch.tensor([1.2, -0.3]).view(1, 1, 1, 2)
    prediction = torch.tensor([7.0, 0.1]).view(1, 1, 1, 2)
    assert psnr(prediction, truth, everywhere(truth)) == pytest.approx(-10 * math.log10(0.01 / 2), abs=1e-5)


def test_only_masked_pixels_count():
    truth = torch.rand(2, 3, 4, 4)
    is_masked = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    is_masked[:, :, 2:] = True
    wrong_outside = torch.where(is_masked, truth, 1 - truth)
    assert psnr(wrong_outside, truth, is_masked) == pytest.approx(120)  # no error at all, kept finite
    wrong_inside = torch.where(is_masked, (truth + 0.1).clamp(max=1), truth)
    assert psnr(wrong_inside, truth, is_masked) < 25


def test_the_mean_of_the_visible_pixels_by_hand():
    truth = torch.tensor([[[[0.2, 0.4], [0.9, 0.9]]], [[[1.0, 0.0], [0.5, 0.0]]]])
    is_masked = torch.tensor([[[[False, False], [True, True]]], [[[False, True], [False, True]]]])
    wanted = torch.tensor([[[[0.2, 0.4], [0.3, 0.3]]], [[[1.0, 0.75], [0.5, 0.75]]]])
    torch.testing.assert_close(mean_of_visible(truth, is_masked), wanted)


def test_the_mean_is_by_channel():
    truth = torch.stack([torch.full((2, 2), 0.25), torch.full((2, 2), 0.75)])[None]
    is_masked = torch.tensor([[True, False], [False, False]])[None, None]
    torch.testing.assert_close(mean_of_visible(truth, is_masked), truth)


def ramp(height=9, width=9):
    """Two channels that rise linearly in different directions."""
    row, column = torch.meshgrid(torch.arange(height) / 10, torch.arange(width) / 10, indexing="ij")
    return torch.stack([0.5 * row + 0.3 * column, 0.9 - 0.6 * row])[None]


def test_interpolation_continues_a_ramp_exactly():
    truth = ramp()
    is_masked = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    is_masked[:, :, 1:8, 1:8] = True  # the rim is visible: every masked pixel lies within the hull
    torch.testing.assert_close(interpolate_visible(truth, is_masked), truth, atol=1e-5, rtol=0)


def test_interpolation_takes_the_nearest_outside_the_hull():
    truth = ramp()
    is_masked = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    is_masked[..., 6:] = True
    result = interpolate_visible(truth, is_masked)
    torch.testing.assert_close(result[..., 6:], truth[..., 5:6].expand(-1, -1, -1, 3))
    assert torch.equal(result[..., :6], truth[..., :6])


@pytest.mark.parametrize("baseline", [mean_of_visible, interpolate_visible])
def test_baselines_see_no_masked_pixel(baseline):
    torch.manual_seed(0)
    truth = torch.rand(2, 3, 8, 8)
    is_masked = torch.rand(2, 1, 8, 8) < 0.6
    other = torch.where(is_masked, torch.rand(2, 3, 8, 8), truth)
    torch.testing.assert_close(baseline(truth, is_masked), baseline(other, is_masked))
    assert truth.ne(other).any()
