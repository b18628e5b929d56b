"""What a run trains on and what it is measured on: disjoint parts of DATA."""

import os
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from openmae.config import Dataset, Preprocessing, PretrainConfig, SettledConfig, paths_of
from openmae.data.augment import Augmentation
from openmae.data.loader import Batch, Stream, read, training_loader
from openmae.data.parts import split_held_out
from openmae.data.sources import Source, open_splits
from openmae.errors import Fault, RequestError
from openmae.training.parallel import Processes

HELD_OUT_IMAGES = 256
SMALLEST_SPLIT = 20  # images below which none are held out unasked


@dataclass(frozen=True)
class TrainingData:
    """`held_out` is DATA's validation part or a fixed split of its training part; None for very few images.

    `taken` and `told` are what was taken for what, and all that is said of it: see `openmae.data.sources.Splits`.
    """

    train: Source
    held_out: Source | None
    taken: dict[str, str] = field(default_factory=dict)
    told: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.train) + (len(self.held_out) if self.held_out is not None else 0)

    @cached_property
    def fingerprint(self) -> str:
        """Of both parts as they were when the run looked first."""
        return f"{self.train.fingerprint()} {self.held_out.fingerprint() if self.held_out is not None else ''}"


def open_training_data(config: PretrainConfig, background: float | None = None) -> TrainingData:
    """Open the training part of DATA and what the held-out loss is measured on.

    Args:
        background: what alpha is composited on, where the config leaves it open.

    Raises:
        RequestError: DATA cannot be used, or `--held-out` leaves nothing to train on.
    """
    check_outside(config.dataset, config.out)
    options: dict[str, Any] = {"max_pixels": config.max_pixels, "split_rules": config.split_rules}
    background = background if config.background is None else config.background
    if background is not None:
        options["background"] = background
    splits = open_splits(config.dataset, ("train",) if config.held_out == 0 else ("train", "val"), **options)
    train, validation = splits.sources["train"], splits.sources.get("val")
    told: dict[str, Any] = {"taken": splits.taken, "told": tuple(splits.lines)}
    if config.held_out == 0:
        return TrainingData(train, None, **told)
    if validation is not None:
        count = min(len(validation), config.held_out or HELD_OUT_IMAGES)
        held_out = validation if count == len(validation) else split_held_out(validation, count)[1]
        return TrainingData(train, held_out, **told)
    default = min(HELD_OUT_IMAGES, len(train) // 20) if len(train) >= SMALLEST_SPLIT else 0
    wanted = config.held_out if config.held_out is not None else default
    if wanted >= len(train):
        raise RequestError(f"--held-out {wanted} leaves nothing to train on: {config.dataset} has {len(train)} images")
    return TrainingData(*(split_held_out(train, wanted) if wanted else (train, None)), **told)


def check_outside(data: Dataset, out: str) -> None:
    """Raise RequestError where the run folder would lie among its data."""
    for path in paths_of(data):
        if os.path.isdir(path) and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(path)):
            raise RequestError(f"--out {out} lies inside {path}: the run's pictures would become its data")


def make_stream(config: SettledConfig, preprocessing: Preprocessing, train: Source) -> Stream:
    """The endless stream of the run's training samples."""
    return Stream(
        train,
        preprocessing,
        Augmentation(kind=config.augment, crop_aspect=config.crop_aspect),
        config.seed,
        min_side=config.patch_size,
        crops_per_decode=config.crops_per_decode,
        is_whole=config.crop_on == "device",
    )


def read_steps(
    stream: Stream,
    batch_size: int,
    micro_batch_size: int,
    workers: int,
    steps: range,
    processes: Processes,
    pin: bool,
    is_paired: bool = False,
) -> Generator[list[Batch], None, None]:
    """The micro-batches of each of `steps` that are this process's.

    Args:
        is_paired: no micro-batch parts samples 2j and 2j + 1 of a batch, which are mixed with each other.

    Raises:
        RequestError: hardly anything can be read.
        Fault: a reader process died or hung.
    """
    share = processes.share(batch_size)
    if is_paired:
        pairs = processes.share(batch_size // 2)
        share = range(2 * pairs.start, 2 * pairs.stop)
    loader = training_loader(
        stream,
        steps=steps,
        batch_size=batch_size,
        share=share,
        micro_batch_size=micro_batch_size,
        workers=workers,
        pin=pin,
    )
    batches, parts, num_parts = read(loader), list[Batch](), -(-len(share) // micro_batch_size)
    try:
        for batch in batches:
            parts.append(batch)
            if len(parts) == num_parts:
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


def names_of_step(stream: Stream, step: int, batch_size: int) -> list[str]:
    """The inputs that a step trained on, in the order of the batch."""
    indices, _ = stream.locate(range(step * batch_size, (step + 1) * batch_size))
    return [stream.source.name(index) for index in indices.tolist()]
