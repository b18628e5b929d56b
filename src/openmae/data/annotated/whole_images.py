"""Whole images for evaluation and prediction: each once, in order, resized but not cropped, perhaps with the truth."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from openmae.config import Preprocessing
from openmae.data.augment import resized_crop
from openmae.data.coco.annotations import Annotations
from openmae.data.coco.source import Annotated
from openmae.data.conformed import conform_to_model
from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.regions import open_pixels
from openmae.data.masks.augment import scaled_size
from openmae.data.masks.source import Masked
from openmae.data.masks.stream import read_pair
from openmae.data.readers import iterate_batches, make_loader
from openmae.data.resize import Pixels
from openmae.data.sources.open import Source

Scaling = Callable[[tuple[int, ...], tuple[int, int]], tuple[int, int]]


@dataclass(frozen=True)
class WholeImage:
    """An image to segment, or in which to find objects.

    Attributes:
        index: in the source.
        name: in the source.
        image: (C, h, w), uint8 or float32, not normalised, scaled and not padded; the reason where it cannot be used.
        size: height and width of the image as it is stored.
        labels: (H, W) int32 class ids, of that size; None where not requested.
        annotations: its objects, at that size; None where not requested.
        picture: (H, W, 3), the image for the eye, of that size; None where not requested.
    """

    index: int
    name: str
    image: Tensor | str
    size: tuple[int, int] = (0, 0)
    labels: NDArray[np.int32] | None = None
    annotations: Annotations | None = None
    picture: NDArray[np.uint8] | None = None


class _WholeImages(Dataset):
    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        scaling: Scaling,
        *,
        with_labels: bool = False,
        with_annotations: bool = False,
        with_pictures: bool = False,
    ) -> None:
        self.source, self.preprocessing, self.scaling = source, preprocessing, scaling
        self.with_labels, self.with_annotations = with_labels, with_annotations
        self.with_pictures = with_pictures

    def __getitem__(self, index: int) -> WholeImage:
        p, labels, annotations, name = self.preprocessing, None, None, self.source.name(index)
        if self.with_annotations:
            assert isinstance(self.source, Annotated)
            annotations = self.source.annotations(index)
        try:
            if self.with_labels:
                assert isinstance(self.source, Masked)
                pixels, labels = read_pair(self.source, index, p)
            else:
                pixels = conform_to_model(open_pixels(self.source, index), p)
            height, width = pixels.shape[:2]
            image = resized_crop(pixels, (0, 0, height, width), self.scaling((height, width), p.image_size))
            picture = rgb_picture(pixels, p) if self.with_pictures else None
        except BadImage as error:
            return WholeImage(index, name, str(error), annotations=annotations)
        return WholeImage(index, name, image, (height, width), labels, annotations, picture)


def whole_images(
    source: Source,
    preprocessing: Preprocessing,
    indices: range | NDArray[np.int64],
    *,
    workers: int,
    scaling: Scaling = scaled_size,
    with_labels: bool = False,
    with_annotations: bool = False,
    with_pictures: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Generator[WholeImage, None, None]:
    """Read the images at `indices` once and in order, whatever the number of workers.

    With several processes each passes its own share of the indices: nothing is padded, every image counts once.

    Args:
        scaling: the height and width of an image for the model, from its own and `image_size`: `scaled_size`, its short
            side that of the model's crops, to segment; `fitted_size`, its long side that of the square, to detect. A
            function of a module, for reader processes.
        with_labels: read the masks, too; the source has some.
        with_annotations: give the objects, too; the source has some.
        with_pictures: give each image as a picture, too, from the same decoding.
        should_stop: see `iterate_batches`: once it is true there are no more images.
    """
    dataset = _WholeImages(
        source,
        preprocessing,
        scaling,
        with_labels=with_labels,
        with_annotations=with_annotations,
        with_pictures=with_pictures,
    )
    # Images differ in size, so there is no telling whether they fit into shared memory: a pipe has no limit.
    one_each = [[int(index)] for index in indices]
    loader = make_loader(dataset, one_each, _single, workers=workers, pin_memory=False, use_pipes=True)
    return iterate_batches(loader, should_stop)


def read_whole(
    source: Source,
    preprocessing: Preprocessing,
    index: int,
    *,
    scaling: Scaling = scaled_size,
    with_labels: bool = False,
    with_annotations: bool = False,
    with_pictures: bool = False,
) -> WholeImage:
    """One image of a source, as `whole_images` gives it."""
    wanted = {"with_labels": with_labels, "with_annotations": with_annotations, "with_pictures": with_pictures}
    return _WholeImages(source, preprocessing, scaling, **wanted)[index]


def rgb_picture(pixels: Pixels, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """An image in the model's channels and number type, H × W × C, as an RGB picture, H × W × 3.

    Black and white are 0 and 1 of the preprocessing. Of more than three channels the first three, of two the first.
    """
    values, channels = np.asarray(pixels[:, :]), preprocessing.channels
    values = values[..., : 3 if channels >= 3 else 1]
    low, high = preprocessing.value_range
    if values.dtype != np.uint8 or (low, high) != (0, 255):
        shares = (values.astype(np.float32) - low) / (high - low)
        values = np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def _single(samples: Sequence[WholeImage]) -> WholeImage:
    assert len(samples) == 1
    return samples[0]
