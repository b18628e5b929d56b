"""Settings of semantic segmentation: training a segmenter, and `--predict`, which uses one."""

from dataclasses import dataclass, field

from openmae.config.checks import NONE_IS_OFF, check_name, check_range
from openmae.config.training.transfer import ResolvedTransferConfig, TransferConfig
from openmae.errors import RequestError

SEGMENT_AUGMENTS = ("none", "crop", "crop-jitter")
INFERENCES = ("slide", "whole")
MAX_STORED_VALUE = 65535  # of a 16-bit mask


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(TransferConfig):
    """Semantic segmentation: UperNet on the encoder, trained on images and masks (paper, table 5); or --predict."""

    command = "segment"
    predict_settings = frozenset(
        "data init out predict inference stride device precision workers micro_batch_size max_pixels max_bad axes "
        "nodata value_range".split()
    )

    data: str | None = None
    """Folder of images and class-index PNG masks of the same names: images/ and masks/ (annotations/, labels/,
    semantic/), or train/ and trainannot/; with --predict any images."""
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

    # The model
    image_size: int | tuple[int, int] | None = None
    """Side of a crop in pixels, or height and width; an image's short side is that long before it is scaled."""
    head_width: int | None = None
    """Channels of the head; the paper's are the encoder's width."""

    # Augmentation
    augment: str | None = None
    """none, crop (scaled, cropped, flipped) or crop-jitter (photometric distortion, too)."""
    max_class_share: float | None = None
    """Crops of which one class fills more are drawn again, ten times at most; 1 takes every crop."""

    # The optimisation
    min_lr: float | None = None
    """Learning rate that the line ends at."""
    warmup_epochs: float | None = None
    """Epochs in which the rate rises from 1e-6, before it falls along a line."""

    # Evaluation
    inference: str | None = None
    """slide: windows of the crop's size over the image, their outputs averaged; whole: the image at once."""
    stride: int | None = None
    """Pixels between windows; two thirds of the crop's smaller side unless given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("--augment", self.augment, SEGMENT_AUGMENTS)
        check_name("--inference", self.inference, INFERENCES)
        check_range("--stride", self.stride, 1)
        check_range("--ignore-index", self.ignore_index, -1, MAX_STORED_VALUE)
        check_range("--max-class-share", self.max_class_share, 0, 1, open_low=True)
        if self.inference == "whole" and self.stride is not None:
            raise RequestError(f"--stride {self.stride} is for --inference slide: leave it out")
        if self.stride is not None and self.size is not None and self.stride > min(self.size):
            raise RequestError(
                f"--stride got {self.stride}, more than --image-size {min(self.size)}: pixels are missed"
            )


@dataclass(frozen=True, kw_only=True)
class ResolvedSegmentConfig(ResolvedTransferConfig, SegmentConfig):
    """A `SegmentConfig` without open questions; `steps` or `epochs` is set, the other is None."""

    ignore_index: int
    augment: str
    max_class_share: float
    inference: str
