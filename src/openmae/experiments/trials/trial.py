"""A trial: a row with a seed, as the commands that make and measure it, one after another in one process.

Each command's run is resumed where it was stopped, so a trial that was killed loses a checkpoint interval at most.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from openmae.config import (
    DetectConfig,
    FinetuneConfig,
    KnnConfig,
    PretrainConfig,
    ProbeConfig,
    SegmentConfig,
    TokenizerConfig,
)
from openmae.experiments.trials.final_figures import final_aps, final_miou, final_top1
from openmae.experiments.trials.speed import speed_of
from openmae.experiments.trials.unseen import RECONSTRUCTED, reconstruct_unseen
from openmae.machine.files import write_json
from openmae.run.lock import summary_of
from openmae.run.reader import read_json_object, read_metrics
from openmae.tasks.detect.detect import detect
from openmae.tasks.finetune.finetune import finetune
from openmae.tasks.knn import knn
from openmae.tasks.pretrain.pretrain import pretrain
from openmae.tasks.probe.probe import probe
from openmae.tasks.segment.segment import segment
from openmae.tasks.tokenizer.tokenizer import tokenizer

TRIAL, RESULT = "trial.json", "result.json"
PROTOCOL_OF = {
    **{"finetune": "finetune", "segment": "miou", "detect": "box_ap", "probe": "linear", "knn": "knn"},
    **{"reconstruct": "psnr", "speed": "speed"},
}
OWN_MODEL = "pretrain"  # as `init`: what this trial pre-trained


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command of a trial.

    Attributes:
        kind: pretrain, tokenizer, finetune, segment, detect, probe, knn, reconstruct, or speed: a pre-training that is
            timed.
        settings: of its config; without device, workers and output folder.
        rates: base rates of fine-tuning, segmentation or detection, each a run of its own; the best on the split that
            chooses is measured.
        work: FLOPs, about, to say how far the trial is and how long it takes.
    """

    kind: str
    settings: dict[str, Any]
    rates: tuple[float, ...] = ()
    work: float = 0.0

    @property
    def protocols(self) -> tuple[str, ...]:
        """What it measures; nothing where it only makes something."""
        if self.kind == "detect" and not self.settings.get("boxes_only"):
            return ("box_ap", "mask_ap")
        return (PROTOCOL_OF[self.kind],) if self.kind in PROTOCOL_OF else ()

    @property
    def runs(self) -> tuple[str, ...]:
        """The names of its run folders."""
        return tuple(f"{self.kind}-{rate:g}" for rate in self.rates) or (self.kind,)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A row with a seed, and what is done to make and to measure it."""

    row: str
    seed: int
    stages: tuple[Stage, ...]

    @property
    def folder(self) -> str:
        """Its folder below OUT/runs."""
        return f"{self.row.replace(',', '').replace(' ', '-')}/seed-{self.seed}"

    @property
    def work(self) -> float:
        """FLOPs of all stages, about."""
        return sum(stage.work for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """As trial.json holds it: what determines the result."""
        values = asdict(self)
        for stage in values["stages"]:
            del stage["work"]
        return json.loads(json.dumps(values))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Trial":
        """The inverse of `to_dict`; stages have no `work`."""
        stages = tuple(
            Stage(kind=s["kind"], settings=_with_tuples(s["settings"]), rates=tuple(s["rates"]))
            for s in values["stages"]
        )
        return cls(row=values["row"], seed=values["seed"], stages=stages)


def _with_tuples(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a trial runs, which changes nothing about its result.

    Attributes:
        folder: of the trial.
        device: as of `--device`; None: the best.
        workers: processes that read images; None: decided.
    """

    folder: Path
    device: str | None = None
    workers: int | None = None

    def settings(self, trial: Trial, run: str) -> dict[str, Any]:
        """The settings of a command that are not its stage's."""
        return {"out": str(self.folder / run), "seed": trial.seed, "device": self.device, "workers": self.workers}


def run_trial(trial: Trial, place: Place) -> dict[str, Any]:
    """Run what is not finished yet, and write result.json.

    Returns:
        What result.json holds: `protocols` (value, and where rates were tried the chosen one and what chose it) and
        `cost` (seconds of each stage that trains, and images a second of pre-training).

    Raises: as the commands.
    """
    result: dict[str, Any] = {"protocols": {}, "cost": {}}
    for stage in trial.stages:
        found = STAGES[stage.kind](stage, trial, place)
        result["protocols"] |= found.get("protocols", {})
        result["cost"] |= found.get("cost", {})
    write_json(place.folder / RESULT, result)
    return result


def read_result(folder: Path, trial: Trial) -> dict[str, Any]:
    """What result.json holds; {} where it is missing, damaged, or lacks a number that the trial measures."""
    found, _ = read_json_object(folder / RESULT)
    protocols, cost = found.get("protocols"), found.get("cost", {})
    wanted = {protocol for stage in trial.stages for protocol in stage.protocols}
    if not isinstance(protocols, dict) or not isinstance(cost, dict) or not wanted <= protocols.keys():
        return {}
    is_whole = all(isinstance(values, dict) and "value" in values for values in protocols.values())
    numbers = [number for values in protocols.values() for number in values.values()] if is_whole else [None]
    numbers += [number for number in cost.values() if number is not None]
    is_finite = all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    return found if is_finite else {}


def read_trial(folder: Path) -> dict[str, Any]:
    """What trial.json holds; {} where it is missing or damaged."""
    found, _ = read_json_object(folder / TRIAL)
    stages = found.get("stages")
    if not isinstance(stages, list):
        return {}
    is_whole = all(isinstance(stage, dict) and isinstance(stage.get("settings"), dict) for stage in stages)
    return found if is_whole else {}


def _tokenizer(stage: Stage, trial: Trial, place: Place) -> dict[str, Any]:
    config = TokenizerConfig(**{**stage.settings, **place.settings(trial, "tokenizer"), "resume": "auto"})
    return {"cost": {"tokenizer_seconds": float(tokenizer(config)["seconds"])}}


def _pretrain(stage: Stage, trial: Trial, place: Place) -> dict[str, Any]:
    settings = {**stage.settings, **place.settings(trial, "pretrain")}
    if settings.get("target") == "token" and "tokenizer" not in settings:
        settings["tokenizer"] = str(place.folder / "tokenizer")
    summary = pretrain(PretrainConfig(**settings, resume="auto"))
    lines = read_metrics(place.folder / "pretrain" / "metrics.jsonl")
    rates = [float(line["images_per_second"]) for line in lines if "images_per_second" in line]
    return {"cost": {"seconds": float(summary["seconds"]), "images_per_second": median(rates) if rates else None}}


def _init(stage: Stage, trial: Trial, place: Place, run: str) -> str:
    """The model to start from; one that a person gave may be called `pretrain`, too.

    A run that began keeps the path that it began with: the experiment's folder may have moved, or be spelled otherwise.
    """
    init = stage.settings["init"]
    if init != OWN_MODEL or all(other.kind != "pretrain" for other in trial.stages):
        return init
    begun_with = read_json_object(place.folder / run / "config.json")[0].get("init")
    return begun_with if isinstance(begun_with, str) else str(place.folder / "pretrain")


def _finetune(stage: Stage, trial: Trial, place: Place) -> dict[str, Any]:
    return _chosen(stage, trial, place, Tuned(FinetuneConfig, finetune, "top1", final_top1))


def _segment(stage: Stage, trial: Trial, place: Place) -> dict[str, Any]:
    return _chosen(stage, trial, place, Tuned(SegmentConfig, segment, "miou", final_miou))


def _detect(stage: Stage, trial: Trial, place: Place) -> dict[str, Any]:
    return _chosen(stage, trial, place, Tuned(DetectConfig, detect, "box_ap", final_aps))


class Tuned(NamedTuple):
    """A command that has rates to choose from: its config, what it does, the figure that chooses, the final ones."""

    config: Callable[..., Any]
    command: Callable[[Any], dict[str, Any]]
    metric: str
    final: Callable[[Any], dict[str, float]]


def _chosen(stage: Stage, trial: Trial, place: Place, tuned: Tuned) -> dict[str, Any]:
    """Train with each rate, choose one on val or a split of train, and measure it on the test split."""
    figures, configs, seconds = dict[float, float](), dict[float, Any](), 0.0
    for rate, run in zip(stage.rates, stage.runs, strict=True):
        settings = {**stage.settings, **place.settings(trial, run), "init": _init(stage, trial, place, run)}
        configs[rate] = tuned.config(**settings, base_lr=rate, resume="auto")
        summary = tuned.command(configs[rate])
        figures[rate] = float(summary[tuned.metric])
        seconds += float(summary.get("seconds", 0.0))
    best = max(figures, key=lambda rate: figures[rate])
    final = tuned.final(configs[best])
    found = {name: {"value": final[name], "base_lr": best, "chosen_by": figures[best]} for name in stage.protocols}
    return {"protocols": found, "cost": {f"{stage.kind}_seconds": seconds}}


def _probe(stage: Stage, trial: Trial, place: Place) -> dict[str, Any]:
    settings = {**stage.settings, **place.settings(trial, "probe"), "init": _init(stage, trial, place, "probe")}
    summary = probe(ProbeConfig(**settings, resume="auto"))
    return {"protocols": {"linear": {"value": float(summary["top1"]), "chosen_by": float(summary["choice_top1"])}}}


def _knn(stage: Stage, trial: Trial, place: Place) -> dict[str, Any]:
    run = place.folder / "knn"
    if (summary := summary_of(run)).get("status") != "complete":
        shutil.rmtree(run, ignore_errors=True)  # of a start that was stopped: kNN is quick and cannot be resumed
        summary = knn(
            KnnConfig(**{**stage.settings, **place.settings(trial, "knn"), "init": _init(stage, trial, place, "knn")})
        )
    return {"protocols": {"knn": {"value": float(summary["top1"])}}}


def _reconstruct(stage: Stage, trial: Trial, place: Place) -> dict[str, Any]:
    run = place.folder / "pretrain"
    settings = {name: value for name, value in stage.settings.items() if name != "init"}
    config = PretrainConfig(**settings, out=str(run), device=place.device)
    found = {"value": reconstruct_unseen(_init(stage, trial, place, ""), config, place.folder / RECONSTRUCTED)}
    held_out = summary_of(run).get("held_out_loss")
    return {"protocols": {"psnr": found if held_out is None else {**found, "held_out_loss": float(held_out)}}}


def _speed(stage: Stage, trial: Trial, place: Place) -> dict[str, Any]:
    """Pre-train for a few steps, without a break: what was stopped starts anew."""
    run = place.folder / "speed"
    if summary_of(run).get("status") != "complete":
        shutil.rmtree(run, ignore_errors=True)
        pretrain(PretrainConfig(**{**stage.settings, **place.settings(trial, "speed")}))
    shutil.rmtree(run / "checkpoints", ignore_errors=True)  # large, and of no use
    return {"protocols": {"speed": {**speed_of(read_metrics(run / "metrics.jsonl")), "round": trial.seed}}}


STAGES: dict[str, Callable[[Stage, Trial, Place], dict[str, Any]]] = {
    "tokenizer": _tokenizer,
    "pretrain": _pretrain,
    "finetune": _finetune,
    "segment": _segment,
    "detect": _detect,
    "probe": _probe,
    "knn": _knn,
    "reconstruct": _reconstruct,
    "speed": _speed,
}
