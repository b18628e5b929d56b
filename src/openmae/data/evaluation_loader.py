"""Batches for evaluation: every image once, in order, centre-cropped, never replaced by another."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from openmae.config import Preprocessing
from openmae.data.augment import evaluation_box, resized_crop
from openmae.data.batch import stack_images, stack_labels
from openmae.data.conformed import conform_to_model
from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.regions import open_pixels
from openmae.data.empty_patches import empty_patches_of, stack_empty_patches
from openmae.data.hand_over import needs_pipes
from openmae.data.pinned import pinned
from openmae.data.readers import iterate_batches, make_loader
from openmae.data.sources.open import Label, Source
from openmae.data.sources.tiles import BLANK, is_blank
from openmae.data.sources.views import tile_image_ids

NUM_IN_USE = 2  # batches that the main process keeps at once: the current one and the next


@dataclass(frozen=True)
class EvaluationBatch:
    """A batch of centre-cropped images to evaluate on, with their indices in the source; nothing is random.

    Attributes:
        images: (B, C, H, W), uint8 or float32, not normalised; unreadable ones are left out.
        labels: see `Batch`.
        indices: (B,) int64, each image's index in the source.
        bad: name and reason of each input that could not be read.
        is_empty: (B, N) bool, see `Batch`.
    """

    images: Tensor
    labels: Tensor | None
    indices: Tensor
    bad: dict[str, str]
    is_empty: Tensor | None = None

    def pin_memory(self) -> "EvaluationBatch":
        images, indices = self.images.pin_memory(), self.indices.pin_memory()
        return EvaluationBatch(images, pinned(self.labels), indices, self.bad, self.is_empty)


class _Sample(NamedTuple):
    """An image and its position in the source, or the reason why it could not be read."""

    position: int
    image: Tensor | str
    label: Label = None
    is_empty: Tensor | None = None


class _Evaluation(Dataset):
    """Images by their index in the source; instead of an unreadable image, the reason."""

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        crop_fraction: float,
        patch_size: int,
        with_labels: bool,
        with_blank: bool = True,
    ) -> None:
        self.source, self.preprocessing, self.crop_fraction = source, preprocessing, crop_fraction
        self.patch_size, self.with_labels, self.with_blank = patch_size, with_labels, with_blank

    def __getitem__(self, index: int) -> _Sample:
        p = self.preprocessing
        try:
            decoded = open_pixels(self.source, index)
            if not self.with_blank and is_blank(decoded[:, :]):
                return _Sample(index, BLANK)
            image = conform_to_model(decoded, p, self.patch_size)
            box = evaluation_box(image, p.image_size, self.crop_fraction)
            crop = resized_crop(image, box, p.image_size)
        except BadImage as error:
            return _Sample(index, str(error))
        label = self.source.label(index) if self.with_labels else None
        empty = empty_patches_of(decoded, p.channels, box, p.image_size, self.patch_size)
        return _Sample(index, crop, label, empty)

    def collate(self, samples: Sequence[_Sample]) -> EvaluationBatch:
        good = [sample for sample in samples if isinstance(sample.image, Tensor)]
        bad = {self.source.name(sample.position): sample.image for sample in samples if isinstance(sample.image, str)}
        images = [sample.image for sample in good if isinstance(sample.image, Tensor)]
        dtype = torch.uint8 if self.preprocessing.dtype == "uint8" else torch.float32
        empty = torch.empty(0, self.preprocessing.channels, *self.preprocessing.image_size, dtype=dtype)
        return EvaluationBatch(
            stack_images(images) if images else empty,
            stack_labels([sample.label for sample in good]),
            torch.tensor([sample.position for sample in good], dtype=torch.int64),
            bad,
            stack_empty_patches([sample.is_empty for sample in good]),
        )


class _IndexBatches:
    """Batch sampler: indices in order, `size` at a time; the last batch may be smaller."""

    def __init__(self, indices: range | NDArray[np.int64], size: int) -> None:
        self.indices, self.size = indices, size

    def __iter__(self) -> Iterator[list[int]]:
        return ([int(i) for i in self.indices[start : start + self.size]] for start in self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def _starts(self) -> range:
        return range(0, len(self.indices), self.size)


def evaluation_batches(
    source: Source,
    preprocessing: Preprocessing,
    indices: range | NDArray[np.int64],
    *,
    batch_size: int,
    workers: int,
    crop_fraction: float,
    patch_size: int,
    with_labels: bool,
    pin_memory: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Generator[EvaluationBatch, None, None]:
    """Read the images at `indices` once and in order, centre-cropped, whatever the number of workers.

    An unreadable image is left out and named, so a batch may be smaller, even empty (its labels are None then). With
    several processes each passes its own share of the indices: nothing is padded, every image counts once.

    Args:
        crop_fraction: fraction of the largest centred box that is kept (`evaluation_crop_fraction`).
        should_stop: see `iterate_batches`: once it is true there are no more batches.

    Raises:
        RequestError: some images of a batch have a label and others not.
    """
    dataset = _Evaluation(source, preprocessing, crop_fraction, patch_size, with_labels)
    batches, itemsize = _IndexBatches(indices, batch_size), 1 if preprocessing.dtype == "uint8" else 4
    bytes_per_image = preprocessing.channels * math.prod(preprocessing.image_size) * itemsize
    use_pipes = needs_pipes(min(batch_size, len(indices)) * bytes_per_image, workers, NUM_IN_USE)
    loader = make_loader(dataset, batches, dataset.collate, workers=workers, pin_memory=pin_memory, use_pipes=use_pipes)
    return iterate_batches(loader, should_stop)


def read_all(source: Source, preprocessing: Preprocessing, patch_size: int) -> EvaluationBatch:
    """Read all images of a small source as one batch, centre-cropped.

    Unreadable images are left out and named; blank tiles are left out.
    """
    with_blank = tile_image_ids(source) is None
    dataset = _Evaluation(source, preprocessing, 1.0, patch_size, with_labels=False, with_blank=with_blank)
    batch = dataset.collate([dataset[index] for index in range(len(source))])
    return replace(batch, bad={name: why for name, why in batch.bad.items() if why != BLANK})
