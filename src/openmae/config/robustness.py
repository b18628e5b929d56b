"""Settings of `openmae robustness`: measuring a classifier on corrupted and unusual images."""

from dataclasses import dataclass

from openmae.config.checks import MAX_PIXELS, Sized, check_images, check_name, check_range, check_types
from openmae.config.dataset import NodataSettings
from openmae.config.training.training import PRECISIONS
from openmae.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig(Sized, NodataSettings):
    """A classifier of ImageNet's classes on ImageNet-C, -A, -R and -Sketch (paper, table 13)."""

    init: str
    """The classifier: a fine-tuned or probed run, a checkpoint or its model.safetensors."""
    out: str
    """Run folder to make."""
    imagenet_c: str | None = None
    """Folder of corruption/severity/class/*.JPEG, or group/corruption/severity/class as its archives unpack."""
    imagenet_a: str | None = None
    """Folder of class folders named by WordNet ids (n01498041 ...)."""
    imagenet_r: str | None = None
    """Folder of class folders named by WordNet ids."""
    imagenet_sketch: str | None = None
    """Folder of class folders named by WordNet ids."""
    image_size: int | tuple[int, int] | None = None
    """Side in pixels, or height and width; positions are resampled where it is not the model's own."""
    value_range: tuple[float, float] | None = None
    """Raw values that become the model's 0 and 1, such as 0 4095 for 12-bit images in 16 bits."""
    axes: str | None = None
    """The order of the axes of 3-D .npy arrays (channels, rows, columns): CYX or YXC; by their shapes unless given."""
    max_pixels: int = MAX_PIXELS
    """Images of more pixels are refused: they may be decompression bombs."""
    batch_size: int | None = None
    """Images at a time in each process."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; by default the best there is."""
    precision: str = "fp32"
    """fp32 or bf16."""
    workers: int | None = None
    """Processes that read images."""
    resume: str = "never"
    """never, or auto: start, or go on behind the parts that are finished."""

    def __post_init__(self) -> None:
        check_types(self)
        check_name("--precision", self.precision, PRECISIONS)
        check_name("--resume", self.resume, ("never", "auto"))
        check_range("--batch-size", self.batch_size, 1)
        check_range("--workers", self.workers, 0)
        check_images(self)
        self.check_size()
        if (self.imagenet_c, self.imagenet_a, self.imagenet_r, self.imagenet_sketch) == (None,) * 4:
            raise RequestError(
                "no images to measure on: give --imagenet-c, --imagenet-a, --imagenet-r or --imagenet-sketch"
            )
