"""Parameter groups and the learning rate's schedule (paper, tables 8 to 11; docs/paper.md)."""

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

BLOCK_NAME = re.compile(r"encoder\.blocks\.(\d+)\..+")
CLASS_AND_POSITIONS = ("encoder.cls_token", "encoder.pos_embed")
SHARED_POSITIONS = ("encoder.windowed_relative.table", "encoder.global_relative.table")
RELATIVE_POSITIONS = ("relative.table", ".relative.rel_pos_h", ".relative.rel_pos_w")
AFTER_BLOCKS = ("encoder.norm.", "fc_norm.", "head.", "pyramid.", "auxiliary.")
WARMUP_START = 1e-6  # of segmentation (docs/paper.md)
STEP_MILESTONES = (8 / 9, 26 / 27)
STEP_WARMUP_START = 0.001


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: with weight decay, and without (1-D parameters: biases and norms).

    Class and mask tokens have three dimensions and are decayed, as released.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    no_decay = [p for p in trainable if p.ndim <= 1]
    decayed = [p for p in trainable if p.ndim > 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]


def layer_decay_groups(
    model: nn.Module, *, depth: int, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Trainable parameters of a classifier or a segmentation model by layer, in groups.

    Each has an `lr_scale`, which multiplies its learning rate.

    | id | parameters |
    |---|---|
    | 0 | class token, positions, patch projection |
    | k + 1 | block k of `depth` |
    | depth + 1 | encoder norm, pooling norm, feature pyramid, heads |

    The scale is layer_decay^(depth + 1 - id). An id has a group with weight decay and one without (1-D parameters,
    class token, positions, relative ones too), in the order of ids, decayed first; empty ones are left out (table 9;
    docs/paper.md, fine-tuning).

    Raises:
        AssertionError: a parameter, trainable or not, has no layer, or the model has not `depth` blocks: layer decay
            that matches nothing would go unnoticed.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {
        (layer, has_no_decay): [] for layer in range(depth + 2) for has_no_decay in (False, True)
    }
    layers = {name: _layer_id(name, depth) for name, _ in model.named_parameters()}
    missing = set(range(1, depth + 1)) - set(layers.values())
    assert not missing, f"layer decay over {depth} blocks: the model has none numbered {min(missing) - 1}"
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[layers[name], _has_no_decay(name, parameter)].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if has_no_decay else weight_decay,
            "lr_scale": layer_decay ** (depth + 1 - layer),
        }
        for (layer, has_no_decay), parameters in groups.items()
        if parameters
    ]


def _has_no_decay(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim <= 1 or name in CLASS_AND_POSITIONS or name.endswith(RELATIVE_POSITIONS)


def _layer_id(name: str, depth: int) -> int:
    if name in (*CLASS_AND_POSITIONS, *SHARED_POSITIONS) or name.startswith("encoder.patch_embed."):
        return 0
    if match := BLOCK_NAME.fullmatch(name):
        number = int(match[1])
        assert number < depth, f"layer decay over {depth} blocks: {name} is in a later one"
        return number + 1
    assert name.startswith(AFTER_BLOCKS), f"layer decay knows no layer for {name}"
    return depth + 1


def adamw(model: nn.Module, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """Fused AdamW over the two groups of `weight_decay_groups`; the learning rate is set before every step."""
    return adamw_from_groups(weight_decay_groups(model, weight_decay), betas)


def adamw_from_groups(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.AdamW:
    """Fused AdamW over parameter groups; the learning rate is set before every step."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def sgd(groups: list[dict[str, Any]], momentum: float) -> torch.optim.SGD:
    """Fused SGD over parameter groups; the parameters must be on their final device.

    A group's weight decay is added to the gradient before momentum, whatever a parameter's dimension.
    """
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
    if momentum > 0:
        # torch 2.15 allocates the momentum buffer uninitialised and fills it in the first step. Were that one skipped
        # (`found_inf`), the second would read uninitialised memory.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return optimizer


@dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """Linear warm-up from 0 to `peak`, then half a cosine down to `minimum`, per optimiser step."""

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


@dataclass(frozen=True, kw_only=True)
class PolynomialSchedule:
    """Linear warm-up from 1e-6 to `peak`, then down to `minimum` by a power of the remaining part, per optimiser step.

    A smaller peak is kept from the first step on.
    """

    peak: float
    minimum: float
    warmup_steps: float
    total_steps: float
    power: float = 1.0

    def __call__(self, step: float) -> float:
        """The learning rate of the step with this number, counted from 0."""
        if step < self.warmup_steps:
            start = min(WARMUP_START, self.peak)
            return start + (self.peak - start) * step / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1e-9)
        return self.minimum + (self.peak - self.minimum) * (1 - min(progress, 1.0)) ** self.power


@dataclass(frozen=True, kw_only=True)
class StepSchedule:
    """Linear warm-up from 0.001 of `peak`, then a tenth of it after 8/9 of the steps and a hundredth after 26/27.

    These are ViTDet's milestones: 163,889 and 177,546 of 184,375 (docs/paper.md).
    """

    peak: float
    warmup_steps: float
    total_steps: float

    def __call__(self, step: float) -> float:
        """The learning rate of the step with this number, counted from 0."""
        if step < self.warmup_steps:
            start = STEP_WARMUP_START * self.peak
            return start + (self.peak - start) * step / self.warmup_steps
        return self.peak * 0.1 ** sum(step >= milestone * self.total_steps for milestone in STEP_MILESTONES)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step, times each group's `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
