"""Settings of masked pre-training."""

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
from openmae.config.shapes import SIZES, TARGETS
from openmae.errors import RequestError

MASKS = ("random", "block", "grid", "given")
AUGMENTS = ("none", "crop-fixed", "crop", "crop-jitter")
CROP_LOCATIONS = ("reader", "device")
CROP_ASPECTS = ("model", "square")
STATISTICS = ("imagenet", "measured")
PRECISIONS = ("fp32", "bf16")
WATCH_METHODS = ("knn", "probe")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Sized, DataSettings):
    """Masked pre-training of a ViT on unlabelled images (paper, section 3 and table 8)."""

    data: str | None = None
    """Folder of images, parquet file or folder, a pack, or embedded:photos, embedded:digits."""
    out: str
    """Run folder to make."""
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
    crop_aspect: str | None = None
    """model: random crops have the model's aspect, give or take a third, and may lie anywhere; square: as in runs from
    before there was a choice, which keep it."""
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
    """Side in pixels: cut larger images into tiles of that side, each a sample; an epoch counts tiles. Pack PNG and
    JPEG first (openmae pack --tiles): each tile decodes its whole file."""
    split_rules: int | None = None
    """How the parts of DATA are found: 2, see docs/data.md; 1, as in runs from before there was a choice."""
    held_out: int | None = None
    """Images for the held-out loss, of the validation part or, where there is none, taken out of training; 0 is off."""
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

    # The run
    seed: int | None = None
    device: str | None = None
    """cpu, cuda, cuda:1, mps; by default the best there is."""
    precision: str | None = None
    """fp32 or bf16."""
    compile: bool | None = None
    """Compile the model (torch.compile): faster on GPUs after a minute, not on CPUs."""
    recompute: bool | None = None
    """Compute norms and GELU again in the backward pass: keeps about 0.65 of the activations, the same results; unasked
    where memory is short."""
    bf16_residual: bool | None = None
    """For --precision bf16: the residual stream is bf16 too, weights are not; saves with --compile or --recompute."""
    workers: int | None = None
    """Processes that read images."""
    crops_per_decode: int = 1
    """Crops of an image in a row, which is decoded once for them: less reading, and batches of fewer different images.
    An epoch stays as many crops as there are images."""
    crop_on: str | None = None
    """reader, or device: readers only copy images of a raw pack, and the device crops and resizes them in a batch; of
    those the default on CUDA. Pixels differ by what a reader rounds: a run keeps it."""
    resume: str = "never"
    """never, auto (start or continue), or the path of a checkpoint."""
    init: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Weights to start from: a run folder, a checkpoint, a file, timm:NAME or hf:ORG/NAME."""
    log_every: int | None = None
    """Steps between lines of metrics.jsonl."""
    evaluate_every: int | None = None
    """Steps between held-out losses."""
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
    save_every: int | None = None
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""

    def __post_init__(self) -> None:
        check_types(self)
        self.check_data()
        check_name("--model", self.model, SIZES)
        check_name("--mask", self.mask, MASKS)
        check_name("--target", self.target, TARGETS)
        check_name("--augment", self.augment, AUGMENTS)
        check_name("--crop-on", self.crop_on, CROP_LOCATIONS)
        check_name("--crop-aspect", self.crop_aspect, CROP_ASPECTS)
        check_name("--statistics", self.statistics, STATISTICS)
        check_name("--precision", self.precision, PRECISIONS)
        check_name("--watch", self.watch, WATCH_METHODS)
        for name in ("width", "depth", "num_heads", "patch_size", "channels", "decoder_width", "decoder_depth"):
            check_range(flag_of(name), getattr(self, name), 1)
        for name in (
            "decoder_num_heads",
            "pca_coefficients",
            "steps",
            "batch_size",
            "micro_batch_size",
            "log_every",
            "keep",
        ):
            check_range(flag_of(name), getattr(self, name), 1)
        for name in ("evaluate_every", "picture_every", "save_every", "watch_every", "watch_images"):
            check_range(flag_of(name), getattr(self, name), 1)
        for name in ("workers", "held_out", "seed", "min_lr", "warmup_epochs", "weight_decay", "base_lr"):
            check_range(flag_of(name), getattr(self, name), 0)
        check_range("--seed", self.seed, 0, 2**63 - 1)
        check_range("--split-rules", self.split_rules, 1, 2)
        check_range("--crops-per-decode", self.crops_per_decode, 1)
        check_range("--epochs", self.epochs, 0, open_low=True)
        check_range("--max-bad", self.max_bad, 0, 1)
        check_range("--background", self.background, 0, 1)
        check_range("--mask-ratio", self.mask_ratio, 0, 1, open_low=True, open_high=True)
        for value in self.betas or ():
            check_range("--betas", value, 0, 1, open_high=True)
        check_images(self)
        self.check_size()
        if self.epochs is not None and self.steps is not None:
            raise RequestError(f"got both --epochs {self.epochs:g} and --steps {self.steps}: give one of them")
        check_mask_file(self.mask, self.mask_file)
        if self.resume == "never" and self.recipe is None:
            check_token_target(self.target, self.tokenizer, self.init)
        if self.watch is None and (self.watch_data is not None or self.watch_every is not None):
            given = "--watch-data" if self.watch_data is not None else "--watch-every"
            raise RequestError(f"{given} is for --watch: give --watch knn or --watch probe too")
        check_tiles(self.tiles, self.size)
        if self.patch_size is not None:
            check_tiles(self.tiles, (self.patch_size, self.patch_size), "--patch-size")
        if (self.mean is None) != (self.std is None):
            raise RequestError("--mean and --std go together: give both or neither")


@dataclass(frozen=True, kw_only=True)
class ResolvedPretrainConfig(ResolvedSize, PretrainConfig):
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
    axes: str = "YXC"  # as in runs from before there was a choice
    nodata: str | float = OFF  # likewise
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
    compile: bool = False  # as in runs from before there was a choice
    recompute: bool = False
    bf16_residual: bool = False
    workers: int
    crop_on: str = "reader"  # as in runs from before there was a choice
    crop_aspect: str = "square"  # likewise
    split_rules: int = 1  # likewise
    log_every: int
    evaluate_every: int
    picture_every: int
    save_every: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_resolved(self)
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
