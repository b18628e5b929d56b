"""The endless stream of training samples and the loader that reads it (docs/architecture.md: order and chance).

Position t of the stream is sample `permutation_of_epoch(t mod n)` of epoch `t // n`; batch s holds the
positions s·B … (s+1)·B − 1. Every batch is full, and where a run stands is one integer: its step.

With K crops of each decoded image, positions K·g … K·g + K − 1 are crops of the sample that position g would be: an
image comes K times in a row and then not for K epochs. An epoch stays n crops, as what a run costs and sees does.
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
from openmae.data.batch import Batch, Crops, stack, stack_labels
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

MAX_REPLACEMENTS = 1000


class Sample(NamedTuple):
    """One training image on its way into a batch, with what was found on the way to it.

    Attributes:
        image: (C, H, W), cropped; with a `crop`, which is then still to be cut, H × W × C and whole.
        key: the sample's key, as of `Batch`.
        bad: name and reason of each input that could not be read on the way to the image.
        label: as of `Source.label`.
        was_blank: it is another tile than the stream asked for, which was blank.
        empty: (N,) bool, as of `Batch`.
    """

    image: Tensor | Pixels
    key: int
    bad: dict[str, str]
    label: Label
    crop: Crop | None = None
    was_blank: bool = False
    empty: Tensor | None = None


class Stream(Dataset):
    """Training samples by their position in the endless stream.

    Args:
        crops_per_decode: positions in a row that are crops of one image, decoded once where a reader has them together.
        is_whole: images stay whole, each with its crop, for `crop_and_normalise`; they must all have one shape.

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
        self.shortage = MemoryShortage()  # for as long as the run lasts, however often readers are started

    @property
    def bytes_per_sample(self) -> int:
        """Of an image as a reader hands it over."""
        p = self.preprocessing
        shape = raw_shape(self.source) if self.is_whole else None
        return math.prod(shape or (p.channels, *p.image_size)) * (1 if p.dtype == "uint8" else 4)

    def locate(self, positions: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The index in the source and the key of each position: two (B,) arrays."""
        groups, crops = np.divmod(np.asarray(positions, dtype=np.int64), self.crops_per_decode)
        epochs, offsets = np.divmod(groups, len(self.source))
        indices = np.empty_like(offsets)
        for epoch in np.unique(epochs).tolist():
            of_epoch = epochs == epoch
            indices[of_epoch] = Permutation(len(self.source), self.seed, epoch)(offsets[of_epoch])
        keys = sample_keys(self.seed, epochs, indices)
        return indices, keys if self.crops_per_decode == 1 else crop_keys(keys, crops)

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        """A batch at once: DataLoader's fetcher prefers this, and hashing in bulk is far cheaper."""
        indices, keys = self.locate(positions)
        chances = uniforms(keys, NUM_UNIFORMS, "augment")
        before, found, samples = None, None, list[Sample]()
        for index, key, chance in zip(indices.tolist(), keys.tolist(), chances, strict=True):
            if found is None or index != before:
                before, found = index, self._read(index)
            try:
                samples.append(self._sample(found, key, chance))
            except BadImage:  # its file broke since it was opened: read whole, it is replaced
                found = self._read(index, is_whole=True)
                samples.append(self._sample(found, key, chance))
        return samples

    def __getitem__(self, position: int) -> Sample:
        return self.__getitems__([position])[0]

    def _sample(self, found: "_Decoded", key: int, chance: NDArray[np.float64]) -> Sample:
        p, crop, empty = self.preprocessing, None, None
        if self.is_whole or found.mask is not None:
            crop = self.augmentation.crop(found.image, p.image_size, chance)
        if crop is not None and found.mask is not None:
            empty = empty_patches(found.mask, crop.box, p.image_size, self.min_side, crop.is_flipped)
        if self.is_whole:
            return Sample(found.image, key, found.bad, found.label, crop, found.was_blank, empty)
        image = self.augmentation(found.image, p.image_size, chance, key, p.value_range)
        return Sample(image, key, found.bad, found.label, None, found.was_blank, empty)

    def _read(self, index: int, is_whole: bool = False) -> "_Decoded":
        """Read one image; an unreadable one is replaced by the next readable one in the source's order.

        A blank tile is replaced by another one of its image (`Tiled.replacements`). `is_whole`: of no file parts alone.

        Raises:
            RequestError: far too many images in a row are unreadable, or have blank tiles only.
        """
        bad, p, was_blank = dict[str, str](), self.preprocessing, False
        for candidates in itertools.islice(replacements(self.source, index), MAX_REPLACEMENTS):
            for candidate in candidates:
                try:
                    image = self.source.read(candidate) if is_whole else open_pixels(self.source, candidate)
                    if isinstance(self.source, Tiled) and is_blank(image[:, :]):
                        was_blank |= candidate == index
                        continue
                    brought = conform_to_model(image, p, self.min_side)
                    label = self.source.label(candidate) if self.with_labels else None
                    brought = brought[:, :] if self.is_whole else brought
                    return _Decoded(brought, bad, label, was_blank, mask_for(image, p.channels))
                except BadImage as error:
                    bad[self.source.name(candidate)] = str(error)
                    break  # of the image's other tiles none could be read
        if not bad:
            raise RequestError(f"all tiles of {self.source.name(index)!r} and of the images after it are blank")
        name, reason = next(iter(bad.items()))
        raise RequestError(f"{len(bad)} images in a row cannot be read, the first {name!r}: {reason}")


class _Decoded(NamedTuple):
    image: Pixels
    bad: dict[str, str]
    label: Label
    was_blank: bool
    mask: NDArray[np.bool_] | None  # where it is empty


def collate(samples: Sequence[Sample]) -> Batch:
    """A micro-batch of samples."""
    images, keys, bad, labels, crops, was_blank, empty = zip(*samples, strict=True)
    reasons = {name: reason for found in bad for name, reason in found.items()}
    rest = (_crops_of(crops), sum(was_blank), stack_empty_patches(empty))
    return Batch(stack(images), torch.tensor(keys), reasons, stack_labels(labels), *rest)


def _crops_of(crops: Sequence[Crop | None]) -> Crops | None:
    known = [crop for crop in crops if crop is not None]
    if not known:
        return None
    return Crops(torch.tensor([crop.box for crop in known]), torch.tensor([crop.is_flipped for crop in known]))


class _Positions:
    """The stream's positions that one process reads: of each step's global batch its share, cut into micro-batches."""

    def __init__(self, steps: range, batch_size: int, share: range, micro_batch_size: int) -> None:
        self.steps, self.batch_size = steps, batch_size
        self.parts = [share[start : start + micro_batch_size] for start in range(0, len(share), micro_batch_size)]

    def __iter__(self) -> Iterator[list[int]]:
        return ([step * self.batch_size + i for i in part] for step in self.steps for part in self.parts)

    def __len__(self) -> int:
        return len(self.steps) * len(self.parts)


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
    """Micro-batches of `steps` in order, whatever the number of workers.

    Args:
        batch_size: samples of a step over all processes.
        share: this process's among them.
        micro_batch_size: samples of a micro-batch; the last of a step may be smaller.
    """
    positions = _Positions(steps, batch_size, share, micro_batch_size)
    return make_loader(stream, positions, collate, workers=workers, pin=pin, use_pipes=use_pipes)
