"""The data of a command: DATA, whose splits are found by their names, or a path for each split."""

from dataclasses import dataclass, field

from openmae.config.checks import NONE_IS_OFF, Settings
from openmae.errors import RequestError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class SplitPaths:
    """A path for each split of a data set, as given by --train, --val and --test; all of a path is that split.

    `str` of it is as it was typed.
    """

    train: str | None = None
    val: str | None = None
    test: str | None = None

    @property
    def paths(self) -> dict[str, str]:
        """The paths that are given, by split."""
        return {split: path for split in SPLITS if (path := getattr(self, split)) is not None}

    def __str__(self) -> str:
        return " ".join(f"--{split} {path}" for split, path in self.paths.items())


Dataset = str | SplitPaths


@dataclass(frozen=True, kw_only=True)
class NodataSettings(Settings):
    """The setting of all commands that read images about values that stand for no data."""

    nodata: str | float | None = None
    """A value that stands for none, such as -9999, beside NaN and what TIFFs mark (tag 42113): a model sees its mean
    there, and pretrain scores no patches mostly of it; off: all values are data."""


@dataclass(frozen=True, kw_only=True)
class SplitSettings(NodataSettings):
    """Settings that give a path for each split of a data set."""

    train: str | None = field(default=None, metadata=NONE_IS_OFF)
    """In place of DATA: the training images, all of PATH. With --val and --test it says what each part is."""
    val: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Beside --train: the images that things are chosen by, all of PATH."""
    test: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Beside --train: the images of the final figure, all of PATH."""

    @property
    def split_paths(self) -> SplitPaths:
        """The paths of the splits that are given."""
        return SplitPaths(train=self.train, val=self.val, test=self.test)

    def check_split_paths(self, whole: str | None, name: str, needs_train: bool = True) -> None:
        """Raise RequestError unless either the whole data set, in messages called `name`, or its splits are given."""
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
    """The settings of all commands that work on a data set: DATA, or a path for each split."""

    data: str | None = None
    """Folder of images, parquet file or folder, a pack, or embedded:NAME."""

    @property
    def dataset(self) -> Dataset:
        """DATA, or the paths of its splits."""
        return self.split_paths if self.data is None else self.data

    def check_data(self, needs_train: bool = True) -> None:
        """Raise RequestError unless either DATA or its splits are given."""
        self.check_split_paths(self.data, "DATA", needs_train)


def words_of(dataset: Dataset) -> list[str]:
    """The words that name a data set in a command."""
    if isinstance(dataset, str):
        return [dataset]
    return [word for split, path in dataset.paths.items() for word in (f"--{split}", path)]


def paths_of(dataset: Dataset) -> list[str]:
    """The files and folders of a data set as they were given; none for `embedded:` ones, which come in wheels."""
    named = [dataset] if isinstance(dataset, str) else list(dataset.paths.values())
    return [path for path in named if not path.startswith("embedded:")]
