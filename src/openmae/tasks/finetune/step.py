"""A step of fine-tuning: images erased and mixed, blocks dropped, the loss of soft targets or of numbers."""

import torch
from torch import Tensor, nn

from openmae.data.batch import Batch
from openmae.data.labels.labelled import LabelledData
from openmae.data.labels.subsets import class_weights, targets_of
from openmae.data.mixing import Mixing, drop_path_masks, drop_path_rates, erase
from openmae.data.preprocess import normalise
from openmae.inference.regression import squared_error, standardised
from openmae.machine.device import autocast
from openmae.machine.parallel import Processes
from openmae.planning.finetune import FinetunePlan
from openmae.run.model_input import ModelInput
from openmae.run.step import StepResult, accumulated_step
from openmae.tasks.classification.classification import classification_loss
from openmae.training.prefetch import StepInputs


class FinetuneStep:
    """What a training step needs beside model and optimiser: how micro-batches are prepared, mixing, and the loss.

    Attributes:
        is_paired: whether images are mixed in pairs, so that micro-batches must be of even size.
        rates: of drop path, by block.
    """

    def __init__(self, plan: FinetunePlan, data: LabelledData, device: torch.device, processes: Processes) -> None:
        c = plan.config
        self.plan, self.device, self.processes = plan, device, processes
        self.is_multi_label, self.scale = data.is_multi_label, data.scale
        self.mixing = Mixing(
            mixup=c.mixup, cutmix=c.cutmix, label_smoothing=c.label_smoothing, num_classes=data.num_outputs
        )
        self.is_paired = bool(c.mixup or c.cutmix)
        self.rates = drop_path_rates(c.drop_path, plan.shape.encoder.depth, c.blocks)
        weights = class_weights(targets_of(data.train), data.num_classes) if c.balance == "weights" else None
        self.weights = None if weights is None else torch.from_numpy(weights).to(device)

    def prepare(self, micro_batch: Batch) -> ModelInput:
        """A micro-batch on the device: images normalised and erased, labels, and which branches are dropped."""
        assert micro_batch.labels is not None, "the stream was asked for labels"
        images = normalise(micro_batch.images.to(self.device, non_blocking=True), self.plan.preprocessing)
        if self.plan.config.erasing:
            images = erase(images, micro_batch.keys, self.plan.config.erasing)
        scales = drop_path_masks(micro_batch.keys, self.rates) if any(self.rates) else None
        if scales is not None:
            scales = (scales.pin_memory() if self.device.type == "cuda" else scales).to(self.device, non_blocking=True)
        labels = micro_batch.labels if self.scale is None else standardised(micro_batch.labels, self.scale)
        labels = labels.to(self.device, non_blocking=True)
        return ModelInput(images, micro_batch.keys, labels=labels, drop_path=scales)

    def even_size(self, micro_batch_size: int) -> int:
        """The nearest size, downwards, that splits no pair of mixed images; at least 2."""
        return max(2, micro_batch_size // 2 * 2) if self.is_paired else micro_batch_size

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a micro-batch, summed over its images."""
        if self.scale is not None:
            return squared_error(outputs, targets)
        return classification_loss(outputs, targets, self.is_multi_label, self.weights)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: StepInputs[Batch, ModelInput],
    step: int,
    task: FinetuneStep,
) -> StepResult:
    """One optimiser step over this process's micro-batches of a global batch.

    A step whose gradients are not finite leaves weights and optimiser as they are.
    """
    config = task.plan.config

    def loss_fn(micro_batch: ModelInput) -> Tensor:
        assert micro_batch.labels is not None, "`prepare` gives labels"
        images, targets = task.mixing(micro_batch.images, micro_batch.labels, seed=config.seed, step=step)
        with autocast(task.device, config.precision):
            outputs = model(images, micro_batch.drop_path).float()
        return task.loss(outputs, targets) / config.batch_size

    return accumulated_step(model, optimizer, inputs, loss_fn, task.processes)
