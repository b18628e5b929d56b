"""Which data a command works on: DATA, whose parts are found by their names, or the parts outright."""

from dataclasses import dataclass, field

from openmae.config.checks import NONE_IS_OFF, Settings
from openmae.errors import RequestError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class SplitPaths:
    """Where the parts of a data set lie, as a person said outright; each is wholly that part.

    `str` of it is how it was said.
    """

    train: str | None = None
    val: str | None = None
    test: str | None = None

    @property
    def paths(self) -> dict[str, str]:
        """By part, those that are given."""
        return {split: path for split in SPLITS if (path := getattr(self, split)) is not None}

    def __str__(self) -> str:
        return " ".join(f"--{split} {path}" for split, path in self.paths.items())


Dataset = str | SplitPaths


@dataclass(frozen=True, kw_only=True)
class NodataSettings(Settings):
    """What every command that reads images is told of values that stand for none."""

    nodata: str | float | None = None
    """A value that stands for none, such as -9999, beside NaN and what TIFFs mark (tag 42113): a model sees its mean
    there, and pretrain scores no patches mostly of it; off: all values are data."""


@dataclass(frozen=True, kw_only=True)
class SplitSettings(NodataSettings):
    """The parts of a data set, named outright."""

    train: str | None = field(default=None, metadata=NONE_IS_OFF)
    """In place of DATA: the training images, all of PATH. With --val and --test it says what each part is."""
    val: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Beside --train: the images that things are chosen by, all of PATH."""
    test: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Beside --train: the images of the final figure, all of PATH."""

    @property
    def split_paths(self) -> SplitPaths:
        """Those that are named."""
        return SplitPaths(train=self.train, val=self.val, test=self.test)

    def check_split_paths(self, whole: str | None, name: str, needs_train: bool = True) -> None:
        """Raise RequestError unless either the whole, which has this name, or its parts are given."""
        if whole is not None and self.split_paths.paths:
            raise RequestError(
                f"got both {name} {whole} and {self.split_paths}: give {name}, or its parts in place of it"
            )
        if whole is None and not self.split_paths.paths:
            raise RequestError(f"no {name} given: name it, or --train PATH, --val PATH and --test PATH in place of it")
        if needs_train and whole is None and self.train is None:
            raise RequestError(f"got {self.split_paths} without --train: give --train PATH too")


@dataclass(frozen=True, kw_only=True)
class DataSettings(SplitSettings):
    """What every command that works on a data set is told of it."""

    data: str | None = None
    """Folder of images, parquet file or folder, a pack, or embedded:NAME."""

    @property
    def dataset(self) -> Dataset:
        """DATA, or its parts where they are named."""
        return self.split_paths if self.data is None else self.data

    def check_data(self, needs_train: bool = True) -> None:
        """Raise RequestError unless either DATA or its parts are given."""
        self.check_split_paths(self.data, "DATA", needs_train)


def paths_of(dataset: Dataset) -> list[str]:
    """The files and folders that a data set was named by; none for what comes inside a wheel."""
    named = [dataset] if isinstance(dataset, str) else list(dataset.paths.values())
    return [path for path in named if not path.startswith("embedded:")]
