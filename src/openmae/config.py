"""Every setting, as frozen dataclasses that check themselves. Imports no torch.

`None` in a task's config means "decide for me": `openmae.tasks.settle` fills it from the recipe, the data
and the device, and says why. What a run finally used stands in its `config.json` without a `None`.
"""

import difflib
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, Self, Union, get_args, get_origin, get_type_hints

from openmae.errors import RequestError

Grid = tuple[int, int]

# Width, depth, heads, patch size. Tiny and Small are not in the paper (FACTS section 1).
SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (192, 12, 3, 16),
    "small": (384, 12, 6, 16),
    "base": (768, 12, 12, 16),
    "large": (1024, 24, 16, 16),
    "huge": (1280, 32, 16, 14),
}
# Beyond these a request is a slip, and would only run out of memory later.
LARGEST = {"patch_size": 4096, "channels": 64, "width": 16384, "depth": 256, "num_heads": 1024, "image_size": 16384}
MASKS = ("random", "block", "grid", "given")
TARGETS = ("pixel", "norm-pixel")
AUGMENTS = ("none", "crop-fixed", "crop", "crop-jitter")
UNDO = ("neighbours", "true", "both")
STATISTICS = ("imagenet", "measured")
PRECISIONS = ("fp32", "bf16")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def check_name(flag: str, got: str | None, known: Iterable[str]) -> None:
    """Raise RequestError with the nearest known name when `got` is not one of `known` (None passes)."""
    known = list(known)
    if got is None or got in known:
        return
    near = difflib.get_close_matches(got, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RequestError(f"{flag} got {got!r}: {hint}known are {', '.join(known)}")


def check_range(
    flag: str, got: float | None, low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Raise RequestError when `got` is not finite or lies outside low..high (None passes)."""
    if got is None:
        return
    inside = (got > low if open_low else got >= low) and (got < high if open_high else got <= high)
    if math.isfinite(got) and inside:
        return
    bounds = f"{'above' if open_low else 'at least'} {low:g}"
    if high < math.inf:
        bounds += f" and {'below' if open_high else 'at most'} {high:g}"
    raise RequestError(f"{flag} got {got:g}: it must be {bounds}")


def check_types(config: Any) -> None:
    """Raise RequestError where a field of a dataclass is not of its annotated type (a bool is no int)."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, hint):
            raise RequestError(f"{flag_of(name)} got {value!r} ({type(value).__name__}): it must be {hint}")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        kinds = kinds[:1] * len(value) if kinds[-1] is ... and isinstance(value, tuple) else kinds
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint in (int, float):
        number = Integral if hint is int else Real
        return isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value)
    if hint is str:
        return isinstance(value, (str, os.PathLike))
    return isinstance(value, hint)


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
    """How many patches stay visible: `int(N · (1 − ratio))`, truncated in floating point (FACTS section 1).

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
    if width % num_heads:
        fitting = [n for n in range(1, width + 1) if width % n == 0 and 16 <= width // n <= 128]
        raise RequestError(f"{flag} got {num_heads}, which does not divide a width of {width}: {fitting} would")


@dataclass(frozen=True, kw_only=True)
class ViTShape:
    """What determines the encoder's weights. `image_size` is (height, width) in pixels."""

    image_size: tuple[int, int]
    patch_size: int
    channels: int
    width: int
    depth: int
    num_heads: int

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("patch_size", "channels", "width", "depth", "num_heads"):
            check_range(flag_of(name), getattr(self, name), 1, LARGEST[name])
        for side in self.image_size:
            check_range("--image-size", side, 1, LARGEST["image_size"])
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
    def patch_values(self) -> int:
        return self.patch_size * self.patch_size * self.channels


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """What determines the decoder's weights, beside the encoder it follows."""

    width: int
    depth: int
    num_heads: int

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("width", "depth", "num_heads"):
            check_range(flag_of("decoder_" + name), getattr(self, name), 1, LARGEST[name])
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

    def __post_init__(self) -> None:
        check_name("--target", self.target, TARGETS)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        encoder = {**values["encoder"], "image_size": tuple(values["encoder"]["image_size"])}
        return cls(**{**values, "encoder": ViTShape(**encoder), "decoder": DecoderShape(**values["decoder"])})


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a decoded image becomes the model's input; kept in every checkpoint, used by every task.

    Attributes:
        channels: 1 (grey), 3 (RGB) or as many as the data has.
        value_range: the raw values that become 0 and 1.
        mean, std: of the values after scaling to 0..1, one for each channel.
        image_size: (height, width) in pixels.
        interpolation: how images are resized (antialiased).
        background: what alpha is composited on, 0 black to 1 white.
        dtype: number type of the data: uint8, uint16 or float32.
    """

    channels: int
    value_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    interpolation: str = "bicubic"
    background: float = 1.0
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        check_types(self)
        check_name("the data's type", self.dtype, ("uint8", "uint16", "float32"))
        check_range("--background", self.background, 0, 1)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise RequestError(f"--{name} got {len(values)} values for {self.channels} channels: give one for each")
        for value in self.std:
            check_range("--std", value, 1e-6)
        if self.interpolation != "bicubic":
            raise RequestError(f"interpolation got {self.interpolation!r}: images are resized bicubically here")
        if not self.value_range[0] < self.value_range[1]:
            raise RequestError(f"--value-range got {self.value_range}: the first must lie below the second")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**settings)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Masked pre-training of a ViT on unlabelled images (paper, section 3 and table 8)."""

    data: str
    """Folder of images, parquet file or folder, or embedded:photos, embedded:digits."""
    out: str
    """Run folder to make."""
    recipe: str | None = None
    """Settings of the paper by name, e.g. mae-large; flags given beside it win."""

    # The model
    model: str | None = None
    """tiny, small, base, large or huge."""
    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    patch_size: int | None = None
    """Side of a patch in pixels."""
    image_size: int | tuple[int, int] | None = None
    """Side in pixels, or height and width."""
    channels: int | None = None
    decoder_width: int | None = None
    decoder_depth: int | None = None
    decoder_num_heads: int | None = None

    # What is hidden and what is predicted
    mask: str | None = None
    """random, block, grid (one of each 2x2 stays), or given (see --mask-file)."""
    mask_ratio: float | None = None
    mask_file: str | None = None
    """A .npy of booleans, rows x columns of patches, true where hidden; for --mask given."""
    target: str | None = None
    """pixel, or norm-pixel: normalised by each patch's own mean and standard deviation."""
    mask_tokens_in_encoder: bool = False
    """Table 1c: let mask tokens through the encoder (slower and worse)."""

    # The data
    augment: str | None = None
    """none (centre crop), crop-fixed, crop (random size, flip), or crop-jitter (table 1e)."""
    statistics: str | None = None
    """Whose mean and standard deviation: imagenet or measured."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    value_range: tuple[float, float] | None = None
    """Raw values that become 0 and 1, e.g. 0 4095 for 12-bit images in 16 bits."""
    background: float | None = None
    """What transparent pixels show: 0 black to 1 white."""
    held_out: int | None = None
    """Images taken out of training for the held-out loss when the data has no validation part."""
    max_bad: float | None = None
    """Largest tolerated fraction of unreadable files; 0.01 unless given."""
    max_pixels: int = 178_956_970
    """Images of more pixels are refused (decompression bombs)."""

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
    init: str | None = None
    """Weights to start from: a run folder, a checkpoint or its model.safetensors."""
    log_every: int | None = None
    """Steps between lines of metrics.jsonl."""
    evaluate_every: int | None = None
    """Steps between held-out losses."""
    picture_every: int | None = None
    """Steps between pictures of reconstructions."""
    save_every: int | None = None
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""

    def __post_init__(self) -> None:
        check_types(self)
        check_name("--model", self.model, SIZES)
        check_name("--mask", self.mask, MASKS)
        check_name("--target", self.target, TARGETS)
        check_name("--augment", self.augment, AUGMENTS)
        check_name("--statistics", self.statistics, STATISTICS)
        check_name("--precision", self.precision, PRECISIONS)
        for name in ("width", "depth", "num_heads", "patch_size", "channels", "decoder_width", "decoder_depth"):
            check_range(flag_of(name), getattr(self, name), 1)
        for name in ("decoder_num_heads", "steps", "batch_size", "micro_batch_size", "log_every", "keep"):
            check_range(flag_of(name), getattr(self, name), 1)
        for name in ("evaluate_every", "picture_every", "save_every", "max_pixels"):
            check_range(flag_of(name), getattr(self, name), 1)
        for name in ("workers", "held_out", "seed", "min_lr", "warmup_epochs", "weight_decay", "base_lr"):
            check_range(flag_of(name), getattr(self, name), 0)
        check_range("--seed", self.seed, 0, 2**63 - 1)
        check_range("--epochs", self.epochs, 0, open_low=True)
        check_range("--max-bad", self.max_bad, 0, 1)
        check_range("--background", self.background, 0, 1)
        check_range("--mask-ratio", self.mask_ratio, 0, 1, open_low=True, open_high=True)
        for value in self.betas or ():
            check_range("--betas", value, 0, 1, open_high=True)
        for side in self.size or ():
            check_range("--image-size", side, 1, 16384)
        if self.epochs is not None and self.steps is not None:
            raise RequestError(f"got both --epochs {self.epochs:g} and --steps {self.steps}: give one of them")
        check_mask_file(self.mask, self.mask_file)
        if (self.mean is None) != (self.std is None):
            raise RequestError("--mean and --std go together: give both or neither")

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    def explicit(self) -> dict[str, Any]:
        """The settings that differ from the defaults: what a person asked for."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values; paths as strings."""
        return {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return cls(**settings)


@dataclass(frozen=True, kw_only=True)
class SettledConfig(PretrainConfig):
    """A `PretrainConfig` without open questions; `steps` or `epochs` is set, the other is None."""

    width: int
    depth: int
    num_heads: int
    patch_size: int
    image_size: int | tuple[int, int]
    channels: int
    decoder_width: int
    decoder_depth: int
    decoder_num_heads: int
    mask: str
    mask_ratio: float
    target: str
    augment: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float]
    background: float
    max_bad: float
    batch_size: int
    micro_batch_size: int
    base_lr: float
    min_lr: float
    warmup_epochs: float
    weight_decay: float
    betas: tuple[float, float]
    seed: int
    device: str
    precision: str
    workers: int
    log_every: int
    evaluate_every: int
    picture_every: int
    save_every: int

    def __post_init__(self) -> None:
        super().__post_init__()
        narrowed = SettledConfig.__annotations__
        missing = [name for name in narrowed if getattr(self, name) is None]
        if missing or (self.steps is None) == (self.epochs is None):
            raise RequestError(f"not settled: {', '.join(missing) or 'steps or epochs'}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """Pictures of masked | reconstruction | truth (paper, figures 2 to 4)."""

    images: tuple[str, ...]
    """Image files, or one data set (folder, parquet, embedded:NAME)."""
    init: str
    """A run folder, a checkpoint or its model.safetensors."""
    out: str
    """The PNG to write."""
    mask: str | None = None
    """random, block, grid or given; by default what the model was trained with."""
    mask_ratio: float | None = None
    mask_file: str | None = None
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
    max_pixels: int = 178_956_970

    def __post_init__(self) -> None:
        check_types(self)
        if not self.images:
            raise RequestError("reconstruct got no image: name image files or a data set")
        check_name("--mask", self.mask, MASKS)
        check_name("--undo", self.undo, UNDO)
        check_range("--mask-ratio", self.mask_ratio, 0, 1, open_low=True, open_high=True)
        check_range("--limit", self.limit, 1, 1000)
        check_range("--seed", self.seed, 0, 2**63 - 1)
        for side in self.size or ():
            check_range("--image-size", side, 1, 16384)
        check_mask_file(self.mask, self.mask_file)
        if not os.fspath(self.out).lower().endswith(".png"):
            raise RequestError(f"--out got {self.out!r}: it must be a file that ends in .png")

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
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


def check_mask_file(mask: str | None, mask_file: str | None) -> None:
    if (mask == "given") != (mask_file is not None):
        raise RequestError("--mask given and --mask-file FILE.npy go together: give both or neither")


def flag_of(name: str) -> str:
    """The command-line flag of a setting: mask_ratio → --mask-ratio."""
    return "--" + name.replace("_", "-")
