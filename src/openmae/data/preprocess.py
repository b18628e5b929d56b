"""From a decoded image to the model's input and back, by its `Preprocessing`; and the statistics of a data set."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmae.config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from openmae.data.augment import centre_box, resized_crop
from openmae.data.decoding.decode import BadImage, to_channels
from openmae.data.decoding.nodata import fill_in, filled, mask_in_channels, nodata_mask, values_of
from openmae.data.depths import BitDepths, survey_depths
from openmae.data.randomness import Permutation
from openmae.data.sources.axes import BY_SHAPE, Axes
from openmae.data.sources.largest import LargestImage, largest_image
from openmae.data.sources.open import Source
from openmae.data.sources.tiles import Tiled, is_blank
from openmae.data.sources.views import axes_of, raw_shape, root_of
from openmae.data.value_scale import Rescale, stated_range
from openmae.errors import RequestError

PROBE_SIZE = (64, 64)  # statistics are of centre crops of this size


def conform(
    image: NDArray,
    channels: int,
    dtype: str,
    min_side: int = 1,
    rescale: Rescale | None = None,
    fill: tuple[float, ...] | None = None,
) -> NDArray:
    """Bring a decoded image to the model's channels and number type.

    Args:
        image: H × W × C of uint8, uint16 or float32.
        channels: 1, 3 or as many as the model takes.
        dtype: the model's; integers of the other width are scaled to it, full range to full range.
        min_side: images with a smaller side, in pixels, are refused.
        rescale: a mapping of values that takes precedence over that.
        fill: what replaces nodata values, on the model's scale, by channel; None: 0.

    Returns:
        H × W × channels of uint8 (dtype uint8) or float32 (else).

    Raises:
        BadImage: the channels do not fit, no mapping between floats and integers is given, or the image is too small.
    """
    if min(image.shape[:2]) < min_side:
        raise BadImage(f"{image.shape[0]}x{image.shape[1]} px, smaller than a patch of {min_side} px")
    if (mask := nodata_mask(image)) is not None:
        values = conform(values_of(image), channels, dtype, rescale=rescale)
        return fill_in(values.copy(), mask_in_channels(mask, channels), fill or (0.0,) * channels)
    if image.dtype == np.float32 and not np.isfinite(image).all():
        raise BadImage("values that are not finite")
    image = to_channels(image, channels)
    if rescale is not None and rescale.applies_to(image):
        return rescale(image, dtype)
    if image.dtype != dtype:
        if "float32" in (str(image.dtype), dtype):
            raise BadImage(f"{image.dtype} values where the data is {dtype} (--value-range LOW HIGH brings them to it)")
        image = (
            (image.astype(np.uint32) * 257).astype(np.uint16) if dtype == "uint16" else (image >> 8).astype(np.uint8)
        )
    return image if dtype == "uint8" else image.astype(np.float32)


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(B, C, H, W) raw values → the model's input: float32, standardised to mean 0 and deviation 1 by channel."""
    return normalise_(images.to(torch.float32, copy=True), preprocessing)


def normalise_(values: Tensor, preprocessing: Preprocessing) -> Tensor:
    """`normalise` of float32 values, in place: on a CPU two more allocations take longer than the arithmetic.

    Returns:
        The same tensor.
    """
    low, high = preprocessing.value_range
    mean, std = _columns(preprocessing, values.device)
    return values.sub_(low + mean * (high - low)).div_(std * (high - low))


def to_unit(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The inverse of `normalise`: the model's input → values where 0..1 is black to white, not clipped."""
    mean, std = _columns(preprocessing, images.device)
    return images.float() * std + mean


def _columns(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    return _column(preprocessing.mean, device), _column(preprocessing.std, device)


def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A value for each channel: (1, C, 1, 1). Filled on the device, since a copy from the CPU would synchronise."""
    column = torch.empty(1, len(values), 1, 1, device=device)
    for channel, value in enumerate(values):
        column[:, channel].fill_(value)
    return column


@dataclass(frozen=True)
class DataFacts:
    """Statistics of a data set, from a sample of its images (`survey`).

    Attributes:
        count: images in the source.
        channels, dtype: those of most images; grey and RGB images together count as RGB.
        short_side: the median of the shorter sides in pixels.
        value_range: the raw values that become 0 and 1: those stated in a pack, the type's range for uint8, else the
            0.1 and 99.9 percentiles.
        mean, std: by channel, of raw values.
        bad: name and reason of each sampled image that could not be read.
        other_dtypes: how many sampled images have another number type.
        depths: the highest values and bit depths of each number type.
        stated_range: the value range that a pack states; None where there is none.
        axes: what was decided about the axes of `.npy` files.
        raw_shape: height, width and channels of all images of a raw pack; None for other sources.
        num_blank: how many sampled tiles are blank; they count nowhere else here.
        aspects: width over height of each sampled image.
        largest: the image that takes most memory, as far as headers were read; None where there are no headers.
        num_with_nodata: how many sampled images have nodata values.
        nodata_fraction: the fraction of nodata values, the mean over the sampled images.
    """

    count: int
    channels: int
    dtype: str
    short_side: int
    value_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bad: dict[str, str] = field(default_factory=dict)
    other_dtypes: dict[str, int] = field(default_factory=dict)
    depths: BitDepths = field(default_factory=BitDepths)
    stated_range: tuple[float, float] | None = None
    axes: Axes = BY_SHAPE
    raw_shape: tuple[int, int, int] | None = None
    num_blank: int = 0
    aspects: tuple[float, ...] = (1.0,)
    largest: LargestImage | None = None
    num_with_nodata: int = 0
    nodata_fraction: float = 0.0

    @property
    def aspect(self) -> float:
        """The median of `aspects`, for which 1:2 and 2:1 are equally far from a square."""
        return round(float(np.exp(np.median(np.log(self.aspects)))), 6)


def survey(source: Source, limit: int = 256, other_splits: Iterable[Source] = ()) -> DataFacts:
    """Decode a fixed random sample of up to `limit` images and measure them.

    Args:
        other_splits: other splits of the data set, whose bit depths are measured too.

    Raises:
        RequestError: none of them can be read.
    """
    images, aspects, bad, depths, num_blank = [], list[float](), {}, BitDepths(), 0
    nodata_fractions = list[float]()
    indices = Permutation(len(source), 0)(np.arange(min(limit, len(source))))
    if isinstance(source, Tiled):  # in order, so that each image is decoded once for all of its tiles
        indices.sort()
    for index in indices.tolist():
        try:
            image = source.read(index)
        except BadImage as error:
            bad[source.name(index)] = str(error)
            continue
        if isinstance(source, Tiled) and is_blank(image):
            num_blank += 1
            continue
        images.append((str(image.dtype), min(image.shape[:2]), _small(image)))
        nodata_fractions.append(0.0 if (mask := nodata_mask(image)) is None else float(mask.mean()))
        aspects.append(image.shape[1] / image.shape[0])
        depths += BitDepths.from_images([image])
    if not images and not bad:
        raise RequestError(f"all of {num_blank} tiles looked at are blank")
    if not images:
        reason, count = Counter(bad.values()).most_common(1)[0]
        raise RequestError(f"none of {len(bad)} images looked at can be read ({count} of them: {reason})")
    dtype = Counter(kind for kind, _, _ in images).most_common(1)[0][0]
    of_type = [pixels for kind, _, pixels in images if kind == dtype]
    by_channels = Counter(len(pixels) for pixels in of_type)
    # A few colour pictures among grey ones make the set a colour set: grey fits into RGB, not the reverse.
    channels = 3 if set(by_channels) == {1, 3} else by_channels.most_common(1)[0][0]
    matching = [pixels for pixels in of_type if len(pixels) in (channels, 1 if channels == 3 else channels)]
    pixels = torch.stack([p.expand(channels, -1, -1) for p in matching]).transpose(0, 1).flatten(1)
    mean, std = _statistics(pixels)
    value_range = (0.0, 255.0)
    if dtype != "uint8":
        values = pixels.flatten()[:: max(1, pixels.numel() // 10_000_000)].numpy()
        values = values[~np.isnan(values)] if any(nodata_fractions) else values
        low, high = (float(v) for v in np.percentile(values, [0.1, 99.9])) if len(values) else (0.0, 1.0)
        value_range = (low, high if high > low else low + 1.0)
    stated = stated_range([source])
    value_range = value_range if stated is None else stated
    min_std = 0.01 * (value_range[1] - value_range[0])  # or a constant channel would be divided by almost 0
    return DataFacts(
        count=len(source),
        channels=channels,
        dtype=dtype,
        short_side=int(np.median([side for _, side, _ in images])),
        value_range=value_range,
        mean=mean,
        std=tuple(max(value, min_std) for value in std),
        bad=bad,
        other_dtypes={kind: n for kind, n in Counter(kind for kind, _, _ in images).items() if kind != dtype},
        depths=depths + survey_depths(other for other in other_splits if root_of(other) is not root_of(source)),
        stated_range=stated,
        axes=axes_of([source]),
        raw_shape=raw_shape(source),
        num_blank=num_blank,
        aspects=tuple(aspects),
        largest=largest_image(source),
        num_with_nodata=sum(fraction > 0 for fraction in nodata_fractions),
        nodata_fraction=float(np.mean(nodata_fractions)),
    )


def _small(image: NDArray) -> Tensor:
    """The centre of an image as (C, *PROBE_SIZE) float32, NaN where a nodata value contributed."""
    mask, image = nodata_mask(image), filled(image)
    image = image if image.dtype == np.uint8 else image.astype(np.float32)
    box = centre_box(image, PROBE_SIZE)
    small = resized_crop(image, box, PROBE_SIZE).float()
    if mask is not None:
        small[resized_crop(mask.astype(np.float32), box, PROBE_SIZE).abs() > 1e-3] = torch.nan
    return small


def _statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each row of (C, n) values, without NaN."""
    if not pixels.isnan().any():
        return tuple(float(v) for v in pixels.mean(1)), tuple(float(v) for v in pixels.std(1))
    rows = [row[~row.isnan()] for row in pixels]
    means = tuple(float(row.mean()) if len(row) else 0.0 for row in rows)
    return means, tuple(float(row.std()) if len(row) > 1 else 0.0 for row in rows)


def facts_in_scale(facts: DataFacts, preprocessing: Preprocessing) -> DataFacts:
    """The facts with mean and deviation on the model's scale, where its preprocessing rescales such images."""
    rescale = Rescale.from_preprocessing(preprocessing)
    if rescale is None or rescale.dtype not in (None, facts.dtype):
        return facts
    slope = (rescale.target[1] - rescale.target[0]) / (rescale.source[1] - rescale.source[0])
    mean = tuple(rescale.target[0] + (value - rescale.source[0]) * slope for value in facts.mean)
    return replace(facts, mean=mean, std=tuple(value * slope for value in facts.std))


def imagenet_statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """ImageNet's mean and standard deviation; for grey images those of its luma, approximately."""
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (sum(IMAGENET_MEAN) / 3,) * channels, (sum(IMAGENET_STD) / 3,) * channels
