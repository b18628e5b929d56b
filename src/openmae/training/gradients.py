"""A check of a compiled model's gradients against eager ones, for inductor has silently produced wrong ones.

(LayerNorm's backward pass by mix-order reduction, torch 2.10 and later.)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MAX_TIMES_EAGER = 3.0  # the largest allowed error of compiled bf16 gradients, as a multiple of the eager ones'
MAX_FP32_ERROR = 1e-4  # the largest allowed relative error of compiled fp32 gradients

Gradients = list[Tensor | None]


@dataclass(frozen=True)
class GradientCheck:
    """The errors of compiled and of eager gradients, against a reference of eager ones in float32.

    Attributes:
        compiled, eager: ‖gradient − reference‖ / ‖reference‖ over all parameters; `eager` is None in float32, where
            the reference itself is eager.
        worst: the parameter whose compiled gradient comes closest to its limit, or exceeds it most.
        ratio: that parameter's error divided by its limit; above 1 the compiled gradients are wrong.
    """

    compiled: float
    eager: float | None
    worst: str
    ratio: float

    @property
    def is_good(self) -> bool:
        return self.ratio <= 1

    @property
    def result_line(self) -> str:
        eager = "" if self.eager is None else f" (eager ones by {self.eager:.2g})"
        error = f"gradients differ from eager float32 ones by {self.compiled:.2g}{eager}"
        return error if self.is_good else f"{error}, those of {self.worst} by {self.ratio:.2g} times the limit"


def compute_gradients(model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> Gradients:
    """The gradients of a sum of losses, by one backward pass each; the parameters' own gradients are cleared."""
    for loss in losses:
        loss().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    return gradients


def compare_gradients(
    model: nn.Module, reference: Gradients, compiled: Sequence[Tensor], eager: Sequence[Tensor] | None
) -> GradientCheck | None:
    """Check compiled gradients; None where the reference is zero or eager gradients are not finite.

    The limit of a parameter's compiled error is a multiple of its own eager error or, where that is larger, of the
    relative eager error of all gradients together: in a small parameter rounding may happen to be small.

    Args:
        reference: of each parameter, from `compute_gradients`.
        compiled, eager: norms of the differences of each parameter that has a reference, from `gradient_differences`.
    """
    names = [name for (name, _), one in zip(model.named_parameters(), reference, strict=True) if one is not None]
    counts = [one.numel() for one in reference if one is not None]
    norms = torch.stack([one.norm() for one in reference if one is not None]).tolist()
    compiled_norms = torch.stack(list(compiled)).tolist()
    eager_norms = None if eager is None else torch.stack(list(eager)).tolist()
    total = math.hypot(*norms)
    if total == 0 or not all(math.isfinite(value) for value in [*norms, *(eager_norms or ())]):
        return None
    compiled_norms = [value if math.isfinite(value) else math.inf for value in compiled_norms]
    error = math.hypot(*compiled_norms) / total
    eager_error = None if eager_norms is None else math.hypot(*eager_norms) / total
    # Rounding errors do not vanish with a gradient: a norm counts at least as its share, by size, of the total norm.
    shares = [total * math.sqrt(count / sum(counts)) for count in counts]
    limits = [MAX_FP32_ERROR * max(norm, share) for norm, share in zip(norms, shares, strict=True)]
    if eager_norms is not None and eager_error is not None:
        usual = [max(own, eager_error * norm) for own, norm in zip(eager_norms, norms, strict=True)]
        limits = [max(limit, MAX_TIMES_EAGER * error) for limit, error in zip(limits, usual, strict=True)]
    ratios = [norm / limit for norm, limit in zip(compiled_norms, limits, strict=True)]
    ratio, worst = max(zip(ratios, names, strict=True))
    total_ratio = error / max(MAX_FP32_ERROR, MAX_TIMES_EAGER * (eager_error or 0.0))
    if total_ratio > ratio:
        ratio, worst = total_ratio, "all parameters"
    return GradientCheck(compiled=error, eager=eager_error, worst=worst, ratio=ratio)


def gradient_differences(gradients: Gradients, reference: Gradients) -> list[Tensor]:
    """‖gradient − reference‖ of each parameter that has a reference, on the device."""
    return [
        (torch.zeros_like(two) if one is None else one.float()).sub(two).norm()
        for one, two in zip(gradients, reference, strict=True)
        if two is not None
    ]
