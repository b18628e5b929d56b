"""Training samples that are augmented images, and the DataLoader of any stream of samples.

A reader is a worker process of the DataLoader.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from openmae.config import Preprocessing
from openmae.data.augment import NUM_UNIFORMS, Augmentation, Crop, check_rand_augment
from openmae.data.batch import Batch, Crops, stack_images, stack_labels
from openmae.data.conformed import conform_to_model
from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.regions import open_pixels
from openmae.data.empty_patches import empty_patches, nodata_mask_for, stack_empty_patches
from openmae.data.randomness import uniforms
from openmae.data.readers import make_loader
from openmae.data.resize import Pixels
from openmae.data.sample_stream import MAX_REPLACEMENTS, SampleStream
from openmae.data.sources.open import Label, Source
from openmae.data.sources.tiles import Tiled, is_blank, replacements
from openmae.data.sources.views import raw_shape
from openmae.errors import RequestError


class Sample(NamedTuple):
    """One training sample, before samples are stacked into a batch.

    Attributes:
        image: (C, H, W), cropped; where there is a `crop`, the whole H × W × C image, to be cropped on the device.
        key: the seed of the sample's randomness, see `Batch`.
        bad: the unreadable inputs that this image replaces: name → reason.
        label: see `Source.label`.
        crop: what the device has to cut out of the image; None where it is cropped already.
        was_blank: the tile at this position was blank, and this is its replacement.
        is_empty: (N,) bool, see `Batch`.
    """

    image: Tensor | Pixels
    key: int
    bad: dict[str, str]
    label: Label
    crop: Crop | None = None
    was_blank: bool = False
    is_empty: Tensor | None = None


class Stream(SampleStream):
    """Augmented images by their position in the endless stream.

    Args:
        source: the training images.
        preprocessing: how a decoded image becomes the model's input.
        augmentation: crop, flip, jitter, RandAugment.
        seed: determines the order and the augmentation.
        patch_size: of the model, in pixels: patches that are mostly nodata are marked as empty, and an image with a
            smaller side counts as unreadable.
        with_labels: read labels, too.
        crops_per_decode: consecutive positions that are crops of one image, which a reader decodes once.
        crop_on_device: readers do not crop: samples hold the whole image and its crop, for `crop_and_normalise`. All
            images must have one shape.

    Raises:
        RequestError: the augmentation does not fit the images.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        seed: int,
        patch_size: int,
        *,
        with_labels: bool = False,
        crops_per_decode: int = 1,
        crop_on_device: bool = False,
    ) -> None:
        super().__init__(source, seed, crops_per_decode)
        assert augmentation.only_crops or not crop_on_device
        if augmentation.rand_augment is not None:
            check_rand_augment(preprocessing.channels, preprocessing.dtype)
            assert augmentation.fill is None or len(augmentation.fill) == preprocessing.channels
        self.preprocessing, self.augmentation = preprocessing, augmentation
        self.patch_size, self.with_labels, self.crop_on_device = patch_size, with_labels, crop_on_device

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of an image as a reader returns it."""
        p = self.preprocessing
        shape = raw_shape(self.source) if self.crop_on_device else None
        return math.prod(shape or (p.channels, *p.image_size)) * (1 if p.dtype == "uint8" else 4)

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        indices, keys = self.locate(positions)
        draws = uniforms(keys, NUM_UNIFORMS, "augment")
        previous_index, decoded, samples = None, None, list[Sample]()
        for index, key, draw in zip(indices.tolist(), keys.tolist(), draws, strict=True):
            if decoded is None or index != previous_index:
                previous_index, decoded = index, self._read(index)
            try:
                samples.append(self._sample(decoded, key, draw))
            except BadImage:  # part of the file is damaged, which opening it did not show: `_read` replaces the image
                decoded = self._read(index, decode_fully=True)
                samples.append(self._sample(decoded, key, draw))
        return samples

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return collate(samples)

    def load(self) -> None:
        self.augmentation.load()

    def _sample(self, decoded: "_Decoded", key: int, draw: NDArray[np.float64]) -> Sample:
        """Augment a decoded image; `draw` holds its (NUM_UNIFORMS,) random numbers, see `Augmentation`."""
        p, crop, empty = self.preprocessing, None, None
        if self.crop_on_device or decoded.is_nodata is not None:
            crop = self.augmentation.crop(decoded.image, p.image_size, draw)
        if crop is not None and decoded.is_nodata is not None:
            empty = empty_patches(decoded.is_nodata, crop.box, p.image_size, self.patch_size, crop.is_flipped)
        if self.crop_on_device:
            return Sample(decoded.image, key, decoded.bad, decoded.label, crop, decoded.was_blank, empty)
        image = self.augmentation(decoded.image, p.image_size, draw, key, p.value_range)
        return Sample(image, key, decoded.bad, decoded.label, None, decoded.was_blank, empty)

    def _read(self, index: int, decode_fully: bool = False) -> "_Decoded":
        """Read one image; an unreadable one is replaced by the next readable one in the source's order.

        A blank tile is replaced by another tile of its image (`Tiled.replacements`).

        Args:
            decode_fully: decode the whole file even where a crop could be read without the rest.

        Raises:
            RequestError: far too many images in a row are unreadable, or have blank tiles only.
        """
        bad, p, was_blank = dict[str, str](), self.preprocessing, False
        for candidates in itertools.islice(replacements(self.source, index), MAX_REPLACEMENTS):
            for candidate in candidates:
                try:
                    image = self.source.read(candidate) if decode_fully else open_pixels(self.source, candidate)
                    if isinstance(self.source, Tiled) and is_blank(image[:, :]):
                        was_blank |= candidate == index
                        continue
                    pixels = conform_to_model(image, p, self.patch_size)
                    label = self.source.label(candidate) if self.with_labels else None
                    pixels = pixels[:, :] if self.crop_on_device else pixels
                    return _Decoded(pixels, bad, label, was_blank, nodata_mask_for(image, p.channels))
                except BadImage as error:
                    bad[self.source.name(candidate)] = str(error)
                    break  # its other tiles could not be read either
        if not bad:
            raise RequestError(f"all tiles of {self.source.name(index)!r} and of the images after it are blank")
        name, reason = next(iter(bad.items()))
        raise RequestError(f"{len(bad)} images in a row cannot be read, the first {name!r}: {reason}")


class _Decoded(NamedTuple):
    """A readable image in the model's channels and number type, and what was skipped to find it."""

    image: Pixels
    bad: dict[str, str]
    label: Label
    was_blank: bool
    is_nodata: NDArray[np.bool_] | None  # H × W × C


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a micro-batch."""
    images, keys, bad, labels, crops, was_blank, is_empty = zip(*samples, strict=True)
    return Batch(
        images=stack_images(images),
        keys=torch.tensor(keys),
        bad={name: reason for of_sample in bad for name, reason in of_sample.items()},
        labels=stack_labels(labels),
        crops=_stack_crops(crops),
        num_blank=sum(was_blank),
        is_empty=stack_empty_patches(is_empty),
    )


def _stack_crops(crops: Sequence[Crop | None]) -> Crops | None:
    pending = [crop for crop in crops if crop is not None]
    if not pending:
        return None
    return Crops(torch.tensor([crop.box for crop in pending]), torch.tensor([crop.is_flipped for crop in pending]))


class _MicroBatchSampler:
    """DataLoader's batch sampler: the positions of this process's samples of each step, a micro-batch at a time."""

    def __init__(self, steps: range, batch_size: int, share: range, micro_batch_size: int) -> None:
        self.steps, self.batch_size = steps, batch_size
        starts = range(0, len(share), micro_batch_size)
        self.micro_batches = [share[start : start + micro_batch_size] for start in starts]

    def __iter__(self) -> Iterator[list[int]]:
        return ([step * self.batch_size + i for i in offsets] for step in self.steps for offsets in self.micro_batches)

    def __len__(self) -> int:
        return len(self.steps) * len(self.micro_batches)


def training_loader(
    stream: SampleStream,
    *,
    steps: range,
    batch_size: int,
    share: range,
    micro_batch_size: int,
    workers: int,
    pin_memory: bool,
    use_pipes: bool = False,
) -> DataLoader:
    """A loader of the micro-batches of `steps`, in order, whatever the number of workers.

    Args:
        batch_size: samples of a step, over all processes.
        share: which samples of that batch this process reads, as offsets in it.
        micro_batch_size: samples of a micro-batch; the last one of a step may be smaller.
        workers: readers; 0 reads in the main process.
        pin_memory: as of `DataLoader`.
        use_pipes: see `make_loader`.
    """
    stream.load()
    sampler = _MicroBatchSampler(steps, batch_size, share, micro_batch_size)
    return make_loader(stream, sampler, stream.collate, workers=workers, pin_memory=pin_memory, use_pipes=use_pipes)
