"""A step of detection: squares with their objects, blocks dropped, the losses of Mask R-CNN."""

import numpy as np
import torch
from torch import Tensor, nn

from openmae.data.batch import Batch
from openmae.data.mixing import drop_path_masks, drop_path_rates
from openmae.data.preprocess import normalise
from openmae.data.randomness import seeds
from openmae.machine.device import autocast
from openmae.machine.parallel import Processes
from openmae.planning.detect import DetectPlan
from openmae.run.model_input import ModelInput
from openmae.run.step import StepResult, accumulated_step
from openmae.training.prefetch import StepInputs


class DetectStep:
    """What a training step needs beside model and optimiser: how micro-batches are prepared, and the loss."""

    def __init__(self, plan: DetectPlan, device: torch.device, processes: Processes) -> None:
        self.plan, self.device, self.processes = plan, device, processes
        self.rates = drop_path_rates(plan.config.drop_path, plan.shape.encoder.depth)

    def prepare(self, micro_batch: Batch) -> ModelInput:
        """A micro-batch on the device: images normalised, objects, and which branches are dropped."""
        assert micro_batch.instances is not None, "the stream gives objects"
        branches = drop_path_masks(micro_batch.keys, self.rates) if any(self.rates) else None
        if branches is not None:
            branches = branches.pin_memory() if self.device.type == "cuda" else branches
            branches = branches.to(self.device, non_blocking=True)
        return ModelInput(
            normalise(micro_batch.images.to(self.device, non_blocking=True), self.plan.preprocessing),
            torch.from_numpy(seeds(micro_batch.keys.numpy(), "regions").view(np.int64)),
            drop_path=branches,
            instances=micro_batch.instances.to(self.device),
        )

    def loss(self, losses: dict[str, Tensor]) -> Tensor:
        """A micro-batch's share of the step's loss: the mean over the images of the global batch.

        Args:
            losses: by name (B,), each image's own mean (see `Detector`): no micro-batch or process changes them.
        """
        total = torch.stack([loss.float().sum() for loss in losses.values()]).sum()
        return total / self.plan.config.batch_size


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: StepInputs[Batch, ModelInput], task: DetectStep
) -> StepResult:
    """One optimiser step over this process's micro-batches of a global batch.

    A step whose gradients are not finite leaves weights and optimiser as they are.
    """

    def loss_fn(micro_batch: ModelInput) -> Tensor:
        with autocast(task.device, task.plan.config.precision):
            losses = model(micro_batch.images, micro_batch.instances, micro_batch.keys, micro_batch.drop_path)
        return task.loss(losses)

    return accumulated_step(model, optimizer, inputs, loss_fn, task.processes)
