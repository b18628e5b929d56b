"""Settings of semantic segmentation: training a segmenter, and `--predict`, which uses one."""

from dataclasses import dataclass, field, fields

from openmae.config.checks import NONE_IS_OFF, check_name, check_range, flag_of
from openmae.config.shapes import SIZES
from openmae.config.training.finetune import FROM_SCRATCH, REPORTS
from openmae.config.training.training import (
    AdamWSettings,
    ResolvedTrainingConfig,
    StatisticsSettings,
    TrainingConfig,
)
from openmae.errors import RequestError

SEGMENT_AUGMENTS = ("none", "crop", "crop-jitter")
BIASES = ("none", "bias", "decomposed")
INFERENCES = ("slide", "whole")
MAX_STORED_VALUE = 65535  # of a 16-bit mask
# What `--predict` takes beside DATA, --init and --out: all else would be training.
PREDICT_SETTINGS = {
    *("data", "init", "out", "predict", "inference", "stride", "device", "precision", "workers", "micro_batch_size"),
    *("max_pixels", "max_bad", "axes", "nodata", "value_range"),
}


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(StatisticsSettings, AdamWSettings, TrainingConfig):
    """Semantic segmentation: UperNet on the encoder, trained on images and masks (paper, table 5); or --predict."""

    can_read_packs = False

    data: str | None = None
    """Folder of images and class-index PNG masks of the same names: images/ and masks/ (annotations/, labels/,
    semantic/), or train/ and trainannot/; with --predict any images."""
    init: str
    """The pre-trained model: a run folder, a checkpoint, a file, timm:NAME or hf:ORG/NAME; none trains from scratch."""
    recipe: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Settings by name; flags given beside it win; --show lists and prints them."""
    predict: bool = False
    """Segment the images of DATA with --init, a run of segment: masks and overlays go into --out."""

    # The masks
    class_names: str | None = field(default=None, metadata=NONE_IS_OFF)
    """A file of the classes' names: one a line from class 0 on, a CSV of id,name, or JSON."""
    palette: str | None = field(default=None, metadata=NONE_IS_OFF)
    """For masks in colours: a file with a line for each class, red green blue and its name."""
    ignore_index: int | None = None
    """Value in a mask of pixels that neither train nor are measured; 255 unless given, -1: there is none."""
    reduce_zero_label: bool = False
    """Value 0 is no class, and value 1 the first one (ADE20K)."""
    held_out: int | None = None
    """Images of train held out to measure on, where DATA has neither val nor test with masks."""
    report: str = "test"
    """test, or held-out: the final figure is of the split of train (or val), and test is not looked at."""

    # The model
    image_size: int | tuple[int, int] | None = None
    """Side of a crop in pixels, or height and width; an image's short side is that long before it is scaled."""
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
    """Channels of the head; the paper's are the encoder's width."""
    freeze: bool = False
    """Train the pyramid and the heads only; the encoder stays as it is."""

    # Augmentation and regularisation
    augment: str | None = None
    """none, crop (scaled, cropped, flipped) or crop-jitter (photometric distortion, too)."""
    resize_range: tuple[float, float] | None = None
    """Smallest and largest factor by which a training image is scaled before its crop is cut."""
    max_class_share: float | None = None
    """Crops of which one class fills more are drawn again, ten times at most; 1 takes every crop."""
    drop_path: float | None = None
    """Rate of the last block; it rises linearly from 0 over depth."""

    # The optimisation
    min_lr: float | None = None
    """Learning rate that the line ends at."""
    warmup_epochs: float | None = None
    """Epochs in which the rate rises from 1e-6, before it falls along a line."""
    layer_decay: float | None = None
    """What each layer's rate is of the next one's; 1 is off. Pyramid and heads have the full rate."""

    # Evaluation
    inference: str | None = None
    """slide: windows of the crop's size over the image, their outputs averaged; whole: the image at once."""
    stride: int | None = None
    """Pixels between windows; two thirds of the crop's smaller side unless given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("--model", self.model, SIZES)
        check_name("--report", self.report, REPORTS)
        check_name("--augment", self.augment, SEGMENT_AUGMENTS)
        check_name("--relative-positions", self.relative_positions, BIASES)
        check_name("--inference", self.inference, INFERENCES)
        for name in ("width", "depth", "num_heads", "patch_size", "channels", "head_width", "stride"):
            check_range(flag_of(name), getattr(self, name), 1)
        check_range("--ignore-index", self.ignore_index, -1, MAX_STORED_VALUE)
        check_range("--max-class-share", self.max_class_share, 0, 1, open_low=True)
        check_range("--drop-path", self.drop_path, 0, 1, open_high=True)
        check_range("--layer-decay", self.layer_decay, 0, 1, open_low=True)
        if self.split_rules == 1:
            raise RequestError("--split-rules 1 is for runs from before segment: leave it out")
        if self.inference == "whole" and self.stride is not None:
            raise RequestError(f"--stride {self.stride} is for --inference slide: leave it out")
        low, high = self.resize_range or (1.0, 1.0)
        if not 0 < low <= high <= 16:
            raise RequestError(f"--resize-range got {low:g} {high:g}: two factors, rising, above 0 and at most 16")
        if self.stride is not None and self.size is not None and self.stride > min(self.size):
            raise RequestError(
                f"--stride got {self.stride}, more than --image-size {min(self.size)}: pixels are missed"
            )
        if self.crop_aspect not in (None, "model"):
            raise RequestError(f"--crop-aspect {self.crop_aspect} is not for segment, which keeps an image's aspect")
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
        training = [
            f.name for f in fields(self) if f.name not in PREDICT_SETTINGS and getattr(self, f.name) != f.default
        ]
        if training:
            raise RequestError(f"{flag_of(training[0])} is for training, and --predict only uses --init: leave it out")
        if self.data is None:
            raise RequestError("--predict takes the images to segment as DATA: openmae segment IMAGES --predict …")

    @property
    def is_from_scratch(self) -> bool:
        return self.init == FROM_SCRATCH


@dataclass(frozen=True, kw_only=True)
class ResolvedSegmentConfig(ResolvedTrainingConfig, SegmentConfig):
    """A `SegmentConfig` without open questions; `steps` or `epochs` is set, the other is None."""

    ignore_index: int
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
    augment: str
    resize_range: tuple[float, float]
    max_class_share: float
    drop_path: float
    base_lr: float
    betas: tuple[float, float]
    layer_decay: float
    inference: str
