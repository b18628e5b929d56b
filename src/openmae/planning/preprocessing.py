"""How raw values become the model's input, decided where the user left it open."""

from dataclasses import replace
from typing import Protocol

from openmae.config import Preprocessing
from openmae.config.checks import MARKED
from openmae.data.decoding.nodata import resolve_nodata, stored_nodata
from openmae.data.decoding.npy import CHANNELS_LAST
from openmae.data.preprocess import DataFacts, imagenet_statistics
from openmae.data.value_scale import match_own_scale, match_scale, with_scale_of
from openmae.errors import RequestError
from openmae.planning.decisions import Decisions


def decide_statistics(facts: DataFacts, decisions: Decisions) -> None:
    """Channels, value range, mean and standard deviation; and what transparent pixels become."""
    decide, get = decisions.decide, decisions.get
    decide("background", 1.0, "white")
    decide("channels", facts.channels, "what the images have")
    decide("value_range", facts.value_range, f"of {facts.dtype} data")
    is_photo_like = facts.channels == 3 and facts.dtype == "uint8"
    decide(
        "statistics",
        "imagenet" if is_photo_like else "measured",
        "not used: --mean and --std are given"
        if get("mean") is not None
        else "colour photographs"
        if is_photo_like
        else f"{facts.channels} channels of {facts.dtype}",
    )
    if get("statistics") == "imagenet":
        mean, std = imagenet_statistics(get("channels"))
    else:
        low, high = get("value_range")
        mean = tuple(round((value - low) / (high - low), 4) for value in facts.mean)
        std = tuple(round(value / (high - low), 4) for value in facts.std)
        if get("channels") != facts.channels:  # grey images given as RGB, or the reverse
            mean = (sum(mean) / len(mean),) * get("channels")
            std = (sum(std) / len(std),) * get("channels")
    decide("mean", mean, f"{get('statistics')} statistics")
    decide("std", std, f"{get('statistics')} statistics")


def choose_axes(facts: DataFacts, decisions: Decisions) -> None:
    """Record the order of axes that the data was opened with."""
    decisions.decide("axes", facts.axes.order or CHANNELS_LAST, facts.axes.why or "no .npy of three axes was seen")


def choose_nodata(model: Preprocessing | None, decisions: Decisions) -> None:
    """Record which values stand for no data, as the images were read."""
    setting = resolve_nodata(decisions.config.nodata, model)
    decisions.set("nodata", setting, "NaN, and what TIFFs mark" if setting == MARKED else "as --init")


class InputSettings(Protocol):
    """The settings of a resolved config that say how images become the model's input."""

    @property
    def channels(self) -> int: ...
    @property
    def value_range(self) -> tuple[float, float]: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def background(self) -> float: ...


def preprocessing_of(config: InputSettings, dtype: str, crop_fraction: float = 1.0) -> Preprocessing:
    """How images become the model's input, as far as the config says it."""
    return Preprocessing(
        channels=config.channels,
        value_range=config.value_range,
        mean=config.mean,
        std=config.std,
        image_size=config.size,
        background=config.background,
        dtype=dtype,
        crop_fraction=crop_fraction,
    )


def with_reading_settings(
    preprocessing: Preprocessing, facts: DataFacts, nodata: str | float, axes: str | None
) -> Preprocessing:
    """The preprocessing with how the data was read: its order of axes, or else `axes`, and its nodata value."""
    return replace(preprocessing, axes=facts.axes.order or axes, nodata=stored_nodata(nodata))


def matched_to_data(
    preprocessing: Preprocessing,
    model: Preprocessing | None,
    facts: DataFacts,
    value_range: tuple[float, float] | None,
    nodata: str | float,
) -> tuple[Preprocessing, list[str]]:
    """The preprocessing with the data's scale of values, axes and nodata value, and lines about the scale.

    Args:
        model: of the model to start from, whose scale is kept; None from scratch.
        value_range: as `--value-range` says.
    """
    if model is None:
        preprocessing, notes = match_own_scale(preprocessing, facts.depths)
    else:
        preprocessing, notes = match_scale(
            with_scale_of(preprocessing, model), facts.depths, value_range, stated=facts.stated_range
        )
    return with_reading_settings(preprocessing, facts, nodata, None if model is None else model.axes), notes


def check_scale(dtype: str, facts: DataFacts, value_range: tuple[float, float] | None) -> None:
    """Raise RequestError where images are floats and the model's integers, or the reverse, and no range is given."""
    if (value_range or facts.stated_range) is None and "float32" in (dtype, facts.dtype) and dtype != facts.dtype:
        raise RequestError(
            f"the model takes {dtype} images, these are {facts.dtype}: --value-range LOW HIGH says which of their "
            "values become its 0 and 1"
        )
