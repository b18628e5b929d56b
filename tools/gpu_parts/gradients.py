"""Gradients of the compiled step beside the eager ones, both against eager ones in fp32.

Inductor has produced silently wrong gradients in LayerNorm's backward pass. A wrong tensor shows in its own error
before it shows in that of all, so both are looked at. What is compiled here for the sizes of the rows is in the cache
that they share: there it takes seconds.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from gpu_parts.part import Context, Failed

PIECE = 64  # images at a time of the fp32 reference
MAX_TIMES = 3.0  # times the eager bf16 error
FP32_TOLERANCE = 1e-4


def gradients(context: Context, case: str, batch: int, precision: str) -> None:
    """Compare gradients of one batch. Records errors and compile time; raises Failed where errors are too large."""
    import torch

    from openmae.benchmarks.ours import make_ours, pretrain_plan_for

    if not context.is_gpu:
        case, batch = "tiny", 4
    device = torch.device("cuda:0" if context.is_gpu else "cpu")
    sides: dict[str, dict[str, Any]] = {}
    compiling = contextlib.nullcontext() if context.is_gpu else captured_only()
    with compiling:
        for name, kind, pieces, is_compiled in (
            ("reference", "fp32", min(PIECE, batch), False),
            ("eager", precision, min(2 * PIECE, batch), False),
            ("compiled", precision, batch, True),
        ):
            plan = pretrain_plan_for(case, batch, device, kind, micro_batch_size=pieces)
            ours = make_ours(plan, device, is_compiled=is_compiled)
            began = time.monotonic()
            sides[name] = compute_gradients(ours)
            if is_compiled:
                context.note(compiled_in=time.monotonic() - began)
                _step_without_waiting(context, ours)
            del ours
            if context.is_gpu:
                torch.cuda.empty_cache()
    errors = {name: relative_errors(sides[name], sides["reference"]) for name in ("eager", "compiled")}
    context.note(eager_error=errors["eager"][""], compiled_error=errors["compiled"][""])
    times, name = worst_of(errors)
    context.note(worst_tensor=name, its_eager_error=errors["eager"][name], its_compiled_error=errors["compiled"][name])
    if precision == "bf16" and not max(errors["compiled"][""] / errors["eager"][""], times) <= MAX_TIMES:
        raise Failed(f"the compiled error is more than {MAX_TIMES:g} times the eager one, in all or in {name}")
    if precision == "fp32" and not max(errors["compiled"][""], errors["compiled"][name]) <= FP32_TOLERANCE:
        raise Failed(f"the compiled error is more than {FP32_TOLERANCE:g}, in all or in {name}")


def compute_gradients(ours: Any) -> dict[str, Any]:
    """The gradients of the batch by parameter name, summed over its micro-batches as in a step."""
    from openmae.data.device_crop import model_input
    from openmae.inference.mask_sampler import to_device
    from openmae.machine.device import autocast

    config = ours.plan.config
    for micro_batch in ours.micro_batches:
        images = model_input(micro_batch, ours.plan.preprocessing, ours.device)
        masking = to_device(ours.mask_sampler(micro_batch.keys), ours.device)
        with autocast(ours.device, config.precision):
            loss = ours.wrapped_model(images, masking).loss * (len(images) / config.batch_size)
        loss.backward()
    found = {name: p.grad.detach().float() for name, p in ours.model.named_parameters() if p.grad is not None}
    ours.model.zero_grad(set_to_none=True)
    return found


def relative_errors(found: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """Of each tensor against its own norm; of all together under the empty name.

    Where a gradient is nearly nothing, rounding is as large as elsewhere: there it is held against its share of all.
    """
    squares = {
        n: (float((found[n] - true).square().sum()), float(true.square().sum())) for n, true in reference.items()
    }
    whole, count = sum(norm for _, norm in squares.values()), sum(true.numel() for true in reference.values())
    share = {n: whole * true.numel() / count for n, true in reference.items()}
    errors = {n: (error / max(norm, share[n], 1e-60)) ** 0.5 for n, (error, norm) in squares.items()}
    return {**errors, "": (sum(error for error, _ in squares.values()) / max(whole, 1e-60)) ** 0.5}


def worst_of(errors: dict[str, dict[str, float]]) -> tuple[float, str]:
    """How many times the eager error the compiled one of a tensor is at most, and of which.

    Small tensors' errors vary by chance: what is less than all gradients' eager error counts as that.
    """
    floor = max(errors["eager"][""], 1e-12)
    ratios = {n: e / max(errors["eager"][n], floor) for n, e in errors["compiled"].items() if n and e == e}
    name = max(ratios, key=ratios.__getitem__)
    return ratios[name], name


def _step_without_waiting(context: Context, ours: Any) -> None:
    """The compiled step waits for nothing either, once it is compiled and its batch is pinned."""
    import torch

    ours.step()
    if not context.is_gpu:
        return
    ours.micro_batches = [micro_batch.pin_memory() for micro_batch in ours.micro_batches]
    ours.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def captured_only() -> Iterator[None]:
    """torch.compile without a compiler: the graph is captured and guarded, and run as it is."""
    import torch

    real = torch.compile
    torch.compile = lambda model, **options: real(model, backend="eager", **options)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = real
