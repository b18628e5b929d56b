"""Settings of training a tokenizer: a discrete variational autoencoder of one's own images."""

from dataclasses import dataclass, field

from openmae.config.checks import NONE_IS_OFF, check_name, check_range, check_tiles, flag_of
from openmae.config.tokenizer_shape import MAX_CODEBOOK, TokenizerShape
from openmae.config.training.training import (
    AdamWSettings,
    ResolvedTrainingConfig,
    StatisticsSettings,
    TrainingConfig,
)
from openmae.errors import RequestError

MIN_TEMPERATURE = 1e-3  # below it the softmax's gradients are 0 or not finite
TOKENIZER_AUGMENTS = ("none", "crop-fixed", "crop")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(StatisticsSettings, AdamWSettings, TrainingConfig):
    """Training a tokenizer on unlabelled images, for pretrain --target token (paper, table 1d)."""

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
    tiles: int | None = field(default=None, metadata=NONE_IS_OFF)
    """Side in pixels: cut larger images into tiles of that side, each a sample; an epoch counts tiles."""

    # The optimisation
    temperature: tuple[float, float] | None = None
    """Of the Gumbel softmax, at the beginning and from 70 % of the steps on."""
    balance: float | None = None
    """Weight of the loss that keeps all tokens in use; 0 is off."""

    # The run
    picture_every: int | None = None
    """Steps between pictures of reconstructions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("--augment", self.augment, TOKENIZER_AUGMENTS)
        for name in ("patch_size", "stride", "channels", "width", "depth", "picture_every"):
            check_range(flag_of(name), getattr(self, name), 1)
        check_range("--balance", self.balance, 0)
        check_range("--codebook", self.codebook, 2, MAX_CODEBOOK)
        self.check_statistics()
        self.check_adamw()
        for value in self.temperature or ():
            check_range("--temperature", value, MIN_TEMPERATURE, 100)
        first, last = self.temperature or (1.0, 1.0)
        if first < last:
            raise RequestError(f"--temperature rises from {first:g} to {last:g}: give the higher one first")
        check_tiles(self.tiles, self.size)


@dataclass(frozen=True, kw_only=True)
class ResolvedTokenizerConfig(ResolvedTrainingConfig, TokenizerConfig):
    """A `TokenizerConfig` without open questions; `steps` or `epochs` is set, the other is None."""

    codebook: int
    patch_size: int
    stride: int
    channels: int
    width: int
    depth: int
    augment: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float]
    background: float
    base_lr: float
    betas: tuple[float, float]
    temperature: tuple[float, float]
    balance: float
    picture_every: int

    # What trainers of other models leave to the user.
    compile = False
    init = None

    @property
    def shape(self) -> TokenizerShape:
        """The shape of the tokenizer. Raises RequestError where numbers are out of range."""
        names = ("patch_size", "stride", "channels", "codebook", "width", "depth")
        return TokenizerShape(**{name: getattr(self, name) for name in names})
