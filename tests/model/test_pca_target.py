"""The PCA target (table 1d): its components, its truth, and the way back to pixels."""

from dataclasses import replace

import pytest
import torch
from sklearn.decomposition import PCA

from openmae.errors import RequestError
from openmae.model.mae import MAE
from openmae.model.masking import Masking
from openmae.model.patches import gather, patchify
from openmae.model.targets import PatchCovariance, PCATarget
from openmae.training.optim import weight_decay_groups


def shape_of(tiny_shape, count):
    return replace(tiny_shape(), target="pca", pca_coefficients=count)


def random_masking(batch, patches, hidden, seed=0):
    order = torch.rand(batch, patches, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return Masking(order[:, hidden:], order[:, :hidden])


def smooth_images(count, side=16, seed=0):
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic") + 0.05 * torch.randn(
        count, 3, side, side, generator=torch.Generator().manual_seed(seed + 1)
    )


def fitted(tiny_shape, count, images):
    target = PCATarget(shape_of(tiny_shape, count))
    covariance = PatchCovariance(48)
    for batch in images.split(10):
        covariance.add(patchify(batch, 4).flatten(0, 1))
    *fit, share = covariance.components(count)
    target.set_components(*fit)
    return target, share


def test_coefficients_are_those_of_scikit_learn(tiny_shape):
    images = smooth_images(40)
    target, share = fitted(tiny_shape, 12, images)
    patches = patchify(images, 4).flatten(0, 1).double()
    theirs = PCA(12, svd_solver="full").fit(patches.numpy())
    masking = random_masking(40, 16, 12)
    ours = target.double().truth(images.double(), masking) * target.scale
    expected = torch.from_numpy(theirs.transform(patches.numpy())).reshape(40, 16, 12)
    expected = gather(expected, masking.masked_ids)
    # The components are kept in float32: measured 8.6e-9 of the largest coefficient.
    sign = (ours * expected).sum(dim=(0, 1)).sign()
    assert (ours - sign * expected).abs().max() <= 1e-6 * expected.abs().max()
    whole = target.coefficients(patches[None])
    assert (whole / target.scale).square().mean() == pytest.approx(1, abs=1e-5)
    assert share == pytest.approx(theirs.explained_variance_ratio_.sum(), abs=1e-9)


def test_all_coefficients_give_the_pixels_back(tiny_shape):
    images = smooth_images(40)
    target, share = fitted(tiny_shape, 48, images)
    masking = random_masking(40, 16, 12)
    pixels = gather(patchify(images, 4), masking.masked_ids)
    error = target.to_patches(target.truth(images, masking)) - pixels
    assert error.abs().max() < 5e-6  # measured 1.4e-6
    assert share == pytest.approx(1)
    # And the loss of all coefficients is that of the pixels, but for the scale.
    guess = torch.randn(40, 12, 48, generator=torch.Generator().manual_seed(3))
    losses = target(guess, images, masking)
    expected = (target.to_patches(guess) - pixels).square().mean(-1) / target.scale**2
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_a_written_out_program(tiny_shape):
    images = smooth_images(6)
    target, _ = fitted(tiny_shape, 5, images)
    masking = random_masking(6, 16, 4)
    prediction = torch.randn(6, 4, 5, requires_grad=True)
    losses = target(prediction, images, masking)
    for i in range(6):
        for j, patch in enumerate(masking.masked_ids[i].tolist()):
            row, column = divmod(patch, 4)
            pixels = images[i, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].permute(1, 2, 0).flatten()
            expected = (
                sum(
                    (prediction[i, j, k] - (pixels - target.mean) @ target.components[k] / target.scale) ** 2
                    for k in range(5)
                )
                / 5
            )
            torch.testing.assert_close(losses[i, j], expected)
    losses.mean().backward()
    assert (prediction.grad != 0).all()


def test_autocast_does_not_touch_the_truth(tiny_shape):
    images = smooth_images(6)
    target, _ = fitted(tiny_shape, 5, images)
    masking = random_masking(6, 16, 4)
    with torch.autocast("cpu", torch.bfloat16):
        truth = target.truth(images, masking)
    assert torch.equal(truth, target.truth(images, masking))


def test_the_components_are_no_parameters_but_lie_in_the_checkpoint(tiny_shape):
    mae = MAE.from_shape(shape_of(tiny_shape, 5))
    trained = {id(p) for group in weight_decay_groups(mae, 0.05) for p in group["params"]}
    assert {"target.mean", "target.components"} <= set(mae.state_dict())
    assert not {id(mae.target.mean), id(mae.target.components)} & trained
    assert not mae.target.is_fitted


@pytest.mark.parametrize("count", [0, 49])
def test_more_coefficients_than_values_are_refused(tiny_shape, count):
    with pytest.raises(RequestError, match="--pca-coefficients"):
        shape_of(tiny_shape, count)


def test_patches_that_are_all_alike_have_nothing_to_explain():
    covariance = PatchCovariance(48)
    covariance.add(torch.full((100, 48), 0.5))
    mean, components, scale, share = covariance.components(5)
    assert (scale, share) == (1, 0)
    torch.testing.assert_close(mean, torch.full((48,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(components @ components.T, torch.eye(5, dtype=torch.float64))
