"""Settings of masked pre-training."""

from dataclasses import dataclass, field

from openmae.config.checks import NONE_IS_OFF, check_name, check_range, check_tiles, flag_of
from openmae.config.shapes import SIZES, TARGETS
from openmae.config.training.training import (
    AUGMENTS,
    AdamWSettings,
    ResolvedTrainingConfig,
    StatisticsSettings,
    TrainingConfig,
)
from openmae.errors import RequestError

MASKS = ("random", "block", "grid", "given")
CROP_LOCATIONS = ("reader", "device")
WATCH_METHODS = ("knn", "probe")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(StatisticsSettings, AdamWSettings, TrainingConfig):
    """Masked pre-training of a ViT on unlabelled images (paper, section 3 and table 8)."""

    recipe: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Settings of the paper by name, e.g. mae-large; flags given beside it win."""

    # The model
    model: str | None = None
    """tiny, small, base, large or huge."""
    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    patch_size: int | None = None
    """Side of a patch in pixels."""
    channels: int | None = None
    decoder_width: int | None = None
    decoder_depth: int | None = None
    decoder_num_heads: int | None = None

    # What is hidden and what is predicted
    mask: str | None = None
    """random, block, grid (one of each 2x2 stays), or given (see --mask-file)."""
    mask_ratio: float | None = None
    mask_file: str | None = field(default=None, metadata=NONE_IS_OFF)
    """A .npy of booleans, rows x columns of patches, true where hidden; for --mask given."""
    target: str | None = None
    """pixel; norm-pixel: normalised by each patch's own mean and standard deviation; pca: the largest principal
    components of the patches; or token: the tokens that --tokenizer gives them."""
    pca_coefficients: int | None = None
    """How many components --target pca predicts; an eighth of a patch's values unless given."""
    tokenizer: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Of --target token: a run of openmae tokenizer, a folder of transformers' FLAVA image codebook, or
    hf:facebook/flava-image-codebook."""
    mask_tokens_in_encoder: bool = False
    """Table 1c: let mask tokens through the encoder (slower and worse)."""

    # The data
    augment: str | None = None
    """none (centre crop), crop-fixed, crop (random size, flip), or crop-jitter (table 1e)."""
    tiles: int | None = field(default=None, metadata=NONE_IS_OFF)
    """Side in pixels: cut larger images into tiles of that side, each a sample; an epoch counts tiles. Pack PNG and
    JPEG first (openmae pack --tiles): each tile decodes its whole file."""

    # The run
    compile: bool | None = None
    """Compile the model (torch.compile): faster on GPUs after a minute, not on CPUs."""
    recompute: bool | None = None
    """Compute norms and GELU again in the backward pass: keeps about 0.65 of the activations, the same results; unasked
    where memory is short."""
    bf16_residual: bool | None = None
    """For --precision bf16: the residual stream is bf16 too, weights are not; saves with --compile or --recompute."""
    crops_per_decode: int = 1
    """Crops of an image in a row, which is decoded once for them: less reading, and batches of fewer different images.
    An epoch stays as many crops as there are images."""
    crop_on: str | None = None
    """reader, or device: readers only copy images of a raw pack, and the device crops and resizes them in a batch; of
    those the default on CUDA. Pixels differ by what a reader rounds: a run keeps it."""
    init: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Weights to start from: a run folder, a checkpoint, a file, timm:NAME or hf:ORG/NAME."""
    picture_every: int | None = None
    """Steps between pictures of reconstructions."""
    watch: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Look at labels on the way: knn or probe (logistic regression) on mean patch tokens; training never sees them."""
    watch_data: str | None = None
    """Labelled data to watch on, DATA unless given; its test part is left alone."""
    watch_every: int | None = None
    """Steps between looks at labels; as --evaluate-every unless given."""
    watch_images: int = 2000
    """At most this many images to learn from, and this many to ask about."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("--model", self.model, SIZES)
        check_name("--mask", self.mask, MASKS)
        check_name("--target", self.target, TARGETS)
        check_name("--augment", self.augment, AUGMENTS)
        check_name("--crop-on", self.crop_on, CROP_LOCATIONS)
        check_name("--watch", self.watch, WATCH_METHODS)
        for name in ("width", "depth", "num_heads", "patch_size", "channels", "decoder_width", "decoder_depth"):
            check_range(flag_of(name), getattr(self, name), 1)
        for name in ("decoder_num_heads", "pca_coefficients", "crops_per_decode"):
            check_range(flag_of(name), getattr(self, name), 1)
        for name in ("picture_every", "watch_every", "watch_images"):
            check_range(flag_of(name), getattr(self, name), 1)
        check_range("--mask-ratio", self.mask_ratio, 0, 1, open_low=True, open_high=True)
        self.check_statistics()
        self.check_adamw()
        check_mask_file(self.mask, self.mask_file)
        if self.resume == "never" and self.recipe is None:
            check_token_target(self.target, self.tokenizer, self.init)
        if self.watch is None and (self.watch_data is not None or self.watch_every is not None):
            given = "--watch-data" if self.watch_data is not None else "--watch-every"
            raise RequestError(f"{given} is for --watch: give --watch knn or --watch probe too")
        check_tiles(self.tiles, self.size)
        if self.patch_size is not None:
            check_tiles(self.tiles, (self.patch_size, self.patch_size), "--patch-size")


@dataclass(frozen=True, kw_only=True)
class ResolvedPretrainConfig(ResolvedTrainingConfig, PretrainConfig):
    """A `PretrainConfig` without open questions; `steps` or `epochs` is set, the other is None."""

    width: int
    depth: int
    num_heads: int
    patch_size: int
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
    axes: str = "YXC"  # as in runs from before there was a choice
    base_lr: float
    betas: tuple[float, float]
    compile: bool = False  # as in runs from before there was a choice
    recompute: bool = False
    bf16_residual: bool = False
    crop_on: str = "reader"  # as in runs from before there was a choice
    crop_aspect: str = "square"  # likewise
    split_rules: int = 1  # likewise
    picture_every: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_on == "device" and self.augment == "crop-jitter":
            raise RequestError(
                "--crop-on device: --augment crop-jitter goes on with the crop where it is read; give --crop-on reader"
            )
        if self.bf16_residual and self.precision != "bf16":
            raise RequestError(
                f"--bf16-residual is for --precision bf16, and this run computes in {self.precision}: leave it out"
            )
        if self.batch_size % self.crops_per_decode:
            raise RequestError(
                f"--crops-per-decode got {self.crops_per_decode}, which does not divide --batch-size {self.batch_size}"
            )


def check_mask_file(mask: str | None, mask_file: str | None) -> None:
    """Raise RequestError where one of `--mask given` and `--mask-file` comes without the other."""
    if (mask == "given") != (mask_file is not None):
        raise RequestError("--mask given and --mask-file FILE.npy go together: give both or neither")


def check_token_target(target: str | None, tokenizer: str | None, init: str | None) -> None:
    """Raise RequestError where one of `--target token` and `--tokenizer` comes without the other.

    Args:
        target: None where it is open: `--init` decides it.
        init: a model that may have a tokenizer of its own.
    """
    if tokenizer is not None and target != "token" and (target is not None or init is None):
        found = "" if target is None else f", and this is --target {target}"
        raise RequestError(f"--tokenizer is for --target token{found}: give both or neither")
    if target == "token" and tokenizer is None and init is None:
        raise RequestError(
            "--target token predicts the tokens of --tokenizer T, which is missing: give a run of openmae tokenizer "
            "or hf:facebook/flava-image-codebook"
        )
