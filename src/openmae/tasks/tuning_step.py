"""A step of fine-tuning: images erased and mixed, blocks dropped, the loss of soft targets or of numbers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from openmae.data.labelled import LabelledData
from openmae.data.labels import class_weights, targets_of
from openmae.data.loader import Batch
from openmae.data.preprocess import normalise
from openmae.data.regularise import Mixing, drop_path_masks, erase
from openmae.tasks.classification import classification_loss
from openmae.tasks.loop import StepResult, step_if_finite
from openmae.tasks.regression import squared_error, standardised
from openmae.tasks.settle_finetune import SettledTuning
from openmae.training.device import autocast
from openmae.training.parallel import Processes, accumulating


class TuningStep:
    """What a training step needs beside model and optimiser."""

    def __init__(self, tuned: SettledTuning, data: LabelledData, device: torch.device, processes: Processes) -> None:
        c = tuned.config
        self.tuned, self.device, self.processes = tuned, device, processes
        self.is_multi_label, self.scale = data.is_multi_label, data.scale
        self.mixing = Mixing(
            mixup=c.mixup, cutmix=c.cutmix, label_smoothing=c.label_smoothing, num_classes=data.num_outputs
        )
        self.is_paired = bool(c.mixup or c.cutmix)
        self.rates = drop_path_rates(c.drop_path, tuned.shape.encoder.depth, c.blocks)
        weights = class_weights(targets_of(data.train), data.num_classes) if c.balance == "weights" else None
        self.weights = None if weights is None else torch.from_numpy(weights).to(device)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The sum over a micro-batch's images."""
        if self.scale is not None:
            return squared_error(outputs, targets)
        return classification_loss(outputs, targets, self.is_multi_label, self.weights)


def drop_path_rates(rate: float, depth: int, num_blocks: float | None) -> list[float]:
    """The rate of each block: linear from 0 to `rate` over depth; frozen blocks drop nothing."""
    first = 0 if num_blocks is None else depth - math.ceil(num_blocks)
    rates = [rate * block / max(depth - 1, 1) for block in range(depth)]
    return [0.0 if block < first else value for block, value in enumerate(rates)]


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, parts: Sequence[Batch], step: int, task: TuningStep
) -> StepResult:
    """One optimiser step over this process's micro-batches of a global batch.

    A step whose gradients are not finite leaves weights and optimiser as they are.
    """
    config, device = task.tuned.config, task.device
    total = torch.zeros((), device=device)
    for number, part in enumerate(parts, start=1):
        assert part.labels is not None
        images = normalise(part.images.to(device, non_blocking=True), task.tuned.preprocessing)
        if config.erasing:
            images = erase(images, part.keys, config.erasing)
        labels = part.labels if task.scale is None else standardised(part.labels, task.scale)
        images, targets = task.mixing(images, labels.to(device), seed=config.seed, step=step)
        scales = drop_path_masks(part.keys, task.rates).to(device) if any(task.rates) else None
        with accumulating(model, is_last=number == len(parts)):
            with autocast(device, config.precision):
                outputs = model(images, scales).float()
            loss = task.loss(outputs, targets) / config.batch_size
            (loss * task.processes.count).backward()  # what is averaged over processes must add up
        total += loss.detach()
    return total, *step_if_finite(model, optimizer)
