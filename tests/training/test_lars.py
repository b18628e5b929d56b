"""LARS against timm's, a step that is skipped, and what a checkpoint carries of it."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from openmae.training.checkpoint import OPTIMIZER, optimizer_tensors, restore_optimizer
from openmae.training.lars import LARS
from openmae.training.optim import set_learning_rate

# Largest difference from timm's program over 50 steps, as a share of the parameter's largest weight: 3e-16 and 5.2e-7.
TOLERANCES = {torch.float64: 3e-15, torch.float32: 3e-6}


def assert_near(mine, other):
    share = TOLERANCES[mine.dtype]
    assert (mine - other).abs().max() <= share * other.abs().max()


class Probe(nn.Module):
    """A head with a bias, a matrix that begins at zero, and one whose gradient is zero."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(6, 4, dtype=dtype)
        self.zero = nn.Parameter(torch.zeros(3, 2, dtype=dtype))
        self.still = nn.Parameter(torch.randn(3, 2, dtype=dtype))
        self.norm = nn.Parameter(torch.randn(5, dtype=dtype))


def gradients(model, step):
    chance = torch.Generator().manual_seed(step)
    found = {n: torch.randn(p.shape, generator=chance, dtype=p.dtype) for n, p in model.named_parameters()}
    found["still"].zero_()
    return found


def timms(model, momentum, trust, weight_decay=0.0):
    """timm's program: matrices are adapted, what has one dimension is in a group where nothing is."""
    lars = pytest.importorskip("timm.optim").Lars
    matrices = {"params": [p for p in model.parameters() if p.ndim > 1], "always_adapt": True}
    rest = {"params": [p for p in model.parameters() if p.ndim <= 1], "always_adapt": False, "weight_decay": 0.0}
    return lars(
        [{**matrices, "weight_decay": weight_decay}, rest], momentum=momentum, trust_coeff=trust, eps=0.0, foreach=False
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("momentum", "trust", "weight_decay"), [(0.9, 0.001, 0.0), (0.5, 0.001, 0.0), (0.9, 0.02, 0.0), (0.9, 0.001, 0.3)]
)
def test_lars_is_timms_step_for_step(momentum, trust, weight_decay, dtype):
    """Under weight decay timm is given gradients that hold it already: its own divides by another norm."""
    ours, theirs = Probe(dtype), Probe(dtype)
    optimizer = LARS([{"params": list(ours.parameters()), "weight_decay": weight_decay}], momentum, trust)
    other = timms(theirs, momentum, trust)
    for step in range(50):
        rate = 6.4 * (1 - step / 50)
        set_learning_rate(optimizer, rate)
        for group in other.param_groups:
            group["lr"] = rate
        given = gradients(ours, step)
        for name, parameter in ours.named_parameters():
            parameter.grad = given[name].clone()
        for name, parameter in theirs.named_parameters():
            decay = weight_decay if parameter.ndim > 1 else 0.0
            parameter.grad = given[name] + decay * parameter.detach()
        optimizer.step()
        other.step()
        for (name, mine), theirs_one in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert_near(mine, theirs_one)
            assert torch.equal(mine.grad, given[name]), "a step must not change gradients"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weight_decay_is_timms_where_both_norms_agree(dtype):
    """|g + wd w| = |g| + wd |w| where the gradient points along the weight: timm's own weight decay then is ours."""
    ours, theirs = Probe(dtype), Probe(dtype)
    optimizer = LARS([{"params": list(ours.parameters()), "weight_decay": 0.3}])
    other = timms(theirs, 0.9, 0.001, weight_decay=0.3)
    set_learning_rate(optimizer, 2.0)
    for group in other.param_groups:
        group["lr"] = 2.0
    for step in range(50):
        for model in (ours, theirs):
            for parameter in model.parameters():
                parameter.grad = parameter.detach() * (0.1 + step % 4)
        optimizer.step()
        other.step()
    for mine, theirs_one in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_near(mine, theirs_one)


def test_the_defaults_are_the_papers():
    optimizer = LARS([{"params": [nn.Parameter(torch.ones(2, 2))]}])
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["trust"], group["weight_decay"]) == (0.9, 0.001, 0.0)


def test_a_first_step_by_hand():
    """w = (3, 4), g = (0, 2.5), wd .5: g <- (1.5, 4.5); ratio .001 · 5 / sqrt(22.5); the bias moves by rate · g."""
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([1.0]))
    optimizer = LARS([{"params": [weight, bias], "weight_decay": 0.5, "lr_scale": 0.5}])
    set_learning_rate(optimizer, 4.0)
    weight.grad, bias.grad = torch.tensor([[0.0, 2.5]]), torch.tensor([0.25])
    optimizer.step()
    ratio = 0.001 * 5 / 22.5**0.5
    torch.testing.assert_close(weight.detach(), torch.tensor([[3 - 2 * 1.5 * ratio, 4 - 2 * 4.5 * ratio]]))
    assert bias.item() == 0.5


def test_a_skipped_step_changes_no_bit_and_leaves_no_trace():
    ours, theirs = Probe(torch.float32), Probe(torch.float32)
    optimizer, other = (LARS([{"params": list(m.parameters()), "weight_decay": 0.1}]) for m in (ours, theirs))
    set_learning_rate(optimizer, 1.0)
    set_learning_rate(other, 1.0)
    for step in range(8):
        given = gradients(ours, step)
        for model in (ours, theirs):
            for name, parameter in model.named_parameters():
                parameter.grad = given[name].clone()
        is_skipped = step in (0, 3, 4)
        if is_skipped:
            ours.head.weight.grad[0, 0] = float("nan")
            ours.norm.grad[1] = float("inf")
        else:
            other.step()  # knows nothing of found_inf
        optimizer.found_inf = torch.tensor(float(is_skipped))
        optimizer.step()
        for mine, theirs_one in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(mine, theirs_one)
            if step > 0:
                assert torch.equal(optimizer.state[mine]["momentum"], other.state[theirs_one]["momentum"])


def test_a_step_never_reads_a_number_back():
    """On the meta device there are no numbers: reading one, which on a GPU would wait for it, raises."""
    with torch.device("meta"):
        model, found_inf = nn.Linear(3, 2), torch.zeros(())
    with pytest.raises(RuntimeError, match="meta"):
        bool(found_inf)
    optimizer = LARS([{"params": list(model.parameters()), "weight_decay": 0.1}])
    optimizer.found_inf = found_inf
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_a_parameter_without_a_gradient_is_left_alone():
    model = Probe(torch.float32)
    before = model.head.weight.detach().clone()
    optimizer = LARS([{"params": list(model.parameters()), "weight_decay": 0.1}])
    set_learning_rate(optimizer, 1.0)
    optimizer.step()
    assert torch.equal(model.head.weight, before)
    assert not optimizer.state


def test_a_checkpoint_carries_its_momentum(tmp_path):
    straight, stopped = Probe(torch.float32), Probe(torch.float32)

    def steps(model, optimizer, numbers):
        set_learning_rate(optimizer, 3.0)
        for step in numbers:
            for name, gradient in gradients(model, step).items():
                model.get_parameter(name).grad = gradient
            optimizer.step()

    steps(straight, LARS([{"params": list(straight.parameters())}]), range(6))
    first = LARS([{"params": list(stopped.parameters())}])
    steps(stopped, first, range(3))
    saved = optimizer_tensors(stopped, first)
    assert set(saved) == {f"momentum/{name}" for name, _ in stopped.named_parameters()}
    save_file(saved, tmp_path / OPTIMIZER)
    second = LARS([{"params": list(stopped.parameters())}])
    restore_optimizer(tmp_path, stopped, second)
    steps(stopped, second, range(3, 6))
    assert all(torch.equal(*pair) for pair in zip(straight.parameters(), stopped.parameters(), strict=True))
