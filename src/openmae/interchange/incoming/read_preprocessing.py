"""The `Preprocessing` of another library's checkpoint, from the settings of transformers or timm beside its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from openmae.config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from openmae.errors import RequestError

MAX_NUMBER = 1e9  # larger settings are taken for damage
BEIT_MEAN = BEIT_STD = (0.5, 0.5, 0.5)
PILLOW_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# The usual evaluation of a classifier: short side 256, centre crop 224 (docs/paper.md, evaluation).
CLASSIFIER_CROP_FRACTION = 224 / 256


@dataclass(frozen=True)
class FoundPreprocessing:
    """The preprocessing, and remarks about how it was found."""

    preprocessing: Preprocessing
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Settings:
    """What a checkpoint says, or what its family was trained with.

    Attributes:
        origin: where mean and std come from, for people.
        white: the pixel value that becomes 1.
        filter_name: how images were resized in training.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str
    crop_fraction: float
    white: float = 255.0
    filter_name: str = "the bicubic"


def read_preprocessing(
    *,
    config: Mapping[str, Any],
    processor: Mapping[str, Any],
    family: str,
    channels: int,
    image_size: tuple[int, int],
    is_classifier: bool,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> FoundPreprocessing:
    """Read the preprocessing that a checkpoint names: transformers' processor first, then timm's `pretrained_cfg`.

    Where it names none, it is the one that its family was trained with: BEiT's own, ImageNet's for all others.

    Args:
        config: timm's or transformers' config.json.
        processor: transformers' preprocessor_config.json.
        mean, std: both or neither: take these instead of what is found.

    Raises:
        RequestError: the settings are no valid preprocessing.
    """
    # Classifiers for larger images were evaluated on all of the image.
    crop_fraction = CLASSIFIER_CROP_FRACTION if is_classifier and max(image_size) <= 224 else 1.0
    pretrained_cfg = config.get("pretrained_cfg")
    if "image_mean" in processor or processor.get("do_normalize") is False:
        found = _from_processor(processor, channels, image_size, crop_fraction)
    elif isinstance(pretrained_cfg, Mapping) and "mean" in pretrained_cfg:
        found = _from_timm(pretrained_cfg, is_classifier, crop_fraction)
    elif family == "beit":
        found = _Settings(BEIT_MEAN, BEIT_STD, "BEiT's; the file does not say", crop_fraction)
    else:
        origin = "ImageNet's; the file does not say, --mean and --std of openmae convert set others"
        found = _Settings(IMAGENET_MEAN, IMAGENET_STD, origin, crop_fraction)
    if mean is not None and std is not None:
        found = replace(found, mean=mean, std=std, origin="as requested")
    found = replace(found, mean=_for_channels(found.mean, channels), std=_for_channels(found.std, channels))
    remarks = [f"mean {_shown(found.mean)}, std {_shown(found.std)} ({found.origin})"]
    if found.filter_name != "the bicubic":
        remarks.append(f"its training resized images with {found.filter_name} filter, openmae with the bicubic one")
    preprocessing = Preprocessing(
        channels=channels,
        value_range=(0.0, found.white),
        mean=found.mean,
        std=found.std,
        image_size=image_size,
        crop_fraction=found.crop_fraction,
    )
    return FoundPreprocessing(preprocessing, tuple(remarks))


def _from_processor(
    processor: Mapping[str, Any], channels: int, image_size: tuple[int, int], crop_fraction: float
) -> _Settings:
    """The settings of transformers' image processor; `crop_fraction` where it gives no size."""
    if processor.get("do_normalize") is False:
        mean, std = (0.0,) * channels, (1.0,) * channels
    else:
        mean, std = _floats(processor, "image_mean"), _floats(processor, "image_std")
    resample = processor.get("resample", 3)
    filter_name = PILLOW_FILTERS.get(resample) if isinstance(resample, int) else None
    return _Settings(
        mean,
        std,
        "preprocessor_config.json",
        _processor_crop_fraction(processor, image_size, crop_fraction),
        _white_value(processor),
        "another" if filter_name is None else f"the {filter_name}",
    )


def _from_timm(pretrained_cfg: Mapping[str, Any], is_classifier: bool, crop_fraction: float) -> _Settings:
    """The settings of timm's `pretrained_cfg`; its crop is for evaluating a classifier."""
    crop_pct = pretrained_cfg.get("crop_pct")
    if is_classifier and isinstance(crop_pct, int | float) and 0 < crop_pct <= 1:
        crop_fraction = float(crop_pct)
    return _Settings(
        _floats(pretrained_cfg, "mean"),
        _floats(pretrained_cfg, "std"),
        "config.json",
        crop_fraction,
        filter_name=f"the {pretrained_cfg.get('interpolation', 'bicubic')}",
    )


def _processor_crop_fraction(processor: Mapping[str, Any], image_size: tuple[int, int], default: float) -> float:
    """The fraction of the short side that a centre crop after the resize keeps."""
    size = processor.get("size")
    if (
        isinstance(size, Mapping)
        and isinstance(size.get("shortest_edge"), int)
        and processor.get("do_center_crop", True)
    ):
        return min(1.0, min(image_size) / max(1, size["shortest_edge"]))
    # ViTImageProcessor resizes without cropping.
    return 1.0 if size is not None else default


def _floats(settings: Mapping[str, Any], name: str) -> tuple[float, ...]:
    values = settings.get(name)
    values = [values] if isinstance(values, int | float) else values
    if not isinstance(values, list | tuple) or not values or not all(_is_number(value) for value in values):
        raise RequestError(f"the checkpoint's {name} is {str(values)[:100]!r}: it must be numbers")
    return tuple(float(value) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and -MAX_NUMBER < value < MAX_NUMBER  # false for NaN


def _white_value(processor: Mapping[str, Any]) -> float:
    """The pixel value that becomes 1: 1 / `rescale_factor`; 1 where pixels are not rescaled."""
    if not processor.get("do_rescale", True):
        return 1.0
    factor = processor.get("rescale_factor", 1 / 255)
    if not _is_number(factor) or not factor * MAX_NUMBER > 1:
        raise RequestError(f"the checkpoint's rescale_factor is {str(factor)[:100]!r}: it must be a number above 0")
    white = float(1 / factor)
    # The factor is a rounded decimal: 1 / 0.00392157 is 254.9999.
    return float(round(white)) if abs(white - round(white)) < 1e-3 else white


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One value for each channel: the values themselves, or their mean where the number of channels differs."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _shown(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
