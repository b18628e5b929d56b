"""How an image becomes a model's input."""

from dataclasses import dataclass, fields
from typing import Any, Self

from openmae.config.checks import check_axes, check_name, check_nodata, check_range, check_types
from openmae.errors import RequestError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DTYPES = ("uint8", "uint16", "float32")
STORED_AS = {"crop_fraction": "margin"}  # the name in files, by attribute


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a decoded image becomes the model's input; kept in every checkpoint, used by every task.

    Attributes:
        channels: 1 (grey), 3 (RGB) or as many as the data has.
        value_range: the raw values that become 0 and 1.
        mean, std: of the values after scaling to 0..1, one for each channel.
        image_size: (height, width) in pixels.
        interpolation: how images are resized, always antialiased.
        background: what transparent pixels are composited on, 0 black to 1 white.
        dtype: number type of the images that the model was trained on: uint8, uint16 or float32.
        crop_fraction: the fraction of the largest centre crop of the model's aspect that evaluation keeps, along each
            side (timm's `crop_pct`); 224/256 for classifiers up to 224 px (docs/evaluation.md), 1 else. Stored as
            `margin`.
        axes: the order of channels, rows and columns in the data's `.npy` files; None where it had none of three axes.
        nodata: a value that stands for no data, or "off"; None: only NaN and what files mark do.
        source_dtype: number type of the images whose values are mapped to the model's; None: any other than `dtype`.
        source_range, target_range: raw values of such an image, and those that they become; None: the full ranges of
            the two types.
    """

    channels: int
    value_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    interpolation: str = "bicubic"
    background: float = 1.0
    dtype: str = "uint8"
    crop_fraction: float = 1.0
    source_dtype: str | None = None
    source_range: tuple[float, float] | None = None
    target_range: tuple[float, float] | None = None
    axes: str | None = None
    nodata: str | float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_range("the crop fraction", self.crop_fraction, 0, 1, open_low=True)
        check_name("the data's type", self.dtype, DTYPES)
        check_name("the type of other data", self.source_dtype, DTYPES)
        check_axes(self.axes)
        check_nodata(self.nodata)
        check_range("--background", self.background, 0, 1)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise RequestError(f"--{name} got {len(values)} values for {self.channels} channels: give one for each")
        for value in self.std:
            check_range("--std", value, 1e-6)
        if self.interpolation != "bicubic":
            raise RequestError(f"interpolation got {self.interpolation!r}: images are resized bicubically here")
        if not self.value_range[0] < self.value_range[1]:
            raise RequestError(f"--value-range got {self.value_range}: the first must lie below the second")
        if (self.source_range is None) != (self.target_range is None):
            raise RequestError("a range of other data's values goes with what it becomes")
        for got in (self.source_range, self.target_range):
            if got is not None and not got[0] < got[1]:
                raise RequestError(f"a range of values got {got}: the first must lie below the second")

    def to_dict(self) -> dict[str, Any]:
        """As stored in a file; fields that came later only where they are set, so that other files stay equal."""
        added_later = ("source_dtype", "source_range", "target_range", "axes", "nodata")
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            STORED_AS.get(name, name): value
            for name, value in values.items()
            if value is not None or name not in added_later
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        names = {stored: name for name, stored in STORED_AS.items()}
        settings: dict[str, Any] = {names.get(k, k): tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**settings)
