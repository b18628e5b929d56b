"""Settings of the paper's tables and figures, run at a scale that a user chooses."""

from dataclasses import dataclass, field

from openmae.config.checks import (
    NONE_IS_OFF,
    Sized,
    check_axes,
    check_name,
    check_nodata,
    check_range,
    check_types,
    check_value_range,
    flag_of,
)
from openmae.config.dataset import Dataset, SplitSettings
from openmae.config.named_init import NamedInit, named_inits
from openmae.config.training.segment import MAX_STORED_VALUE
from openmae.errors import RequestError

EXPERIMENTS = (
    "table-1",
    *(f"table-1{part}" for part in "abcdef"),
    *(f"table-{number}" for number in (2, 4, 5, 7)),
    *(f"figure-{number}" for number in (5, 6, 7, 8, 9)),
)
MAX_EPOCHS, MAX_STEPS, MAX_SEEDS, MAX_THREADS = 1e6, 10**9, 1000, 1024  # larger values are mistakes
SCALE_NAMES = ("tiny", "laptop", "gpu", "paper")
# Figure 9 compares ways of using a model that there is; the others train their own.
ONLY_FIGURE_9 = ("init", "blocks")
UNLABELLED = ("table-2", "figure-6")
TIMED = ("table-2",)
NOT_UNLABELLED = ("label_file", "labels", "held_out", "base_lr")
NOT_TIMED = ("epochs", "width", "depth")  # hours are of the paper's 800 epochs, and of two sizes of the scale's
NOT_FIGURE_9 = ("width", "depth", "patch_size", "image_size", "steps", "label_file")
OWN_ROWS = ("random init", "MAE", "random init L", "MAE L")  # of tables 4 and 5, which no row of --also may be called
OF_MASKS = ("ignore_index", "reduce_zero_label", "palette")
# What DATA of a table of transfer has; of table-7 several.
KINDS = {"table-4": ("detect",), "table-5": ("segment",), "table-7": ("labels", "segment", "detect")}
WITH_ALSO = ("table-4", "table-5")
NOT_TRANSFER_ONLY = ("label_file", "labels")


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(Sized, SplitSettings):
    """A table or figure of the paper on your data, the paper's figures beside yours."""

    name: str
    """table-1 (all six ablations) or table-1a decoder depth, 1b width, 1c mask token, 1d target, 1e augmentation, 1f
    sampling; table-2 wall clock; table-4 initialisations, by detection; table-5 likewise, by segmentation; table-7
    targets, by transfer; figure-5 mask ratio, figure-6 samplings drawn, figure-7 schedule, figure-8 model sizes;
    figure-9 the last blocks of --init fine-tuned."""
    data: str | tuple[str, ...] | None = None
    """Labelled images with a test or val part; table-2 and figure-6 need no labels, table-4 needs images with COCO
    JSON, table-5 images with masks, table-7 takes one to three of these."""
    out: str
    """Folder of the experiment; the same command goes on where it was stopped."""

    # How much
    scale: str | None = None
    """tiny (a minute, to try), laptop (a night on two cores), gpu (an hour) or paper: the paper's own settings, as
    commands for a cluster."""
    seeds: int | None = None
    """Runs of every row with seeds 0, 1, …; the default row is run three times at least, for its spread, and every row
    of table-2. Of figure-9 only the probe is repeated."""
    run: bool = False
    """With --scale paper: run the rows here and now; else their commands are printed."""

    # The default row, in place of the scale's
    width: int | None = None
    """Of the encoder; the decoder is half as wide."""
    depth: int | None = None
    patch_size: int | None = None
    """Side of a patch in pixels."""
    image_size: int | tuple[int, int] | None = None
    """Side in pixels, or height and width."""
    steps: int | None = None
    """Of pre-training; fine-tuning sees a share of its images. table-2: that are timed."""
    epochs: tuple[float, ...] | None = None
    """Of pre-training, in place of --steps; figure-9: of every fine-tuning and of training from scratch, for each of
    --labels."""
    batch_size: int | None = None
    """Images a step of pre-training; figure-9: of fine-tuning and of training from scratch."""
    base_lr: tuple[float, ...] | None = None
    """Rates at a batch of 256 that fine-tuning chooses from, by val or a split of train."""

    # The labels
    label_file: str | None = field(default=None, metadata=NONE_IS_OFF)
    """A CSV: path,label."""
    labels: tuple[str, ...] | None = None
    """A share of the labels to measure with, such as 10%; figure-9: several, each a column."""
    held_out: int | None = None
    """Images of train that choose the rate, where DATA has not both val and test."""

    # Figure 9
    init: str | None = field(default=None, metadata=NONE_IS_OFF)
    """figure-9: the pre-trained model."""
    blocks: tuple[float, ...] | None = None
    """figure-9: how many last blocks to train, beside none (the probe) and all."""

    # Tables 4, 5 and 7
    also: tuple[str, ...] | None = field(default=None, metadata=NONE_IS_OFF)
    """table-4, table-5: further models to compare, each [NAME=]INIT: a run folder, a file, timm:NAME or hf:ORG/NAME."""
    ignore_index: int | None = None
    """Value in a mask of pixels without a class; 255 unless given, -1: there is none."""
    reduce_zero_label: bool = False
    """Value 0 in a mask is no class, and value 1 the first one (ADE20K)."""
    palette: str | None = field(default=None, metadata=NONE_IS_OFF)
    """For masks in colours: a file with a line for each class, red green blue and its name."""

    # The images
    value_range: tuple[float, float] | None = None
    """Raw values that become the model's 0 and 1, such as 0 4095 for 12-bit images in 16 bits."""
    axes: str | None = None
    """The order of the axes of 3-D .npy arrays (channels, rows, columns): CYX or YXC; by their shapes unless given."""

    max_bad: float | None = None
    """Largest tolerated fraction of unreadable training files; 0.01 unless given."""

    # The machine
    jobs: int | None = None
    """Rows at a time, side by side as processes; as many as cores or GPUs allow. Results do not depend on it."""
    threads: int | None = None
    """CPU threads of a row, whatever --jobs is."""
    device: str | tuple[str, ...] | None = None
    """cpu, cuda, mps, or several such as cuda:0 cuda:1, over which the rows are spread."""
    workers: int | None = None
    """Processes of a row that read images."""

    def __post_init__(self) -> None:
        check_types(self)
        self.check_split_paths(" ".join(self.paths) or None, "DATA")
        check_name("the experiment", self.name, EXPERIMENTS)
        check_name("--scale", self.scale, SCALE_NAMES)
        check_value_range(self.value_range)
        check_axes(self.axes)
        check_nodata(self.nodata)
        self.check_size()
        self._check_transfer()
        if self.is_figure_9:
            self._check_figure_9()
        else:
            self._check_others()
        for value in self.epochs or ():
            check_range("--epochs", value, 0, MAX_EPOCHS, open_low=True)
        for name, most in (("seeds", MAX_SEEDS), ("steps", MAX_STEPS), ("threads", MAX_THREADS)):
            check_range(flag_of(name), getattr(self, name), 1, most)
        for value in self.base_lr or ():
            check_range("--base-lr", value, 0, open_low=True)
        for name in ("seeds", "batch_size", "held_out", "jobs", "threads", "width", "depth", "patch_size", "steps"):
            check_range(flag_of(name), getattr(self, name), 1)
        check_range("--workers", self.workers, 0)
        check_range("--max-bad", self.max_bad, 0, 1)
        if self.run and self.scale != "paper":
            raise RequestError("--run is for --scale paper, which otherwise prints its commands: leave it out")

    def _check_figure_9(self) -> None:
        if self.init is None:
            raise RequestError("figure-9 compares ways of using a trained model: name it, --init RUN")
        if self.scale == "paper":
            raise RequestError("--scale paper is for experiments that pre-train: figure-9 has what --init has")
        for name in NOT_FIGURE_9:
            if getattr(self, name) is not None:
                raise RequestError(f"{flag_of(name)} is not for figure-9: leave it out")
        if self.labels is not None and self.epochs is not None and len(self.epochs) != len(self.labels):
            raise RequestError(
                f"--epochs got {len(self.epochs)} values for {len(self.labels)} --labels: give one for each"
            )
        if self.labels == () or self.base_lr == ():
            raise RequestError("--labels and --base-lr each need a value at least")
        for value in self.blocks or ():
            check_range("--blocks", value, 0, open_low=True)

    def _check_others(self) -> None:
        for name in ONLY_FIGURE_9:
            if getattr(self, name) is not None:
                raise RequestError(f"{flag_of(name)} is for figure-9, {self.name} trains its own models: leave it out")
        for name in ("labels", "epochs"):
            if (values := getattr(self, name)) is not None and len(values) != 1:
                raise RequestError(f"{flag_of(name)} got {len(values)} values, and {self.name} takes one")
        if self.base_lr == ():
            raise RequestError("--base-lr needs a value at least")
        if self.scale == "paper":
            for name in ("width", "depth", "patch_size", "image_size", "steps"):
                if getattr(self, name) is not None:
                    raise RequestError(f"{flag_of(name)} is the paper's at --scale paper: leave it out")
        if self.epochs is not None and self.steps is not None:
            raise RequestError(f"got both --epochs {self.epochs[0]:g} and --steps {self.steps}: give one of them")
        if self.name in UNLABELLED:
            self._check_absent(NOT_UNLABELLED, "needs no labels and tunes nothing")
        if self.name in WITH_ALSO:
            by = "objects" if self.name == "table-4" else "masks"
            self._check_absent(NOT_TRANSFER_ONLY, f"measures by {by}")
        if self.is_timed:
            self._check_absent(NOT_TIMED, "times two sizes of --scale and says the hours of the paper's 800 epochs")
            if (self.jobs or 1) > 1 or len(self.devices) > 1:
                what = (
                    f"--jobs got {self.jobs}" if (self.jobs or 1) > 1 else f"--device got {len(self.devices)} devices"
                )
                raise RequestError(f"{what}, and {self.name} times its rows one at a time, on one device: leave it out")

    def _check_transfer(self) -> None:
        if len(self.paths) > len(self.kinds):
            most = "one with labels, one with masks and one with objects" if self.name == "table-7" else "one"
            raise RequestError(f"got {len(self.paths)} DATA, {' '.join(self.paths)}, and {self.name} takes {most}")
        if len(set(self.paths)) < len(self.paths):
            raise RequestError(f"DATA got {self.paths[0]} twice: leave one of them out")
        if "segment" not in self.kinds:
            for name in OF_MASKS:
                if getattr(self, name) not in (None, False):
                    raise RequestError(f"{flag_of(name)} is about masks, which {self.name} has none of: leave it out")
        if self.also is not None and self.name not in WITH_ALSO:
            tables = " and ".join(WITH_ALSO)
            raise RequestError(f"--also is for {tables}, {self.name} compares no other models: leave it out")
        check_range("--ignore-index", self.ignore_index, -1, MAX_STORED_VALUE)
        named_inits(self.also or (), OWN_ROWS)

    def _check_absent(self, names: tuple[str, ...], why: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise RequestError(f"{flag_of(name)} is not for {self.name}, which {why}: leave it out")

    @property
    def is_figure_9(self) -> bool:
        return self.name == "figure-9"

    @property
    def needs_labels(self) -> bool:
        """Whether it measures by labels, one class an image."""
        return self.name not in UNLABELLED and "labels" in self.kinds

    @property
    def kinds(self) -> tuple[str, ...]:
        """What DATA it can measure on: labels, segment (masks), detect (objects)."""
        return KINDS.get(self.name, ("labels",))

    @property
    def also_inits(self) -> tuple[NamedInit, ...]:
        """The rows that `--also` asks for."""
        return named_inits(self.also or (), OWN_ROWS)

    @property
    def is_timed(self) -> bool:
        """Whether it measures times: its rows run alone, with all that the machine has."""
        return self.name in TIMED

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that are named; none where that is left open."""
        return (self.device,) if isinstance(self.device, str) else self.device or ()

    @property
    def paths(self) -> tuple[str, ...]:
        """DATA as it was given; none where its splits are."""
        return (self.data,) if isinstance(self.data, str) else self.data or ()

    @property
    def dataset(self) -> Dataset:
        """DATA, or the paths of its splits; the first of several."""
        return self.split_paths if self.data is None else self.paths[0]
