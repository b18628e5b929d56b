"""Encoding images for a pack: as a resized JPEG, or as raw values of one shape."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from openmae.config import pair
from openmae.data.augment import centre_box, resized_crop
from openmae.data.conformed import conformed
from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.jpeg_mask import has_jpeg_mask, with_jpeg_mask
from openmae.data.decoding.nodata import filled, mask_in_channels, nodata_mask
from openmae.data.empty_patches import empty_values
from openmae.data.sources.open import Source
from openmae.data.sources.tiles import BLANK, Tiled, is_blank
from openmae.data.value_scale import Rescale

MAX_JPEG_LENGTH = 65_500  # libjpeg's limit of a side
KEEP_OR_RESCALE = "--format raw keeps it, --value-range LOW HIGH says what becomes black and white"


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How images are encoded for a pack; calling it encodes one.

    Attributes:
        format: jpeg or raw.
        size: jpeg: the maximum short side; raw: the side, or height and width.
        quality, subsampling: of JPEGs.
        channels, dtype: of a raw pack.
        rescale: maps images of another number type to the pack's.
    """

    format: str
    size: int | tuple[int, int]
    quality: int
    subsampling: str
    channels: int
    dtype: str
    rescale: Rescale | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """H × W × C of a raw pack."""
        height, width = pair(self.size)
        return height, width, self.channels

    @property
    def row_bytes(self) -> int:
        """Size of an image in a raw pack."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def __call__(self, image: NDArray) -> tuple[bytes, bytes | None]:
        """The encoded image, and its nodata mask.

        Nodata is filled with the channel's mean before resizing. The mask of a raw image of integers is returned as
        packed bits; it is b"" where the encoded image holds it (a JPEG comment, NaN), and None where there is no
        nodata.

        Raises BadImage for an image that this pack cannot hold.
        """
        mask = nodata_mask(image)
        if self.format == "jpeg":
            data = self._jpeg(filled(image), mask)
            return data, None if mask is None or not has_jpeg_mask(data) else b""
        row, empty = self._raw(filled(image), mask)
        if empty is None or self.dtype == "float32":
            return row.tobytes(), None if empty is None else b""
        return row.tobytes(), np.packbits(empty).tobytes()

    def _jpeg(self, image: NDArray, mask: NDArray[np.bool_] | None) -> bytes:
        """Encode the whole image, its short side at most `size`; never enlarged."""
        height, width, channels = image.shape
        if self.rescale is not None and self.rescale.applies_to(image):
            image = self.rescale(image, "uint8")
        if image.dtype != np.uint8 or channels not in (1, 3):
            raise BadImage(f"{image.dtype} in {channels} channels does not fit a JPEG: {KEEP_OR_RESCALE}")
        assert isinstance(self.size, int)
        scale = self.size / min(height, width)
        if scale < 1:
            target = (max(1, round(height * scale)), max(1, round(width * scale)))
            image = resized_crop(image, (0, 0, height, width), target).permute(1, 2, 0).numpy()
            mask = None if mask is None else empty_values(mask, (0, 0, height, width), target)
        if mask is not None and mask.all():
            raise BadImage("no values at the size of the pack: most of each are nodata")
        if max(image.shape[:2]) > MAX_JPEG_LENGTH:
            raise BadImage(f"{image.shape[0]} x {image.shape[1]} px, a JPEG's sides end at {MAX_JPEG_LENGTH}")
        colours = ("GRAY", "Gray") if channels == 1 else ("RGB", self.subsampling)
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), self.quality, *colours)
        return data if mask is None or not mask.any() else with_jpeg_mask(data, mask)

    def _raw(self, image: NDArray, mask: NDArray[np.bool_] | None) -> tuple[NDArray, NDArray[np.bool_] | None]:
        """The largest centred box of the pack's aspect, resized to its shape, and its nodata mask.

        Floats are NaN where they are nodata.
        """
        height, width, channels = self.shape
        pixels = conformed(image, channels, self.dtype, 1, self.rescale)
        crop = resized_crop(pixels, centre_box(pixels, (height, width)), (height, width)).permute(1, 2, 0).numpy()
        if self.dtype == "uint16":  # it was resized as float32, and bicubic weights overshoot
            crop = np.rint(crop).clip(0, 65535).astype(np.uint16)
        crop = np.ascontiguousarray(crop)
        if mask is None:
            return crop, None
        empty = empty_values(mask_in_channels(mask, channels), centre_box(pixels, (height, width)), (height, width))
        if empty.all():
            raise BadImage("no values in its centre: all of them are nodata")
        if self.dtype == "float32":
            crop[empty] = np.nan
        return crop, empty if empty.any() else None


@dataclass(frozen=True)
class PackedBatch:
    """A batch of encoded images, in the source's order from `start` on.

    Attributes:
        start: index of the first image, readable or not.
        images: the bytes of each readable image; raw: all in one tensor.
        bad: the reason, by index, of each image that cannot be packed.
        empty: the mask, by index, of each image with nodata, as `Packing` returns it.
    """

    start: int
    images: list[bytes | Tensor]
    bad: dict[int, str]
    empty: dict[int, bytes] = field(default_factory=dict)


class _Sample(NamedTuple):
    """An encoded image, or the reason why it cannot be packed."""

    position: int
    data: bytes | None
    reason: str = ""
    empty: bytes | None = None


class PackedImages(Dataset):
    """A source's images, encoded for a pack; blank tiles are left out."""

    def __init__(self, source: Source, packing: Packing) -> None:
        self.source, self.packing = source, packing

    def __getitem__(self, index: int) -> _Sample:
        try:
            image = self.source.read(index)
            if isinstance(self.source, Tiled) and is_blank(image):
                return _Sample(index, None, BLANK)
            data, empty = self.packing(image)
            return _Sample(index, data, empty=empty)
        except BadImage as error:
            return _Sample(index, None, str(error))

    def collate(self, samples: list[_Sample]) -> PackedBatch:
        images = [sample.data for sample in samples if sample.data is not None]
        bad = {sample.position: sample.reason for sample in samples if sample.data is None}
        empty = {sample.position: sample.empty for sample in samples if sample.empty is not None}
        if self.packing.format == "raw" and images:  # a tensor goes through shared memory, bytes through a pipe
            rows: list[bytes | Tensor] = [torch.frombuffer(bytearray(b"".join(images)), dtype=torch.uint8)]
            return PackedBatch(samples[0].position, rows, bad, empty)
        return PackedBatch(samples[0].position, list(images), bad, empty)
