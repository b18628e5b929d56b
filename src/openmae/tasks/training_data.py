"""What a run trains on and what it is measured on: disjoint parts of DATA."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmae.config import Preprocessing, PretrainConfig
from openmae.data.loader import Batch, Stream, read, split_held_out, training_loader
from openmae.data.sources import Source, open_source
from openmae.errors import Fault, RequestError

HELD_OUT_IMAGES = 256
SMALLEST_SPLIT = 20  # images below which none are held out unasked


@dataclass(frozen=True)
class TrainingData:
    """`held_out` is DATA's validation part or a fixed split of its training part; None for very few images."""

    train: Source
    held_out: Source | None

    @property
    def count(self) -> int:
        return len(self.train) + (len(self.held_out) if self.held_out is not None else 0)

    def fingerprint(self) -> str:
        return f"{self.train.fingerprint()} {self.held_out.fingerprint() if self.held_out is not None else ''}"


def open_training_data(config: PretrainConfig) -> TrainingData:
    """Open the training part of DATA and what the held-out loss is measured on.

    Raises:
        RequestError: DATA cannot be used, or `--held-out` leaves nothing to train on.
    """
    if Path(config.data).is_dir() and Path(config.out).resolve().is_relative_to(Path(config.data).resolve()):
        raise RequestError(f"--out {config.out} lies inside {config.data}: the run's pictures would become its data")
    options: dict[str, Any] = {"max_pixels": config.max_pixels}
    if config.background is not None:
        options["background"] = config.background
    train = open_source(config.data, "train", **options)
    assert train is not None
    if config.held_out == 0:
        return TrainingData(train, None)
    validation = open_source(config.data, "val", **options)
    if validation is not None:
        count = min(len(validation), config.held_out or HELD_OUT_IMAGES)
        return TrainingData(train, validation if count == len(validation) else split_held_out(validation, count)[1])
    default = min(HELD_OUT_IMAGES, len(train) // 20) if len(train) >= SMALLEST_SPLIT else 0
    wanted = config.held_out if config.held_out is not None else default
    if wanted >= len(train):
        raise RequestError(f"--held-out {wanted} leaves nothing to train on: {config.data} has {len(train)} images")
    return TrainingData(*split_held_out(train, wanted)) if wanted else TrainingData(train, None)


def read_steps(
    config: PretrainConfig, preprocessing: Preprocessing, train: Source, first: int, last: int, pin: bool
) -> Generator[list[Batch], None, None]:
    """The micro-batches of each step from `first` to `last` − 1.

    Raises:
        RequestError: hardly anything can be read.
        Fault: a reader process died or hung.
    """
    assert config.batch_size and config.micro_batch_size and config.augment and config.patch_size
    stream = Stream(train, preprocessing, config.augment, config.seed or 0, min_side=config.patch_size)
    loader = training_loader(
        stream,
        first_step=first,
        last_step=last,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        workers=config.workers or 0,
        pin=pin,
    )
    batches, parts = read(loader), list[Batch]()
    try:
        for batch in batches:
            parts.append(batch)
            if len(parts) == config.batch_size // config.micro_batch_size:
                yield parts
                parts = []
    except RequestError as error:  # a worker's comes with its traceback before it
        raise RequestError(str(error).strip().splitlines()[-1].removeprefix("openmae.errors.RequestError: ")) from None
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        raise Fault(f"a reader process failed: {error}; --workers 0 reads in the main process") from error
    finally:
        batches.close()
