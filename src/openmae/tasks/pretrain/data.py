"""The images that a run trains on and those that it is measured on: disjoint splits of DATA."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from openmae.config import Preprocessing, PretrainConfig, ResolvedPretrainConfig
from openmae.data.augment import Augmentation
from openmae.data.loader import Stream
from openmae.data.sources.open import Source, open_splits
from openmae.data.sources.packed import PackedSource
from openmae.data.sources.reading import reading_options
from openmae.data.sources.sizes import cut_into_tiles
from openmae.data.sources.tiles import Tiled
from openmae.data.sources.views import split_held_out, split_tiles, subsample, tile_image_ids
from openmae.errors import RequestError
from openmae.machine.device import num_cores
from openmae.run.lock import check_outside

HELD_OUT_IMAGES = 256
MIN_SPLIT = 20  # images; of fewer none are held out unless requested


@dataclass(frozen=True)
class TrainingData:
    """The images to pre-train on, and those held out to measure the loss on.

    Attributes:
        held_out: DATA's validation split, or a fixed split of its training images; None for very few images.
        num_held_out: as `--held-out` counts them: of tiled images these and not their tiles.
        origins, source_lines: the folders or files that each split was read from, and what is printed about DATA:
            `origins` and `lines` of `openmae.data.sources.open.Splits`.
    """

    train: Source
    held_out: Source | None
    num_held_out: int = 0
    origins: dict[str, str] = field(default_factory=dict)
    source_lines: tuple[str, ...] = ()

    @property
    def num_images(self) -> int:
        """Images in both splits."""
        return len(self.train) + (len(self.held_out) if self.held_out is not None else 0)

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of both splits, as they were when it was first asked for."""
        return f"{self.train.fingerprint()} {self.held_out.fingerprint() if self.held_out is not None else ''}"


def open_training_data(config: PretrainConfig, model: Preprocessing | None = None) -> TrainingData:
    """Open the training split of DATA and the images that the held-out loss is measured on.

    Args:
        model: preprocessing of the model to start from, for what the config leaves open.

    Raises:
        RequestError: DATA cannot be used, or `--held-out` leaves nothing to train on.
    """
    check_outside(config.dataset, config.out)
    options = reading_options(config, model, config.background)
    wanted_splits = ("train",) if config.held_out == 0 else ("train", "val")
    splits = open_splits(config.dataset, wanted_splits, split_rules=config.split_rules, **options)
    name = str(config.dataset)
    findings: dict[str, Any] = {"origins": splits.origins, "source_lines": tuple(splits.lines)}
    train = _cut(splits.sources["train"], config.tiles, name)
    if config.held_out == 0:
        return TrainingData(train, None, **findings)
    if "val" in splits.sources:
        validation = _cut(splits.sources["val"], config.tiles, name)
        count = min(len(validation), config.held_out or HELD_OUT_IMAGES)
        held_out = validation if count == len(validation) else split_held_out(validation, count)[1]
        return TrainingData(train, held_out, count, **findings)
    numbers = tile_image_ids(train)
    num_images = len(train) if numbers is None else len(np.unique(numbers))
    default = min(HELD_OUT_IMAGES, num_images // 20) if num_images >= MIN_SPLIT else 0
    wanted = config.held_out if config.held_out is not None else default
    if wanted >= num_images:
        raise RequestError(f"--held-out {wanted} leaves nothing to train on: {name} has {num_images} images")
    if not wanted:
        return TrainingData(train, None, **findings)
    if isinstance(train, Tiled | PackedSource) and numbers is not None:  # all tiles of an image go to one side
        rest, held_out_tiles = split_tiles(train, wanted)
        return TrainingData(rest, subsample(held_out_tiles, max(HELD_OUT_IMAGES, wanted)), wanted, **findings)
    return TrainingData(*split_held_out(train, wanted), wanted, **findings)


def _cut(source: Source, tiles: int | None, name: str) -> Source:
    return source if tiles is None else cut_into_tiles(source, tiles, name, num_cores())


def make_stream(config: ResolvedPretrainConfig, preprocessing: Preprocessing, train: Source) -> Stream:
    """The endless stream of the run's training samples."""
    return Stream(
        train,
        preprocessing,
        Augmentation(kind=config.augment, crop_aspect=config.crop_aspect),
        config.seed,
        patch_size=config.patch_size,
        crops_per_decode=config.crops_per_decode,
        crop_on_device=config.crop_on == "device",
    )
