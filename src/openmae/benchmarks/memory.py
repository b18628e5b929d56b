"""`openmae bench memory`: the most memory that a step takes, against transformers' ViTMAE.

Counted is what torch's allocator has handed out, weights, gradients and optimiser included; the activations are the
peak above what lay there before the step. On a GPU the allocator says so itself; on a CPU torch's profiler records
every allocation and the peak is their running sum: to the byte, whatever else runs on the machine.
"""

import os
from collections.abc import Callable

import torch
from torch import nn

from openmae.benchmarks.machine import waiting
from openmae.benchmarks.ours import RATE, WORDS, make_ours, settled_for
from openmae.benchmarks.peers import find_transformers, make_peer, twin
from openmae.benchmarks.rows import NOT_INSTALLED, Row
from openmae.benchmarks.step import equal_pair
from openmae.config import BenchConfig
from openmae.model import cost

GOAL = "1/0.55 = 1.82"


def memory_rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """Per case, form and peer a row for all memory and one for activations; ratios above 1: ours takes less.

    Raises:
        Fault: the programs do not compute the same loss.
    """
    rows = []
    for case in config.case or ("base",):
        ours, peer = equal_pair(case, config, device)
        c, transformers = ours.settled.config, find_transformers()
        again = make_ours(settled_for(case, c.batch_size, device, c.precision, recompute=True), device)
        mine = {
            "": peaks(ours.step, (ours.model, ours.optimizer), device),
            ", --recompute True": peaks(again.step, (again.model, again.optimizer), device),
        }
        theirs: dict[str, tuple[float, float] | None] = {f"transformers {NOT_INSTALLED}": None}
        if peer is not None and transformers is not None:
            written_out = twin(transformers, ours.model.cpu(), ours.shape, attention="eager")
            usual = make_peer(
                written_out, peer.images, peer.noise, RATE, c.weight_decay, c.betas, device, c.precision
            )  # fmt: skip
            theirs = {
                f"transformers ViTMAE, {words}": peaks(side.step, (side.model, side.optimizer), device)
                for words, side in (("SDPA", peer), ("attention written out", usual))
            }
        bytes_per_value = 2 if c.precision == "bf16" else 4
        for form, own in mine.items():
            planned = cost.activation_bytes(ours.shape, ours.visible, bytes_per_value, recompute=bool(form))
            details = {"planned_activations": planned * c.batch_size} | ({"goal": GOAL} if case == "base" else {})
            for words, other in theirs.items():
                for part, name in enumerate(("all", "activations")):
                    rows.append(
                        Row(
                            case=f"{WORDS[case]}, batch {c.batch_size}{form}: {name}",
                            peer=words,
                            unit="bytes",
                            ours=[own[part]],
                            theirs=[] if other is None else [other[part]],
                            details=details,
                        )
                    )
    return rows


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
