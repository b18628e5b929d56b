"""A step of segmentation: crops with their labels, blocks and channels dropped, the loss of both heads."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from openmae.data.batch import Batch
from openmae.data.masks.palette import IGNORED
from openmae.data.mixing import channel_masks, drop_path_masks, drop_path_rates
from openmae.data.preprocess import normalise
from openmae.machine.device import autocast
from openmae.machine.parallel import Processes
from openmae.planning.segment import SegmentPlan
from openmae.run.model_input import ModelInput
from openmae.run.step import StepResult, accumulated_step
from openmae.training.prefetch import StepInputs

HEAD_DROPOUT = 0.1  # of whole channels, before each classifier
AUXILIARY_WEIGHT = 0.4


class SegmentStep:
    """What a training step needs beside model and optimiser: how micro-batches are prepared, and the loss."""

    def __init__(self, plan: SegmentPlan, device: torch.device, processes: Processes) -> None:
        self.plan, self.device, self.processes = plan, device, processes
        self.rates = drop_path_rates(plan.config.drop_path, plan.shape.encoder.depth)
        self.num_channels = plan.shape.head_width + plan.shape.auxiliary_width

    def prepare(self, micro_batch: Batch) -> ModelInput:
        """A micro-batch on the device: images normalised, labels, and which branches and channels are dropped."""
        assert micro_batch.labels is not None, "the stream gives labels"
        images = normalise(micro_batch.images.to(self.device, non_blocking=True), self.plan.preprocessing)
        labels = micro_batch.labels.to(self.device, non_blocking=True).long()
        branches = drop_path_masks(micro_batch.keys, self.rates) if any(self.rates) else None
        channels = channel_masks(micro_batch.keys, self.num_channels, HEAD_DROPOUT)
        return ModelInput(
            images,
            micro_batch.keys,
            labels=labels,
            drop_path=self._on_device(branches),
            dropout=self._on_device(channels),
        )

    def _on_device(self, scales: Tensor | None) -> Tensor | None:
        if scales is None:
            return None
        return (scales.pin_memory() if self.device.type == "cuda" else scales).to(self.device, non_blocking=True)

    def loss(self, micro_batch: ModelInput, outputs: tuple[Tensor, Tensor]) -> Tensor:
        """A micro-batch's share of the step's loss; see `pixel_losses`."""
        assert micro_batch.labels is not None, "`prepare` gives labels"
        logits, auxiliary = (pixel_losses(output, micro_batch.labels) for output in outputs)
        num_pixels = self.plan.config.batch_size * micro_batch.labels[0].numel()
        return (logits + AUXILIARY_WEIGHT * auxiliary) / num_pixels


def pixel_losses(logits: Float[Tensor, "b c h w"], labels: Int64[Tensor, "b H W"]) -> Float[Tensor, ""]:
    """The cross-entropy of logits resized to the labels, summed over the pixels that have a class.

    It is to be divided by all pixels of the global batch: a number that no micro-batch or process changes, and by which
    every labelled pixel of a run weighs the same.
    """
    resized = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(resized, labels, ignore_index=IGNORED, reduction="sum")


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: StepInputs[Batch, ModelInput], task: SegmentStep
) -> StepResult:
    """One optimiser step over this process's micro-batches of a global batch.

    A step whose gradients are not finite leaves weights and optimiser as they are.
    """

    def loss_fn(micro_batch: ModelInput) -> Tensor:
        with autocast(task.device, task.plan.config.precision):
            outputs = model(micro_batch.images, micro_batch.drop_path, micro_batch.dropout)
        return task.loss(micro_batch, outputs)

    return accumulated_step(model, optimizer, inputs, loss_fn, task.processes)
