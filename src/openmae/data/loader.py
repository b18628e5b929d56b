"""The endless stream of training samples and its DataLoader (docs/architecture.md: order and chance).

Position t of the stream is sample `permutation_of_epoch(t mod n)` of epoch `t // n`; batch s holds the
positions s·B … (s+1)·B − 1. Every batch is full, and where a run stands is one integer: its step.

With K crops per decoded image (repeated augmentation), positions K·g … K·g + K − 1 are crops of the sample that
position g would be: an image comes K times in a row and then not for K epochs. An epoch stays n crops, so the length
and the schedule of a run do not change.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openmae.config import Preprocessing
from openmae.data.augment import NUM_UNIFORMS, Augmentation, Crop, check_rand_augment
from openmae.data.batch import Batch, Crops, stack_images, stack_labels
from openmae.data.conformed import conform_to_model
from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.regions import open_pixels
from openmae.data.empty_patches import empty_patches, mask_for, stack_empty_patches
from openmae.data.randomness import Permutation, crop_keys, sample_keys, uniforms
from openmae.data.reader_process import MemoryShortage
from openmae.data.readers import make_loader
from openmae.data.resize import Pixels
from openmae.data.sources.open import Label, Source
from openmae.data.sources.tiles import Tiled, is_blank, replacements
from openmae.data.sources.views import raw_shape
from openmae.errors import RequestError

MAX_REPLACEMENTS = 1000  # unreadable images in a row, after which the run is refused


class Sample(NamedTuple):
    """One training sample before batches are stacked.

    Attributes:
        image: (C, H, W), cropped; where there is a `crop`, the whole H × W × C image, to be cropped on the device.
        key: the sample's key, see `Batch`.
        bad: name and reason of each unreadable input that this image replaces.
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


class Stream(Dataset):
    """Training samples by their position in the endless stream.

    Args:
        source: the training images.
        preprocessing: how a decoded image becomes the model's input.
        augmentation: crop, flip, jitter, RandAugment.
        seed: of order and augmentation.
        min_side: an image with a smaller side, in pixels, counts as unreadable (the patch size).
        with_labels: read labels, too.
        crops_per_decode: consecutive positions that are crops of one image, which a reader decodes once.
        is_whole: images are not cropped by readers but each comes whole, with its crop, for `crop_and_normalise`; all
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
        min_side: int,
        *,
        with_labels: bool = False,
        crops_per_decode: int = 1,
        is_whole: bool = False,
    ) -> None:
        assert crops_per_decode >= 1
        assert augmentation.only_crops or not is_whole
        if augmentation.rand_augment is not None:
            check_rand_augment(preprocessing.channels, preprocessing.dtype)
            assert augmentation.fill is None or len(augmentation.fill) == preprocessing.channels
        self.source, self.preprocessing, self.augmentation = source, preprocessing, augmentation
        self.seed, self.min_side, self.with_labels = seed, min_side, with_labels
        self.crops_per_decode, self.is_whole = crops_per_decode, is_whole
        self.shortage = MemoryShortage()  # kept for the whole run, however often readers are restarted

    @property
    def bytes_per_sample(self) -> int:
        """Size of an image as a reader process returns it."""
        p = self.preprocessing
        shape = raw_shape(self.source) if self.is_whole else None
        return math.prod(shape or (p.channels, *p.image_size)) * (1 if p.dtype == "uint8" else 4)

    def locate(self, positions: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The index in the source and the key of each position: two (B,) arrays."""
        groups, crops = np.divmod(np.asarray(positions, dtype=np.int64), self.crops_per_decode)
        epochs, offsets = np.divmod(groups, len(self.source))
        indices = np.empty_like(offsets)
        for epoch in np.unique(epochs).tolist():
            in_epoch = epochs == epoch
            indices[in_epoch] = Permutation(len(self.source), self.seed, epoch)(offsets[in_epoch])
        keys = sample_keys(self.seed, epochs, indices)
        return indices, keys if self.crops_per_decode == 1 else crop_keys(keys, crops)

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        """A whole batch: DataLoader calls this where it is defined, and hashing a batch at once is far cheaper."""
        indices, keys = self.locate(positions)
        draws = uniforms(keys, NUM_UNIFORMS, "augment")
        previous_index, decoded, samples = None, None, list[Sample]()
        for index, key, draw in zip(indices.tolist(), keys.tolist(), draws, strict=True):
            if decoded is None or index != previous_index:
                previous_index, decoded = index, self._read(index)
            try:
                samples.append(self._sample(decoded, key, draw))
            except BadImage:  # its file broke after it was opened: decoding it fully fails now, so it is replaced
                decoded = self._read(index, decode_fully=True)
                samples.append(self._sample(decoded, key, draw))
        return samples

    def __getitem__(self, position: int) -> Sample:
        return self.__getitems__([position])[0]

    def _sample(self, decoded: "_Decoded", key: int, draw: NDArray[np.float64]) -> Sample:
        """Augment a decoded image; `draw` is (NUM_UNIFORMS,), see `Augmentation`."""
        p, crop, empty = self.preprocessing, None, None
        if self.is_whole or decoded.mask is not None:
            crop = self.augmentation.crop(decoded.image, p.image_size, draw)
        if crop is not None and decoded.mask is not None:
            empty = empty_patches(decoded.mask, crop.box, p.image_size, self.min_side, crop.is_flipped)
        if self.is_whole:
            return Sample(decoded.image, key, decoded.bad, decoded.label, crop, decoded.was_blank, empty)
        image = self.augmentation(decoded.image, p.image_size, draw, key, p.value_range)
        return Sample(image, key, decoded.bad, decoded.label, None, decoded.was_blank, empty)

    def _read(self, index: int, decode_fully: bool = False) -> "_Decoded":
        """Read one image; an unreadable one is replaced by the next readable one in the source's order.

        A blank tile is replaced by another tile of its image (`Tiled.replacements`).

        Args:
            decode_fully: decode the whole file, also where the pixels of a crop could be read alone.

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
                    pixels = conform_to_model(image, p, self.min_side)
                    label = self.source.label(candidate) if self.with_labels else None
                    pixels = pixels[:, :] if self.is_whole else pixels
                    return _Decoded(pixels, bad, label, was_blank, mask_for(image, p.channels))
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
    mask: NDArray[np.bool_] | None  # H × W × C, where the values are nodata


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


class _Positions:
    """Batch sampler: the stream's positions of one process's share of each step's global batch, by micro-batches."""

    def __init__(self, steps: range, batch_size: int, share: range, micro_batch_size: int) -> None:
        self.steps, self.batch_size = steps, batch_size
        starts = range(0, len(share), micro_batch_size)
        self.micro_batches = [share[start : start + micro_batch_size] for start in starts]

    def __iter__(self) -> Iterator[list[int]]:
        return ([step * self.batch_size + i for i in offsets] for step in self.steps for offsets in self.micro_batches)

    def __len__(self) -> int:
        return len(self.steps) * len(self.micro_batches)


def training_loader(
    stream: Stream,
    *,
    steps: range,
    batch_size: int,
    share: range,
    micro_batch_size: int,
    workers: int,
    pin: bool,
    use_pipes: bool = False,
) -> DataLoader:
    """A loader of the micro-batches of `steps`, in order, whatever the number of workers.

    Args:
        batch_size: samples of a step over all processes.
        share: offsets within that batch of the samples of this process.
        micro_batch_size: samples of a micro-batch; the last of a step may be smaller.
        pin: copy batches to page-locked memory, see `DataLoader(pin_memory=…)`.
        use_pipes: see `make_loader`.
    """
    stream.augmentation.load()
    positions = _Positions(steps, batch_size, share, micro_batch_size)
    return make_loader(stream, positions, collate, workers=workers, pin=pin, use_pipes=use_pipes)
