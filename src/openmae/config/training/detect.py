"""Settings of detection and instance segmentation: training a detector, and `--predict`, which uses one."""

from dataclasses import dataclass

from openmae.config.checks import check_name, check_range, pair
from openmae.config.detector_shape import PYRAMIDS
from openmae.config.training.transfer import ResolvedTransferConfig, TransferConfig
from openmae.errors import RequestError

DETECT_AUGMENTS = ("none", "jitter")
SCHEDULES = ("cosine", "steps")


@dataclass(frozen=True, kw_only=True)
class DetectConfig(TransferConfig):
    """Detection and instance segmentation: Mask R-CNN on the encoder, trained on COCO JSON (paper, table 4)."""

    command = "detect"
    predict_settings = frozenset(
        "data init out predict device precision workers max_pixels max_bad axes nodata value_range".split()
    )

    data: str | None = None
    """Folder with COCO JSON beside or above its images (train.json, instances_val2017.json, …); with --predict any
    images."""
    predict: bool = False
    """Find objects in the images of DATA with --init, a run of detect: predictions.json and overlays go into --out."""
    held_out: int | None = None
    """Images of train held out to measure on, where DATA has neither val nor test with annotations."""
    boxes_only: bool = False
    """Leave the masks of DATA unread: no mask head."""

    # The model
    image_size: int | tuple[int, int] | None = None
    """Side in pixels of the square that images are scaled to fit into and padded to."""
    pyramid: str | None = None
    """table-4: four maps of four depths; simple: ViTDet's, from the last map alone."""
    window_size: int | None = None
    """Patches along a side of the windows that most blocks attend within; 0: all blocks attend to the whole image."""
    relative_positions: str | None = None
    """bias: a learned bias for each offset between patches, zero at first, shared by blocks (paper, A.3); decomposed:
    ViTDet's; none."""
    head_width: int | None = None
    """Channels of the FPN and of the heads' convolutions; the paper's are 256."""
    roi_samples: int | None = None
    """Regions of an image that the heads train on in a step; the paper's are 512."""

    # Augmentation
    augment: str | None = None
    """none, or jitter: scaled by --resize-range, cropped or padded to the square, flipped (large-scale jitter)."""

    # The optimisation
    min_lr: float | None = None
    """Learning rate that a cosine ends at."""
    warmup_epochs: float | None = None
    """Epochs in which the rate rises from 0."""
    schedule: str | None = None
    """cosine, or steps: a tenth of the rate after 8/9 of the steps, a hundredth after 26/27 (ViTDet)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("--augment", self.augment, DETECT_AUGMENTS)
        check_name("--pyramid", self.pyramid, PYRAMIDS)
        check_name("--schedule", self.schedule, SCHEDULES)
        check_range("--window-size", self.window_size, 0)
        check_range("--roi-samples", self.roi_samples, 1, 100_000)
        if self.image_size is not None and len(set(pair(self.image_size))) > 1:
            height, width = pair(self.image_size)
            raise RequestError(f"--image-size got {height} {width}, but images are padded to a square: give one number")
        if self.schedule == "steps" and self.min_lr:
            raise RequestError(f"--min-lr {self.min_lr:g} is for --schedule cosine: leave it out")


@dataclass(frozen=True, kw_only=True)
class ResolvedDetectConfig(ResolvedTransferConfig, DetectConfig):
    """A `DetectConfig` without open questions; `steps` or `epochs` is set, the other is None."""

    pyramid: str
    window_size: int
    roi_samples: int
    augment: str
    schedule: str
