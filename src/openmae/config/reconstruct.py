"""Settings of `openmae reconstruct` and `openmae demo`."""

import os
from dataclasses import dataclass, field

from openmae.config.checks import (
    MAX_PIXELS,
    NONE_IS_OFF,
    Settings,
    Sized,
    check_images,
    check_name,
    check_range,
    check_types,
)
from openmae.config.dataset import NodataSettings
from openmae.config.training.pretrain import MASKS, check_mask_file
from openmae.errors import RequestError

UNDO = ("neighbours", "true", "both")


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig(Sized, NodataSettings):
    """Pictures of masked | reconstruction | truth (paper, figures 2 to 4)."""

    images: tuple[str, ...]
    """Image files, or one data set (folder, parquet, embedded:NAME)."""
    init: str
    """A run folder, a checkpoint, a file, timm:NAME or hf:ORG/NAME."""
    out: str
    """The PNG to write."""
    mask: str | None = None
    """random, block, grid or given; by default what the model was trained with."""
    mask_ratio: float | None = None
    mask_file: str | None = field(default=None, metadata=NONE_IS_OFF)
    """A .npy of booleans, rows x columns of patches, true where hidden; for --mask given."""
    seed: int = 0
    """Other seeds hide other patches."""
    limit: int = 8
    """Images to show of a data set."""
    image_size: int | tuple[int, int] | None = None
    """Side in pixels, or height and width; positions are resampled when it is not the model's own."""
    undo: str = "neighbours"
    """How a norm-pixel prediction becomes pixels: neighbours, true (leaks the answer), or both."""
    paste: bool = True
    """Show visible patches as they are; --no-paste shows the prediction there too."""
    device: str | None = None
    value_range: tuple[float, float] | None = None
    """Raw values that become the model's 0 and 1, such as 0 4095 for 12-bit images in 16 bits."""
    axes: str | None = None
    """The order of the axes of 3-D .npy arrays (channels, rows, columns): CYX or YXC; by their shapes unless given."""
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        check_types(self)
        if not self.images:
            raise RequestError("reconstruct got no image: name image files or a data set")
        check_name("--mask", self.mask, MASKS)
        check_name("--undo", self.undo, UNDO)
        check_range("--mask-ratio", self.mask_ratio, 0, 1, open_low=True, open_high=True)
        check_range("--limit", self.limit, 1, 1000)
        check_images(self)
        self.check_size()
        check_range("--seed", self.seed, 0, 2**63 - 1)
        check_mask_file(self.mask, self.mask_file)
        if not os.fspath(self.out).lower().endswith(".png"):
            raise RequestError(f"--out got {self.out!r}: it must be a file that ends in .png")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Settings):
    """The whole story on embedded photographs: train, reconstruct, measure."""

    out: str = "runs/demo"
    """Folder to make; an earlier demo there is replaced."""
    steps: int | None = None
    """Fewer or more steps than the demo's own."""
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        check_range("--steps", self.steps, 1)
        check_range("--seed", self.seed, 0, 2**63 - 1)
