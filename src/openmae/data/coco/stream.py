"""Training samples that are squares with images and their objects."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmae.config import Preprocessing
from openmae.data.batch import Batch, stack_images
from openmae.data.coco.augment import NUM_BOX_UNIFORMS, CroppedObjects, DetectionAugmentation
from openmae.data.coco.source import Annotated
from openmae.data.conformed import conform_to_model
from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.nodata import fill_values
from openmae.data.decoding.regions import open_pixels
from openmae.data.hand_over import allocate_batch
from openmae.data.instances import Instances
from openmae.data.randomness import uniforms
from openmae.data.sample_stream import SampleStream

_LOOKED_AT = 256  # images whose objects are counted, for the size of a sample


class AnnotatedSample(NamedTuple):
    """One training sample.

    Attributes:
        image: (C, H, W), augmented.
        objects: those visible in it.
        key: the seed of the sample's randomness, see `Batch`.
        bad: the unusable inputs that this one replaces: name → reason.
    """

    image: Tensor
    objects: CroppedObjects
    key: int
    bad: dict[str, str]


class AnnotatedStream(SampleStream):
    """Squares with images and their objects, by their position in the endless stream.

    Args:
        source: the training images and their objects.
        preprocessing: how a decoded image becomes the model's input; its size is the square's.
        seed: determines the order and the augmentation.
        with_masks: every object that is no crowd has a segmentation, and masks are wanted.
    """

    source: Annotated

    def __init__(
        self,
        source: Annotated,
        preprocessing: Preprocessing,
        augmentation: DetectionAugmentation,
        seed: int,
        with_masks: bool,
    ) -> None:
        super().__init__(source, seed)
        self.preprocessing, self.augmentation, self.with_masks = preprocessing, augmentation, with_masks
        self.fill = fill_values(preprocessing)
        looked_at = np.linspace(0, len(source) - 1, min(_LOOKED_AT, len(source))).astype(int).tolist()
        self._objects_per_image = sum(len(source.annotations(i)) for i in looked_at) / len(looked_at)

    @property
    def bytes_per_sample(self) -> int:
        """Of a sample with as many objects as images have on average, rounded up: a mask of the square for each."""
        p = self.preprocessing
        masks = math.ceil(self._objects_per_image) if self.with_masks else 0
        return math.prod(p.image_size) * (p.channels * (1 if p.dtype == "uint8" else 4) + masks)

    def load(self) -> None:
        if self.with_masks:
            import faster_coco_eval.mask_api_new_cpp  # noqa: F401

    def __getitems__(self, positions: Sequence[int]) -> list[AnnotatedSample]:
        indices, keys = self.locate(positions)
        draws = uniforms(keys, NUM_BOX_UNIFORMS, "augment")
        return [
            self._sample(index, key, draw)
            for index, key, draw in zip(indices.tolist(), keys.tolist(), draws, strict=True)
        ]

    def collate(self, samples: Sequence[AnnotatedSample]) -> Batch:
        images, objects, keys, bad = zip(*samples, strict=True)
        return Batch(
            images=stack_images(images),
            keys=torch.tensor(keys),
            bad={name: reason for of_sample in bad for name, reason in of_sample.items()},
            instances=_instances(objects, self.preprocessing.image_size, self.with_masks),
        )

    def _sample(self, index: int, key: int, draw: NDArray[np.float64]) -> AnnotatedSample:
        """The sample of an image, or where that is unusable, of the next usable one; see `first_usable`."""
        (image, objects), bad = self.first_usable(index, lambda candidate: self._square(candidate, draw))
        return AnnotatedSample(image, objects, key, bad)

    def _square(self, index: int, draw: NDArray[np.float64]) -> tuple[Tensor, CroppedObjects]:
        """The square of an image and its objects. Raises BadImage where the file cannot be used."""
        p, annotations = self.preprocessing, self.source.annotations(index)
        try:
            image = conform_to_model(open_pixels(self.source, index), p)
            return self.augmentation(image, annotations, p.image_size, draw, self.fill, self.with_masks)
        except BadImage:
            # Part of a file that is read crop by crop is damaged: whether an image is replaced must depend on its file
            # alone, so it is decoded whole, which fails always or never.
            image = conform_to_model(self.source.read(index), p)
            return self.augmentation(image, annotations, p.image_size, draw, self.fill, self.with_masks)


def _instances(objects: Sequence[CroppedObjects], size: tuple[int, int], with_masks: bool) -> Instances:
    """The objects of a batch's images, one image after the other."""
    masks = None
    if with_masks:
        drawn = [of_image.masks for of_image in objects if of_image.masks is not None]
        masks = allocate_batch((sum(map(len, drawn)), *size), torch.uint8)
        np.concatenate(drawn, out=masks.numpy())
    return Instances(
        boxes=torch.from_numpy(np.concatenate([of_image.boxes for of_image in objects])),
        labels=torch.from_numpy(np.concatenate([of_image.labels for of_image in objects])),
        counts=torch.tensor([len(of_image.labels) for of_image in objects]),
        sizes=torch.tensor([of_image.size for of_image in objects]),
        masks=masks,
    )
