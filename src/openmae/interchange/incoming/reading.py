"""A checkpoint while it is being read: what was found so far, and what has to be said about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from openmae.errors import RequestError
from openmae.interchange.incoming.files import RawCheckpoint
from openmae.interchange.incoming.recognise import Recognised


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What a person says of a file that does not say it itself; None is not said."""

    num_heads: int | None = None
    decoder_num_heads: int | None = None
    image_size: tuple[int, int] | None = None
    target: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ConversionState:
    """A foreign checkpoint while it is read: what the steps of `describe` hand on to each other.

    Attributes:
        source: what the person asked for, for messages.
        weights: by our names; parts are taken out as they find their place.
        unused: by whatever name is known: what found none.
        resized: by our names: the shape in the file and here.
    """

    stored: RawCheckpoint
    source: str
    found: Recognised
    hints: Hints
    weights: dict[str, Tensor]
    remarks: list[str]
    unused: dict[str, Tensor] = field(default_factory=dict)
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    @property
    def config(self) -> Mapping[str, Any]:
        """transformers' or timm's config.json; empty where there is none."""
        return self.stored.config

    def said(self, name: str) -> Any:
        """What config.json, the checkpoint or the arguments in it say under this name; None where nothing does."""
        arguments = self.stored.extras.get("args")
        for place in (self.config, self.stored.extras, arguments if isinstance(arguments, Mapping) else {}):
            if name in place:
                return place[name]
        return None

    @property
    def timm_arguments(self) -> Mapping[str, Any]:
        """What timm's config.json gives to the model's constructor."""
        found = self.config.get("model_args")
        return found if isinstance(found, Mapping) else {}

    @property
    def image_sizes(self) -> list[tuple[int, int]]:
        """(height, width) in pixels as a config.json says, then as asked for: which it is, the positions tell."""
        timm = self.config.get("pretrained_cfg")
        size = timm.get("input_size") if isinstance(timm, Mapping) else None
        of_timm = pair(size[1:]) if isinstance(size, list | tuple) and len(size) == 3 else None
        told = (pair(self.said("image_size")), pair(self.timm_arguments.get("img_size")), of_timm)
        return [size for size in (*told, self.hints.image_size) if size is not None]

    def number(self, *names: str) -> int | None:
        """What the file says under the first of the names that it says anything under.

        Raises:
            RequestError: it is no positive integer.
        """
        for name in names:
            value = self.timm_arguments.get(name, self.said(name))
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RequestError(f"{self.source} says that {name} is {str(value)[:50]!r}: it must be a whole number")
            return value
        return None

    def take(self, *prefixes: str) -> dict[str, Tensor]:
        """Take out the weights whose names begin so."""
        return {name: self.weights.pop(name) for name in list(self.weights) if name.startswith(prefixes)}


def pair(size: Any) -> tuple[int, int] | None:
    """(height, width) of a JSON value that is one positive integer or two; None of anything else."""
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size, size
    is_pair = isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size)
    return (size[0], size[1]) if is_pair else None
