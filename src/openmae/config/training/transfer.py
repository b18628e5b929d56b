"""Settings that the commands of dense prediction have in common: segmentation and detection."""

from dataclasses import dataclass, field, fields

from openmae.config.checks import NONE_IS_OFF, check_name, check_range, flag_of
from openmae.config.shapes import RELATIVE_POSITIONS, SIZES
from openmae.config.training.finetune import FROM_SCRATCH, REPORTS
from openmae.config.training.training import (
    AdamWSettings,
    ResolvedTrainingConfig,
    StatisticsSettings,
    TrainingConfig,
)
from openmae.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class TransferConfig(StatisticsSettings, AdamWSettings, TrainingConfig):
    """What segmentation and detection have in common: a whole model on an encoder, trained, or used with --predict."""

    # No settings:
    can_read_packs = False
    command = ""
    predict_settings = frozenset[str]()  # what --predict takes: all else would be training

    init: str
    """The pre-trained model: a run folder, a checkpoint, a file, timm:NAME or hf:ORG/NAME; none trains from scratch."""
    recipe: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Settings by name; flags given beside it win; --show lists and prints them."""
    predict: bool = False
    """Use --init, a run of this command, on the images of DATA; what it says goes into --out."""
    report: str = "test"
    """test, or held-out: the final figure is of the split of train (or val), and test is not looked at."""

    # The model
    model: str | None = None
    """tiny, small, base, large or huge; from scratch only, as are width, depth, heads and channels."""
    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    patch_size: int | None = None
    """Side of a patch in pixels; the patch projection is resampled where it is not the model's own."""
    channels: int | None = None
    relative_positions: str | None = None
    """bias: each block learns a bias for each offset between patches, zero at first (paper, A.4); none."""
    head_width: int | None = None
    """Channels of the heads."""
    freeze: bool = False
    """Train the pyramid and the heads only; the encoder stays as it is."""

    # Augmentation and regularisation
    resize_range: tuple[float, float] | None = None
    """Smallest and largest factor by which a training image is scaled before its crop is cut."""
    drop_path: float | None = None
    """Rate of the last block; it rises linearly from 0 over depth."""
    layer_decay: float | None = None
    """What each layer's rate is of the next one's; 1 is off. Pyramid and heads have the full rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("--model", self.model, SIZES)
        check_name("--report", self.report, REPORTS)
        check_name("--relative-positions", self.relative_positions, RELATIVE_POSITIONS)
        for name in ("width", "depth", "num_heads", "patch_size", "channels", "head_width"):
            check_range(flag_of(name), getattr(self, name), 1)
        check_range("--drop-path", self.drop_path, 0, 1, open_high=True)
        check_range("--layer-decay", self.layer_decay, 0, 1, open_low=True)
        low, high = self.resize_range or (1.0, 1.0)
        if not 0 < low <= high <= 16:
            raise RequestError(f"--resize-range got {low:g} {high:g}: two factors, rising, above 0 and at most 16")
        if self.split_rules == 1:
            raise RequestError(f"--split-rules 1 is for runs from before {self.command}: leave it out")
        if self.crop_aspect not in (None, "model"):
            raise RequestError(
                f"--crop-aspect {self.crop_aspect} is not for {self.command}, which keeps an image's aspect"
            )
        self.check_statistics()
        self.check_adamw()
        if self.is_from_scratch and (self.freeze or self.predict):
            flag = "--freeze" if self.freeze else "--predict"
            raise RequestError(f"{flag} needs a trained model, and --init none has nothing: name one")
        if self.freeze:
            self._check_frozen()
        if self.predict:
            self._check_predict()

    def _check_frozen(self) -> None:
        """Raise RequestError for what would train or drop in the encoder."""
        if self.drop_path or (self.layer_decay or 1) != 1:
            flag = "--drop-path" if self.drop_path else "--layer-decay"
            raise RequestError(f"{flag} is for an encoder that is trained, and --freeze keeps it: leave one out")

    def _check_predict(self) -> None:
        """Raise RequestError for settings of training, or where there are no images."""
        training = [
            f.name for f in fields(self) if f.name not in self.predict_settings and getattr(self, f.name) != f.default
        ]
        if training:
            raise RequestError(f"{flag_of(training[0])} is for training, and --predict only uses --init: leave it out")
        if self.data is None:
            raise RequestError(
                f"--predict takes the images to {self.command} as DATA: openmae {self.command} IMAGES --predict …"
            )

    @property
    def is_from_scratch(self) -> bool:
        return self.init == FROM_SCRATCH


@dataclass(frozen=True, kw_only=True)
class ResolvedTransferConfig(ResolvedTrainingConfig, TransferConfig):
    """A `TransferConfig` without open questions; `steps` or `epochs` is set, the other is None."""

    width: int
    depth: int
    num_heads: int
    patch_size: int
    channels: int
    relative_positions: str
    head_width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float]
    background: float
    resize_range: tuple[float, float]
    drop_path: float
    base_lr: float
    betas: tuple[float, float]
    layer_decay: float
