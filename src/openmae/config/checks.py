"""The base class of all settings, and their checks: a wrong one is refused in one line that names its flag."""

import difflib
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, Self, Union, get_args, get_origin, get_type_hints

from openmae.errors import RequestError

MARKED, OFF = "marked", "off"
NODATA_MODES = (MARKED, OFF)
NONE_IS_OFF = {"none": "off"}  # metadata of a field whose None means off or not used: it is never decided
MAX_TILE = 100_000  # side in pixels; no image is larger than such a tile
MAX_PIXELS = 178_956_970  # twice Pillow's MAX_IMAGE_PIXELS: above it Pillow by itself raises an error, too
MAX_SIDE = 16384  # of a model's images, in pixels


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The base class of all commands' settings. `None` means "decide for me", or off (`NONE_IS_OFF`)."""

    def explicit(self) -> dict[str, Any]:
        """The settings that differ from the defaults, by name: what a user requested."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values; paths as strings."""
        return {name: _without_paths(value) for name, value in asdict(self).items()}

    def plain(self) -> Self:
        """The same settings with paths as strings and lists as tuples, whatever they were given as."""
        return self.from_dict(self.to_dict())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Settings from `to_dict`'s values, or from JSON; names that are no settings are ignored."""
        known = {f.name for f in fields(cls)}
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return cls(**settings)


def _without_paths(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(map(_without_paths, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class Sized:
    """Settings with an `--image-size`."""

    image_size: int | tuple[int, int] | None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels."""
        return pair(self.image_size)

    def check_size(self) -> None:
        """Raise RequestError where a side is out of range."""
        for side in self.size or ():
            check_range("--image-size", side, 1, MAX_SIDE)


class ResolvedSize(Sized):
    """Settings whose `--image-size` is decided."""

    image_size: int | tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return pair(self.image_size)


def pair(image_size: int | tuple[int, int] | None) -> Any:
    """(height, width) of an `--image-size`; None stays None."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def check_name(flag: str, got: str | None, known: Iterable[str]) -> None:
    """Raise RequestError with the nearest known name when `got` is not one of `known` (None passes)."""
    known = list(known)
    if got is None or got in known:
        return
    near = difflib.get_close_matches(got, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RequestError(f"{flag} got {got!r}: {hint}known are {', '.join(known)}")


def check_range(
    flag: str, got: float | None, low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Raise RequestError when `got` is not finite or lies outside low..high (None passes)."""
    if got is None:
        return
    inside = (got > low if open_low else got >= low) and (got < high if open_high else got <= high)
    if math.isfinite(got) and inside:
        return
    bounds = f"{'above' if open_low else 'at least'} {low:g}"
    if high < math.inf:
        bounds += f" and {'below' if open_high else 'at most'} {high:g}"
    raise RequestError(f"{flag} got {got:g}: it must be {bounds}")


def check_types(config: Any) -> None:
    """Raise RequestError where a field of a dataclass has not its annotated type (a bool is not taken for an int)."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise RequestError(f"{flag_of(name)} got {number}: it must be a finite number")
        if not _fits(value, hint):
            raise RequestError(f"{flag_of(name)} got {value!r} ({type(value).__name__}): it must be {hint}")


def check_resolved(config: Any) -> None:
    """Raise RequestError where a resolved config leaves a setting open, or not exactly one of steps and epochs."""
    hints = get_type_hints(type(config))
    missing = [
        f.name
        for f in fields(config)
        if getattr(config, f.name) is None and type(None) not in (get_args(hints[f.name]) or (hints[f.name],))
    ]
    if missing or (config.steps is None) == (config.epochs is None):
        raise RequestError(f"left open: {', '.join(missing) or 'steps or epochs'}")


def check_images(config: Any) -> None:
    """Check the settings that all commands that read images share: max_pixels, value_range, axes and nodata."""
    check_range("--max-pixels", config.max_pixels, 1)
    check_value_range(config.value_range)
    check_axes(config.axes)
    check_nodata(config.nodata)


def check_value_range(got: tuple[float, float] | None) -> None:
    """Raise RequestError unless it is two finite numbers, black below white (None passes)."""
    if got is None:
        return
    if not (isinstance(got, (tuple, list)) and len(got) == 2 and all(_fits(value, float) for value in got)):
        raise RequestError(f"--value-range got {got!r}: it must be two finite numbers, LOW and HIGH")
    if not (got[0] < got[1] and math.isfinite(got[1] - got[0])):
        raise RequestError(f"--value-range got {got[0]:g} {got[1]:g}: the first must lie below the second")


def check_tiles(tiles: int | None, sides: tuple[int, int] | None, flag: str = "--image-size") -> None:
    """Raise RequestError where tiles would have to be enlarged to `sides`, which `flag` gives (None passes)."""
    check_range("--tiles", tiles, 1, MAX_TILE)
    if tiles is not None and sides is not None and tiles < max(sides):
        raise RequestError(
            f"--tiles got {tiles}, less than {flag} {max(sides)}: tiles would be enlarged, give {max(sides)} or more"
        )


def check_axes(got: str | None) -> None:
    """Raise RequestError where an order of axes does not name channels, rows and columns once each (None passes)."""
    if got is not None and sorted(got) != ["C", "X", "Y"]:
        raise RequestError(f"--axes got {got!r}: it must name channels C, rows Y and columns X once each, such as CYX")


def nodata_setting(text: str) -> float | str:
    """The setting that a typed `--nodata` stands for: `marked`, `off` or a number.

    NaN is `marked`, for it always stands for no data; infinities become ±1e30, which JSON can hold.

    Raises:
        RequestError: the text is neither a number nor one of these words.
    """
    if text in NODATA_MODES:
        return text
    try:
        value = float(text)
    except ValueError:
        check_nodata(text)
        raise
    return MARKED if math.isnan(value) else max(-1e30, min(1e30, value))


def check_nodata(got: float | str | None) -> None:
    """Raise RequestError for a word other than `marked` and `off` (numbers and None pass)."""
    if isinstance(got, str) and got not in NODATA_MODES:
        raise RequestError(
            f"--nodata got {got!r}: it must be a number that stands for none, {MARKED} (NaN and what TIFFs mark: the "
            f"default) or {OFF} (all values are data)"
        )


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        kinds = kinds[:1] * len(value) if kinds[-1] is ... and isinstance(value, tuple) else kinds
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint in (int, float):
        number = Integral if hint is int else Real
        return isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value)
    if hint is str:
        return isinstance(value, (str, os.PathLike))
    return isinstance(value, hint)


def format_value(value: Any) -> str:
    """A setting's value as it is typed on the command line, such as 0 4095."""
    if isinstance(value, (tuple, list)):
        return " ".join(map(format_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def flag_of(name: str) -> str:
    """The command-line flag of a setting: mask_ratio → --mask-ratio."""
    return "--" + name.replace("_", "-")
