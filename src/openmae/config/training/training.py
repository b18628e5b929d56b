"""Settings that all commands that train have in common."""

from dataclasses import dataclass

from openmae.config.checks import (
    MAX_PIXELS,
    OFF,
    ResolvedSize,
    Sized,
    check_images,
    check_name,
    check_range,
    check_resolved,
    check_types,
    flag_of,
)
from openmae.config.dataset import DataSettings
from openmae.errors import RequestError

AUGMENTS = ("none", "crop-fixed", "crop", "crop-jitter")
CROP_ASPECTS = ("model", "square")
STATISTICS = ("imagenet", "measured")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Sized, DataSettings):
    """What all commands that train have in common: the data, the optimisation and the run."""

    can_read_packs = True  # no setting: whether DATA may be a pack, which is read faster

    data: str | None = None
    """Folder of images, parquet file or folder, a pack, or embedded:photos, embedded:digits."""
    out: str
    """Run folder to make."""

    # The data
    image_size: int | tuple[int, int] | None = None
    """Side in pixels, or height and width."""
    crop_aspect: str | None = None
    """model: random crops have the model's aspect, give or take a third, and may lie anywhere; square: as in runs from
    before there was a choice, which keep it."""
    value_range: tuple[float, float] | None = None
    """Raw values that become the model's 0 and 1, such as 0 4095 for 12-bit images in 16 bits."""
    axes: str | None = None
    """The order of the axes of 3-D .npy arrays (channels, rows, columns): CYX or YXC; by their shapes unless given."""
    split_rules: int | None = None
    """How the parts of DATA are found: 2, see docs/data.md; 1, as in runs from before there was a choice."""
    held_out: int | None = None
    """Images to measure on, of the validation part or, where there is none, taken out of training; 0 is off."""
    max_bad: float | None = None
    """Largest tolerated fraction of unreadable files; 0.01 unless given."""
    max_pixels: int = MAX_PIXELS
    """Images of more pixels are refused: they may be decompression bombs."""

    # The optimisation
    epochs: float | None = None
    """Passes over the training images; --steps says it in optimiser steps."""
    steps: int | None = None
    batch_size: int | None = None
    """Images a step, over all processes."""
    micro_batch_size: int | None = None
    """Images at a time on a device; the rest is accumulated."""
    min_lr: float | None = None
    """Learning rate that the cosine ends at."""
    warmup_epochs: float | None = None
    """Epochs in which the rate rises from 0, before the cosine."""
    weight_decay: float | None = None

    # The run
    seed: int | None = None
    device: str | None = None
    """cpu, cuda, cuda:1, mps; by default the best there is."""
    precision: str | None = None
    """fp32 or bf16."""
    workers: int | None = None
    """Processes that read images."""
    resume: str = "never"
    """never, auto (start or continue), or the path of a checkpoint."""
    log_every: int | None = None
    """Steps between lines of metrics.jsonl."""
    evaluate_every: int | None = None
    """Steps between evaluations on images that are not trained on."""
    save_every: int | None = None
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""

    def __post_init__(self) -> None:
        check_types(self)
        self.check_data()
        check_name("--crop-aspect", self.crop_aspect, CROP_ASPECTS)
        check_name("--precision", self.precision, PRECISIONS)
        for name in ("steps", "batch_size", "micro_batch_size", "log_every", "evaluate_every", "save_every", "keep"):
            check_range(flag_of(name), getattr(self, name), 1)
        for name in ("workers", "held_out", "min_lr", "warmup_epochs", "weight_decay"):
            check_range(flag_of(name), getattr(self, name), 0)
        check_range("--seed", self.seed, 0, 2**63 - 1)
        check_range("--split-rules", self.split_rules, 1, 2)
        check_range("--epochs", self.epochs, 0, open_low=True)
        check_range("--max-bad", self.max_bad, 0, 1)
        check_images(self)
        self.check_size()
        if self.epochs is not None and self.steps is not None:
            raise RequestError(f"got both --epochs {self.epochs:g} and --steps {self.steps}: give one of them")


@dataclass(frozen=True, kw_only=True)
class ResolvedTrainingConfig(ResolvedSize, TrainingConfig):
    """A `TrainingConfig` without open questions; `steps` or `epochs` is set, the other is None."""

    image_size: int | tuple[int, int]
    crop_aspect: str
    axes: str
    nodata: str | float = OFF  # as in runs from before there was a choice
    split_rules: int
    max_bad: float
    batch_size: int
    micro_batch_size: int
    min_lr: float
    warmup_epochs: float
    weight_decay: float
    seed: int
    device: str
    precision: str
    workers: int
    log_every: int
    evaluate_every: int
    save_every: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_resolved(self)


@dataclass(frozen=True, kw_only=True)
class StatisticsSettings:
    """Settings of how the images of a model from scratch are normalised."""

    statistics: str | None = None
    """Whose mean and standard deviation: imagenet or measured."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    background: float | None = None
    """What transparent pixels show: 0 black to 1 white."""

    def check_statistics(self) -> None:
        """Raise RequestError for a wrong one, or where a mean or a standard deviation comes without the other."""
        check_name("--statistics", self.statistics, STATISTICS)
        check_range("--background", self.background, 0, 1)
        if (self.mean is None) != (self.std is None):
            raise RequestError("--mean and --std go together: give both or neither")


@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """Settings of AdamW, which trains whole models."""

    base_lr: float | None = None
    """Learning rate at a batch of 256; the rate used is base_lr x batch_size / 256."""
    betas: tuple[float, float] | None = None
    """AdamW's."""

    def check_adamw(self) -> None:
        """Raise RequestError where one is out of range."""
        check_range("--base-lr", self.base_lr, 0)
        for value in self.betas or ():
            check_range("--betas", value, 0, 1, open_high=True)
