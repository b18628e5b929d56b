"""Compiled gradients are held against eager ones."""

import pytest
import torch

from openmae.training.gradients import (
    MAX_FP32_ERROR,
    MAX_TIMES_EAGER,
    compare_gradients,
    compute_gradients,
    gradient_differences,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.LayerNorm(8))


def off_by(gradients, error, seed):
    """Gradients with noise of this relative size."""
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(one.shape, generator=generator) for one in gradients]
    return [one + error * one.norm() / other.norm() * other for one, other in zip(gradients, noise, strict=True)]


@pytest.fixture
def reference(model):
    return compute_gradients(model, [lambda: model(torch.randn(32, 16)).pow(3).sum()])


def check(model, reference, compiled, eager):
    eager = None if eager is None else gradient_differences(eager, reference)
    return compare_gradients(model, reference, gradient_differences(compiled, reference), eager)


def test_gradients_are_taken_away_and_added_up(model):
    x = torch.randn(6, 16)
    whole = compute_gradients(model, [lambda: model(x).pow(2).sum()])
    parts = compute_gradients(model, [lambda: model(x[:4]).pow(2).sum(), lambda: model(x[4:]).pow(2).sum()])
    assert all(parameter.grad is None for parameter in model.parameters())
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("times", "is_good"), [(1, True), (2.5, True), (3.5, False)])
def test_bf16_may_be_three_times_as_far_off_as_eager(model, reference, times, is_good):
    assert MAX_TIMES_EAGER == 3
    found = check(model, reference, off_by(reference, times * 0.01, 1), off_by(reference, 0.01, 2))
    assert found.is_good is is_good
    assert found.compiled == pytest.approx(times * 0.01, rel=1e-3)
    assert found.eager == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("number", range(4))
def test_one_wrong_parameter_is_enough(model, reference, number):
    """As where LayerNorm's weight was wrong and all else right: in the norm of all it may drown."""
    compiled = off_by(reference, 0.01, 1)
    compiled[number] = 1.2 * reference[number]
    found = check(model, reference, compiled, off_by(reference, 0.01, 2))
    assert not found.is_good
    assert found.worst == [name for name, _ in model.named_parameters()][number]
    assert found.worst in found.result_line


@pytest.mark.parametrize(("error", "is_good"), [(0.0, True), (0.5e-4, True), (2e-4, False)])
def test_fp32_may_be_a_ten_thousandth_off(model, reference, error, is_good):
    assert MAX_FP32_ERROR == 1e-4
    found = check(model, reference, off_by(reference, error, 1), None)
    assert found.is_good is is_good
    assert found.eager is None


def test_a_missing_gradient_is_wrong(model, reference):
    assert not check(model, reference, [None, *reference[1:]], off_by(reference, 0.01, 2)).is_good


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("is_fp32", [True, False])
def test_compiled_gradients_that_are_not_finite_are_wrong(model, reference, value, is_fp32):
    compiled = [reference[0] * value, *reference[1:]]
    found = check(model, reference, compiled, None if is_fp32 else off_by(reference, 0.01, 2))
    assert not found.is_good
    assert found.worst == "0.weight"


def test_what_is_not_finite_cannot_be_told(model, reference):
    spoilt = [one * float("nan") for one in reference]
    assert check(model, spoilt, reference, reference) is None
    assert check(model, reference, reference, spoilt) is None
    assert check(model, [one * 0 for one in reference], reference, None) is None
