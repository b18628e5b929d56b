"""From predicted patches to pictures: nothing of the hidden truth may come through unasked."""

from types import SimpleNamespace

import pytest
import torch

from openmae.config import Preprocessing
from openmae.data.preprocess import normalise, to_unit
from openmae.inference.reconstruction import (
    MASKED_GREY,
    estimate_from_visible,
    grey_where_truth_is_grey,
    reconstruct_patches,
)
from openmae.model.mae import MAE
from openmae.model.masking import random_masking
from openmae.model.patches import patchify
from openmae.model.targets import patch_statistics

SIZE, GRID = 4, (4, 4)
PREPROCESSING = Preprocessing(
    channels=3, value_range=(0.0, 255.0), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), image_size=(16, 16)
)


@pytest.fixture
def images():
    torch.manual_seed(0)
    return normalise(torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8), PREPROCESSING)


@pytest.fixture
def masking():
    torch.manual_seed(1)
    return random_masking(torch.rand(2, 16), 0.75)


@pytest.fixture
def mae(tiny_shape):
    def make(target):
        torch.manual_seed(2)
        return MAE.from_shape(tiny_shape(target=target)).eval()

    return make


@pytest.fixture
def perfect(mae):
    """A model that predicts the normalised truth of every patch."""
    model = mae("norm-pixel")

    def predict_all(images, masking):
        patches = patchify(images, SIZE)
        mean, std = patch_statistics(patches)
        return (patches - mean) / std

    return SimpleNamespace(encoder=model.encoder, target=model.target, grid=model.grid, predict_all=predict_all)


def with_other_hidden_pixels(images, masking):
    """The same images where they are visible, others where they are not; and what is hidden, by pixel."""
    hidden = masking.is_masked.view(-1, 1, *GRID).repeat_interleave(SIZE, 2).repeat_interleave(SIZE, 3)
    return torch.where(hidden, torch.randn_like(images), images), hidden


@torch.no_grad()
def test_a_perfect_prediction_with_true_statistics_is_the_image_and_says_that_it_leaks(perfect, images, masking):
    result = reconstruct_patches(perfect, images, masking, PREPROCESSING, undo="true", paste=False)
    torch.testing.assert_close(result.prediction, to_unit(images, PREPROCESSING), atol=1e-5, rtol=0)
    assert result.leaks


@torch.no_grad()
@pytest.mark.parametrize("target", ["pixel", "norm-pixel"])
def test_nothing_of_the_hidden_pixels_comes_through(mae, images, masking, target):
    model = mae(target)
    other, hidden = with_other_hidden_pixels(images, masking)
    result = reconstruct_patches(model, images, masking, PREPROCESSING)
    again = reconstruct_patches(model, other, masking, PREPROCESSING)
    assert not result.leaks
    assert torch.equal(result.is_masked, hidden)
    assert torch.equal(result.masked, again.masked)
    torch.testing.assert_close(result.prediction, again.prediction)
    assert not torch.equal(result.truth, again.truth)


@torch.no_grad()
def test_true_statistics_do_leak(mae, images, masking):
    """Or the test above would prove nothing."""
    model = mae("norm-pixel")
    other, _ = with_other_hidden_pixels(images, masking)
    result, again = (
        reconstruct_patches(model, i, masking, PREPROCESSING, undo="true").prediction for i in (images, other)
    )
    assert not torch.allclose(result, again, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("target", ["pixel", "norm-pixel"])
def test_pasted_patches_are_exact_and_the_others_are_the_models(mae, images, masking, target):
    model = mae(target)
    pasted = reconstruct_patches(model, images, masking, PREPROCESSING, paste=True)
    plain = reconstruct_patches(model, images, masking, PREPROCESSING, paste=False)
    visible = ~pasted.is_masked.expand_as(pasted.truth)
    torch.testing.assert_close(pasted.prediction[visible], pasted.truth[visible], atol=1e-6, rtol=0)
    assert torch.equal(pasted.prediction[~visible], plain.prediction[~visible])
    assert not torch.allclose(plain.prediction[visible], plain.truth[visible], atol=1e-2)


@torch.no_grad()
def test_a_pixel_prediction_is_only_denormalised(mae, images, masking):
    model = mae("pixel")
    result = reconstruct_patches(model, images, masking, PREPROCESSING, paste=False)
    predicted = model.predict_all(images, masking)
    shown = patchify(result.prediction, SIZE)
    mean, std = (torch.tensor(values).repeat(SIZE * SIZE) for values in (PREPROCESSING.mean, PREPROCESSING.std))
    torch.testing.assert_close(shown, (predicted * std + mean).clamp(0, 1), atol=1e-6, rtol=0)


@torch.no_grad()
def test_hidden_patches_are_grey_and_all_values_can_be_shown(mae, images, masking):
    result = reconstruct_patches(mae("pixel"), images * 3, masking, PREPROCESSING)
    hidden = result.is_masked.expand_as(result.masked)
    assert result.masked[hidden].unique().tolist() == [MASKED_GREY]
    assert torch.equal(result.masked[~hidden], result.truth[~hidden])
    for picture in (result.masked, result.prediction, result.truth):
        assert picture.min() >= 0
        assert picture.max() <= 1


def test_neighbours_are_weighted_by_distance():
    values = torch.tensor([1.0, 100.0, 100.0, 5.0]).view(1, 4, 1)
    is_masked = torch.tensor([[False, True, True, False]])
    near, far = 1.0, 1 / 2**4
    wanted = (1 * near + 5 * far) / (near + far)
    result = estimate_from_visible(values, is_masked, (1, 4)).flatten().tolist()
    assert result == pytest.approx([1.0, wanted, 6 - wanted, 5.0])


def test_a_constant_is_estimated_exactly():
    is_masked = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)) < 0.8
    result = estimate_from_visible(torch.full((3, 20, 1), 0.7), is_masked, (4, 5))
    torch.testing.assert_close(result, torch.full((3, 20, 1), 0.7))


def test_grey_stays_grey_and_colour_coloured():
    grey, coloured = torch.rand(1, 1, 4, 4).expand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    tinted = torch.rand(2, 3, 4, 4)
    shown = grey_where_truth_is_grey(tinted, torch.cat([grey, coloured]))
    assert torch.equal(shown[0], tinted[0].mean(0, keepdim=True).expand(3, 4, 4))
    assert torch.equal(shown[1], tinted[1])
