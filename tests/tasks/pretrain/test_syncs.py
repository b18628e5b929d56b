"""A training step never waits for its device, and compiling changes neither names nor numbers."""

from dataclasses import replace

import jaxtyping
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from openmae.benchmarks.ours import make_ours, pretrain_plan_for
from openmae.config import ResolvedPretrainConfig
from openmae.machine.parallel import Processes, parallelise
from openmae.run.folder import MAY_CHANGE

from ...shared import whole_micro_batches
from .small_steps import TOKENS, ours_of

CPU = torch.device("cpu")

# What makes a GPU's queue run empty: a number brought to Python, a result whose shape depends on values.
WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique_dim", "_unique2", "item"}


class Waits(TorchDispatchMode):
    """Counts the operations that would wait for a GPU."""

    def __init__(self, waiting: set[str] = WAITING) -> None:
        super().__init__()
        self.waiting = waiting
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if (name := function.overloadpacket.__name__) in self.waiting:
            self.found.append(name)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(
    "settings", [{}, {"mask": "block"}, {"mask_tokens_in_encoder": True}, {"target": "pixel"}, *TOKENS], ids=str
)
def test_a_step_never_waits(settings):
    """On a CPU every operation goes through the dispatcher, too: there what would wait on a GPU is counted."""
    ours = ours_of(settings)
    ours.step()
    with Waits() as waits:
        ours.step()
    assert not waits.found


def test_a_step_that_crops_never_waits():
    ours = make_ours(pretrain_plan_for("tiny", 4, CPU, "fp32", micro_batch_size=3), CPU)
    ours.micro_batches = whole_micro_batches()
    ours.step()
    with Waits() as waits:
        ours.step()
    assert not waits.found


def test_a_wait_would_be_counted():
    with Waits() as waits:
        float(torch.ones(3).sum())
        torch.ones(3).nonzero()
        bool((torch.ones(2) > 0).all())
    assert waits.found == ["_local_scalar_dense", "nonzero", "_local_scalar_dense"]


@pytest.mark.parametrize("is_whole", [False, True], ids=["cropped", "whole"])
def test_a_step_makes_no_tensor_of_numbers(is_whole, monkeypatch):
    """To bring Python's numbers to a GPU is to wait for it, too. `torch.tensor` and its kin show as `lift_fresh`; so do
    the NumPy arrays from which masks are made on the CPU, and nothing else may."""
    ours = make_ours(pretrain_plan_for("tiny", 4, CPU, "fp32", micro_batch_size=3), CPU)
    ours.micro_batches = whole_micro_batches() if is_whole else ours.micro_batches
    ours.step()
    arrays, from_numpy = [], torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: arrays.append(array) or from_numpy(array))
    with Waits(WAITING | {"lift_fresh"}) as waits:
        ours.step()
    assert waits.found == ["lift_fresh"] * len(arrays)
    assert len(arrays) == len(ours.micro_batches)
    with Waits(WAITING | {"lift_fresh"}) as waits:
        torch.tensor([1.0])
        torch.as_tensor([1.0])
        torch.ones(1).new_tensor([1.0])
    assert waits.found == ["lift_fresh"] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("is_whole", [False, True], ids=["cropped", "whole"])
def test_a_step_never_waits_on_a_gpu(is_whole):
    """CUDA's own word on it. Not yet run: there was no GPU where this was written."""
    device = torch.device("cuda")
    ours = make_ours(pretrain_plan_for("tiny", 4, device, "bf16", micro_batch_size=3), device)
    ours.micro_batches = [
        micro_batch.pin_memory() for micro_batch in (whole_micro_batches() if is_whole else ours.micro_batches)
    ]
    ours.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def compiled_eagerly(monkeypatch):
    """torch.compile without a compiler: the graph is captured and guarded as ever, and run as it is.

    Without the check of signatures: torch 2.11 cannot capture beartype 0.23's.
    """
    torch._dynamo.reset()
    jaxtyping.config.update("jaxtyping_disable", True)
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: compile_(model, backend="eager", **options))
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    torch._dynamo.reset()


@pytest.mark.slow  # capturing takes a second, or a minute where other programs compute
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("compiled_eagerly")
@pytest.mark.parametrize("settings", [{}, *TOKENS], ids=str)
def test_compiling_keeps_names_and_numbers(settings):
    """The last micro-batch is an odd one. Measured: 0 for the loss, 1.2e-7 for the weights after two steps."""
    plain, compiled = ours_of(settings), ours_of(settings, is_compiled=True)
    assert compiled.wrapped_model is not compiled.model
    results = []
    for ours in (plain, compiled):
        for _ in range(2):
            loss, _, skipped = ours.step()
        assert not skipped
        results.append(loss)
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=0)
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
    assert not any("_orig_mod" in name for name in compiled.model.state_dict())
    if settings:
        images = compiled.images()
        assert torch.equal(compiled.model.target.tokens(images), plain.model.target.tokens(images))
    for a, b in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
    with torch.no_grad():  # whoever measures uses the model itself
        micro_batch = compiled.micro_batches[0]
        assert compiled.model(micro_batch.images.float(), compiled.mask_sampler(micro_batch.keys)).loss.isfinite()


def test_a_run_may_go_on_compiled():
    assert "compile" in MAY_CHANGE
    settled = pretrain_plan_for("tiny", 4, CPU, "fp32").config
    assert settled.compile is False
    old = settled.to_dict()
    del old["compile"]  # a run of before there was a choice
    assert ResolvedPretrainConfig.from_dict(old) == settled
    assert replace(settled, compile=True).compile
    model = torch.nn.Linear(1, 1)
    assert parallelise(model, Processes(), CPU) is model
