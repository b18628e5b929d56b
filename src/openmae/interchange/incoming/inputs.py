"""The preprocessing of a foreign model: from transformers' and timm's settings to a `Preprocessing`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openmae.config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from openmae.errors import RequestError

MAX_NUMBER = 1e9
HALF = (0.5, 0.5, 0.5)
PILLOW_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
CLASSIFIER_CROP_FRACTION = 224 / 256  # as most classifiers were evaluated (docs/paper.md, evaluation)


@dataclass(frozen=True)
class Inputs:
    """The preprocessing, and remarks about how it was found."""

    preprocessing: Preprocessing
    remarks: tuple[str, ...]


def read_inputs(
    *,
    config: Mapping[str, Any],
    processor: Mapping[str, Any],
    family: str,
    channels: int,
    image_size: tuple[int, int],
    is_classifier: bool,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Inputs:
    """The preprocessing that a checkpoint names, or the one that its family was trained with.

    Args:
        config: timm's or transformers' config.json.
        processor: transformers' preprocessor_config.json.
        mean, std: take these instead of what is found.

    Raises:
        RequestError: the settings are no valid preprocessing.
    """
    timm = config.get("pretrained_cfg") if isinstance(config.get("pretrained_cfg"), Mapping) else {}
    assert isinstance(timm, Mapping)
    remarks: list[str] = []
    value_range = (0.0, 255.0)
    crop_fraction = CLASSIFIER_CROP_FRACTION if is_classifier and max(image_size) <= 224 else 1.0
    if "image_mean" in processor or processor.get("do_normalize") is False:
        if processor.get("do_normalize", True) is False:
            found_mean, found_std = (0.0,) * channels, (1.0,) * channels
        else:
            found_mean, found_std = _floats(processor, "image_mean"), _floats(processor, "image_std")
        number = processor.get("resample", 3)
        where, filter_name = "preprocessor_config.json", "another"
        if isinstance(number, int):
            filter_name = PILLOW_FILTERS.get(number, "another")
        value_range = (0.0, _brightest(processor))
        crop_fraction = _processor_crop_fraction(processor, image_size, crop_fraction)
    elif "mean" in timm:
        found_mean, found_std = _floats(timm, "mean"), _floats(timm, "std")
        where, filter_name = "config.json", str(timm.get("interpolation", "bicubic"))
        share = timm.get("crop_pct")
        if is_classifier and isinstance(share, int | float) and 0 < share <= 1:
            crop_fraction = float(share)
    elif family == "beit":
        found_mean, found_std, where, filter_name = HALF, HALF, "BEiT was trained so; the file does not say", "bicubic"
    else:
        found_mean, found_std, filter_name = IMAGENET_MEAN, IMAGENET_STD, "bicubic"
        where = "ImageNet's; the file does not say, --mean and --std of openmae convert set others"
    if mean is not None:
        found_mean, where = mean, "as requested"
    if std is not None:
        found_std = std
    found_mean, found_std = _for_channels(found_mean, channels), _for_channels(found_std, channels)
    remarks.append(f"mean {_shown(found_mean)}, deviation {_shown(found_std)} ({where})")
    if filter_name != "bicubic":
        remarks.append(f"its images were resized by {filter_name} filter, here they are by bicubic")
    # A factor of 1/255 in decimal gives 254.99999…
    value_range = (
        (0.0, float(round(value_range[1]))) if abs(value_range[1] - round(value_range[1])) < 1e-3 else value_range
    )
    return Inputs(
        Preprocessing(
            channels=channels,
            value_range=value_range,
            mean=found_mean,
            std=found_std,
            image_size=image_size,
            crop_fraction=crop_fraction,
        ),
        tuple(remarks),
    )


def _processor_crop_fraction(processor: Mapping[str, Any], image_size: tuple[int, int], otherwise: float) -> float:
    """The share of the short side that a centre crop after the resize keeps."""
    size = processor.get("size")
    if (
        isinstance(size, Mapping)
        and isinstance(size.get("shortest_edge"), int)
        and processor.get("do_center_crop", True)
    ):
        return min(1.0, min(image_size) / max(1, size["shortest_edge"]))
    # ViTImageProcessor resizes without cropping.
    return 1.0 if size is not None else otherwise


def _floats(settings: Mapping[str, Any], name: str) -> tuple[float, ...]:
    values = settings.get(name)
    values = [values] if isinstance(values, int | float) else values
    if not isinstance(values, list | tuple) or not values or not all(_is_number(value) for value in values):
        raise RequestError(f"the checkpoint's {name} is {str(values)[:100]!r}: it must be numbers")
    return tuple(float(value) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and -MAX_NUMBER < value < MAX_NUMBER  # not NaN, too


def _brightest(processor: Mapping[str, Any]) -> float:
    """The pixel value that is rescaled to 1."""
    if not processor.get("do_rescale", True):
        return 1.0
    scale = processor.get("rescale_factor", 1 / 255)
    if not _is_number(scale) or not scale * MAX_NUMBER > 1:
        raise RequestError(f"the checkpoint's rescale_factor is {str(scale)[:100]!r}: it must be a number above 0")
    return float(1 / scale)


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One value for each channel: the values themselves, or their mean where the number of channels differs."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _shown(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
