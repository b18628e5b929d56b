"""The state of the conversion of a checkpoint: what was found so far, and remarks about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from openmae.errors import RequestError
from openmae.interchange.incoming.files import RawCheckpoint
from openmae.interchange.incoming.recognise import Recognised


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Settings that a user gives for a file that does not contain them; None: not given."""

    num_heads: int | None = None
    decoder_num_heads: int | None = None
    image_size: tuple[int, int] | None = None
    target: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ConversionState:
    """The state of `convert_checkpoint`, passed from step to step.

    Attributes:
        source: the requested path or name, for messages.
        weights: by our names; weights are removed as they are used.
        remarks: decisions and their reasons, for the report.
        unused: weights that the model has no use for, by ours or by the file's names.
        resized: by our names: the shape in the file and the shape here.
    """

    raw: RawCheckpoint
    source: str
    recognised: Recognised
    hints: Hints
    weights: dict[str, Tensor]
    remarks: list[str]
    unused: dict[str, Tensor] = field(default_factory=dict)
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    @property
    def config(self) -> Mapping[str, Any]:
        """transformers' or timm's config.json; empty where there is none."""
        return self.raw.config

    def setting(self, name: str) -> Any:
        """A setting from config.json, the checkpoint, or its training arguments, in this order; None where absent."""
        arguments = self.raw.extras.get("args")
        for settings in (self.config, self.raw.extras, arguments if isinstance(arguments, Mapping) else {}):
            if name in settings:
                return settings[name]
        return None

    @property
    def timm_arguments(self) -> Mapping[str, Any]:
        """The constructor's arguments in timm's config.json."""
        arguments = self.config.get("model_args")
        return arguments if isinstance(arguments, Mapping) else {}

    @property
    def image_sizes(self) -> list[tuple[int, int]]:
        """Candidates for (height, width) in pixels: from config.json, then from the hints. The positions decide."""
        timm = self.config.get("pretrained_cfg")
        size = timm.get("input_size") if isinstance(timm, Mapping) else None
        timm_size = as_pair(size[1:]) if isinstance(size, list | tuple) and len(size) == 3 else None
        sizes = (as_pair(self.setting("image_size")), as_pair(self.timm_arguments.get("img_size")), timm_size)
        return [size for size in (*sizes, self.hints.image_size) if size is not None]

    def number(self, *names: str) -> int | None:
        """The value of the first of the names that the file has a setting for.

        Raises:
            RequestError: it is no positive integer.
        """
        for name in names:
            value = self.timm_arguments.get(name, self.setting(name))
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RequestError(f"{self.source} says that {name} is {str(value)[:50]!r}: it must be a whole number")
            return value
        return None

    def take(self, *prefixes: str) -> dict[str, Tensor]:
        """Remove and return the weights whose names begin with one of the prefixes."""
        return {name: self.weights.pop(name) for name in list(self.weights) if name.startswith(prefixes)}


def as_pair(size: Any) -> tuple[int, int] | None:
    """(height, width) of a JSON value that is one positive integer or two; None for anything else."""
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size, size
    is_pair = isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size)
    return (size[0], size[1]) if is_pair else None
