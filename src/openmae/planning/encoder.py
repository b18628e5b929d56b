"""The encoder's shape: decided where the user left it open, and checked against the images."""

from typing import Any, Protocol

from openmae.config import SIZES, Preprocessing, ViTShape, flag_of, pair
from openmae.data.preprocess import DataFacts
from openmae.errors import RequestError
from openmae.planning.decisions import Decisions, Machine
from openmae.planning.image_size import image_size_for

ENCODER_SETTINGS = ("width", "depth", "num_heads", "patch_size", "channels")


class HasEncoder(Protocol):
    """A resolved config that describes an encoder."""

    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def num_heads(self) -> int: ...


def encoder_shape(config: HasEncoder, like: ViTShape | None = None) -> ViTShape:
    """The shape of the encoder that a resolved config describes. Raises RequestError where numbers do not fit together.

    Args:
        like: the encoder to start from, for what no setting names (layer scale, relative positions, the eps of its
            norms).
    """
    c = config
    encoder = ViTShape(
        image_size=c.size,
        patch_size=c.patch_size,
        channels=c.channels,
        width=c.width,
        depth=c.depth,
        num_heads=c.num_heads,
    )
    return encoder if like is None else like.resized(encoder.image_size, encoder.patch_size)


def adopt_encoder(encoder: ViTShape, preprocessing: Preprocessing, decisions: Decisions) -> None:
    """Decide encoder and preprocessing as the model has them, which a user may not change.

    The value range may be given: it says which of the data's values become the model's 0 and 1.

    Raises:
        RequestError: the user asked for another encoder or preprocessing.
    """
    config = decisions.config
    decisions.decide("value_range", preprocessing.value_range, "as --init")
    kept: dict[str, Any] = {name: getattr(encoder, name) for name in ENCODER_SETTINGS}
    kept |= {name: getattr(preprocessing, name) for name in ("mean", "std", "background")}
    for name, value in kept.items():
        requested = getattr(config, name)
        if requested is not None and requested != value and name != "patch_size":  # that is resampled
            raise RequestError(f"{flag_of(name)} got {requested}, but --init has {value}: leave it out")
        decisions.decide(name, value, "as --init")
    for name in ("model", "statistics"):
        if getattr(config, name) is not None:
            raise RequestError(f"{flag_of(name)} is for training from scratch (--init none): leave it out")


def check_channels(facts: DataFacts, channels: int, message: str) -> None:
    """Raise RequestError with the message where images cannot be converted to the model's number of channels.

    Images must have as many, or be grey where the model takes RGB, or the reverse.
    """
    if facts.channels != channels and {facts.channels, channels} != {1, 3}:
        raise RequestError(message)


def decide_model(facts: DataFacts, machine: Machine, decisions: Decisions) -> None:
    """The encoder's shape, the image size and the patch size."""
    decide, get = decisions.decide, decisions.get
    if get("width") is None or get("depth") is None or get("num_heads") is None:
        if get("width") is None and get("depth") is None:
            decide("model", *_model_size_for(facts.count, machine.device))
        decide_size(decisions, get("model") or "tiny")
        decide("num_heads", heads_for(get("width"), 64), "heads 64 wide, or the nearest that divides the width")
    decide_patches(facts, machine, decisions, get("model"))


def decide_patches(facts: DataFacts, machine: Machine, decisions: Decisions, model: str | None = None) -> None:
    """The image size and the patch size.

    Args:
        model: the name of the encoder's size, for larger defaults of the larger ones.
    """
    decide, get = decisions.decide, decisions.get
    if get("image_size") is None:
        largest = 224 if machine.device != "cpu" or model in ("base", "large", "huge") else 96
        is_huge = model == "huge"
        patch, image_size, why = image_size_for(
            facts, largest, get("patch_size"), is_huge=is_huge, device=machine.device
        )
        height, width = pair(image_size)
        decide("patch_size", patch, f"for images of {image_size if height == width else f'{height}x{width}'} px")
        decide("image_size", image_size, why)
    elif get("patch_size") is None:
        size = get("image_size")
        sides = (size, size) if isinstance(size, int) else size
        preferred = SIZES[model][3] if model and min(sides) > 128 else 16
        preferred = min(preferred, 4 if min(sides) < 64 else 8 if min(sides) <= 128 else preferred)
        smallest = preferred // 2 if min(sides) >= 16 else 1
        sizes = [p for p in (preferred, 14, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1) if smallest <= p <= preferred]
        fitting = [p for p in sizes if all(s % p == 0 for s in sides)]
        # Where none divides the sides, the preferred size is decided and refused later: patches of 1 px would divide
        # them, but thousands of tokens are no default.
        decide("patch_size", fitting[0] if fitting else preferred, f"for images of {sides[0]}x{sides[1]} px")


def decide_size(decisions: Decisions, model: str) -> None:
    """Width, depth and number of heads of a named model size."""
    decide, get = decisions.decide, decisions.get
    width, depth, heads, _ = SIZES[model]
    if get("width") is None:  # a size's heads are for its own width
        decide("num_heads", heads, f"of {model}")
    decide("width", width, f"of {model}")
    decide("depth", depth, f"of {model}")


def _model_size_for(count: int, device: str) -> tuple[str, str]:
    if device == "cpu":
        return "tiny", "training on a CPU"
    for size, limit in (("tiny", 20_000), ("small", 200_000), ("base", 2_000_000)):
        if count < limit:
            return size, f"{count:,} images"
    return "large", f"{count:,} images"


def heads_for(width: int, head_width: int) -> int:
    """The number of heads whose width comes nearest to `head_width` and divides `width`."""
    return min((n for n in range(1, min(width, 1024) + 1) if width % n == 0), key=lambda n: abs(width / n - head_width))
