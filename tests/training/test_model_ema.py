"""The weights' moving average against timm's, skipped steps, and weights that come back bit for bit."""

import copy

import pytest
import torch
from torch import nn

from openmae.errors import RequestError
from openmae.training.model_ema import ModelEMA


def make_model():
    """Weights, a frozen parameter, and buffers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    model[2].bias.requires_grad = False
    return model


def move(model, step):
    """Something like a training step: every trainable weight moves, buffers too."""
    chance = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=chance), alpha=0.1)
        model.train()(torch.randn(8, 6, generator=chance))


@pytest.mark.parametrize("decay", [0.5, 0.99, 0.9999])
@pytest.mark.parametrize("says", [False, True])
def test_the_average_is_timms(decay, says):
    """Over 50 steps, measured: no difference. `says`: whether each step is said not to be skipped."""
    ema = pytest.importorskip("timm.utils").ModelEmaV3
    model = make_model()
    average, theirs = ModelEMA(model, decay), ema(model, decay)
    for step in range(50):
        move(model, step)
        average.update(torch.zeros(()) if says else None)
        theirs.update(model)
    wanted = dict(theirs.module.named_parameters())
    assert set(average.tensors()) == set(wanted)
    for name, tensor in average.tensors().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, wanted[name].detach(), rtol=1e-6, atol=1e-7, msg=name)


def test_two_steps_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = ModelEMA(model, 0.75)
    for value in (5.0, -3.0):
        nn.init.constant_(model.weight, value)
        average.update()
    assert average.tensors()["weight"].item() == 0.75 * (0.75 * 1 + 0.25 * 5) + 0.25 * -3


def test_a_skipped_step_leaves_the_average_bit_for_bit():
    model = make_model()
    average, other = ModelEMA(model, 0.9), ModelEMA(model, 0.9)
    for step in range(10):
        move(model, step)  # the weights are elsewhere: an average that followed them would differ
        before = {name: tensor.clone() for name, tensor in average.tensors().items()}
        is_skipped = step in (0, 4, 5)
        average.update(torch.tensor(float(is_skipped)))
        if is_skipped:
            assert all(torch.equal(before[name], tensor) for name, tensor in average.tensors().items())
        else:
            other.update(torch.zeros(()))
            assert not torch.equal(before["0.weight"], average.tensors()["0.weight"])
    assert all(torch.equal(other.tensors()[name], tensor) for name, tensor in average.tensors().items())


def test_an_update_never_reads_a_number_back():
    """On the meta device there are no numbers: reading one, which on a GPU would wait for it, raises."""
    with torch.device("meta"):
        model, is_skipped = nn.Linear(3, 2), torch.zeros(())
    with pytest.raises(RuntimeError, match="meta"):
        bool(is_skipped)
    ModelEMA(model, 0.9).update(is_skipped)


def test_low_precision_weights_have_a_float32_average():
    """In bfloat16 a share of .001 would be rounded away and the average would stand still."""
    model = nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    average = ModelEMA(model, 0.999)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(100):
        average.update()
    wanted = torch.full((2, 2), 2 - 0.999**100)
    torch.testing.assert_close(average.tensors()["weight"], wanted, rtol=2e-6, atol=0)  # measured 3.3e-7
    with average.applied(model):
        assert torch.equal(model.weight, wanted.bfloat16())


def test_the_average_is_applied_and_the_weights_come_back_bit_for_bit():
    model = make_model()
    average = ModelEMA(model, 0.9)
    for step in range(5):
        move(model, step)
        average.update()
    with torch.no_grad():
        model[0].weight[0, 0] = -0.0  # only a copy of the bits keeps the sign
    bits = copy.deepcopy(model.state_dict())
    averages = {name: tensor.clone() for name, tensor in average.tensors().items()}
    identities = [id(parameter) for parameter in model.parameters()]
    with average.applied(model):
        assert all(torch.equal(parameter, averages[name]) for name, parameter in model.named_parameters())
        assert not torch.equal(model[0].weight, bits["0.weight"])
        assert all(torch.equal(buffer, bits[name]) for name, buffer in model.named_buffers())
    for name, tensor in model.state_dict().items():
        assert tensor.numpy().tobytes() == bits[name].numpy().tobytes(), name
    assert [id(parameter) for parameter in model.parameters()] == identities
    assert all(torch.equal(averages[name], tensor) for name, tensor in average.tensors().items())
    assert [p.requires_grad for p in model.parameters()] == [True] * 5 + [False]


def test_the_weights_come_back_after_an_error_and_training_goes_on():
    model, straight = make_model(), make_model()
    average, other = ModelEMA(model, 0.9), ModelEMA(straight, 0.9)
    for step in range(6):
        for one, its_average in ((model, average), (straight, other)):
            move(one, step)
            its_average.update()
        with pytest.raises(KeyboardInterrupt), average.applied(model):
            raise KeyboardInterrupt
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), straight.parameters(), strict=True))
    assert all(torch.equal(other.tensors()[name], tensor) for name, tensor in average.tensors().items())


def test_a_restored_average_goes_on_as_if_never_stopped():
    model, straight = make_model(), make_model()
    first, other = ModelEMA(model, 0.9), ModelEMA(straight, 0.9)
    for step in range(6):
        if step == 3:
            saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
            first = ModelEMA(model, 0.9)  # begins as the weights, not as the average
            assert not torch.equal(first.tensors()["0.weight"], saved["0.weight"])
            first.restore(saved)
        for one, its_average in ((model, first), (straight, other)):
            move(one, step)
            its_average.update()
    assert all(torch.equal(other.tensors()[name], tensor) for name, tensor in first.tensors().items())


def test_a_restored_average_is_a_copy():
    model = make_model()
    average = ModelEMA(model, 0.9)
    saved = {name: torch.ones_like(tensor) for name, tensor in average.tensors().items()}
    average.restore(saved)
    average.update()
    assert bool((saved["0.weight"] == 1).all())


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_a_saved_average_of_another_model_is_refused(change):
    average = ModelEMA(make_model(), 0.9)
    saved = {name: tensor.clone() for name, tensor in average.tensors().items()}
    if change == "missing":
        del saved["0.weight"]
    elif change == "extra":
        saved["3.weight"] = torch.zeros(2)
    else:
        saved["0.weight"] = torch.zeros(5, 7)
    with pytest.raises(RequestError, match=r"3\.weight" if change == "extra" else r"0\.weight"):
        average.restore(saved)


def test_it_is_applied_only_to_a_model_of_the_same_names():
    average = ModelEMA(make_model(), 0.9)
    with pytest.raises(AssertionError, match="other parameters"), average.applied(nn.Linear(2, 2)):
        pass
