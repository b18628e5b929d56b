"""Parameter groups and the learning rate's schedule (paper, table 8; FACTS section 2)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: decayed, and spared (1-D parameters: biases and norms).

    Class and mask tokens have three dimensions and are decayed, as released.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    spared = [p for p in trainable if p.ndim <= 1]
    decayed = [p for p in trainable if p.ndim > 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def adamw(model: nn.Module, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW in its fused form over the two groups; the rate is set before every step."""
    return torch.optim.AdamW(weight_decay_groups(model, weight_decay), lr=0.0, betas=betas, fused=True)


@dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """Linear warm-up from 0, then half a cosine down to `minimum`; set once per optimiser step."""

    peak: float
    minimum: float
    warmup_steps: float
    total_steps: float

    def __call__(self, step: float) -> float:
        """The learning rate of the step with this number, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * step / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1e-9)
        return self.minimum + (self.peak - self.minimum) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
