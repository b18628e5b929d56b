"""The decisions that all training tasks share: settings that the user left open, each decided with its reason."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from openmae.config import (
    ClassifierShape,
    DetectorShape,
    MAEShape,
    Preprocessing,
    ResolvedTrainingConfig,
    SegmenterShape,
    TokenizerShape,
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

NARROW, MEDIUM = 192, 384  # largest width of a narrow and of a medium encoder
CROP_ASPECT_REASON = "crops stretch an image by a third at most compared with evaluation, and lie anywhere in it"

ResolvedConfigT = TypeVar("ResolvedConfigT", bound=ResolvedTrainingConfig)
ResolvedConfigT_co = TypeVar("ResolvedConfigT_co", bound=ResolvedTrainingConfig, covariant=True)
ShapeT = TypeVar("ShapeT", MAEShape, ClassifierShape, TokenizerShape, SegmenterShape, DetectorShape)


@dataclass(frozen=True)
class Plan(Generic[ResolvedConfigT, ShapeT]):
    """A config without open settings, and what follows from it.

    Attributes:
        reasons: why, for each setting that was decided; empty for a resumed run, which keeps its settings.
        notes: lines to print: how the values of the data are mapped to the model's.
    """

    config: ResolvedConfigT
    shape: ShapeT
    preprocessing: Preprocessing
    reasons: dict[str, str]
    notes: tuple[str, ...] = ()


class Previous(Protocol[ResolvedConfigT_co]):
    """The part of `openmae.run.folder.PreviousRun` that plans need; planning does not import `run`."""

    @property
    def config(self) -> ResolvedConfigT_co: ...
    @property
    def preprocessing(self) -> Preprocessing: ...
    @property
    def checkpoint(self) -> Checkpoint: ...


def saved_encoder_shape(previous: Previous) -> ViTShape:
    """The shape of the encoder in a previous run's checkpoint."""
    return read_stored_model(previous.checkpoint.folder / MODEL).encoder_shape


@dataclass(frozen=True)
class Machine:
    """The device and its host: all that decisions may depend on beside settings and data.

    Attributes:
        device: the device's type: cpu, cuda or mps.
        has_bf16: whether the device has hardware for bf16.
        workers, why_workers: how many DataLoader workers to use, and why.
        memory: the device's memory in bytes; a CPU's is the machine's.
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
        """The machine that this program runs on, shared by `num_processes` processes.

        Args:
            largest: the largest image; there are no more workers than memory can hold such images.
        """
        workers, why = workers_that_fit(default_workers(device, num_processes), num_processes, largest)
        return cls(device.type, has_bf16(device), workers, total_memory(device), can_compile(device), why, str(device))


def survey_data_and_machine(
    config: Any, train: Source, others: Iterable[Source], device: torch.device, num_processes: int
) -> tuple[DataFacts, Machine]:
    """What decisions depend on: facts about the training images, from a sample of them, and about the machine.

    Args:
        others: the other splits, of which only the bit depth is surveyed.
        num_processes: processes on this machine, which share it.

    Raises:
        RequestError: none of the sampled images can be read.
    """
    try:
        facts = survey(train, other_splits=others)
    except RequestError as error:
        raise RequestError(f"{config.dataset}: {error}") from None
    return facts, Machine.of(device, num_processes, facts.largest)


class Decisions:
    """Decides the open settings of a config, those that are None, each with a reason.

    What the user gave stays, and of several decisions the first one stays.

    Attributes:
        values, reasons: what was decided, and why.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.values: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}

    def decide(self, name: str, value: Any, why: str) -> None:
        """Decide a setting that is still open; else change nothing."""
        if getattr(self.config, name) is None and name not in self.values:
            self.values[name], self.reasons[name] = value, why

    def set(self, name: str, value: Any, why: str) -> None:
        """Set a setting whether it is open or not; the reason is kept where it was open."""
        if getattr(self.config, name) is None:
            self.reasons[name] = why
        self.values[name] = value

    def drop(self, name: str) -> None:
        """Open a setting again that was decided."""
        self.values.pop(name, None)
        self.reasons.pop(name, None)

    def get(self, name: str) -> Any:
        """A setting as decided or given; None while it is open."""
        return self.values[name] if name in self.values else getattr(self.config, name)

    def apply_recipe(self, recipes: Mapping[str, Callable[[], dict[str, Any]]]) -> None:
        """Decide as the recipe of `--recipe` says. Raises RequestError where there is none of that name."""
        name = self.config.recipe
        check_name("--recipe", name, recipes)
        for setting, value in recipes[name]().items() if name is not None else ():
            if not (setting == "epochs" and self.config.steps is not None):
                self.decide(setting, value, f"recipe {name}")

    def resolved(self, kind: type[ResolvedConfigT]) -> ResolvedConfigT:
        """The config without open settings. Raises RequestError where settings contradict each other."""
        return kind(**{**self.config.to_dict(), **self.values})


class TrainingLength(Protocol):
    """The settings of a resolved config that say how long to train: steps or epochs, and the batch size."""

    @property
    def steps(self) -> int | None: ...
    @property
    def epochs(self) -> float | None: ...
    @property
    def batch_size(self) -> int: ...


def total_steps(config: TrainingLength, num_images: int) -> int:
    """The number of optimiser steps of a resolved config."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None, "a resolved config has steps or epochs"
    return max(1, round(config.epochs * num_images / config.batch_size))


class LearningRateSchedule(TrainingLength, Protocol):
    """The settings of a resolved config that make its learning-rate schedule."""

    @property
    def min_lr(self) -> float: ...
    @property
    def warmup_epochs(self) -> float: ...


def cosine_schedule(config: LearningRateSchedule, base_lr: float, num_images: int, num_steps: int) -> CosineSchedule:
    """The schedule of tables 8 to 11: peak = base learning rate × batch / 256; linear warm-up, then half a cosine."""
    return CosineSchedule(
        peak=base_lr * config.batch_size / 256,
        minimum=config.min_lr,
        warmup_steps=config.warmup_epochs * num_images / config.batch_size,
        total_steps=num_steps,
    )


def largest_doubling(start: int, limit: int) -> int:
    """The largest of start, 2 × start, 4 × start, … that is at most `limit`; `start` where even that is above it."""
    while start * 2 <= limit:
        start *= 2
    return start


def planned_epochs(decisions: Decisions, num_images: int) -> float:
    """The length of the run in epochs, also where it was given in steps."""
    steps = decisions.config.steps
    return decisions.get("epochs") if steps is None else steps * decisions.get("batch_size") / num_images


def planned_steps(decisions: Decisions, num_images: int) -> int:
    """The length of the run in optimiser steps, also where it was given in epochs."""
    if decisions.config.steps is not None:
        return decisions.config.steps
    return max(1, round(planned_epochs(decisions, num_images) * num_images / decisions.get("batch_size")))


def decide_base_lr(
    decisions: Decisions, paper_base_lr: float, min_peak_lr: dict[str, float], source: str = "the paper's"
) -> None:
    """Decide the base learning rate: the paper's, unless the peak would be too small for an encoder of this width.

    At small batches the paper's would hardly change the weights. A base learning rate that the user gives may be lower.

    Args:
        source: whose rate it is, where the paper names none.
        min_peak_lr: the smallest peak learning rate for encoders that are "narrow", "medium" and "wide".
    """
    batch, width = decisions.get("batch_size"), decisions.get("width")
    least = min_peak_lr["narrow" if width <= NARROW else "medium" if width <= MEDIUM else "wide"]
    peak = paper_base_lr * batch / 256
    why = f"{source} {paper_base_lr:g} gives {peak:.1e} at this batch, too little"
    decisions.decide("base_lr", max(peak, least) * 256 / batch, source if peak >= least else why)


def limit_warmup(decisions: Decisions, num_images: int) -> None:
    """Shorten a warm-up as long as the run, in which the learning rate would never reach its peak.

    Raises:
        RequestError: the user gave a warm-up that is as long as the run.
    """
    config, values, reasons = decisions.config, decisions.values, decisions.reasons
    epochs = planned_epochs(decisions, num_images)
    if config.warmup_epochs is not None and config.warmup_epochs > 0 and config.warmup_epochs >= epochs:
        raise RequestError(f"--warmup-epochs got {config.warmup_epochs:g} for a run of {epochs:.4g} epochs: give fewer")
    if values.get("warmup_epochs", 0) >= epochs:
        values["warmup_epochs"] = 0.05 * epochs
        reasons["warmup_epochs"] = f"5 % of the steps: {reasons['warmup_epochs']} has more than this run's epochs"


def decide_device_and_defaults(machine: Machine, decisions: Decisions, width: int) -> None:
    """Decide device, precision and workers; and seed, max_bad and split_rules, whose defaults depend on nothing."""
    decide = decisions.decide
    decide("seed", 0, "the default")
    decide("max_bad", 0.01, "the default")
    decide("split_rules", SPLIT_RULES, "the newest")
    decisions.set("device", machine.name or machine.device, "the best here")
    # On a CPU with bf16 hardware a small model is still slower in bf16: conversions cost more than products save.
    use_bf16 = machine.has_bf16 and (machine.device == "cuda" or width >= 768)
    decide("precision", "bf16" if use_bf16 else "fp32", f"faster on {machine.device} at this width")
    decide("workers", machine.workers, machine.why_workers)


def decide_intervals(steps: int, decisions: Decisions) -> None:
    """Decide how many steps lie between lines of the log, between evaluations, and between checkpoints."""
    decide = decisions.decide
    decide("log_every", max(1, min(50, steps // 200)), "about 200 lines")
    decide("evaluate_every", max(1, min(1000, steps // 20)), "about 20 times")
    decide("save_every", max(1, min(1000, steps // 10)), "about 10 times")
