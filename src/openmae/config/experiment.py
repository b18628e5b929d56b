"""Settings of the paper's tables and figures, run at a scale that a user chooses."""

from dataclasses import dataclass

from openmae.config.checks import check_axes, check_name, check_nodata, check_range, check_types, check_value_range
from openmae.config.dataset import Dataset, SplitSettings
from openmae.errors import RequestError

EXPERIMENTS = ("figure-9",)


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(SplitSettings):
    """A table or figure of the paper on your data: figure-9, partial fine-tuning between probe and full."""

    name: str
    """figure-9: kNN, linear probe, the last blocks, full fine-tuning and from scratch."""
    data: str | None = None
    """Labelled images with a test or val part."""
    init: str
    """The pre-trained model."""
    out: str
    """Folder of the experiment; the same command goes on where it was stopped."""
    labels: tuple[str, ...] = ("1%", "10%", "100%")
    """Shares of the labels to train on."""
    epochs: tuple[float, ...] = (40.0, 10.0, 5.0)
    """Epochs of every fine-tuning and of training from scratch, for each of --labels; the probe has its own."""
    blocks: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """How many last blocks to train, beside none (the probe) and all."""
    base_lr: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Rates at a batch of 256 that fine-tuning and training from scratch choose from, by val or a split of train."""
    seeds: int = 3
    """Seeds of the probe; all other runs have one."""
    batch_size: int = 128
    """Images a step of fine-tuning and of training from scratch; the probe has its own."""
    held_out: int = 1000
    """Images of train that choose the rate, where DATA has not both val and test."""
    value_range: tuple[float, float] | None = None
    """Raw values that become the model's 0 and 1, such as 0 4095 for 12-bit images in 16 bits."""
    axes: str | None = None
    """The order of the axes of 3-D .npy arrays (channels, rows, columns): CYX or YXC; by their shapes unless given."""
    device: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        self.check_split_paths(self.data, "DATA")
        check_name("the experiment", self.name, EXPERIMENTS)
        check_value_range(self.value_range)
        check_axes(self.axes)
        check_nodata(self.nodata)
        if len(self.epochs) != len(self.labels):
            raise RequestError(
                f"--epochs got {len(self.epochs)} values for {len(self.labels)} --labels: give one for each"
            )
        if not (self.labels and self.base_lr):
            raise RequestError("--labels and --base-lr each need a value at least")
        for value in (*self.epochs, *self.base_lr):
            check_range("--epochs and --base-lr", value, 0, open_low=True)
        for value in self.blocks:
            check_range("--blocks", value, 0, open_low=True)
        for flag, number in (("--seeds", self.seeds), ("--batch-size", self.batch_size), ("--held-out", self.held_out)):
            check_range(flag, number, 1)

    @property
    def dataset(self) -> Dataset:
        """DATA, or the paths of its splits."""
        return self.split_paths if self.data is None else self.data
