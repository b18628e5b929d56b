"""Settings that fine-tuning and the linear probe, which train on labels, have in common."""

from dataclasses import dataclass, field

from openmae.config.checks import (
    MAX_PIXELS,
    NONE_IS_OFF,
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
from openmae.config.pretrain import CROP_ASPECTS, PRECISIONS
from openmae.errors import RequestError

TASKS = ("classification", "regression")


@dataclass(frozen=True, kw_only=True)
class LabelledConfig(Sized, DataSettings):
    """What fine-tuning and probing have in common: the data, the model to start from, and the run."""

    data: str | None = None
    """Labelled images: class folders, parquet with a label column, or any folder with --label-file."""
    init: str
    """The pre-trained model: a run folder, a checkpoint, a file, timm:NAME or hf:ORG/NAME."""
    out: str
    """Run folder to make."""
    recipe: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Settings by name; flags given beside it win; --show lists and prints them."""

    # The labels
    task: str | None = None
    """classification, or regression: the labels are numbers to predict, one or several columns; class names unless
    given, and fractional numbers are asked about."""
    labels: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Train on a fixed, stratified subset only: 500, or 1%; all unless given."""
    label_file: str | None = field(default=None, metadata=NONE_IS_OFF)
    """A CSV: path,label or path,labels (a;b) or path and a 0/1 column for each class; with --task regression path and
    a column of numbers or several."""
    split_rules: int | None = None
    """How the parts of DATA are found: 2, see docs/data.md; 1, as in runs from before there was a choice."""
    held_out: int | None = None
    """Images of train held out (stratified) to choose or to measure by, where DATA has not both val and test."""

    # The data
    image_size: int | tuple[int, int] | None = None
    """Side in pixels, or height and width; positions are resampled where it is not the model's own."""
    crop_scale: tuple[float, float] | None = None
    """Smallest and largest area of a random crop, of the image's; for --augment crop and crop-jitter."""
    crop_aspect: str | None = None
    """model: random crops have the model's aspect, give or take a third, and may lie anywhere; square: as in runs from
    before there was a choice, which keep it."""
    max_bad: float | None = None
    """Largest tolerated fraction of unreadable training files; 0.01 unless given."""
    value_range: tuple[float, float] | None = None
    """Raw values that become the model's 0 and 1, such as 0 4095 for 12-bit images in 16 bits."""
    axes: str | None = None
    """The order of the axes of 3-D .npy arrays (channels, rows, columns): CYX or YXC; by their shapes unless given."""
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
    """Steps between evaluations."""
    save_every: int | None = None
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""

    def __post_init__(self) -> None:
        check_types(self)
        check_name("--task", self.task, TASKS)
        self.check_data()
        check_name("--precision", self.precision, PRECISIONS)
        check_name("--crop-aspect", self.crop_aspect, CROP_ASPECTS)
        for name in ("steps", "batch_size", "micro_batch_size", "log_every", "keep", "evaluate_every", "save_every"):
            check_range(flag_of(name), getattr(self, name), 1)
        for name in ("workers", "held_out", "min_lr", "warmup_epochs", "weight_decay"):
            check_range(flag_of(name), getattr(self, name), 0)
        check_images(self)
        self.check_size()
        check_range("--split-rules", self.split_rules, 1, 2)
        check_range("--seed", self.seed, 0, 2**63 - 1)
        check_range("--epochs", self.epochs, 0, open_low=True)
        check_range("--max-bad", self.max_bad, 0, 1)
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            low, high = self.crop_scale
            raise RequestError(f"--crop-scale got {low:g} {high:g}: two shares of the area, rising, above 0 to 1")
        if self.epochs is not None and self.steps is not None:
            raise RequestError(f"got both --epochs {self.epochs:g} and --steps {self.steps}: give one of them")

    @property
    def is_regression(self) -> bool:
        return self.task == "regression"


@dataclass(frozen=True, kw_only=True)
class ResolvedLabelledConfig(ResolvedSize, LabelledConfig):
    """A `LabelledConfig` without open questions; `steps` or `epochs` is set, the other is None."""

    task: str = "classification"  # as in runs from before there was a choice
    image_size: int | tuple[int, int]
    crop_scale: tuple[float, float]
    crop_aspect: str = "square"  # as in runs from before there was a choice
    split_rules: int = 1  # likewise
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
    axes: str = "YXC"  # as in runs from before there was a choice
    nodata: str | float = OFF  # likewise

    def __post_init__(self) -> None:
        super().__post_init__()
        check_resolved(self)
