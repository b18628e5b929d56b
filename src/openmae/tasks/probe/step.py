"""A step of probing: several heads on the same features, each with its rate; the loss of classes or of numbers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from openmae.config import ResolvedProbeConfig
from openmae.data.batch import Batch
from openmae.data.labels.labelled import LabelledData
from openmae.inference.regression import squared_error
from openmae.machine.parallel import Processes
from openmae.model.probe import Probes
from openmae.run.model_input import ModelInput
from openmae.run.step import StepResult, accumulated_step
from openmae.tasks.classification.classification import classification_loss
from openmae.training.lars import LARS
from openmae.training.optim import sgd
from openmae.training.prefetch import StepInputs

MAX_BIAS_RATE = 0.1  # of a regression's biases; with a momentum of .9, a squared error diverges from a rate of 1.9 on


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: StepInputs[Batch, ModelInput],
    features: Callable[[ModelInput], Tensor],
    data: LabelledData,
    config: ResolvedProbeConfig,
    processes: Processes,
) -> StepResult:
    """One optimiser step of all heads; the loss that is logged is their mean.

    A step whose gradients are not finite leaves weights and optimiser as they are.
    """

    def loss_fn(micro_batch: ModelInput) -> Tensor:
        labels = micro_batch.labels
        assert labels is not None, "a probe's inputs have labels"
        outputs = model(features(micro_batch))  # (heads, B, classes or columns)
        loss = sum(head_loss(own, labels, data) for own in outputs) / config.batch_size
        assert isinstance(loss, Tensor)
        return loss

    num_heads = len(config.base_lr)
    return accumulated_step(model, optimizer, inputs, loss_fn, processes, logged_loss=lambda loss: loss / num_heads)


def head_loss(outputs: Tensor, targets: Tensor, data: LabelledData) -> Tensor:
    """The loss of one head on a micro-batch, summed over its images."""
    if data.scale is not None:
        return squared_error(outputs, targets)
    return classification_loss(outputs, targets, data.is_multi_label, None)


def make_optimizer(probes: Probes, config: ResolvedProbeConfig) -> torch.optim.Optimizer:
    """LARS (table 10) or SGD, with a rate for each head."""
    groups = head_groups(probes, config)
    return LARS(groups, config.momentum) if config.optimizer == "lars" else sgd(groups, config.momentum)


def head_groups(probes: Probes, config: ResolvedProbeConfig) -> list[dict[str, Any]]:
    """The optimiser's parameter groups: the heads, each with its rate as a share of the largest.

    The biases of a regression have a rate of at most `MAX_BIAS_RATE`: LARS does not scale their steps by their norm,
    and at its rates a squared error would make them diverge. They have next to nothing to learn, for features and
    targets are standardised: their means are 0.
    """
    peak, at_peak = max(config.base_lr), config.batch_size / 256
    groups: list[dict[str, Any]] = []
    for head, rate in zip(probes.heads, config.base_lr, strict=True):
        whole = {"params": list(head.parameters()), "weight_decay": config.weight_decay, "lr_scale": rate / peak}
        if config.is_regression and rate * at_peak > MAX_BIAS_RATE:
            assert isinstance(head, nn.Linear)
            bias = {**whole, "params": [head.bias], "lr_scale": MAX_BIAS_RATE / (peak * at_peak)}
            groups += [{**whole, "params": [head.weight]}, bias]
        else:
            groups.append(whole)
    return groups
