"""Settings that fine-tuning and the linear probe, which train on labels, have in common."""

from dataclasses import dataclass, field

from openmae.config.checks import NONE_IS_OFF, check_name
from openmae.config.training.training import ResolvedTrainingConfig, TrainingConfig
from openmae.errors import RequestError

TASKS = ("classification", "regression")


@dataclass(frozen=True, kw_only=True)
class LabelledConfig(TrainingConfig):
    """What fine-tuning and probing have in common: the model to start from, and the labels."""

    data: str | None = None
    """Labelled images: class folders, parquet with a label column, or any folder with --label-file."""
    init: str
    """The pre-trained model: a run folder, a checkpoint, a file, timm:NAME or hf:ORG/NAME."""
    recipe: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Settings by name; flags given beside it win; --show lists and prints them."""

    # The labels
    task: str | None = None
    """classification, or regression: the labels are numbers to predict, one or several columns; class names unless
    given, and fractional numbers are asked about."""
    labels: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Train on a fixed, stratified subset only: 500, or 1%; all unless given."""
    label_file: str | None = field(default=None, metadata=NONE_IS_OFF)
    """A CSV: path,label or path,labels (a;b) or path and a 0/1 column for each class; with --task regression path and
    a column of numbers or several."""
    held_out: int | None = None
    """Images of train held out (stratified) to choose or to measure by, where DATA has not both val and test."""

    # The data
    image_size: int | tuple[int, int] | None = None
    """Side in pixels, or height and width; positions are resampled where it is not the model's own."""
    crop_scale: tuple[float, float] | None = None
    """Smallest and largest area of a random crop, of the image's; for --augment crop and crop-jitter."""
    max_bad: float | None = None
    """Largest tolerated fraction of unreadable training files; 0.01 unless given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("--task", self.task, TASKS)
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            low, high = self.crop_scale
            raise RequestError(f"--crop-scale got {low:g} {high:g}: two shares of the area, rising, above 0 to 1")

    @property
    def is_regression(self) -> bool:
        return self.task == "regression"


@dataclass(frozen=True, kw_only=True)
class ResolvedLabelledConfig(ResolvedTrainingConfig, LabelledConfig):
    """A `LabelledConfig` without open questions; `steps` or `epochs` is set, the other is None."""

    task: str = "classification"  # as in runs from before there was a choice
    crop_scale: tuple[float, float]
    crop_aspect: str = "square"  # likewise
    split_rules: int = 1  # likewise
    axes: str = "YXC"  # likewise
