"""`openmae bench memory`: the most memory that a step takes, against transformers' ViTMAE.

Counted is what torch's allocator has handed out, weights, gradients and optimiser included; the activations are the
peak above what lay there before the step. On a GPU the allocator says so itself; on a CPU torch's profiler records
every allocation and the peak is their running sum: to the byte, whatever else runs on the machine. Beside it stands
what autograd keeps for the backward pass of one more image, which decides how large a batch can be.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from openmae.benchmarks.machine import waiting
from openmae.benchmarks.ours import RATE, WORDS, Ours, make_ours, settled_for
from openmae.benchmarks.peers import Peer, find_transformers, make_peer, twin
from openmae.benchmarks.rows import NOT_INSTALLED, Row
from openmae.benchmarks.step import equal_pair
from openmae.config import BenchConfig
from openmae.model import cost

GOAL = "1/0.55 = 1.82"
# Forms of our step beside the plain one.
FORMS: dict[str, dict[str, Any]] = {"--recompute True": {"recompute": True}}
BF16_FORMS = FORMS | {"--recompute True --bf16-residual": {"recompute": True, "bf16_residual": True}}
PARTS = ("all", "activations", "kept for an image")


def memory_rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """Per case, form and peer a row for each of `PARTS`; ratios above 1: ours takes less.

    Raises:
        Fault: the programs do not compute the same loss.
    """
    rows = []
    for case in config.case or ("base",):
        ours, peer = equal_pair(case, config, device)
        c, transformers = ours.settled.config, find_transformers()
        mine = {"": of_ours(ours)}
        for form, settings in (BF16_FORMS if c.precision == "bf16" else FORMS).items():
            settled = settled_for(case, c.batch_size, device, c.precision, **settings)
            mine[f", {form}"] = of_ours(make_ours(settled, device))
        theirs: dict[str, list[float]] = {f"transformers {NOT_INSTALLED}": []}
        if peer is not None and transformers is not None:
            written_out = twin(transformers, ours.model.cpu(), ours.shape, attention="eager")
            usual = make_peer(
                written_out, peer.images, peer.noise, RATE, c.weight_decay, c.betas, device, c.precision
            )  # fmt: skip
            theirs = {
                "transformers ViTMAE, SDPA": of_peer(peer),
                "transformers ViTMAE, attention written out": of_peer(usual),
            }
        bytes_per_value = 2 if c.precision == "bf16" else 4
        for form, own in mine.items():
            planned = cost.activation_bytes(ours.shape, ours.visible, bytes_per_value, recompute=bool(form))
            details = {"planned_activations": planned * c.batch_size} | ({"goal": GOAL} if case == "base" else {})
            for words, other in theirs.items():
                rows += [
                    Row(
                        case=f"{WORDS[case]}, batch {c.batch_size}, {c.precision}{form}: {name}",
                        peer=words,
                        unit="bytes",
                        ours=[own[part]],
                        theirs=other[part : part + 1],
                        details=details,
                    )
                    for part, name in enumerate(PARTS)
                ]
    return rows


def of_ours(ours: Ours) -> list[float]:
    """Bytes of each of `PARTS`."""
    kept = kept_for_an_image(ours.loss, ours.model, ours.settled.config.batch_size)
    return [*peaks(ours.step, (ours.model, ours.optimizer), ours.device), kept]


def of_peer(peer: Peer) -> list[float]:
    """Bytes of each of `PARTS`."""
    kept = kept_for_an_image(peer.loss, peer.model, len(peer.images))
    return [*peaks(peer.step, (peer.model, peer.optimizer), peer.device), kept]


def kept_for_an_image(loss: Callable[[int], Tensor], model: nn.Module, batch: int) -> float:
    """Bytes kept for the backward pass of one more image: the difference between a batch and half of it.

    Args:
        loss: of the first so many images of the batch.
    """
    few = max(1, batch // 2)
    if few == batch:
        return float(kept_bytes(lambda: loss(batch), model))
    more = kept_bytes(lambda: loss(batch), model) - kept_bytes(lambda: loss(few), model)
    return more / (batch - few)


def kept_bytes(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that autograd keeps of a forward pass, parameters left out; each storage counts once and whole."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept[place] = tensor  # alive, so that no other tensor comes to lie in its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def peaks(
    step: Callable[[], None], owned: tuple[nn.Module, torch.optim.Optimizer], device: torch.device
) -> tuple[float, float]:
    """The most bytes during a step, with what the program owns, and the part that only the step takes."""
    step()  # the optimiser's state comes into being
    model, optimizer = owned
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    lasting = sum(t.numel() * t.element_size() for t in tensors)
    if device.type == "cuda":
        wait = waiting(device)
        wait()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        wait()
        rise = torch.cuda.max_memory_allocated(device) - before
    else:
        rise = _peak_of_allocations(step)
    return float(lasting + rise), float(rise)


def _peak_of_allocations(step: Callable[[], None]) -> int:
    """The highest sum of what torch's CPU allocator gave out and had not got back since the step began."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it reports on stderr that there is no GPU
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results = profiler.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
