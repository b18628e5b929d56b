"""`openmae bench memory`: the peak memory of a step, against transformers' ViTMAE.

Counted is what torch's allocator has allocated, including weights, gradients and optimiser; `activations` is the rise
during the step. On a GPU the allocator reports its peak; on a CPU torch's profiler records every allocation, and the
peak of their running sum is exact, whatever else runs on the machine. Also measured is what autograd keeps for the
backward pass of one more image, which decides how large a batch can be.
"""

import os
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from openmae.benchmarks.machine import synchronizer
from openmae.benchmarks.ours import CASE_NAMES, RATE, Form, Ours, make_ours, pretrain_plan_for
from openmae.benchmarks.rows import NOT_INSTALLED, Row
from openmae.benchmarks.step import make_equal_pair
from openmae.benchmarks.transformers_mae import Peer, check_equal, find_transformers, make_peer, peer_with_our_weights
from openmae.config import BenchConfig
from openmae.model import cost

GOAL = "1/0.55 = 1.82"
FORMS = [
    Form(label="", settings={}),
    Form(label=", --recompute True", settings={"recompute": True}),
    Form(label=", --recompute True --bf16-residual True", settings={"recompute": True, "bf16_residual": True}),
]
PARTS = ("all", "activations", "kept for an image")


def memory_rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """For each case, form and peer a row for each of `PARTS`; ratios above 1: ours takes less.

    Raises:
        Fault: the programs do not compute the same loss.
    """
    rows = []
    for case in config.case or ("base",):
        ours, peer = make_equal_pair(case, config, device)
        c, transformers = ours.plan.config, find_transformers()
        forms = [form for form in FORMS if c.precision == "bf16" or "bf16_residual" not in form.settings]
        equal_to = ours.loss_and_norm()
        theirs: dict[str, list[float]] = {f"transformers {NOT_INSTALLED}": []}
        if peer is not None and transformers is not None:
            eager_model = peer_with_our_weights(transformers, ours.model.cpu(), ours.shape, attention="eager")
            eager_peer = make_peer(
                eager_model, peer.images, peer.noise, RATE, c.weight_decay, c.betas, device, c.precision
            )
            theirs = {
                "transformers ViTMAE, SDPA": measure_peer(peer),
                "transformers ViTMAE, attention written out": measure_peer(eager_peer),
            }
        bytes_per_value = 2 if c.precision == "bf16" else 4
        for form in forms:
            side = make_ours(pretrain_plan_for(case, c.batch_size, device, c.precision, **form.settings), device)
            check_equal(side.loss_and_norm(), equal_to, c.precision)
            own = measure_ours(side)
            recompute = form.settings.get("recompute", False)
            planned = cost.activation_bytes(ours.shape, ours.visible, bytes_per_value, recompute=recompute)
            for (label, other), (part, name) in product(theirs.items(), enumerate(PARTS)):
                details: dict[str, Any] = {"planned_activations": planned * c.batch_size}
                if case == "base" and name == "all":
                    details["goal"] = GOAL
                rows.append(
                    Row(
                        case=f"{CASE_NAMES[case]}, batch {c.batch_size}, {c.precision}{form.label}: {name}",
                        peer=label,
                        unit="bytes",
                        ours=[own[part]],
                        theirs=other[part : part + 1],
                        details=details,
                    )
                )
    return rows


def measure_ours(ours: Ours) -> list[float]:
    """Bytes of each of `PARTS`, for our step."""
    kept = kept_for_an_image(ours.loss, ours.model, ours.plan.config.batch_size)
    return [*peaks(ours.step, (ours.model, ours.optimizer), ours.device), kept]


def measure_peer(peer: Peer) -> list[float]:
    """Bytes of each of `PARTS`, for the peer's step."""
    kept = kept_for_an_image(peer.loss, peer.model, len(peer.images))
    return [*peaks(peer.step, (peer.model, peer.optimizer), peer.device), kept]


def kept_for_an_image(loss: Callable[[int], Tensor], model: nn.Module, batch: int) -> float:
    """Bytes kept for the backward pass of one more image, from the difference between a batch and half of it.

    Args:
        loss: from a number of images to the loss of the first so many of the batch.
    """
    few = max(1, batch // 2)
    if few == batch:
        return float(kept_bytes(lambda: loss(batch), model))
    more = kept_bytes(lambda: loss(batch), model) - kept_bytes(lambda: loss(few), model)
    return more / (batch - few)


def kept_bytes(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that autograd keeps of a forward pass, without parameters; each storage counts once, as a whole."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()  # or an operation that keeps its own result would keep the graph alive
        if (address := tensor.untyped_storage().data_ptr()) not in own:
            kept[address] = tensor  # kept alive, so that its address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def peaks(
    step: Callable[[], object], owned: tuple[nn.Module, torch.optim.Optimizer], device: torch.device
) -> tuple[float, float]:
    """Peak bytes during a step, with model and optimiser; and the part that only the step takes."""
    step()  # creates the optimiser's state
    model, optimizer = owned
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    lasting = sum(t.numel() * t.element_size() for t in tensors)
    if device.type == "cuda":
        wait = synchronizer(device)
        wait()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        wait()
        rise = torch.cuda.max_memory_allocated(device) - before
    else:
        rise = _peak_of_allocations(step)
    return float(lasting + rise), float(rise)


def _peak_of_allocations(step: Callable[[], object]) -> int:
    """The peak of what torch's CPU allocator allocated and has not freed since the step began."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it reports on stderr that there is no GPU
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results = profiler.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak
