"""Our side of a comparison: the settings, model and step of `openmae pretrain`, on a batch in memory."""

import itertools
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openmae.benchmarks.transformers_mae import loss_and_norm
from openmae.config import MAEShape, PretrainConfig
from openmae.data.batch import Batch
from openmae.data.device_crop import model_input
from openmae.data.preprocess import DataFacts
from openmae.data.randomness import sample_keys, uniforms
from openmae.data.sources.open import Source
from openmae.inference.mask_sampler import MaskSampler, to_device
from openmae.machine.device import autocast
from openmae.machine.parallel import Processes, parallelise
from openmae.model.mae import MAE
from openmae.model.masking import noise_per_image
from openmae.planning.decisions import Machine
from openmae.planning.pretrain import PretrainPlan, make_pretrain_plan
from openmae.run.batches import read_steps
from openmae.run.model_input import ModelInput
from openmae.run.step import StepResult
from openmae.tasks.pretrain.data import make_stream
from openmae.tasks.pretrain.pretrain import make_mask_sampler, prepare, train_step
from openmae.training.optim import adamw, set_learning_rate
from openmae.training.prefetch import StepInputs, inputs_of_steps

RATE = 1e-4  # learning rate, small enough that a few steps change little

# Settings of the cases. The paper's decoder is the default from Base on.
CASES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 24, "depth": 2, "num_heads": 3, "patch_size": 4, "image_size": 16}
    | {"decoder_width": 16, "decoder_depth": 1, "decoder_num_heads": 2},
    "small": {"width": 192, "depth": 12, "num_heads": 3, "patch_size": 4, "image_size": 28}
    | {"decoder_width": 96, "decoder_depth": 4, "decoder_num_heads": 3},
    "base": {"model": "base", "patch_size": 16, "image_size": 224},
    "large": {"model": "large", "patch_size": 16, "image_size": 224},
    "huge": {"model": "huge", "patch_size": 14, "image_size": 224},
}
CASE_NAMES = {
    "tiny": "16 px, 24 x 2 (to try the command)",
    "small": "28 px, patch 4, 192 x 12, decoder 96 x 4",
    "base": "ViT-B/16 at 224 px",
    "large": "ViT-L/16 at 224 px",
    "huge": "ViT-H/14 at 224 px",
}
CPU_BATCH = {"tiny": 4, "small": 256, "base": 16, "large": 4, "huge": 2}
QUICK_BATCH = {"tiny": 2, "small": 32, "base": 2, "large": 1, "huge": 1}


def batch_of(case: str, device: torch.device, is_quick: bool, requested: int | None) -> int:
    """The batch size: the requested one, else 256 on a GPU, and on a CPU what it does in seconds."""
    if requested is not None:
        return requested
    if is_quick:
        return QUICK_BATCH[case]
    return 256 if device.type == "cuda" else CPU_BATCH[case]


def pretrain_plan_for(
    case: str, batch: int, device: torch.device, precision: str | None, **settings: Any
) -> PretrainPlan:
    """The plan of `openmae pretrain` for this model, with the whole batch as one micro-batch."""
    facts = DataFacts(
        count=50_000,
        channels=3,
        dtype="uint8",
        short_side=224,
        value_range=(0.0, 255.0),
        mean=(120.0,) * 3,
        std=(60.0,) * 3,
    )
    requested: dict[str, Any] = {
        "batch_size": batch,
        "micro_batch_size": batch,
        "steps": 1000,
        **CASES[case],
        **settings,
    }
    requested = {"recompute": False, **requested}  # independent of the memory available here
    config = PretrainConfig(data="none", out="none", precision=precision, device=str(device), **requested)
    return make_pretrain_plan(config, facts, Machine.of(device, 1))


@dataclass(frozen=True, kw_only=True)
class Form:
    """Settings that compute the same training step in another way (compiled, recomputed …).

    Attributes:
        label: the flags that request it, for the table.
        settings: of `PretrainConfig`.
        is_compiled: whether the step's model goes through torch.compile.
    """

    label: str
    settings: dict[str, Any]
    is_compiled: bool = False


@dataclass
class Ours:
    """`openmae pretrain`'s own step on one batch.

    Attributes:
        wrapped_model: the model as the step calls it.
        micro_batches: of the step: raw uint8 images and keys.
    """

    plan: PretrainPlan
    model: MAE
    wrapped_model: nn.Module
    optimizer: torch.optim.Optimizer
    mask_sampler: MaskSampler
    micro_batches: list[Batch]
    device: torch.device

    @property
    def shape(self) -> MAEShape:
        return self.plan.shape

    @property
    def visible(self) -> int:
        return self.mask_sampler.num_visible

    def step(self, rate: float = RATE) -> StepResult:
        set_learning_rate(self.optimizer, rate)
        return train_step(self.wrapped_model, self.optimizer, next(self.inputs), self.plan.config, Processes())

    @cached_property
    def inputs(self) -> Generator[StepInputs[Batch, ModelInput], None, None]:
        """The same batch for every step, prefetched on a GPU as in a run."""
        return inputs_of_steps(self._steps(), self.prepare, self.device)

    def _steps(self) -> Generator[list[Batch], None, None]:
        while True:
            yield self.micro_batches

    def prepare(self, micro_batch: Batch) -> ModelInput:
        return prepare(micro_batch, self.plan, self.mask_sampler, self.device)

    def images(self) -> Tensor:
        """The whole batch as the model's input."""
        return torch.cat(
            [model_input(micro_batch, self.plan.preprocessing, self.device) for micro_batch in self.micro_batches]
        )

    def noise(self) -> Tensor:
        """The noise of which our masks are made."""
        keys = torch.cat([micro_batch.keys for micro_batch in self.micro_batches]).numpy()
        noise = uniforms(keys, noise_per_image("random", self.mask_sampler.grid), "mask")
        return torch.from_numpy(noise).float().to(self.device)

    def loss(self, count: int | None = None) -> Tensor:
        """The loss of the first `count` images, or of the whole batch, computed at once."""
        masking = to_device(
            self.mask_sampler(torch.cat([micro_batch.keys for micro_batch in self.micro_batches])[:count]), self.device
        )
        with autocast(self.device, self.plan.config.precision):
            return self.wrapped_model(self.images()[:count], masking).loss

    def loss_and_norm(self) -> tuple[float, float]:
        """Loss and gradient norm of the whole batch, without a step."""
        return loss_and_norm(self.model, self.loss())


def make_ours(plan: PretrainPlan, device: torch.device, *, is_compiled: bool = False, seed: int = 0) -> Ours:
    """Our program with new weights and a batch of smooth noise, the same for the same seed.

    Args:
        is_compiled: whether `wrapped_model` goes through torch.compile; the setting `compile` is ignored.
    """
    torch.manual_seed(seed)
    config, shape = plan.config, plan.shape
    model = MAE.from_shape(shape).to(device).train()
    model.set_recompute(config.recompute)
    model.set_bf16_residual(config.bf16_residual)
    optimizer = adamw(model, config.weight_decay, config.betas)
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(config.batch_size, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=shape.encoder.image_size, mode="bicubic")
    images = ((images + 0.1 * torch.randn(images.shape, generator=generator)) * 255).clamp(0, 255).to(torch.uint8)
    keys = torch.from_numpy(sample_keys(seed, np.zeros(len(images), np.int64), np.arange(len(images))))
    micro = config.micro_batch_size
    micro_batches = [Batch(images[i : i + micro], keys[i : i + micro], {}) for i in range(0, len(images), micro)]
    if device.type == "cuda":
        micro_batches = [micro_batch.pin_memory() for micro_batch in micro_batches]  # as a run's are
    wrapped_model = parallelise(model, Processes(), device, is_compiled=is_compiled)
    return Ours(plan, model, wrapped_model, optimizer, make_mask_sampler(config, shape), micro_batches, device)


class OurRun:
    """An endless run of `openmae pretrain`, advanced some steps at a time."""

    def __init__(self, plan: PretrainPlan, source: Source, device: torch.device) -> None:
        self.ours: Ours = make_ours(plan, device)
        stream = make_stream(plan.config, plan.preprocessing, source)
        c = plan.config
        steps = range(10**6)
        self.batches = read_steps(
            stream, c.batch_size, c.micro_batch_size, c.workers, steps, Processes(), device.type == "cuda"
        )
        self.inputs = inputs_of_steps(self.batches, self.ours.prepare, device)

    def advance(self, num_steps: int) -> None:
        for inputs in itertools.islice(self.inputs, num_steps):
            self.step(inputs)

    def close(self) -> None:
        self.inputs.close()
        self.batches.close()

    def step(self, inputs: StepInputs[Batch, ModelInput]) -> None:
        o = self.ours
        set_learning_rate(o.optimizer, RATE)
        train_step(o.wrapped_model, o.optimizer, inputs, o.plan.config, Processes())
