"""The shapes of models: what determines the names and sizes of their weights."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from openmae.config.checks import MAX_SIDE, check_name, check_range, check_types, flag_of
from openmae.config.tokenizer_shape import TokenizerShape
from openmae.errors import RequestError

Grid = tuple[int, int]

# Width, depth, heads, patch size. Tiny and Small are not in the paper: there is demand for them (docs/paper.md).
SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (192, 12, 3, 16),
    "small": (384, 12, 6, 16),
    "base": (768, 12, 12, 16),
    "large": (1024, 24, 16, 16),
    "huge": (1280, 32, 16, 14),
}
# Larger values are mistakes: they would only run out of memory later.
LIMITS = {
    "patch_size": 4096,
    "channels": 64,
    "width": 16384,
    "depth": 256,
    "num_heads": 1024,
    "image_size": MAX_SIDE,
}
POSITIONS = ("absolute", "none")
RELATIVE_POSITIONS = ("none", "bias", "decomposed")
PIXEL_TARGETS = ("pixel", "norm-pixel")
TARGETS = (*PIXEL_TARGETS, "pca", "token")
POOLS = ("cls", "mean")
DEFAULT_POOL = "mean"  # of embed, knn and probe: better than the class token where we measured (docs/results.md)
HEADS = ("fine-tune", "probe")
MAX_CLASSES = 1_000_000


def grid_of(height: int, width: int, patch_size: int) -> Grid:
    """Rows and columns of patches in an image of `height` × `width` pixels.

    Raises:
        RequestError: a side is smaller than a patch or is no multiple of it.
    """
    if height < patch_size or width < patch_size:
        raise RequestError(
            f"an image of {height}x{width} px is smaller than one patch of {patch_size} px: "
            "give a larger --image-size or a smaller --patch-size"
        )
    if height % patch_size or width % patch_size:
        near = tuple(max(patch_size, round(side / patch_size) * patch_size) for side in (height, width))
        raise RequestError(
            f"a patch of {patch_size} px does not divide an image of {height}x{width} px: "
            f"--image-size {near[0]} {near[1]} would do, or another --patch-size"
        )
    return height // patch_size, width // patch_size


def num_kept(num_patches: int, ratio: float) -> int:
    """How many patches stay visible: `int(N · (1 − ratio))`, truncated in floating point as released (docs/paper.md).

    Raises:
        RequestError: nothing would stay visible, or nothing would be masked.
    """
    kept = int(num_patches * (1 - ratio))
    if not 0 < kept < num_patches:
        left = "no patch visible" if kept <= 0 else "no patch masked"
        raise RequestError(
            f"a mask ratio of {ratio:g} on {num_patches} patches leaves {left}: choose another --mask-ratio"
        )
    return kept


def check_heads(flag: str, width: int, num_heads: int) -> None:
    """Raise RequestError, naming the numbers that would do, where the width is not divisible by the number of heads."""
    if width % num_heads:
        fitting = [n for n in range(1, width + 1) if width % n == 0 and 16 <= width // n <= 128]
        raise RequestError(f"{flag} got {num_heads}, which does not divide a width of {width}: {fitting} would")


@dataclass(frozen=True, kw_only=True)
class ViTShape:
    """What determines the encoder's weights. The defaults are MAE's plain ViT; other programs' encoders differ.

    Attributes:
        image_size: (height, width) in pixels.
        positions: absolute: a table added to the patch tokens; none: BEiT has relative positions only.
        relative_positions: none; bias: a learned number for each offset (BEiT); decomposed: a learned vector for each
            offset by row and by column, multiplied with the query (ViTDet).
        shares_relative_positions: of biases: one table for all blocks with windows and one for all others, instead of
            one for each block (paper, A.3).
        layer_scale: a learned factor on each channel of each branch (BEiT).
        class_token, final_norm: whether it has them (ViTDet has neither).
        window_size: patches along a window's side in blocks with windowed attention; 0: attention is global.
        global_blocks: with windows, the blocks, counted from 0, whose attention is global all the same.
        norm_eps: of every LayerNorm, those of the decoder too; models trained with transformers have 1e-12.
    """

    image_size: tuple[int, int]
    patch_size: int
    channels: int
    width: int
    depth: int
    num_heads: int
    positions: str = "absolute"
    relative_positions: str = "none"
    layer_scale: bool = False
    class_token: bool = True
    final_norm: bool = True
    window_size: int = 0
    global_blocks: tuple[int, ...] = ()
    norm_eps: float = 1e-6
    shares_relative_positions: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_name("positions", self.positions, POSITIONS)
        check_name("relative positions", self.relative_positions, RELATIVE_POSITIONS)
        check_range("the eps of LayerNorm", self.norm_eps, 0, 1, open_low=True, open_high=True)
        check_range("the window", self.window_size, 0, LIMITS["image_size"])
        if self.class_token and (self.window_size or self.relative_positions == "decomposed"):
            raise RequestError("windows and decomposed relative positions leave no place for a class token")
        if self.shares_relative_positions and self.relative_positions != "bias":
            raise RequestError(f"biases are shared, and the relative positions are {self.relative_positions}")
        for name in ("patch_size", "channels", "width", "depth", "num_heads"):
            check_range(flag_of(name), getattr(self, name), 1, LIMITS[name])
        for side in self.image_size:
            check_range("--image-size", side, 1, LIMITS["image_size"])
        if self.width % 4:
            raise RequestError(f"--width got {self.width}: sin-cos positions need a width that 4 divides")
        check_heads("--num-heads", self.width, self.num_heads)
        grid_of(*self.image_size, self.patch_size)

    @property
    def grid(self) -> Grid:
        return grid_of(*self.image_size, self.patch_size)

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_windowed(self) -> int:
        """Blocks whose attention is within windows."""
        return sum(number not in self.global_blocks for number in range(self.depth)) if self.window_size else 0

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: the class token, or none."""
        return int(self.class_token)

    @property
    def patch_dim(self) -> int:
        """Numbers in a patch: its pixels times channels."""
        return self.patch_size * self.patch_size * self.channels

    def resized(self, image_size: tuple[int, int], patch_size: int) -> Self:
        """The same encoder for other sizes."""
        return replace(self, image_size=image_size, patch_size=patch_size)

    @property
    def is_maskable(self) -> bool:
        """Whether masked patches can be left out, as MAE does: no token depends on the positions of the others."""
        return (
            self.class_token
            and self.final_norm
            and self.positions == "absolute"
            and self.relative_positions == "none"
            and not self.window_size
        )

    @property
    def is_plain(self) -> bool:
        """Whether it is the ViT of the paper, which most formats can hold."""
        return self.is_maskable and not self.layer_scale

    @property
    def differences(self) -> dict[str, Any]:
        """The settings in which it differs from the paper's ViT, sizes left out."""
        sizes = ("image_size", "patch_size", "channels", "width", "depth", "num_heads")
        return {name: value for name, value in self.to_dict().items() if name not in sizes}

    def to_dict(self) -> dict[str, Any]:
        """As stored in a file: only what differs from the defaults, so that files of plain ViTs stay as they were."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**settings)


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """What determines the decoder's weights, beside the encoder it follows."""

    width: int
    depth: int
    num_heads: int

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("width", "depth", "num_heads"):
            check_range(flag_of("decoder_" + name), getattr(self, name), 1, LIMITS[name])
        if self.width % 4:
            raise RequestError(f"--decoder-width got {self.width}: sin-cos positions need a width that 4 divides")
        check_heads("--decoder-num-heads", self.width, self.num_heads)


@dataclass(frozen=True, kw_only=True)
class MAEShape:
    """What determines the weights of a masked autoencoder and what they predict."""

    encoder: ViTShape
    decoder: DecoderShape
    target: str = "pixel"
    mask_tokens_in_encoder: bool = False
    pca_coefficients: int | None = None  # of the target "pca", and only there
    tokenizer: TokenizerShape | None = None  # of the target "token", likewise

    def __post_init__(self) -> None:
        check_name("--target", self.target, TARGETS)
        if (self.target == "pca") != (self.pca_coefficients is not None):
            raise RequestError(
                f"--pca-coefficients is for --target pca, and this is --target {self.target}: leave it out"
            )
        check_range("--pca-coefficients", self.pca_coefficients, 1, self.encoder.patch_dim)
        if (self.target == "token") != (self.tokenizer is not None):
            raise RequestError(
                f"a tokenizer belongs to --target token, and this is --target {self.target}: give both or neither"
            )
        if self.tokenizer is not None and not self.tokenizer.fits(self.encoder.patch_size, self.encoder.channels):
            raise RequestError(
                f"the tokenizer does not fit patches of {self.encoder.patch_size} px with {self.encoder.channels} "
                "channels: it gives no token for each of them; give another --tokenizer, or its --patch-size and "
                f"--channels ({self.tokenizer.patch_size or 'any'} px, {self.tokenizer.channels})"
            )
        if not self.encoder.is_maskable:
            raise RequestError(
                "masked pre-training takes an encoder with a class token, a final norm and absolute positions only: "
                "this one can be probed, fine-tuned and embedded"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        encoder, decoder = ViTShape.from_dict(values["encoder"]), DecoderShape(**values["decoder"])
        tokenizer = TokenizerShape.from_dict(values["tokenizer"]) if values.get("tokenizer") is not None else None
        return cls(**{**values, "encoder": encoder, "decoder": decoder, "tokenizer": tokenizer})

    def to_dict(self) -> dict[str, Any]:
        """For a file. What only some targets have is named only with them: other records stay as they were."""
        values = {**asdict(self), "encoder": self.encoder.to_dict()}
        of_some = ("pca_coefficients", "tokenizer")
        return {name: value for name, value in values.items() if name not in of_some or value is not None}

    @property
    def target_name(self) -> str:
        """The target in words: pixel, norm-pixel, 96 PCA coefficients, tokens of a codebook of 512."""
        if self.tokenizer is not None:
            return f"tokens of a codebook of {self.tokenizer.codebook}"
        return self.target if self.pca_coefficients is None else f"{self.pca_coefficients} PCA coefficients"

    @property
    def outputs(self) -> int:
        """Values that are predicted for each patch; of tokens, the logits of the codebook."""
        if self.tokenizer is not None:
            return self.tokenizer.codebook
        return self.encoder.patch_dim if self.pca_coefficients is None else self.pca_coefficients


@dataclass(frozen=True, kw_only=True)
class ClassifierShape:
    """What determines the weights of a classifier: the encoder, how its tokens are pooled, and the head."""

    encoder: ViTShape
    num_classes: int
    pool: str
    head: str = "fine-tune"

    def __post_init__(self) -> None:
        check_types(self)
        check_name("--pool", self.pool, POOLS)
        check_name("the head", self.head, HEADS)
        check_range("the number of classes", self.num_classes, 1, MAX_CLASSES)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        return cls(**{**values, "encoder": ViTShape.from_dict(values["encoder"])})

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "encoder": self.encoder.to_dict()}
