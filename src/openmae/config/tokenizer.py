"""Settings of training a tokenizer: a discrete variational autoencoder of one's own images."""

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
    check_tiles,
    check_types,
    flag_of,
)
from openmae.config.dataset import DataSettings
from openmae.config.pretrain import CROP_ASPECTS, PRECISIONS, STATISTICS
from openmae.config.tokenizer_shape import MAX_CODEBOOK, TokenizerShape
from openmae.errors import RequestError

MIN_TEMPERATURE = 1e-3  # below it the softmax's gradients are 0 or not finite
TOKENIZER_AUGMENTS = ("none", "crop-fixed", "crop")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(Sized, DataSettings):
    """Training a tokenizer on unlabelled images, for pretrain --target token (paper, table 1d)."""

    data: str | None = None
    """Folder of images, parquet file or folder, a pack, or embedded:photos, embedded:digits."""
    out: str
    """Run folder to make."""

    # The tokenizer
    codebook: int | None = None
    """How many different tokens there are; 512 to 8192 by how many images there are."""
    patch_size: int | None = None
    """Side in pixels of the patches that get a token each: that of the model to pre-train."""
    image_size: int | tuple[int, int] | None = None
    """Side in pixels, or height and width, of the images of the model to pre-train."""
    stride: int | None = None
    """Pixels a token in what the tokenizer itself sees, images of grid x stride px; half the patch size."""
    channels: int | None = None
    width: int | None = None
    """Channels of its layers."""
    depth: int | None = None
    """Residual blocks in its encoder, and in its decoder."""

    # The data
    augment: str | None = None
    """none (centre crop), crop-fixed or crop (random size, flip)."""
    crop_aspect: str | None = None
    """model: random crops have the model's aspect, give or take a third; square."""
    statistics: str | None = None
    """Whose mean and standard deviation: imagenet or measured."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    value_range: tuple[float, float] | None = None
    """Raw values that become 0 and 1, e.g. 0 4095 for 12-bit images in 16 bits."""
    axes: str | None = None
    """The order of the axes of 3-D .npy arrays (channels, rows, columns): CYX or YXC; by their shapes unless given."""
    background: float | None = None
    """What transparent pixels show: 0 black to 1 white."""
    tiles: int | None = field(default=None, metadata=NONE_IS_OFF)
    """Side in pixels: cut larger images into tiles of that side, each a sample; an epoch counts tiles."""
    split_rules: int | None = None
    """How the parts of DATA are found: 2, see docs/data.md."""
    held_out: int | None = None
    """Images to measure on, of the validation part or, where there is none, taken out of training; 0 is off."""
    max_bad: float | None = None
    """Largest tolerated fraction of unreadable files; 0.01 unless given."""
    max_pixels: int = MAX_PIXELS
    """Images of more pixels are refused: they may be decompression bombs."""

    # The optimisation
    epochs: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    """Images a step, over all processes."""
    micro_batch_size: int | None = None
    """Images at a time on a device; the rest is accumulated."""
    base_lr: float | None = None
    """Learning rate at a batch of 256; the rate used is base_lr x batch_size / 256."""
    min_lr: float | None = None
    warmup_epochs: float | None = None
    weight_decay: float | None = None
    betas: tuple[float, float] | None = None
    temperature: tuple[float, float] | None = None
    """Of the Gumbel softmax, at the beginning and from 70 % of the steps on."""
    balance: float | None = None
    """Weight of the loss that keeps all tokens in use; 0 is off."""

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
    """Steps between measurements on held-out images."""
    picture_every: int | None = None
    """Steps between pictures of reconstructions."""
    save_every: int | None = None
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""

    def __post_init__(self) -> None:
        check_types(self)
        self.check_data()
        check_name("--augment", self.augment, TOKENIZER_AUGMENTS)
        check_name("--crop-aspect", self.crop_aspect, CROP_ASPECTS)
        check_name("--statistics", self.statistics, STATISTICS)
        check_name("--precision", self.precision, PRECISIONS)
        for name in ("patch_size", "stride", "channels", "width", "depth", "steps", "batch_size", "micro_batch_size"):
            check_range(flag_of(name), getattr(self, name), 1)
        for name in ("log_every", "evaluate_every", "picture_every", "save_every", "keep"):
            check_range(flag_of(name), getattr(self, name), 1)
        for name in ("workers", "held_out", "min_lr", "warmup_epochs", "weight_decay", "base_lr", "balance"):
            check_range(flag_of(name), getattr(self, name), 0)
        check_range("--codebook", self.codebook, 2, MAX_CODEBOOK)
        check_range("--seed", self.seed, 0, 2**63 - 1)
        check_range("--split-rules", self.split_rules, 1, 2)
        check_range("--epochs", self.epochs, 0, open_low=True)
        check_range("--max-bad", self.max_bad, 0, 1)
        check_range("--background", self.background, 0, 1)
        for value in self.betas or ():
            check_range("--betas", value, 0, 1, open_high=True)
        for value in self.temperature or ():
            check_range("--temperature", value, MIN_TEMPERATURE, 100)
        first, last = self.temperature or (1.0, 1.0)
        if first < last:
            raise RequestError(f"--temperature rises from {first:g} to {last:g}: give the higher one first")
        check_images(self)
        self.check_size()
        if self.epochs is not None and self.steps is not None:
            raise RequestError(f"got both --epochs {self.epochs:g} and --steps {self.steps}: give one of them")
        check_tiles(self.tiles, self.size)
        if (self.mean is None) != (self.std is None):
            raise RequestError("--mean and --std go together: give both or neither")


@dataclass(frozen=True, kw_only=True)
class ResolvedTokenizerConfig(ResolvedSize, TokenizerConfig):
    """A `TokenizerConfig` without open questions; `steps` or `epochs` is set, the other is None."""

    codebook: int
    patch_size: int
    image_size: int | tuple[int, int]
    stride: int
    channels: int
    width: int
    depth: int
    augment: str
    crop_aspect: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float]
    background: float
    axes: str
    nodata: str | float = OFF
    split_rules: int
    max_bad: float
    batch_size: int
    micro_batch_size: int
    base_lr: float
    min_lr: float
    warmup_epochs: float
    weight_decay: float
    betas: tuple[float, float]
    temperature: tuple[float, float]
    balance: float
    seed: int
    device: str
    precision: str
    workers: int
    log_every: int
    evaluate_every: int
    picture_every: int
    save_every: int

    # What trainers of other models leave to the user.
    compile = False
    init = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_resolved(self)

    @property
    def shape(self) -> TokenizerShape:
        """The shape of the tokenizer. Raises RequestError where numbers are out of range."""
        names = ("patch_size", "stride", "channels", "codebook", "width", "depth")
        return TokenizerShape(**{name: getattr(self, name) for name in names})
