"""How a command reads the images of DATA: by its settings and, where they are left out, by the model's."""

from typing import Any, Protocol

from openmae.config import Preprocessing
from openmae.data.decoding.nodata import resolve_nodata


class ReadingSettings(Protocol):
    """The settings of a command that reads images."""

    @property
    def max_pixels(self) -> int: ...
    @property
    def axes(self) -> str | None: ...
    @property
    def nodata(self) -> float | str | None: ...


def reading_options(
    config: ReadingSettings, model: Preprocessing | None, background: float | None = None
) -> dict[str, Any]:
    """The options of `open_source` and `open_splits`.

    Args:
        model: the model's preprocessing, where there is a model.
        background: what alpha is composited on; None: the model's, else 1 (white).
    """
    background = background if background is not None or model is None else model.background
    return {
        "background": 1.0 if background is None else background,
        "max_pixels": config.max_pixels,
        "axes": config.axes,
        "default_axes": None if model is None else model.axes,
        "nodata": resolve_nodata(config.nodata, model),
    }
