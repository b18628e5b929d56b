"""What all training tasks decide alike when the person left it open, each decision with its reason."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from openmae.config import SIZES, Preprocessing, check_name, pair
from openmae.config.checks import MARKED
from openmae.data.decoding.nodata import nodata_of
from openmae.data.decoding.npy import CHANNELS_LAST
from openmae.data.preprocess import DataFacts, imagenet_statistics
from openmae.data.sources.largest import Largest
from openmae.data.sources.split_names import SPLIT_RULES
from openmae.errors import RequestError
from openmae.machine.device import can_compile, default_workers, has_bf16, total_memory
from openmae.planning.image_size import image_size_for
from openmae.planning.reader_memory import workers_that_fit
from openmae.training.optim import CosineSchedule

# Small batches at the paper's base rate would hardly move: no peak rate below these without being asked.
LOWEST_PEAK_RATE = {"narrow": 1e-3, "medium": 5e-4, "wide": 1.5e-4}

CROPS_LIKE_EVALUATION = "stretched by a third at most against what evaluation sees, from anywhere in an image"
MEMORY_SHARE = 0.6  # of the device, that a micro-batch may plan to fill


@dataclass(frozen=True)
class Machine:
    """What decisions may depend on: device type (cpu, cuda, mps), bf16 units, reader processes, memory in bytes, and
    whether torch.compile can compile for the device."""

    device: str
    has_bf16: bool
    workers: int
    memory: int
    can_compile: bool = True
    why_workers: str = "from the cores"

    @classmethod
    def of(cls, device: torch.device, num_processes: int, largest: Largest | None = None) -> "Machine":
        """This one, which `num_processes` share.

        Args:
            largest: of the images; fewer readers where memory holds no more of it.
        """
        workers, why = workers_that_fit(default_workers(device, num_processes), num_processes, largest)
        return cls(device.type, has_bf16(device), workers, total_memory(device), can_compile(device), why)


class Choices:
    """Settings as they are filled in: what the person gave stays, what comes first wins.

    Attributes:
        chosen, reasons: what was decided, and why.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.chosen: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}

    def decide(self, name: str, value: Any, why: str) -> None:
        if getattr(self.config, name) is None and name not in self.chosen:
            self.chosen[name], self.reasons[name] = value, why

    def set(self, name: str, value: Any, why: str) -> None:
        """What became of a setting, given or not."""
        if getattr(self.config, name) is None:
            self.reasons[name] = why
        self.chosen[name] = value

    def get(self, name: str) -> Any:
        return self.chosen[name] if name in self.chosen else getattr(self.config, name)

    def take_recipe(self, recipes: Mapping[str, Callable[[], dict[str, Any]]]) -> None:
        """Take the settings of the named recipe. Raises RequestError where there is none of that name."""
        name = self.config.recipe
        check_name("--recipe", name, recipes)
        for setting, value in recipes[name]().items() if name is not None else ():
            if not (setting == "epochs" and self.config.steps is not None):
                self.decide(setting, value, f"recipe {name}")


class Scheduled(Protocol):
    """A settled config of whatever task."""

    @property
    def steps(self) -> int | None: ...
    @property
    def epochs(self) -> float | None: ...
    @property
    def batch_size(self) -> int: ...


def total_steps(config: Scheduled, num_images: int) -> int:
    """Optimiser steps of a settled config."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return max(1, round(config.epochs * num_images / config.batch_size))


class Paced(Scheduled, Protocol):
    """A settled config with a learning rate's schedule."""

    @property
    def min_lr(self) -> float: ...
    @property
    def warmup_epochs(self) -> float: ...


def cosine(config: Paced, base_lr: float, num_images: int, num_steps: int) -> CosineSchedule:
    """The schedule of tables 8 to 11: base rate × batch / 256, warm-up, half a cosine."""
    return CosineSchedule(
        peak=base_lr * config.batch_size / 256,
        minimum=config.min_lr,
        warmup_steps=config.warmup_epochs * num_images / config.batch_size,
        total_steps=num_steps,
    )


def check_warmup(choices: Choices, count: int) -> None:
    """A warm-up as long as the run would never reach the rate: shorten a recipe's, refuse a person's."""
    config, chosen, reasons = choices.config, choices.chosen, choices.reasons
    epochs: float = chosen.get("epochs", config.epochs) or 0.0
    if config.steps is not None:
        epochs = config.steps * chosen.get("batch_size", config.batch_size or 1) / count
    if config.warmup_epochs is not None and config.warmup_epochs > 0 and config.warmup_epochs >= epochs:
        raise RequestError(f"--warmup-epochs got {config.warmup_epochs:g} for a run of {epochs:.4g} epochs: give fewer")
    if chosen.get("warmup_epochs", 0) >= epochs:
        chosen["warmup_epochs"] = 0.05 * epochs
        reasons["warmup_epochs"] = f"5 % of the steps: {reasons['warmup_epochs']} has more than this run's epochs"


def decide_model(facts: DataFacts, machine: Machine, choices: Choices) -> None:
    """The encoder's shape, the image size and the patches."""
    decide, get = choices.decide, choices.get
    if get("width") is None or get("depth") is None or get("num_heads") is None:
        if get("width") is None and get("depth") is None:
            decide("model", *_model_for(facts.count, machine.device))
        decide_size(choices, get("model") or "tiny")
        decide("num_heads", heads_for(get("width"), 64), "heads 64 wide, or the nearest that divides the width")
    if get("image_size") is None:
        largest = 224 if machine.device != "cpu" or get("model") in ("base", "large", "huge") else 96
        is_huge = get("model") == "huge"
        patch, image_size, why = image_size_for(
            facts, largest, get("patch_size"), is_huge=is_huge, device=machine.device
        )
        height, width = pair(image_size)
        decide("patch_size", patch, f"for images of {image_size if height == width else f'{height}x{width}'} px")
        decide("image_size", image_size, why)
    elif get("patch_size") is None:
        size = get("image_size")
        sides = (size, size) if isinstance(size, int) else size
        wish = SIZES[get("model")][3] if get("model") and min(sides) > 128 else 16
        wish = min(wish, 4 if min(sides) < 64 else 8 if min(sides) <= 128 else wish)
        smallest = wish // 2 if min(sides) >= 16 else 1
        sizes = [p for p in (wish, 14, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1) if smallest <= p <= wish]
        fitting = [p for p in sizes if all(s % p == 0 for s in sides)]
        # None that divides: the smallest of all sizes would do, but thousands of tokens are no default.
        decide("patch_size", fitting[0] if fitting else wish, f"for images of {sides[0]}x{sides[1]} px")


def decide_size(choices: Choices, model: str) -> None:
    """Width, depth and heads of a named size."""
    decide, get = choices.decide, choices.get
    width, depth, heads, _ = SIZES[model]
    if get("width") is None:  # a size's heads are for its own width
        decide("num_heads", heads, f"of {model}")
    decide("width", width, f"of {model}")
    decide("depth", depth, f"of {model}")


def _model_for(count: int, device: str) -> tuple[str, str]:
    if device == "cpu":
        return "tiny", "training on a CPU"
    for size, most in (("tiny", 20_000), ("small", 200_000), ("base", 2_000_000)):
        if count < most:
            return size, f"{count:,} images"
    return "large", f"{count:,} images"


def heads_for(width: int, head_width: int) -> int:
    """The number of heads whose width comes nearest to `head_width` and divides `width`."""
    return min((n for n in range(1, min(width, 1024) + 1) if width % n == 0), key=lambda n: abs(width / n - head_width))


def decide_statistics(facts: DataFacts, choices: Choices) -> None:
    """How raw values become the model's input."""
    decide, get = choices.decide, choices.get
    decide("background", 1.0, "white")
    decide("channels", facts.channels, "what the images have")
    decide("value_range", facts.value_range, f"of {facts.dtype} data")
    alike = facts.channels == 3 and facts.dtype == "uint8"
    decide(
        "statistics",
        "imagenet" if alike else "measured",
        "not used: --mean and --std are given"
        if get("mean") is not None
        else "colour photographs"
        if alike
        else f"{facts.channels} channels of {facts.dtype}",
    )
    if get("statistics") == "imagenet":
        mean, std = imagenet_statistics(get("channels"))
    else:
        low, high = get("value_range")
        mean = tuple(round((value - low) / (high - low), 4) for value in facts.mean)
        std = tuple(round(value / (high - low), 4) for value in facts.std)
        if get("channels") != facts.channels:  # grey shown as RGB or the reverse
            mean = (sum(mean) / len(mean),) * get("channels")
            std = (sum(std) / len(std),) * get("channels")
    decide("mean", mean, f"{get('statistics')} statistics")
    decide("std", std, f"{get('statistics')} statistics")


def choose_axes(facts: DataFacts, choices: Choices) -> None:
    """The order of axes that the data was opened with."""
    choices.decide("axes", facts.axes.order or CHANNELS_LAST, facts.axes.why or "no .npy of three axes was seen")


def choose_nodata(model: Preprocessing | None, choices: Choices) -> None:
    """Which values stand for none, as the data was read."""
    setting = nodata_of(choices.config.nodata, model)
    choices.set("nodata", setting, "NaN, and what TIFFs mark" if setting == MARKED else "as --init")


def check_scale(dtype: str, facts: DataFacts, value_range: tuple[float, float] | None) -> None:
    """Raise RequestError where floats meet a model of integers, or the reverse, and nobody says what becomes what."""
    if (value_range or facts.stated_range) is None and "float32" in (dtype, facts.dtype) and dtype != facts.dtype:
        raise RequestError(
            f"the model takes {dtype} images, these are {facts.dtype}: --value-range LOW HIGH says which of their "
            "values become its 0 and 1"
        )


def decide_machine(machine: Machine, choices: Choices, width: int) -> None:
    """What follows from the machine, and the seed."""
    decide = choices.decide
    decide("seed", 0, "the default")
    decide("max_bad", 0.01, "the default")
    decide("split_rules", SPLIT_RULES, "the newest")
    decide("device", machine.device, "the best here")
    # On a CPU with such units a small model is still slower in bf16: conversions cost more than products save.
    use_bf16 = machine.has_bf16 and (machine.device == "cuda" or width >= 768)
    decide("precision", "bf16" if use_bf16 else "fp32", f"faster on {machine.device} at this width")
    decide("workers", machine.workers, machine.why_workers)


def decide_pace(steps: int, choices: Choices) -> None:
    """How often a run of so many steps speaks, is looked at and is saved."""
    decide = choices.decide
    decide("log_every", max(1, min(50, steps // 200)), "about 200 lines")
    decide("evaluate_every", max(1, min(1000, steps // 20)), "about 20 times")
    decide("save_every", max(1, min(1000, steps // 10)), "about 10 times")
