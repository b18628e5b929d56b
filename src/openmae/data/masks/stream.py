"""Training samples that are crops of images with their labels."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmae.config import Preprocessing
from openmae.data.batch import Batch, stack_images
from openmae.data.conformed import conform_to_model
from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.nodata import fill_values
from openmae.data.decoding.regions import open_pixels
from openmae.data.empty_patches import nodata_mask_for
from openmae.data.jitter import colour_operations
from openmae.data.masks.augment import NUM_MASK_UNIFORMS, MaskAugmentation
from openmae.data.masks.label_map import LabelMap
from openmae.data.masks.source import Masked
from openmae.data.randomness import uniforms
from openmae.data.resize import Pixels
from openmae.data.sample_stream import SampleStream


class MaskedSample(NamedTuple):
    """One training sample.

    Attributes:
        image: (C, H, W), augmented.
        labels: (H, W) int16.
        key: the seed of the sample's randomness, see `Batch`.
        bad: the unusable inputs that this one replaces: name → reason.
    """

    image: Tensor
    labels: NDArray[np.int16]
    key: int
    bad: dict[str, str]


class MaskedStream(SampleStream):
    """Crops of images with their labels, by their position in the endless stream.

    Args:
        source: the training images and their masks.
        preprocessing: how a decoded image becomes the model's input; its size is the crop's.
        seed: determines the order and the augmentation.
    """

    source: Masked

    def __init__(self, source: Masked, preprocessing: Preprocessing, augmentation: MaskAugmentation, seed: int) -> None:
        super().__init__(source, seed)
        self.preprocessing, self.augmentation = preprocessing, augmentation
        self.fill = fill_values(preprocessing)

    @property
    def bytes_per_sample(self) -> int:
        p = self.preprocessing
        values = math.prod(p.image_size)
        return values * (p.channels * (1 if p.dtype == "uint8" else 4) + 2)

    def load(self) -> None:
        if self.augmentation.kind == "crop-jitter":
            colour_operations()

    def __getitems__(self, positions: Sequence[int]) -> list[MaskedSample]:
        indices, keys = self.locate(positions)
        draws = uniforms(keys, NUM_MASK_UNIFORMS, "augment")
        return [
            self._sample(index, key, draw)
            for index, key, draw in zip(indices.tolist(), keys.tolist(), draws, strict=True)
        ]

    def collate(self, samples: Sequence[MaskedSample]) -> Batch:
        images, labels, keys, bad = zip(*samples, strict=True)
        return Batch(
            images=stack_images(images),
            keys=torch.tensor(keys),
            bad={name: reason for of_sample in bad for name, reason in of_sample.items()},
            labels=stack_images(labels),
        )

    def _sample(self, index: int, key: int, draw: NDArray[np.float64]) -> MaskedSample:
        """The sample of an image, or where that or its mask is unusable, of the next usable one; see `first_usable`."""
        (image, labels), bad = self.first_usable(index, lambda candidate: self._crop(candidate, draw))
        return MaskedSample(image, np.ascontiguousarray(labels, np.int16), key, bad)

    def _crop(self, index: int, draw: NDArray[np.float64]) -> tuple[Tensor, NDArray[np.integer]]:
        """The crop of an image and its labels. Raises BadImage where the two files cannot be used."""
        p = self.preprocessing
        image, labels = open_pair(self.source, index, p)
        try:
            return self.augmentation(image, labels, p.image_size, draw, p.value_range, self.fill)
        except BadImage:
            # Part of a file that is read crop by crop is damaged. Whether an image is replaced must depend on its file
            # alone, not on where the crops of a run lie: decoded whole it fails always, or never.
            image, labels = open_pair(self.source, index, p, decode_fully=True)
            return self.augmentation(image, labels, p.image_size, draw, p.value_range, self.fill)


def open_pair(
    source: Masked, index: int, preprocessing: Preprocessing, decode_fully: bool = False
) -> tuple[Pixels, LabelMap]:
    """An image in the model's channels and number type, H × W × C, and its labels, (H, W).

    Pixels that are nodata in all of the model's channels are ignored: there the model sees the mean alone.

    Args:
        decode_fully: decode the whole file even where a crop could be read without the rest.

    Raises:
        BadImage: the image or its mask cannot be used.
    """
    image = source.read(index) if decode_fully else open_pixels(source, index)
    pixels, labels = conform_to_model(image, preprocessing), source.label_map(index)
    is_nodata = nodata_mask_for(image, preprocessing.channels)
    return pixels, labels if is_nodata is None else replace(labels, is_ignored=np.all(is_nodata, axis=2))


def read_pair(source: Masked, index: int, preprocessing: Preprocessing) -> tuple[Pixels, NDArray[Any]]:
    """`open_pair` with the labels of all pixels, (H, W) int16."""
    pixels, labels = open_pair(source, index, preprocessing)
    return pixels, labels.whole()
