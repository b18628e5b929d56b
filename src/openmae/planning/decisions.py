"""What all training tasks decide alike when the person left it open, each decision with its reason."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from openmae.config import (
    ClassifierShape,
    MAEShape,
    Preprocessing,
    ResolvedFinetuneConfig,
    ResolvedPretrainConfig,
    ResolvedProbeConfig,
    ViTShape,
    check_name,
)
from openmae.data.preprocess import DataFacts, survey
from openmae.data.sources.largest import LargestImage
from openmae.data.sources.open import Source
from openmae.data.sources.split_names import SPLIT_RULES
from openmae.errors import RequestError
from openmae.interchange.init import read_stored_model
from openmae.machine.device import can_compile, default_workers, has_bf16, total_memory
from openmae.planning.reader_memory import workers_that_fit
from openmae.training.checkpoint import MODEL, Checkpoint
from openmae.training.optim import CosineSchedule

NARROW, MEDIUM = 192, 384  # widths up to which an encoder is called so
CROPS_LIKE_EVALUATION = "stretched by a third at most against what evaluation sees, from anywhere in an image"

C = TypeVar("C", ResolvedPretrainConfig, ResolvedFinetuneConfig, ResolvedProbeConfig)
C_co = TypeVar("C_co", ResolvedPretrainConfig, ResolvedFinetuneConfig, ResolvedProbeConfig, covariant=True)
S = TypeVar("S", MAEShape, ClassifierShape)


@dataclass(frozen=True)
class Plan(Generic[C, S]):
    """A config without open questions and what follows from it.

    Attributes:
        reasons: why, for each setting that was decided; empty where an earlier start decided.
        notes: what was understood of the data.
    """

    config: C
    shape: S
    preprocessing: Preprocessing
    reasons: dict[str, str]
    notes: tuple[str, ...] = ()


class Previous(Protocol[C_co]):
    """What an earlier start of a run left."""

    @property
    def config(self) -> C_co: ...
    @property
    def preprocessing(self) -> Preprocessing: ...
    @property
    def checkpoint(self) -> Checkpoint | None: ...


def encoder_of(previous: Previous) -> ViTShape:
    """The encoder that an earlier start saved."""
    assert previous.checkpoint is not None
    return read_stored_model(previous.checkpoint.folder / MODEL).encoder_shape


@dataclass(frozen=True)
class Machine:
    """What is known of the device and its host: all that decisions may depend on beside settings and data.

    Attributes:
        device: its type: cpu, cuda or mps.
        has_bf16: whether it computes bf16 in units of its own.
        workers, why_workers: reader processes, and why so many.
        memory: in bytes.
        can_compile: whether torch.compile can compile for the device.
        name: the device's full name, such as cuda:1.
    """

    device: str
    has_bf16: bool
    workers: int
    memory: int
    can_compile: bool = True
    why_workers: str = "from the cores"
    name: str = ""

    @classmethod
    def of(cls, device: torch.device, num_processes: int, largest: LargestImage | None = None) -> "Machine":
        """This one, which `num_processes` share.

        Args:
            largest: of the images; fewer readers where memory holds no more of it.
        """
        workers, why = workers_that_fit(default_workers(device, num_processes), num_processes, largest)
        return cls(device.type, has_bf16(device), workers, total_memory(device), can_compile(device), why, str(device))


def look(
    config: Any, train: Source, other_splits: Iterable[Source], device: torch.device, num_processes: int
) -> tuple[DataFacts, Machine]:
    """What decisions depend on: a look at the training images, and the machine that `num_processes` share.

    Raises:
        RequestError: none of the images that are looked at can be read.
    """
    try:
        facts = survey(train, other_splits=other_splits)
    except RequestError as error:
        raise RequestError(f"{config.dataset}: {error}") from None
    return facts, Machine.of(device, num_processes, facts.largest)


class Decisions:
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

    def resolved(self, kind: type[C]) -> C:
        """The config without open questions. Raises RequestError where settings do not fit each other."""
        return kind(**{**self.config.to_dict(), **self.chosen})


class Scheduled(Protocol):
    """A settled config of any task that trains: it has a length and a batch size."""

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


def doubled(first: int, largest: int) -> int:
    """The last of first, 2 x first, 4 x first, … that is no larger than `largest`, and at least `first`."""
    while first * 2 <= largest:
        first *= 2
    return first


def epochs_of(decisions: Decisions, count: int) -> float:
    """Passes over `count` images, however the length was given."""
    steps = decisions.config.steps
    return decisions.get("epochs") if steps is None else steps * decisions.get("batch_size") / count


def steps_of(decisions: Decisions, count: int) -> int:
    """Optimiser steps on `count` images, however the length was given."""
    steps = decisions.config.steps
    return (
        steps if steps is not None else max(1, round(epochs_of(decisions, count) * count / decisions.get("batch_size")))
    )


def decide_rate(decisions: Decisions, base: float, lowest: dict[str, float], named: str) -> None:
    """The base rate: the paper's unless it gives a peak below the lowest one for an encoder of this width.

    Args:
        base: the paper's, which is called so.
        lowest: at small batches the paper's would hardly move: no peak below these without being asked.
    """
    batch, width = decisions.get("batch_size"), decisions.get("width")
    least = lowest["narrow" if width <= NARROW else "medium" if width <= MEDIUM else "wide"]
    paper = base * batch / 256
    why = "the paper's" if paper >= least else f"the paper's {named} gives {paper:.1e} at this batch, too little"
    decisions.decide("base_lr", max(paper, least) * 256 / batch, why)


def check_warmup(decisions: Decisions, count: int) -> None:
    """A warm-up as long as the run would never reach the rate: shorten a recipe's, refuse a person's."""
    config, chosen, reasons = decisions.config, decisions.chosen, decisions.reasons
    epochs = epochs_of(decisions, count)
    if config.warmup_epochs is not None and config.warmup_epochs > 0 and config.warmup_epochs >= epochs:
        raise RequestError(f"--warmup-epochs got {config.warmup_epochs:g} for a run of {epochs:.4g} epochs: give fewer")
    if chosen.get("warmup_epochs", 0) >= epochs:
        chosen["warmup_epochs"] = 0.05 * epochs
        reasons["warmup_epochs"] = f"5 % of the steps: {reasons['warmup_epochs']} has more than this run's epochs"


def decide_machine(machine: Machine, decisions: Decisions, width: int) -> None:
    """What follows from the machine, and the seed."""
    decide = decisions.decide
    decide("seed", 0, "the default")
    decide("max_bad", 0.01, "the default")
    decide("split_rules", SPLIT_RULES, "the newest")
    decisions.set("device", machine.name or machine.device, "the best here")
    # On a CPU with such units a small model is still slower in bf16: conversions cost more than products save.
    use_bf16 = machine.has_bf16 and (machine.device == "cuda" or width >= 768)
    decide("precision", "bf16" if use_bf16 else "fp32", f"faster on {machine.device} at this width")
    decide("workers", machine.workers, machine.why_workers)


def decide_pace(steps: int, decisions: Decisions) -> None:
    """How often a run of so many steps speaks, is looked at and is saved."""
    decide = decisions.decide
    decide("log_every", max(1, min(50, steps // 200)), "about 200 lines")
    decide("evaluate_every", max(1, min(1000, steps // 20)), "about 20 times")
    decide("save_every", max(1, min(1000, steps // 10)), "about 10 times")
