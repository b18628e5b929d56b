"""What a run trains on and what it is measured on: disjoint parts of DATA."""

import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from openmae.config import Dataset, Preprocessing, PretrainConfig, SettledConfig, paths_of
from openmae.data.augment import Augmentation
from openmae.data.hand_over import goes_through_pipes
from openmae.data.loader import Batch, Stream, training_loader
from openmae.data.readers import read
from openmae.data.sources.open import Source, open_splits
from openmae.data.sources.packed import PackedSource
from openmae.data.sources.reading import reading_of
from openmae.data.sources.sizes import cut_into_tiles
from openmae.data.sources.tiles import Tiled
from openmae.data.sources.views import drawn, images_apart, split_held_out, split_tiles
from openmae.errors import RequestError
from openmae.machine.device import num_cores
from openmae.machine.parallel import Processes

HELD_OUT_IMAGES = 256
SMALLEST_SPLIT = 20  # images below which none are held out unasked


@dataclass(frozen=True)
class TrainingData:
    """`held_out` is DATA's validation part or a fixed split of its training part; None for very few images.

    `num_held_out` is what `--held-out` says of it: with tiles, images whose tiles leave training and are measured on.
    `taken` and `told` are what was taken for what, and all that is said of it: see `openmae.data.sources.open.Splits`.
    """

    train: Source
    held_out: Source | None
    num_held_out: int = 0
    taken: dict[str, str] = field(default_factory=dict)
    told: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.train) + (len(self.held_out) if self.held_out is not None else 0)

    @cached_property
    def fingerprint(self) -> str:
        """Of both parts as they were when the run looked first."""
        return f"{self.train.fingerprint()} {self.held_out.fingerprint() if self.held_out is not None else ''}"


def open_training_data(config: PretrainConfig, model: Preprocessing | None = None) -> TrainingData:
    """Open the training part of DATA and what the held-out loss is measured on.

    Args:
        model: how images become the input of the weights to start from, for what the config leaves open.

    Raises:
        RequestError: DATA cannot be used, or `--held-out` leaves nothing to train on.
    """
    check_outside(config.dataset, config.out)
    options = reading_of(config, model, config.background)
    wanted_parts = ("train",) if config.held_out == 0 else ("train", "val")
    splits = open_splits(config.dataset, wanted_parts, split_rules=config.split_rules, **options)
    named = str(config.dataset)
    told: dict[str, Any] = {"taken": splits.taken, "told": tuple(splits.lines)}
    train = _cut(splits.sources["train"], config.tiles, named)
    if config.held_out == 0:
        return TrainingData(train, None, **told)
    if "val" in splits.sources:
        validation = _cut(splits.sources["val"], config.tiles, named)
        count = min(len(validation), config.held_out or HELD_OUT_IMAGES)
        held_out = validation if count == len(validation) else split_held_out(validation, count)[1]
        return TrainingData(train, held_out, count, **told)
    numbers = images_apart(train)
    num_images = len(train) if numbers is None else len(np.unique(numbers))
    default = min(HELD_OUT_IMAGES, num_images // 20) if num_images >= SMALLEST_SPLIT else 0
    wanted = config.held_out if config.held_out is not None else default
    if wanted >= num_images:
        raise RequestError(f"--held-out {wanted} leaves nothing to train on: {named} has {num_images} images")
    if not wanted:
        return TrainingData(train, None, **told)
    if isinstance(train, Tiled | PackedSource) and numbers is not None:  # no image lies on both sides
        rest, held = split_tiles(train, wanted)
        return TrainingData(rest, drawn(held, max(HELD_OUT_IMAGES, wanted)), wanted, **told)
    return TrainingData(*split_held_out(train, wanted), wanted, **told)


def _cut(source: Source, tiles: int | None, named: str) -> Source:
    return source if tiles is None else cut_into_tiles(source, tiles, named, num_cores())


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
    is_given_up: Callable[[], bool] = lambda: False,
) -> Generator[list[Batch], None, None]:
    """The micro-batches of each of `steps` that are this process's.

    Args:
        pin: whether they are brought into page-locked memory.
        is_given_up: as of `openmae.data.readers.read`: where it says so, there are no more steps.
        is_paired: no micro-batch parts samples 2j and 2j + 1 of a batch, which are mixed with each other.

    Raises:
        RequestError: hardly anything can be read.
        Fault: a reader process died or hung.
    """
    share = processes.share(batch_size)
    if is_paired:
        pairs = processes.share(batch_size // 2)
        share = range(2 * pairs.start, 2 * pairs.stop)
    parts, num_parts = list[Batch](), -(-len(share) // micro_batch_size)
    # Of a step that is trained on and of the next, unless they were copied into page-locked memory.
    held = 2 if pin else 2 * num_parts
    per_batch = min(micro_batch_size, len(share)) * stream.bytes_per_sample
    loader = training_loader(
        stream,
        steps=steps,
        batch_size=batch_size,
        share=share,
        micro_batch_size=micro_batch_size,
        workers=workers,
        pin=pin,
        through_pipes=goes_through_pipes(per_batch, workers, held),
    )
    with closing(read(loader, is_given_up)) as batches:
        for batch in batches:
            parts.append(batch)
            if len(parts) == num_parts:
                yield parts
                parts = []


def names_of_step(stream: Stream, step: int, batch_size: int) -> list[str]:
    """The inputs that a step trained on, in the order of the batch."""
    indices, _ = stream.locate(range(step * batch_size, (step + 1) * batch_size))
    return [stream.source.name(index) for index in indices.tolist()]
