"""Whether a compiled model's gradients are those of the model: inductor has produced wrong ones without a word.

(LayerNorm's backward pass by mix-order reduction, torch 2.10 and later.)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TIMES_EAGER = 3.0  # the error of compiled bf16 gradients may be so many times that of eager ones
FP32_ERROR = 1e-4  # of compiled fp32 gradients, relative

Gradients = list[Tensor | None]


@dataclass(frozen=True)
class GradientCheck:
    """How far gradients are from the reference, eager ones in float32.

    Attributes:
        compiled, eager: ‖gradient − reference‖ / ‖reference‖ over all parameters; `eager` is None in float32, where
            the reference itself is eager.
        worst: the parameter whose compiled gradient comes nearest to its limit, or exceeds it most.
        ratio: of that parameter's error to its limit: above 1 the compiled gradients are wrong.
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
        beside = "" if self.eager is None else f", of eager ones {self.eager:.2g}"
        error = f"gradients differ from eager float32 ones by {self.compiled:.2g}{beside}"
        return error if self.is_good else f"{error}, of {self.worst} by {self.ratio:.2g} times what may be"


def gradients_of(model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> Gradients:
    """The gradients of the sum of some losses, taken one after the other; the parameters keep none."""
    for loss in losses:
        loss().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    return gradients


def compare(
    model: nn.Module, reference: Gradients, compiled: Sequence[Tensor], eager: Sequence[Tensor] | None
) -> GradientCheck | None:
    """The check, from the norms of what each parameter's gradient differs by; None where eager ones are not finite.

    A parameter's compiled gradient is held against the larger of its own eager error and the error of all eager
    gradients together, relative: a few numbers may happen to be rounded well.

    Args:
        reference: of each parameter, as `gradients_of` gives them.
        compiled, eager: one number for each parameter that has a reference, as `differences` gives them.
    """
    names = [name for (name, _), one in zip(model.named_parameters(), reference, strict=True) if one is not None]
    counts = [one.numel() for one in reference if one is not None]
    norms = torch.stack([one.norm() for one in reference if one is not None]).tolist()
    of_compiled = torch.stack(list(compiled)).tolist()
    of_eager = None if eager is None else torch.stack(list(eager)).tolist()
    whole = math.hypot(*norms)
    if whole == 0 or not all(math.isfinite(value) for value in [*norms, *(of_eager or ())]):
        return None
    of_compiled = [value if math.isfinite(value) else math.inf for value in of_compiled]
    error, eager_error = (None if values is None else math.hypot(*values) / whole for values in (of_compiled, of_eager))
    assert error is not None
    # Where a gradient is nearly nothing, rounding is as large as elsewhere: by its share of all numbers.
    shares = [whole * math.sqrt(count / sum(counts)) for count in counts]
    limits = [FP32_ERROR * max(norm, share) for norm, share in zip(norms, shares, strict=True)]
    if of_eager is not None and eager_error is not None:
        usual = [max(own, eager_error * norm) for own, norm in zip(of_eager, norms, strict=True)]
        limits = [max(limit, TIMES_EAGER * error) for limit, error in zip(limits, usual, strict=True)]
    ratios = [found / limit for found, limit in zip(of_compiled, limits, strict=True)]
    ratio, worst = max(zip(ratios, names, strict=True))
    of_all = error / max(FP32_ERROR, TIMES_EAGER * (eager_error or 0.0))
    if of_all > ratio:
        ratio, worst = of_all, "all parameters"
    return GradientCheck(compiled=error, eager=eager_error, worst=worst, ratio=ratio)


def differences(gradients: Gradients, reference: Gradients) -> list[Tensor]:
    """‖gradient − reference‖ of each parameter that has a reference, on the device."""
    return [
        (torch.zeros_like(two) if one is None else one.float()).sub(two).norm()
        for one, two in zip(gradients, reference, strict=True)
        if two is not None
    ]
