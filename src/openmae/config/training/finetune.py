"""Settings of fine-tuning, whole or partial, and of training from scratch."""

from dataclasses import dataclass, field

from openmae.config.checks import NONE_IS_OFF, check_name, check_range, flag_of
from openmae.config.shapes import POOLS, SIZES
from openmae.config.training.labelled import LabelledConfig, ResolvedLabelledConfig
from openmae.config.training.training import AUGMENTS, AdamWSettings, StatisticsSettings
from openmae.errors import RequestError

REPORTS = ("test", "held-out")
BALANCES = ("none", "weights", "sampling")
FROM_SCRATCH = "none"
CLASS_ONLY_SETTINGS = ("mixup", "cutmix", "label_smoothing")  # not for labels that are numbers


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(StatisticsSettings, AdamWSettings, LabelledConfig):
    """Fine-tuning on labels, whole or the last blocks, or training from scratch (paper, tables 9 and 11)."""

    init: str
    """The pre-trained model: a run folder, a checkpoint, a file, timm:NAME or hf:ORG/NAME; none trains from scratch."""

    # What is trained
    blocks: float | None = field(default=None, metadata=NONE_IS_OFF)
    """Train the last K blocks only: 0 the head and its norm, 0.5 the MLP half of the last too; all unless given."""
    pool: str | None = None
    """mean (of the patch tokens, then a LayerNorm) or cls."""
    report: str = "test"
    """test, or held-out: the final figure is of the split of train (or val), and test is not looked at."""
    balance: str = "none"
    """none, weights (rare classes weigh more in the loss) or sampling (classes are shown equally often)."""
    model: str | None = None
    """tiny, small, base, large or huge; from scratch only, as are width, depth, heads and channels."""
    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    patch_size: int | None = None
    """Side of a patch in pixels; the patch projection is resampled where it is not the model's own."""
    channels: int | None = None
    statistics: str | None = None
    """Whose mean and standard deviation, from scratch: imagenet or measured."""
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
        for name in ("width", "depth", "num_heads", "patch_size", "channels"):
            check_range(flag_of(name), getattr(self, name), 1)
        for name in ("mixup", "cutmix"):
            check_range(flag_of(name), getattr(self, name), 0)
        for name in ("label_smoothing", "drop_path", "ema"):
            check_range(flag_of(name), getattr(self, name), 0, 1, open_high=True)
        check_range("--erasing", self.erasing, 0, 1)
        check_range("--layer-decay", self.layer_decay, 0, 1, open_low=True)
        check_range("--blocks", self.blocks, 0)
        if self.blocks is not None and self.blocks != 0.5 and self.blocks != int(self.blocks):
            raise RequestError(f"--blocks got {self.blocks:g}: a whole number of blocks, or 0.5")
        self.check_statistics()
        self.check_adamw()
        if self.is_regression:
            self._check_regression()
        if self.is_from_scratch and self.blocks is not None:
            raise RequestError("--blocks freezes what was pre-trained, and --init none has nothing: leave one out")

    def _check_regression(self) -> None:
        for name in CLASS_ONLY_SETTINGS:
            if getattr(self, name):
                raise RequestError(f"{flag_of(name)} is for classes, not for --task regression: leave it out")
        if self.balance != "none":
            raise RequestError(f"--balance {self.balance} is for classes, not for --task regression: leave it out")

    @property
    def is_from_scratch(self) -> bool:
        return self.init == FROM_SCRATCH


@dataclass(frozen=True, kw_only=True)
class ResolvedFinetuneConfig(ResolvedLabelledConfig, FinetuneConfig):
    """A `FinetuneConfig` without open questions; `steps` or `epochs` is set, the other is None."""

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
