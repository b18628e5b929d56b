"""Reading a run folder for reports, also while it is written. Missing or damaged files are reported, never raised."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from openmae.config import (
    ResolvedDetectConfig,
    ResolvedFinetuneConfig,
    ResolvedPretrainConfig,
    ResolvedProbeConfig,
    ResolvedSegmentConfig,
    ResolvedTokenizerConfig,
)
from openmae.errors import Fault, RequestError
from openmae.training.checkpoint import STATE, DamagedCheckpoint, checkpoint_folders, verify_checkpoint
from openmae.training.telemetry import read_lines

MAX_NUMBER = 1e15  # no metric of a run is larger
MAX_JSON = 1 << 24  # bytes of a config.json or summary.json that are read
BOX_METRICS = [
    f"{prefix}{kind}_{name}"
    for kind in ("box", "mask")
    for name in ("ap", "ap50", "ap75")
    for prefix in ("", "held_out_", "val_")
]
COUNTS = ("skipped_steps", "loss_spikes", "rollbacks", "bad_inputs")
ResolvedConfig = (
    ResolvedPretrainConfig
    | ResolvedFinetuneConfig
    | ResolvedProbeConfig
    | ResolvedTokenizerConfig
    | ResolvedSegmentConfig
    | ResolvedDetectConfig
)


def read_json_object(path: Path) -> tuple[dict[str, Any], str | None]:
    """The JSON object in a file, and None; or {}, and why there is none."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return {}, f"{path.name} is missing"
        if path.stat().st_size > MAX_JSON:
            return {}, f"{path.name} is larger than any of openmae's"
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"{path.name} cannot be read ({' '.join(str(error).split())[:80]})"
    return (values, None) if isinstance(values, dict) else ({}, f"{path.name} holds no settings")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl; none where it cannot be read."""
    try:
        return read_lines(path) if path.is_file() else []
    except OSError:
        return []


def finite_numbers(line: dict[str, Any]) -> dict[str, Any]:
    """The finite numbers of a line as floats, `step` and `images_seen` as integers; empty where it has no step."""
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


def parse_resolved_config(values: dict[str, Any]) -> tuple[ResolvedConfig | None, str | None]:
    """The resolved config in the values of a config.json, checked as a run checks it; or None, and why."""
    kind: type[ResolvedConfig]
    kind = (
        ResolvedPretrainConfig
        if "decoder_width" in values
        else ResolvedTokenizerConfig
        if "codebook" in values
        else ResolvedSegmentConfig
        if "max_class_share" in values
        else ResolvedDetectConfig
        if "roi_samples" in values
        else ResolvedFinetuneConfig
        if "blocks" in values
        else ResolvedProbeConfig
    )
    try:
        return kind.from_dict(values), None
    except (RequestError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        detail = "" if not values else f": {' '.join(str(error).split())[:100]}"
        return None, f"config.json is not of a run of pretrain, finetune, probe, segment, detect or tokenizer{detail}"


def steps_per_epoch(lines: Sequence[dict[str, Any]]) -> float:
    """Steps of an epoch, from the last line that allows it, which is the most exact; 0 where none does."""
    return next((line["step"] / line["epoch"] for line in reversed(lines) if line.get("epoch", 0) > 1e-6), 0.0)


def summarise_metrics(lines: Sequence[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Any]:
    """Losses, speed, other metrics, and counts of unusual events."""

    def series(name: str) -> list[float]:
        return [line[name] for line in lines if name in line]

    losses, held_out = series("loss"), series("held_out_loss")
    counts = {name: number for name in COUNTS if isinstance(number := summary.get(name), int)}
    counts.setdefault("skipped_steps", int(sum(series("skipped_steps"))))
    counts.setdefault("loss_spikes", int(sum(series("loss_spike"))))
    return {
        "loss": losses[-1] if losses else None,
        "first_loss": losses[0] if losses else None,
        "lowest_loss": min(losses, default=None),
        "held_out_loss": held_out[-1] if held_out else None,
        "lowest_held_out_loss": min(held_out, default=None),
        "other_figures": {
            name: value
            for name in (
                "top1",
                *BOX_METRICS,
                "miou",
                "held_out_miou",
                "val_miou",
                "pixel_accuracy",
                "r2",
                "mae",
                "knn_top1",
                "probe_top1",
                "psnr",
                "perplexity",
            )
            if isinstance(value := summary.get(name, next(reversed(series(name)), None)), (int, float))
        },
        "lr": series("lr")[-1] if series("lr") else None,
        "images_per_second": round(median(series("images_per_second")), 2) if series("images_per_second") else None,
        "data_wait": round(median(series("data_wait")), 4) if series("data_wait") else None,
        "memory": int(max(series("memory"))) if series("memory") else None,
        "lines": len(lines),
        **counts,
    }


def saved_classes(run: Path, checkpoints: Sequence[dict[str, Any]]) -> list[str] | None:
    """The names of the classes in the newest whole checkpoint; None where there are none.

    Args:
        checkpoints: see `list_checkpoints`.
    """
    newest = next((checkpoint["name"] for checkpoint in checkpoints if checkpoint["is_whole"]), None)
    state = {} if newest is None else read_json_object(run / "checkpoints" / newest / STATE)[0]
    names = state.get("classes")
    return [str(name) for name in names] if isinstance(names, list) else None


def list_checkpoints(run: Path) -> list[dict[str, Any]]:
    """The checkpoints, newest first: their size, and whether they are undamaged."""
    checkpoints = []
    for folder in checkpoint_folders(run):
        try:
            step, problem = int(folder.name.removeprefix("step-")), None
            count = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
            verify_checkpoint(folder)
        except DamagedCheckpoint as error:
            problem = str(error)
        except (Fault, OSError, ValueError) as error:
            count, problem = 0, " ".join(str(error).split())[:100]
        if folder.is_dir():  # the run may have deleted it meanwhile
            checkpoints.append(
                {"name": folder.name, "step": step, "bytes": count, "is_whole": problem is None, "problem": problem}
            )
    return checkpoints
