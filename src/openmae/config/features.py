"""Settings of the commands that use a frozen encoder: nearest neighbours, a table of features, attention maps."""

import os
from dataclasses import dataclass, field
from typing import Any

from openmae.config.checks import (
    MAX_PIXELS,
    NONE_IS_OFF,
    Sized,
    check_images,
    check_name,
    check_range,
    check_tiles,
    check_types,
)
from openmae.config.dataset import DataSettings, NodataSettings
from openmae.config.shapes import DEFAULT_POOL, POOLS
from openmae.config.training.labelled import TASKS
from openmae.config.training.training import PRECISIONS
from openmae.errors import RequestError

EMBED_POOLS = (*POOLS, "grid")
EMBED_SPLITS = ("all", "train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class KnnConfig(Sized, DataSettings):
    """Weighted nearest neighbours among frozen features: how good they are without training anything on them."""

    data: str | None = None
    """Labelled images: class folders, parquet with a label column, or any folder with --label-file."""
    init: str
    """The pre-trained model: a run folder, a checkpoint, a file, timm:NAME or hf:ORG/NAME."""
    out: str
    """Run folder to make."""
    k: tuple[int, ...] = (10, 20)
    """Numbers of neighbours that vote; the first one's accuracy is top1, another's top1_k20 (of 20)."""
    temperature: float = 0.07
    """A neighbour's vote is exp(cosine similarity / temperature)."""
    pool: str = DEFAULT_POOL
    """cls or mean (of the patch tokens)."""
    layer: int | None = field(default=None, metadata=NONE_IS_OFF)
    """After which block, from 1; by default the last, and the norm behind it."""

    # The labels
    task: str | None = None
    """classification, or regression: the labels are numbers, and a neighbour's vote weighs its numbers; class names
    unless given, and fractional numbers are asked about."""
    labels: str | None = field(default=None, metadata=NONE_IS_OFF)
    """Look for neighbours in a fixed, stratified subset of train only: 500, or 1%."""
    label_file: str | None = field(default=None, metadata=NONE_IS_OFF)
    """A CSV: path,label; with --task regression path and a column of numbers or several."""
    held_out: int | None = None
    """Images of train held out (stratified) to measure by, where DATA has neither val nor test."""

    # The data
    image_size: int | tuple[int, int] | None = None
    """Side in pixels, or height and width; positions are resampled where it is not the model's own."""
    max_bad: float = 0.01
    """Largest tolerated fraction of unreadable training files; unreadable test files are counted."""
    value_range: tuple[float, float] | None = None
    """Raw values that become the model's 0 and 1, such as 0 4095 for 12-bit images in 16 bits."""
    axes: str | None = None
    """The order of the axes of 3-D .npy arrays (channels, rows, columns): CYX or YXC; by their shapes unless given."""
    max_pixels: int = MAX_PIXELS
    """Images of more pixels are refused: they may be decompression bombs."""

    # The run
    batch_size: int | None = None
    """Images at a time in each process."""
    seed: int = 0
    """Another seed draws another --labels subset and, where there is no val or test, another held-out split."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; by default the best there is."""
    precision: str = "fp32"
    """fp32 or bf16, of the encoder; features are kept as float32."""
    workers: int | None = None
    """Processes that read images."""

    def __post_init__(self) -> None:
        check_types(self)
        self.check_data()
        _check_encoder_settings(self, POOLS)
        check_name("--task", self.task, TASKS)
        check_range("--max-bad", self.max_bad, 0, 1)
        check_range("--held-out", self.held_out, 0)
        check_range("--seed", self.seed, 0, 2**63 - 1)
        check_range("--temperature", self.temperature, 0, open_low=True)
        if not self.k:
            raise RequestError("--k got nothing: give numbers of neighbours, such as --k 10 20")
        for count in self.k:
            check_range("--k", count, 1)
        if len(set(self.k)) != len(self.k):
            raise RequestError(f"--k got a number twice: {' '.join(map(str, self.k))}")

    @property
    def is_regression(self) -> bool:
        return self.task == "regression"


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(Sized, DataSettings):
    """A table of features: one row for each image, nothing masked, the same every time."""

    data: str | None = None
    """Images: a folder, parquet, embedded:NAME. Labels are taken along where they are known."""
    init: str
    """A run folder, a checkpoint, a file, timm:NAME or hf:ORG/NAME."""
    out: str
    """The file to write: .npz or .parquet."""
    pool: str = DEFAULT_POOL
    """cls, mean (of the patch tokens) or grid (all of them, rows x columns x width)."""
    layer: int | None = field(default=None, metadata=NONE_IS_OFF)
    """After which block, from 1; by default the last, and the norm behind it."""
    split: str = "all"
    """train, val, test or all."""
    tiles: int | None = field(default=None, metadata=NONE_IS_OFF)
    """Side in pixels: cut larger images into tiles of that side, a row for each, called file#row,column."""
    half: bool = False
    """Write float16 instead of float32."""
    image_size: int | tuple[int, int] | None = None
    """Side in pixels, or height and width; positions are resampled where it is not the model's own."""
    max_bad: float = 0.01
    """Largest tolerated fraction of unreadable files; they are left out and named."""
    value_range: tuple[float, float] | None = None
    """Raw values that become the model's 0 and 1, such as 0 4095 for 12-bit images in 16 bits."""
    axes: str | None = None
    """The order of the axes of 3-D .npy arrays (channels, rows, columns): CYX or YXC; by their shapes unless given."""
    max_pixels: int = MAX_PIXELS
    """Images of more pixels are refused: they may be decompression bombs."""
    batch_size: int | None = None
    """Images at a time in each process."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; by default the best there is."""
    precision: str = "fp32"
    """fp32 or bf16, of the encoder."""
    workers: int | None = None
    """Processes that read images."""

    def __post_init__(self) -> None:
        check_types(self)
        self.check_data(needs_train=False)
        _check_encoder_settings(self, EMBED_POOLS)
        check_range("--max-bad", self.max_bad, 0, 1)
        check_name("--split", self.split, EMBED_SPLITS)
        check_tiles(self.tiles, self.size)
        if not os.fspath(self.out).lower().endswith((".npz", ".parquet")):
            raise RequestError(f"--out got {self.out!r}: it must be a file that ends in .npz or .parquet")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(Sized, NodataSettings):
    """Pictures of what the class token attends to, one row for each image."""

    images: tuple[str, ...]
    """Image files, or one data set (folder, parquet, embedded:NAME)."""
    init: str
    """A run folder, a checkpoint, a file, timm:NAME or hf:ORG/NAME."""
    out: str
    """The PNG to write."""
    layer: int | None = field(default=None, metadata=NONE_IS_OFF)
    """Whose attention, from 1; by default the last block's."""
    heads: bool = False
    """Show every head beside their mean."""
    limit: int = 8
    """Images to show of a data set."""
    image_size: int | tuple[int, int] | None = None
    """Side in pixels, or height and width: larger images give finer maps; positions are resampled."""
    device: str | None = None
    value_range: tuple[float, float] | None = None
    """Raw values that become the model's 0 and 1, such as 0 4095 for 12-bit images in 16 bits."""
    axes: str | None = None
    """The order of the axes of 3-D .npy arrays (channels, rows, columns): CYX or YXC; by their shapes unless given."""
    max_pixels: int = MAX_PIXELS
    """Images of more pixels are refused: they may be decompression bombs."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.images:
            raise RequestError("attention got no image: name image files or a data set")
        check_range("--layer", self.layer, 1)
        check_range("--limit", self.limit, 1, 1000)
        check_images(self)
        self.check_size()
        if not os.fspath(self.out).lower().endswith(".png"):
            raise RequestError(f"--out got {self.out!r}: it must be a file that ends in .png")


def _check_encoder_settings(config: Any, pools: tuple[str, ...]) -> None:
    """Check the settings that `knn` and `embed` share."""
    check_name("--pool", config.pool, pools)
    check_name("--precision", config.precision, PRECISIONS)
    check_range("--layer", config.layer, 1)
    check_range("--batch-size", config.batch_size, 1)
    check_range("--workers", config.workers, 0)
    check_images(config)
    config.check_size()
