"""A run folder as others read it, also while it is written: whatever lies there, nothing fails."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from openmae.config import ResolvedFinetuneConfig, ResolvedPretrainConfig, ResolvedProbeConfig
from openmae.errors import Fault, RequestError
from openmae.training.checkpoint import DamagedCheckpoint, checkpoint_folders, verify
from openmae.training.telemetry import read_lines

MAX_NUMBER = 1e15  # no figure of a run is larger
MAX_JSON = 1 << 24  # bytes of a config.json or summary.json that are read
COUNTS = ("skipped_steps", "loss_spikes", "rollbacks", "bad_inputs")
ResolvedConfig = ResolvedPretrainConfig | ResolvedFinetuneConfig | ResolvedProbeConfig


def read_values(path: Path) -> tuple[dict[str, Any], str | None]:
    """An object of JSON, and why it cannot be had; whatever lies there."""
    try:
        if not path.is_file():  # a pipe would wait for ever
            return {}, f"{path.name} is missing"
        if path.stat().st_size > MAX_JSON:
            return {}, f"{path.name} is larger than any of openmae's"
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"{path.name} cannot be read ({' '.join(str(error).split())[:80]})"
    return (values, None) if isinstance(values, dict) else ({}, f"{path.name} holds no settings")


def read_lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl as far as they are whole."""
    try:
        return read_lines(path) if path.is_file() else []
    except OSError:
        return []


def numbers_of(line: dict[str, Any]) -> dict[str, Any]:
    """The finite numbers of a line, its counts as integers; empty where it names no step."""
    kept: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_NUMBER:
            kept[name] = value if isinstance(value, int) else float(value)
    is_line = isinstance(kept.get("step"), int) and kept["step"] >= 0
    return (
        {name: value if name in ("step", "images_seen") else float(value) for name, value in kept.items()}
        if is_line
        else {}
    )


def settled_of(values: dict[str, Any]) -> tuple[ResolvedConfig | None, str | None]:
    """The settings of a run, checked as a run checks them; else why they are none."""
    kind: type[ResolvedPretrainConfig] | type[ResolvedFinetuneConfig] | type[ResolvedProbeConfig]
    kind = (
        ResolvedPretrainConfig
        if "decoder_width" in values
        else ResolvedFinetuneConfig
        if "blocks" in values
        else ResolvedProbeConfig
    )
    try:
        return kind.from_dict(values), None
    except (RequestError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        told = "" if not values else f": {' '.join(str(error).split())[:100]}"
        return None, f"config.json is not of a run of pretrain, finetune or probe{told}"


def steps_per_epoch(lines: Sequence[dict[str, Any]]) -> float:
    """As the last line tells it, which is the most exact; 0 where none does."""
    return next((line["step"] / line["epoch"] for line in reversed(lines) if line.get("epoch", 0) > 1e-6), 0.0)


def measured_of(lines: Sequence[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Any]:
    """The losses, the pace, and what was unusual."""

    def of(name: str) -> list[float]:
        return [line[name] for line in lines if name in line]

    losses, held_out = of("loss"), of("held_out_loss")
    counts = {name: number for name in COUNTS if isinstance(number := summary.get(name), int)}
    counts.setdefault("skipped_steps", int(sum(of("skipped_steps"))))
    counts.setdefault("loss_spikes", int(sum(of("loss_spike"))))
    return {
        "loss": losses[-1] if losses else None,
        "first_loss": losses[0] if losses else None,
        "lowest_loss": min(losses, default=None),
        "held_out_loss": held_out[-1] if held_out else None,
        "lowest_held_out_loss": min(held_out, default=None),
        "other_figures": {
            name: value
            for name in ("top1", "r2", "mae", "knn_top1", "probe_top1", "psnr")
            if isinstance(value := summary.get(name, next(reversed(of(name)), None)), (int, float))
        },
        "lr": of("lr")[-1] if of("lr") else None,
        "images_per_second": round(median(of("images_per_second")), 2) if of("images_per_second") else None,
        "data_wait": round(median(of("data_wait")), 4) if of("data_wait") else None,
        "memory": int(max(of("memory"))) if of("memory") else None,
        "lines": len(lines),
        **counts,
    }


def checkpoints_of(run: Path) -> list[dict[str, Any]]:
    """The checkpoints, newest first: their size, and whether their bytes are those that were written."""
    found = []
    for folder in checkpoint_folders(run):
        try:
            step, problem = int(folder.name.removeprefix("step-")), None
            count = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
            verify(folder)
        except DamagedCheckpoint as error:
            problem = str(error)
        except (Fault, OSError, ValueError) as error:
            count, problem = 0, " ".join(str(error).split())[:100]
        if folder.is_dir():  # the run may have deleted it meanwhile
            found.append(
                {"name": folder.name, "step": step, "bytes": count, "is_whole": problem is None, "problem": problem}
            )
    return found
