"""Settings of `openmae pack`."""

from dataclasses import dataclass, field

from openmae.config.checks import (
    MAX_PIXELS,
    NONE_IS_OFF,
    check_images,
    check_name,
    check_range,
    check_tiles,
    check_types,
    pair,
)
from openmae.config.dataset import DataSettings
from openmae.config.shapes import LIMITS
from openmae.errors import RequestError

FORMATS = ("jpeg", "raw")
SUBSAMPLINGS = ("420", "444")


@dataclass(frozen=True, kw_only=True)
class PackConfig(DataSettings):
    """Turn any data into data that is fast to read: small JPEGs in parquet, or raw numbers in a memory-mapped .npy.

    Splits, labels, class and file names are kept. `openmae pack PACK --verify` checks one that is there.
    """

    data: str | None = None
    """Images: a folder, parquet, embedded:NAME, another pack."""
    out: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Folder to make."""
    format: str = "jpeg"
    """jpeg: the whole image, 8 bits, grey or RGB; raw: one shape for all, any number type and channels."""
    size: int | tuple[int, int] | None = None
    """jpeg: the short side at most; raw: the side of the centre square, or height and width. 256, or less for less;
    raw packs of long images keep their aspect."""
    tiles: int | None = field(default=None, metadata=NONE_IS_OFF)
    """Side in pixels: cut larger images into tiles of that side, each an image of the pack called file#row,column;
    --size is then theirs unless given. Blank tiles are left out."""
    quality: int = 90
    """Of JPEGs, 1 to 100."""
    subsampling: str = "420"
    """Of JPEGs' colour: 420, or 444 (better, a quarter larger, a third slower)."""
    background: float = 1.0
    """What transparent pixels become: 0 black to 1 white."""
    max_bad: float = 0.01
    """Largest tolerated fraction of unreadable files; they are left out and named."""
    value_range: tuple[float, float] | None = None
    """Raw values that become 0 and 1, such as 0 4095: a JPEG's black and white; kept for what reads a raw pack."""
    axes: str | None = None
    """The order of the axes of 3-D .npy arrays (channels, rows, columns): CYX or YXC; by their shapes unless given."""
    max_pixels: int = MAX_PIXELS
    """Images of more pixels are refused: they may be decompression bombs."""
    shard_mb: float = 256.0
    """Megabytes of a parquet file, about; also what is lost when a pack is stopped."""
    workers: int | None = None
    """Processes that read and pack images; all cores unless given."""
    resume: str = "never"
    """never, or auto (start or continue)."""
    verify: bool = False
    """Check every byte of the pack DATA against its checksums; writes nothing."""

    def __post_init__(self) -> None:
        check_types(self)
        self.check_data()
        check_name("--format", self.format, FORMATS)
        check_name("--subsampling", self.subsampling, SUBSAMPLINGS)
        check_name("--resume", self.resume, ("never", "auto"))
        check_range("--quality", self.quality, 1, 100)
        check_range("--background", self.background, 0, 1)
        check_range("--max-bad", self.max_bad, 0, 1)
        check_images(self)
        check_range("--shard-mb", self.shard_mb, 0, 2000, open_low=True)
        check_range("--workers", self.workers, 0)
        for side in pair(self.size) or ():
            check_range("--size", side, 1, LIMITS["image_size"])
        check_range("--tiles", self.tiles, 1, LIMITS["image_size"])
        check_tiles(self.tiles, pair(self.size), "--size")
        if self.format == "jpeg" and isinstance(self.size, tuple):
            raise RequestError("--size got height and width: JPEGs keep their aspect, give the short side")
        if self.verify and self.data is None:
            raise RequestError(f"--verify checks a pack: name it in place of {self.dataset}")
        if self.verify == (self.out is not None):
            raise RequestError(
                "--verify checks the pack that is named, and writes no OUT"
                if self.verify
                else "no OUT given: openmae pack DATA OUT"
            )
