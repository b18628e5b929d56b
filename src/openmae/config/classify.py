"""Settings of what is trained on labels: fine-tuning, partial and from scratch, and the linear probe."""

from dataclasses import dataclass, fields
from typing import get_type_hints

from openmae.config.checks import Settings, check_name, check_range, check_types, check_value_range, flag_of, pair
from openmae.config.pretrain import AUGMENTS, PRECISIONS, STATISTICS
from openmae.config.shapes import POOLS, SIZES
from openmae.errors import RequestError

REPORTS = ("test", "held-out")
BALANCES = ("none", "weights", "sampling")
FROM_SCRATCH = "none"
PROBE_OPTIMIZERS = ("lars", "sgd")
PROBE_AUGMENTS = ("none", "crop")


@dataclass(frozen=True, kw_only=True)
class LabelledConfig(Settings):
    """What fine-tuning and probing have in common: the data, the model to start from, and the run."""

    data: str
    """Labelled images: class folders, parquet with a label column, or any folder with --label-file."""
    init: str
    """The pre-trained model: a run folder, a checkpoint, a file, timm:NAME or hf:ORG/NAME."""
    out: str
    """Run folder to make."""
    recipe: str | None = None
    """Settings by name; flags given beside it win; --show lists and prints them."""

    # The labels
    labels: str | None = None
    """Train on a fixed, stratified subset only: 500, or 1%; all unless given."""
    label_file: str | None = None
    """A CSV: path,label or path,labels (a;b) or path and a 0/1 column for each class."""
    held_out: int | None = None
    """Images of train held out (stratified) to choose or to measure by, where DATA has no val or test."""

    # The data
    image_size: int | tuple[int, int] | None = None
    """Side in pixels, or height and width; positions are resampled where it is not the model's own."""
    crop_scale: tuple[float, float] | None = None
    """Smallest and largest area of a random crop, of the image's; for --augment crop and crop-jitter."""
    max_bad: float | None = None
    """Largest tolerated fraction of unreadable training files; 0.01 unless given."""
    max_pixels: int = 178_956_970
    """Images of more pixels are refused (decompression bombs)."""

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
        check_name("--precision", self.precision, PRECISIONS)
        for name in ("steps", "batch_size", "micro_batch_size", "log_every", "keep", "evaluate_every", "save_every"):
            check_range(flag_of(name), getattr(self, name), 1)
        for name in ("workers", "held_out", "min_lr", "warmup_epochs", "weight_decay"):
            check_range(flag_of(name), getattr(self, name), 0)
        check_range("--max-pixels", self.max_pixels, 1)
        check_range("--seed", self.seed, 0, 2**63 - 1)
        check_range("--epochs", self.epochs, 0, open_low=True)
        check_range("--max-bad", self.max_bad, 0, 1)
        for side in pair(self.image_size) or ():
            check_range("--image-size", side, 1, 16384)
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            low, high = self.crop_scale
            raise RequestError(f"--crop-scale got {low:g} {high:g}: two shares of the area, rising, above 0 to 1")
        if self.epochs is not None and self.steps is not None:
            raise RequestError(f"got both --epochs {self.epochs:g} and --steps {self.steps}: give one of them")

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels."""
        return pair(self.image_size)

    def check_settled(self) -> None:
        """Raise RequestError where a setting that must be decided is None."""
        hints = get_type_hints(type(self))
        missing = [
            f.name for f in fields(self) if getattr(self, f.name) is None and type(None) not in _kinds(hints[f.name])
        ]
        if missing or (self.steps is None) == (self.epochs is None):
            raise RequestError(f"not settled: {', '.join(missing) or 'steps or epochs'}")


def _kinds(hint: object) -> tuple[object, ...]:
    return getattr(hint, "__args__", (hint,))


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(LabelledConfig):
    """Fine-tuning on labels, whole or the last blocks, or training from scratch (paper, tables 9 and 11)."""

    init: str
    """The pre-trained model: a run folder, a checkpoint, a file, timm:NAME or hf:ORG/NAME; none trains from scratch."""

    # What is trained
    blocks: float | None = None
    """Train the last K blocks only: 0 the head and its norm, 0.5 the MLP half of the last too; all unless given."""
    pool: str | None = None
    """mean (of the patch tokens, then a LayerNorm) or cls."""
    report: str = "test"
    """test, or held-out: the final figure is of the split of train (or val), and test is not looked at."""
    balance: str = "none"
    """none, weights (rare classes weigh more in the loss) or sampling (classes are shown equally often)."""
    model: str | None = None
    """tiny, small, base, large or huge; from scratch only, as are the next five."""
    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    patch_size: int | None = None
    channels: int | None = None
    statistics: str | None = None
    """Whose mean and standard deviation, from scratch: imagenet or measured."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    value_range: tuple[float, float] | None = None
    """Raw values that become 0 and 1, from scratch."""
    background: float | None = None
    """What transparent pixels show, from scratch: 0 black to 1 white."""

    # Augmentation and regularisation
    augment: str | None = None
    """none, crop-fixed, crop (random size, flip) or crop-jitter; RandAugment comes on top."""
    rand_augment: str | None = None
    """timm's policy, such as rand-m9-mstd0.5-inc1, or none."""
    erasing: float | None = None
    """Probability of random erasing."""
    mixup: float | None = None
    """Alpha of mixup; 0 is off."""
    cutmix: float | None = None
    """Alpha of cutmix; 0 is off."""
    label_smoothing: float | None = None
    """What is taken from the true class and spread over all; not with several labels an image."""
    drop_path: float | None = None
    """Rate of the last block; it rises linearly from 0 over depth."""

    # The optimisation
    base_lr: float | None = None
    """Learning rate at a batch of 256; the rate used is base_lr x batch_size / 256."""
    betas: tuple[float, float] | None = None
    """AdamW's."""
    layer_decay: float | None = None
    """What each layer's rate is of the next one's; 1 is off."""
    ema: float | None = None
    """Decay of the weights' moving average, which is then what is evaluated and kept; 0 is off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("--pool", self.pool, POOLS)
        check_name("--report", self.report, REPORTS)
        check_name("--balance", self.balance, BALANCES)
        check_name("--model", self.model, SIZES)
        check_name("--augment", self.augment, AUGMENTS)
        check_name("--statistics", self.statistics, STATISTICS)
        for name in ("width", "depth", "num_heads", "patch_size", "channels"):
            check_range(flag_of(name), getattr(self, name), 1)
        for name in ("mixup", "cutmix", "base_lr"):
            check_range(flag_of(name), getattr(self, name), 0)
        for name in ("label_smoothing", "drop_path", "ema"):
            check_range(flag_of(name), getattr(self, name), 0, 1, open_high=True)
        check_range("--erasing", self.erasing, 0, 1)
        check_range("--background", self.background, 0, 1)
        check_range("--layer-decay", self.layer_decay, 0, 1, open_low=True)
        check_range("--blocks", self.blocks, 0)
        if self.blocks is not None and self.blocks != 0.5 and self.blocks != int(self.blocks):
            raise RequestError(f"--blocks got {self.blocks:g}: a whole number of blocks, or 0.5")
        for value in self.betas or ():
            check_range("--betas", value, 0, 1, open_high=True)
        check_value_range(self.value_range)
        if (self.mean is None) != (self.std is None):
            raise RequestError("--mean and --std go together: give both or neither")
        if self.is_from_scratch and self.blocks is not None:
            raise RequestError("--blocks freezes what was pre-trained, and --init none has nothing: leave one out")

    @property
    def is_from_scratch(self) -> bool:
        return self.init == FROM_SCRATCH


@dataclass(frozen=True, kw_only=True)
class SettledFinetune(FinetuneConfig):
    """A `FinetuneConfig` without open questions; `steps` or `epochs` is set, the other is None."""

    image_size: int | tuple[int, int]
    crop_scale: tuple[float, float]
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
    pool: str
    width: int
    depth: int
    num_heads: int
    patch_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float]
    background: float
    augment: str
    rand_augment: str
    erasing: float
    mixup: float
    cutmix: float
    label_smoothing: float
    drop_path: float
    base_lr: float
    betas: tuple[float, float]
    layer_decay: float
    ema: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_settled()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return pair(self.image_size)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(LabelledConfig):
    """A linear probe of a frozen encoder (paper, table 10): several rates in one pass, chosen on a split of train."""

    pool: str | None = None
    """mean (of the patch tokens) or cls, which the paper probes."""
    optimizer: str | None = None
    """lars (table 10) or sgd."""
    augment: str | None = None
    """crop (table 10), or none: then features are computed once and kept."""
    base_lr: tuple[float, ...] | None = None
    """Learning rates at a batch of 256, all tried in one pass; the rate used is base_lr x batch_size / 256."""
    momentum: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("--pool", self.pool, POOLS)
        check_name("--optimizer", self.optimizer, PROBE_OPTIMIZERS)
        check_name("--augment", self.augment, PROBE_AUGMENTS)
        check_range("--momentum", self.momentum, 0, 1, open_high=True)
        for rate in self.base_lr or ():
            check_range("--base-lr", rate, 0, open_low=True)
        if self.base_lr is not None and len(set(self.base_lr)) != len(self.base_lr):
            raise RequestError(f"--base-lr got a rate twice: {' '.join(f'{r:g}' for r in self.base_lr)}")


@dataclass(frozen=True, kw_only=True)
class SettledProbe(ProbeConfig):
    """A `ProbeConfig` without open questions; `steps` or `epochs` is set, the other is None."""

    image_size: int | tuple[int, int]
    crop_scale: tuple[float, float]
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
    pool: str
    optimizer: str
    augment: str
    base_lr: tuple[float, ...]
    momentum: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_settled()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return pair(self.image_size)
