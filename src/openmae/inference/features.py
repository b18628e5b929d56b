"""Features of all images of a source, computed once, as `knn`, `probe` and `embed` use them."""

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmae.config import DEFAULT_POOL, Preprocessing, grid_of
from openmae.data.augment import crop_fraction_of, evaluation_crop_fraction
from openmae.data.evaluation_loader import EvaluationBatch, evaluation_batches
from openmae.data.labels.subsets import targets_of
from openmae.data.preprocess import normalise, survey
from openmae.data.sources.open import Source
from openmae.errors import Fault, RequestError
from openmae.inference.models import EncoderModel, encoder_features
from openmae.machine.device import autocast, is_out_of_memory
from openmae.machine.parallel import Processes
from openmae.machine.shared_work import gather_work
from openmae.model.vit import ViT
from openmae.training.telemetry import ProgressBar

NUM_SURVEYED = 64  # images whose sizes decide the crop fraction
MAX_MESSAGE_BYTES = 1 << 26  # what a process sends to the others at a time
MAX_NAMED = 3  # unreadable images that a message names
BATCH_SIZES = {"cpu": 64}
BATCH_SIZE = 256  # of other devices


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """An encoder's features of the n readable images of a source, in the source's order.

    Attributes:
        values: (n, D) float32, or (n, rows, columns, D) of the patch grid.
        labels: (n,) int64, or (n, K) float32 with several labels an image; -1 where there is none; None unless
            requested.
        indices: (n,) int64, each image's index in the source.
        bad: name and reason of each image that could not be read; none is replaced by another.
    """

    values: NDArray[np.float32]
    labels: NDArray[np.int64] | NDArray[np.float32] | None
    indices: NDArray[np.int64]
    bad: dict[str, str]


def extract(
    model: EncoderModel,
    source: Source,
    *,
    pool: str = DEFAULT_POOL,
    layer: int | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    image_size: tuple[int, int] | None = None,
    crop_fraction: float | None = None,
    processes: Processes | None = None,
    precision: str = "fp32",
    with_labels: bool = False,
    title: str | None = None,
) -> Features:
    """Compute the features of all images, nothing masked: bit-equal whatever the number of workers and processes.

    Each process computes its share of the batches, and every process gets the features of all images.

    Args:
        pool, layer: as of `EncoderModel.features`.
        batch_size: images at a time in each process; another one may change a feature's last bits.
        image_size: (height, width) in pixels; None: the model's own.
        crop_fraction: of the largest centred box, along each side; None: the model's own, as `EncoderModel.features`.
        title: of the progress line; None: no line.

    Raises:
        RequestError: size, layer or pool do not fit the model, or a batch does not fit into memory.
        Fault: a feature is not finite, or the system killed reader processes, twice.
    """
    processes = processes or Processes()
    preprocessing = preprocessing_for(model, image_size)
    size = batch_size or default_batch_size(model.device)
    share = processes.share(-(-len(source) // size))
    indices = range(share.start * size, min(share.stop * size, len(source)))
    batches = evaluation_batches(
        source,
        preprocessing,
        indices,
        batch_size=size,
        workers=workers,
        crop_fraction=preprocessing.crop_fraction if crop_fraction is None else crop_fraction,
        patch_size=model.encoder.shape.patch_size,
        with_labels=False,  # of a source where only some images have one, a batch would be refused
        pin_memory=model.device.type == "cuda",
    )

    def compute(images: Tensor) -> NDArray[np.float32]:
        return _features(model, images, preprocessing, pool, layer, precision, size)

    own = list[_Share]()

    def work() -> tuple[tuple[int, ...] | None, dict[str, str]]:
        name = title if title and processes.is_first else None
        own.append(_compute_share(batches, len(indices), compute, name))
        return own[0].shape, own[0].bad

    parts = gather_work(work, processes)
    shape = next((shape for shape, _ in parts if shape is not None), (0,))
    values, read = own[0].values, own[0].indices
    values = np.empty((0, *shape), np.float32) if values is None else values
    values, indices_of_all = _gathered(values, processes), _gathered(read, processes)
    bad = {name: reason for _, part in parts for name, reason in part.items()}
    _check_finite(values)
    labels = targets_of(source)[indices_of_all] if with_labels else None
    return Features(values=values, labels=labels, indices=indices_of_all, bad=bad)


class _Share(NamedTuple):
    """What one process computed: features, None where no image could be read; whose they are; what was unreadable."""

    values: NDArray[np.float32] | None
    indices: NDArray[np.int64]
    bad: dict[str, str]

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of an image's features."""
        return None if self.values is None else self.values.shape[1:]


def _compute_share(
    batches: Generator[EvaluationBatch, None, None],
    count: int,
    compute: Callable[[Tensor], NDArray[np.float32]],
    title: str | None,
) -> _Share:
    """The features of `count` images, of which some may be unreadable."""
    values: NDArray[np.float32] | None = None
    indices, bad = np.empty(count, np.int64), dict[str, str]()
    done = seen = 0
    started = time.monotonic()
    with closing(batches), ProgressBar(count, 0, title or "", quiet=title is None) as screen:
        for batch in batches:
            bad |= batch.bad
            seen += len(batch.images) + len(batch.bad)
            if len(batch.images):
                features = compute(batch.images)
                if values is None:  # filled batch by batch: to join a list of batches would need twice the memory
                    values = np.empty((count, *features.shape[1:]), np.float32)
                values[done : done + len(features)] = features
                indices[done : done + len(features)] = batch.indices.numpy()
                done += len(features)
            screen.update(seen, f"{seen / max(time.monotonic() - started, 1e-9):.0f} images/s")
    return _Share(None if values is None else values[:done], indices[:done], bad)


def pooled(encoder: ViT, images: Tensor, pool: str, precision: str) -> Tensor:
    """Compute pooled features of prepared images, nothing masked: (B, width) float32 on their device."""
    with autocast(images.device, precision):
        return encoder_features(encoder, images, pool).float()


def preprocessing_for(model: EncoderModel, image_size: tuple[int, int] | None) -> Preprocessing:
    """The model's preprocessing at a size. Raises RequestError where patches do not divide it."""
    size = image_size or model.preprocessing.image_size
    grid_of(*size, model.encoder.shape.patch_size)
    return replace(model.preprocessing, image_size=size)


def default_batch_size(device: torch.device) -> int:
    """Images at a time in each process, unless requested."""
    return BATCH_SIZES.get(device.type, BATCH_SIZE)


def crop_fraction_for(source: Source, size: tuple[int, int]) -> float:
    """`crop_fraction_of` a sample of the source's images; none is read for sizes at which evaluation crops nothing.

    Raises:
        RequestError: no image of the sample can be read.
    """
    return (
        1.0 if evaluation_crop_fraction(size) == 1 else crop_fraction_of(size, survey(source, NUM_SURVEYED).short_side)
    )


def check_readable(bad: dict[str, str], count: int, max_bad: float, what: str) -> None:
    """Raise RequestError where none of `count` images can be read, or a larger fraction than `max_bad` cannot."""
    if len(bad) <= max_bad * count and len(bad) < count:
        return
    named = ", ".join(f"{name!r} ({reason})" for name, reason in list(bad.items())[:MAX_NAMED])
    named += f" and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
    if len(bad) == count:
        raise RequestError(f"none of {count:,} {what} can be read: {named}")
    raise RequestError(
        f"{len(bad):,} of {count:,} {what} cannot be read: {named}; more than --max-bad {max_bad:g}: mend them, or a "
        "higher --max-bad leaves them out"
    )


def _features(
    model: EncoderModel,
    images: Tensor,
    preprocessing: Preprocessing,
    pool: str,
    layer: int | None,
    precision: str,
    batch_size: int,
) -> NDArray[np.float32]:
    try:
        prepared = normalise(images.to(model.device, non_blocking=True), preprocessing)
        with autocast(model.device, precision):
            return model.features(prepared, pool=pool, layer=layer).float().cpu().numpy()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        advice = "give a smaller --batch-size" if batch_size > 1 else "give a smaller --image-size"
        raise RequestError(f"out of memory with {batch_size} images at a time: {advice}") from None


def _gathered(own: NDArray, processes: Processes) -> NDArray:
    """The rows of all processes by rank, sent in pieces: a single message of gigabytes is too large."""
    if processes.count == 1:
        return own
    counts = processes.gather(len(own))
    starts = np.cumsum([0, *counts])
    everything = np.empty((starts[-1], *own.shape[1:]), own.dtype)
    rows = max(1, MAX_MESSAGE_BYTES // max(1, math.prod(own.shape[1:]) * own.itemsize))
    for first in range(0, max(counts), rows):
        for start, part in zip(starts, processes.gather(own[first : first + rows]), strict=False):
            everything[start + first : start + first + len(part)] = part
    return everything


def _check_finite(values: NDArray[np.float32]) -> None:
    broken = sum(int((~np.isfinite(part)).reshape(len(part), -1).any(1).sum()) for part in _chunks(values))
    if broken:
        raise Fault(
            f"the features of {broken} of {len(values)} images are not finite: the model's weights are broken or its "
            "numbers overflow (--precision fp32 would tell)"
        )


def _chunks(values: NDArray[np.float32]) -> Generator[NDArray[np.float32], None, None]:
    for start in range(0, len(values), 4096):
        yield values[start : start + 4096]
