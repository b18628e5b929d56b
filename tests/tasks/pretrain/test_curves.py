"""The loss curve of every fast form lies on that of the plain program: forty steps on photographs.

The plain program is `tests/model/plain_mae.py` with torch's AdamW in its plainest form. On a GPU, where there is one,
bf16 and torch.compile are held against fp32 without it.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from openmae.benchmarks.ours import Ours, make_ours, pretrain_plan_for
from openmae.data.batch import Batch
from openmae.data.preprocess import normalise
from openmae.data.sources.open import open_source
from openmae.machine.parallel import Processes
from openmae.run.batches import read_steps
from openmae.tasks.pretrain.data import make_stream
from openmae.training.optim import set_learning_rate, weight_decay_groups

from ...model.plain_mae import plain_mae

CPU = torch.device("cpu")
STEPS, BATCH, PEAK = 40, 16, 3e-3
Curve = list[float]


def rate_of(step: int) -> float:
    return PEAK * min(1.0, (step + 1) / 8)


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    """Crops of the photographs inside the wheels, another batch every step."""
    plan = pretrain_plan_for("tiny", BATCH, CPU, "fp32")
    source = open_source("embedded:photos")
    assert source is not None
    stream = make_stream(plan.config, plan.preprocessing, source)
    micro_batches = read_steps(stream, BATCH, BATCH, 0, range(STEPS), Processes(), False)
    return [micro_batch for (micro_batch,) in micro_batches]


def fresh(device: torch.device = CPU, **settings: Any) -> Ours:
    return make_ours(pretrain_plan_for("tiny", BATCH, device, settings.pop("precision", "fp32"), **settings), device)


def curve(ours: Ours, batches: list[Batch], micro: int = BATCH) -> Curve:
    """Of `openmae pretrain`'s own step."""
    losses = []
    for step, batch in enumerate(batches):
        cuts = range(0, BATCH, micro)
        ours.micro_batches = [Batch(batch.images[i : i + micro], batch.keys[i : i + micro], {}) for i in cuts]
        loss, _, _ = ours.step(rate_of(step))
        losses.append(float(loss))
    return losses


def plain_curve(ours: Ours, batches: list[Batch], betas: tuple[float, float] | None = None) -> Curve:
    """The same weights and batches through the plain program and one parameter after the other."""
    c = ours.plan.config
    groups = weight_decay_groups(ours.model, c.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas or c.betas, foreach=False, fused=False)
    losses = []
    for step, batch in enumerate(batches):
        images, masking = normalise(batch.images, ours.plan.preprocessing), ours.mask_sampler(batch.keys)
        set_learning_rate(optimizer, rate_of(step))
        loss = plain_mae(ours.model, images, masking.shuffled_ids, masking.num_visible, normalise=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.fixture(scope="module")
def plain_losses(batches) -> Curve:
    return plain_curve(fresh(), batches)


def apart(a: Curve, b: Curve) -> float:
    """The largest relative difference of any step."""
    assert len(a) == len(b) == STEPS
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


# Each form and how far from the plain curve any of its steps may lie. Measured: fp32 1.7e-7, 1.7e-7 and 1.8e-7; bf16
# 1.4e-3, with its residual 1.1e-3, recomputed the same.
FORMS: dict[str, tuple[dict[str, Any], float]] = {
    "as it is": ({}, 2e-6),
    "recompute": ({"recompute": True}, 2e-6),
    "micro-batches": ({"micro": 5}, 2e-6),
    "bf16": ({"precision": "bf16"}, 4e-3),
    "bf16 residual": ({"precision": "bf16", "bf16_residual": True}, 4e-3),
    "bf16 residual, recompute": ({"precision": "bf16", "bf16_residual": True, "recompute": True}, 4e-3),
}


def of_form(name: str, batches: list[Batch]) -> Curve:
    settings = dict(FORMS[name][0])
    micro = settings.pop("micro", BATCH)
    return curve(fresh(**settings), batches, micro)


def test_the_curve_falls(plain_losses):
    """Or there would be nothing to lie on."""
    assert sum(plain_losses[-8:]) < 0.8 * sum(plain_losses[:8])


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_fast_forms_lie_on_the_plain_curve(form, batches, plain_losses):
    assert apart(of_form(form, batches), plain_losses) < FORMS[form][1]


def tanh_gelu(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    gelu = torch.nn.functional.gelu
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x: gelu(x, approximate="tanh"))


def usual_betas(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    for group in ours.optimizer.param_groups:
        group["betas"] = (0.9, 0.999)


def one_position_off(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.model.decoder.pos_embed.data = ours.model.decoder.pos_embed.roll(1, dims=1)


# Measured: 4.8e-5, 1.8e-2, 8.4e-2. The first would pass for bf16: what that rounds is larger.
MISTAKES: dict[Callable[[Ours, pytest.MonkeyPatch], None], float] = {
    tanh_gelu: 2e-6,
    usual_betas: 4e-3,
    one_position_off: 4e-3,
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_leaves_the_curve(mistake, batches, plain_losses, monkeypatch):
    ours = fresh()
    mistake(ours, monkeypatch)
    assert apart(curve(ours, batches), plain_losses) > MISTAKES[mistake]


# In a process of its own: there signatures are not checked, and those checks cannot be captured.
COMPILED = """
import json, sys, torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from openmae.benchmarks.ours import make_ours, pretrain_plan_for

PRODUCTS, products = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default), 0

def count(graph, inputs):
    global products
    products += sum(node.target in PRODUCTS for node in graph.graph.nodes)
    return make_boxed_func(graph.forward)

whole = aot_autograd(fw_compiler=count, bw_compiler=count, partition_fn=min_cut_rematerialization_partition,
                     decompositions=select_decomp_table())  # what inductor is given, run as it is

def curve(device, precision, recompute, bf16_residual, **options):
    torch._dynamo.reset()
    settings = {"micro_batch_size": 4, "recompute": recompute, "bf16_residual": bf16_residual}
    ours = make_ours(pretrain_plan_for("tiny", 4, device, precision, **settings), device)
    if options:
        ours.wrapped_model = torch.compile(ours.model, dynamic=False, fullgraph=True, **options)
    losses = []
    for _ in range(6):
        loss, _, _ = ours.step(3e-3)
        losses.append(float(loss))
    return losses

device = torch.device(sys.argv[1])
options = {"backend": whole} if device.type == "cpu" else {"mode": "default"}
plain, result = curve(device, "fp32", False, False), []
for form in (("fp32", False, False), ("fp32", True, False), ("bf16", False, False), ("bf16", True, True)):
    products = 0
    compiled = curve(device, *form, **options)
    result.append((max(abs(a - b) / a for a, b in zip(plain, compiled)), products))
print(json.dumps(result))
"""


def compiled_forms(device: str) -> list[tuple[float, int]]:
    """Of fp32, fp32 recomputed, bf16, bf16 recomputed with a bf16 residual: distance to fp32 eager, products run."""
    done = subprocess.run([sys.executable, "-c", COMPILED, device], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_step_is_captured_whole_and_lies_on_the_eager_curve():
    """One graph forward and one backward (`fullgraph`), run without a compiler; recomputing adds no product.

    Measured: 9.8e-8, 9.8e-8, 1.3e-3, 1.2e-3.
    """
    fp32, recomputed, bf16, bf16_recomputed = compiled_forms("cpu")
    assert max(fp32[0], recomputed[0]) < 2e-6
    assert max(bf16[0], bf16_recomputed[0]) < 4e-3
    assert fp32[1] == recomputed[1] > 0
    assert bf16[1] == bf16_recomputed[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_bf16_compiled_lies_on_fp32_eager_on_a_gpu():
    """Not yet run: there was no GPU where this was written, and the limit is the CPU's."""
    for difference, _ in compiled_forms("cuda"):
        assert difference < 4e-3
