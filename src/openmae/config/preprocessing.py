"""How an image becomes a model's input."""

from dataclasses import dataclass
from typing import Any, Self

from openmae.config.checks import check_name, check_range, check_types
from openmae.errors import RequestError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a decoded image becomes the model's input; kept in every checkpoint, used by every task.

    Attributes:
        channels: 1 (grey), 3 (RGB) or as many as the data has.
        value_range: the raw values that become 0 and 1.
        mean, std: of the values after scaling to 0..1, one for each channel.
        image_size: (height, width) in pixels.
        interpolation: how images are resized (antialiased).
        background: what alpha is composited on, 0 black to 1 white.
        dtype: number type of the data: uint8, uint16 or float32.
        margin: what evaluation keeps of the largest centred box of the model's aspect, along each side; 224/256
            for classifiers (FACTS section 2), 1 else.
    """

    channels: int
    value_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    interpolation: str = "bicubic"
    background: float = 1.0
    dtype: str = "uint8"
    margin: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        check_range("the margin", self.margin, 0, 1, open_low=True)
        check_name("the data's type", self.dtype, ("uint8", "uint16", "float32"))
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

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**settings)
