"""LARS, the optimiser of linear probing (paper, table 10; You et al., arXiv 1708.03888; docs/paper.md)."""

from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose gradients are scaled to each matrix's own norm.

    With weight w, gradient g and the group's weight decay wd, for parameters of more than one dimension:

        g <- g + wd w
        g <- g · trust · |w| / |g|      (unchanged where a norm is 0)

    and for all parameters, 1-D ones neither decayed nor scaled:

        momentum <- momentum_factor · momentum + g
        w <- w - rate · momentum

    The learning rate is set before every step. Where `found_inf` is 1, weights and momentum stay as they are; that is
    decided on the device without waiting, as in torch's fused optimisers.

    timm's `Lars` is the same without weight decay (`always_adapt`, `eps=0`). With it, timm divides by |g| + wd |w|
    instead of |g + wd w|; and it treats 1-D parameters like matrices unless they have a group of their own.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.9, trust: float = 0.001) -> None:
        """`groups` are parameter groups: `params`, and `weight_decay` where it is not 0."""
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "trust": trust, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step; parameters without a gradient are left alone."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step_one(weight, weight.grad, group)

    def _step_one(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if weight.ndim > 1:
            gradient = gradient + group["weight_decay"] * weight
            weight_norm, gradient_norm = weight.norm(), gradient.norm()
            ratio = group["trust"] * weight_norm / gradient_norm
            gradient = gradient * torch.where((weight_norm > 0) & (gradient_norm > 0), ratio, 1.0)
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = group["momentum"] * state["momentum"] + gradient
        updated = weight - group["lr"] * momentum
        if self.found_inf is not None:
            is_skipped = self.found_inf.to(weight.device) > 0
            momentum = torch.where(is_skipped, state["momentum"], momentum)
            updated = torch.where(is_skipped, weight, updated)
        state["momentum"].copy_(momentum)
        weight.copy_(updated)
