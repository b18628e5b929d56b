"""Mapping the data's values to the model's: 12 bits in 16-bit files would be almost black to a model of 8-bit images.

Images of the model's number type are not changed. Of images of another type, a range of values is mapped linearly to a
range of the model's; the mapping is printed, and stored beside the weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmae.config import Preprocessing
from openmae.config.checks import check_value_range
from openmae.data.depths import BitDepths, bits_for
from openmae.data.sources.open import Source
from openmae.data.sources.views import root_of

EIGHT_BITS, SIXTEEN_BITS = (0.0, 255.0), (0.0, 65535.0)
INTEGERS = ("uint8", "uint16")


def range_of_bits(bits: int) -> tuple[float, float]:
    """The lowest and the highest unsigned integer of so many bits."""
    return 0.0, float(2**bits - 1)


def format_range(values: tuple[float, float]) -> str:
    """A range of values as text: `0 to 4095`."""
    return f"{values[0]:g} to {values[1]:g}"


@dataclass(frozen=True)
class Rescale:
    """A linear mapping of the values of one number type from one range to another.

    Attributes:
        dtype: of the images that it applies to; None: to all.
        source, target: the ranges, (low, high), before and after.
    """

    dtype: str | None
    source: tuple[float, float]
    target: tuple[float, float]

    @classmethod
    def from_preprocessing(cls, preprocessing: Preprocessing) -> "Rescale | None":
        """The mapping that a preprocessing states; None where it states none, as older checkpoints do."""
        p = preprocessing
        if p.source_range is None or p.target_range is None:
            return None
        return cls(p.source_dtype, p.source_range, p.target_range)

    def to_dict(self) -> dict[str, Any]:
        """The mapping as JSON values, as in a pack's manifest."""
        return {"dtype": self.dtype, "source": list(self.source), "target": list(self.target)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Rescale":
        (low, high), (start, end) = values["source"], values["target"]
        return cls(values["dtype"], (float(low), float(high)), (float(start), float(end)))

    def applies_to(self, image: NDArray) -> bool:
        return self.dtype is None or self.dtype == str(image.dtype)

    def __call__(self, image: NDArray, dtype: str) -> NDArray:
        """Map an image: to uint8, rounded and clipped, for a model of uint8, else to float32."""
        if image.dtype.kind == "u":
            return _table(self.source, self.target, str(image.dtype), dtype == "uint8")[image]
        values = _mapped(image.astype(np.float64), self.source, self.target)
        return np.rint(values).clip(0, 255).astype(np.uint8) if dtype == "uint8" else values.astype(np.float32)


def _mapped(values: NDArray, source: tuple[float, float], target: tuple[float, float]) -> NDArray:
    share = (values - source[0]) / (source[1] - source[0])
    return share * (target[1] - target[0]) + target[0]


@cache
def _table(source: tuple[float, float], target: tuple[float, float], dtype: str, is_rounded: bool) -> NDArray:
    """The lookup table of an integer type: the mapped value of each integer."""
    values = np.arange(np.iinfo(dtype).max + 1)
    if is_rounded and (dtype, source, target) == ("uint16", SIXTEEN_BITS, EIGHT_BITS):
        return (values >> 8).astype(np.uint8)  # as in older versions; dividing by 257 would change values by 1
    mapped = _mapped(values.astype(np.float64), source, target)
    return np.rint(mapped).clip(0, 255).astype(np.uint8) if is_rounded else mapped.astype(np.float32)


def match_scale(
    preprocessing: Preprocessing,
    depths: BitDepths,
    value_range: tuple[float, float] | None,
    *,
    stated: tuple[float, float] | None = None,
    highest: float | None = None,
    target_name: str = "the model",
    suggest_flag: bool = True,
) -> tuple[Preprocessing, list[str]]:
    """Decide how images of other number types are mapped to the model's, with a line about each decision.

    In this order: `--value-range`, the range that a pack states, the mapping in the preprocessing, or a guess: the
    smallest usual bit depth that holds the highest value. Between floats and integers nothing is guessed: `conform`
    refuses such images.

    Args:
        preprocessing: the model's.
        depths: of the images.
        value_range: the values given on the command line for the model's 0 and 1: of images of the other type or, where
            all images have the model's, of these.
        stated: the values that a pack states for 0 and 1; ignored where all images have the model's type.
        highest: the highest value of the model's own type, where more is known than its preprocessing says.
        target_name: whose scale images are mapped to, for the lines.
        suggest_flag: mention `--value-range` in the lines.

    Returns:
        The preprocessing, with `source_dtype`, `source_range` and `target_range` where something is mapped; the lines.
    """
    p, lines = preprocessing, []
    if (mixture := depths.describe_mixture()) is not None:
        lines.append(mixture)
    others = sorted((kind for kind in depths.counts if kind != p.dtype), key=lambda kind: -depths.counts[kind])
    origin = "--value-range" if value_range is not None else "the pack"
    value_range = value_range if value_range is not None else stated if others else None
    if value_range is not None:
        kind = others[0] if others else p.dtype
        if kind == p.dtype and value_range == p.value_range:
            return p, lines
        p = replace(p, source_dtype=kind, source_range=value_range, target_range=_whole_range(p))
        lines.append(f"{_mapping_text(p, target_name)}, as {origin} says")
    elif p.source_range is not None and p.target_range is not None and p.source_dtype in (*others, None):
        lines.append(f"{_mapping_text(p, target_name)}, as it was before (--value-range says otherwise)")
        top = depths.highest.get(p.source_dtype or "", p.source_range[1])
        if top > p.source_range[1]:
            lines.append(f"warning: values up to {top:g} lie above {p.source_range[1]:g}: give --value-range")
    elif others and others[0] in INTEGERS and p.dtype in INTEGERS:
        kind, top = others[0], depths.highest[others[0]]
        target_range = EIGHT_BITS if p.dtype == "uint8" else range_of_bits(bits_for(highest or p.value_range[1]))
        bits = bits_for(top)
        p = replace(p, source_dtype=kind, source_range=range_of_bits(bits), target_range=target_range)
        why = f"{bits} bits hold {top:g}, the highest of {depths.counts[kind]} looked at"
        why = "all that 8 bits hold" if kind == "uint8" else why
        why += "; --value-range LOW HIGH says otherwise" * suggest_flag
        lines.append(f"{_mapping_text(p, target_name)} ({why})")
    return p, lines


def match_own_scale(preprocessing: Preprocessing, depths: BitDepths) -> tuple[Preprocessing, list[str]]:
    """`match_scale` for data whose most common number type is the preprocessing's: the others are mapped to it."""
    highest = max(depths.highest.get(preprocessing.dtype, 0.0), preprocessing.value_range[1])
    name = f"the {preprocessing.dtype} images"
    return match_scale(preprocessing, depths, None, highest=highest, target_name=name, suggest_flag=False)


def stored_value_range(preprocessing: Preprocessing) -> tuple[float, float] | None:
    """The `--value-range` that is equivalent to the preprocessing's stored mapping; None where it has none."""
    rescale = Rescale.from_preprocessing(preprocessing)
    if rescale is None:
        return None
    low, high = _mapped(np.array(_whole_range(preprocessing)), rescale.target, rescale.source).tolist()
    return low, high


def stated_range(sources: Iterable[Source]) -> tuple[float, float] | None:
    """The values that a pack states for 0 and 1; None where the data states none."""
    ranges = (getattr(root_of(source), "value_range", None) for source in sources)
    return next((stated for stated in ranges if stated is not None), None)


def with_scale_of(preprocessing: Preprocessing, model: Preprocessing) -> Preprocessing:
    """The preprocessing with the model's number type, value range and mapping of other types."""
    return replace(
        preprocessing,
        dtype=model.dtype,
        value_range=model.value_range,
        source_dtype=model.source_dtype,
        source_range=model.source_range,
        target_range=model.target_range,
    )


def with_value_range(preprocessing: Preprocessing, value_range: tuple[float, float]) -> Preprocessing:
    """The preprocessing for images of any type, with this range of values as the model's 0 and 1.

    Raises:
        RequestError: the first value is not below the second.
    """
    check_value_range(value_range)
    low, high = (float(value) for value in value_range)
    return replace(preprocessing, source_dtype=None, source_range=(low, high), target_range=_whole_range(preprocessing))


def scale_warning(image: NDArray, preprocessing: Preprocessing) -> str | None:
    """A warning that an image's values may be scaled wrongly; None where there is no doubt."""
    p, kind = preprocessing, str(image.dtype)
    if kind not in INTEGERS or p.dtype not in INTEGERS:
        return None
    rescale = Rescale.from_preprocessing(p)
    if rescale is not None and rescale.applies_to(image):
        top = float(image.max())
        above = kind == rescale.dtype and top > rescale.source[1]
        return (
            f"{kind} values up to {top:g} lie above {format_range(rescale.source)}, the model's range"
            if above
            else None
        )
    if kind == p.dtype:
        return None
    if kind == "uint16" and (bits := bits_for(top := float(image.max()))) < 16:
        return (
            f"uint16 values up to {top:g}, which {bits} bits hold, are taken for 16 bits ({format_range(SIXTEEN_BITS)})"
        )
    if kind == "uint8" and (bits := bits_for(p.value_range[1])) < 16:
        of_model = format_range(p.value_range)
        return f"uint8 values become {format_range(SIXTEEN_BITS)}, and {bits} bits hold the model's {of_model}"
    return None


def _whole_range(p: Preprocessing) -> tuple[float, float]:
    """The model's raw values for 0 and 1; some models of other libraries take 8-bit values without scaling."""
    return EIGHT_BITS if p.dtype == "uint8" and p.value_range[1] <= 1 else p.value_range


def _mapping_text(p: Preprocessing, target_name: str) -> str:
    assert p.source_range is not None and p.target_range is not None
    what = "values" if p.source_dtype is None else f"{p.source_dtype} values"
    return f"{what} of {format_range(p.source_range)} become {format_range(p.target_range)} of {target_name}"


def value_lines(lines: Iterable[str]) -> list[str]:
    """`match_scale`'s lines, as a plan prints them."""
    return [line if line.startswith("warning: ") else f"values     {line}" for line in lines]
