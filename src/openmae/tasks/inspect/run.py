"""`openmae inspect RUN`: what a run is, how it goes or went, and whether it can go on; also while it runs."""

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from openmae.config import InspectConfig, SettledConfig, SettledFinetune, SettledProbe
from openmae.errors import Fault, RequestError, shown
from openmae.machine.files import disk_faults, folder_written_aside, write_json
from openmae.pictures.sheet import loss_curve
from openmae.run.health import Health
from openmae.run.lock import is_held
from openmae.tasks.inspect.out import check_out
from openmae.tasks.inspect.run_screen import run_lines
from openmae.tasks.inspect.screen import cut
from openmae.training.checkpoint import DamagedCheckpoint, checkpoint_folders, verify
from openmae.training.telemetry import read_lines

LARGEST_NUMBER = 1e15  # no figure of a run is larger
LARGEST_JSON = 1 << 24  # bytes of a config.json or summary.json that are read
TITLES: dict[type, str] = {SettledConfig: "pre-training", SettledFinetune: "fine-tuning", SettledProbe: "linear probe"}
COMMANDS: dict[type, str] = {SettledConfig: "pretrain", SettledFinetune: "finetune", SettledProbe: "probe"}
# What matters of a run's settings, in the order of the screen.
# fmt: off
TOLD = (
    "recipe", "model", "width", "depth", "num_heads", "patch_size", "image_size", "channels", "decoder_width",
    "decoder_depth", "mask", "mask_ratio", "target", "augment", "init", "task", "blocks", "labels", "optimizer",
    "batch_size", "base_lr", "weight_decay", "warmup_epochs", "layer_decay", "epochs", "steps", "precision",
    "device", "seed",
)
# fmt: on
COUNTS = ("skipped_steps", "loss_spikes", "rollbacks", "bad_inputs")

AnySettled = SettledConfig | SettledFinetune | SettledProbe


def inspect_run(config: InspectConfig) -> dict[str, Any]:
    """Report on a run folder; see `openmae.tasks.inspect.inspect.inspect`.

    Raises:
        RequestError: --out exists.
        Fault: the report cannot be written.
    """
    out = None if config.out is None else check_out(config.out)
    assert config.path is not None
    run = Path(config.path)
    values, problem = read_values(run / "config.json")
    settled, why_not = settled_of(values)
    lines = [line for line in map(numbers_of, read_lines_of(run / "metrics.jsonl")) if line]
    summary, _ = read_values(run / "summary.json")
    report: dict[str, Any] = {
        "kind": "run",
        "path": shown(config.path),
        "task": TITLES[type(settled)] if settled is not None else None,
        "problem": problem or why_not,
        "settings": {name: values[name] for name in TOLD if values.get(name) is not None},
        "data": shown(str(settled.dataset)) if settled is not None else None,
        **_state(run, settled, lines, summary),
        **_measured(lines, summary),
        "checkpoints": checkpoints_of(run),
    }
    report |= _health(settled, lines, report)
    report["resume"] = resume_command(config.path, settled, report)
    print("\n".join(run_lines(report, lines)), flush=True)
    if out is not None:
        with disk_faults(out), folder_written_aside(out) as folder:
            write_json(folder / "inspect.json", report)
            title = cut(report["path"], 70).replace("$", r"\$")  # or it would start a formula
            label = "loss on masked patches" if isinstance(settled, SettledConfig) else "loss"
            loss_curve(folder / "curve.png", [line for line in lines if "images_seen" in line], title, label)
        print(f"\nwrote      {shown(out)}: curve.png, inspect.json", flush=True)
    return report


def read_values(path: Path) -> tuple[dict[str, Any], str | None]:
    """An object of JSON, and why it cannot be had; whatever lies there."""
    try:
        if not path.is_file():  # a pipe would wait for ever
            return {}, f"{path.name} is missing"
        if path.stat().st_size > LARGEST_JSON:
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
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST_NUMBER:
            kept[name] = value if isinstance(value, int) else float(value)
    is_line = isinstance(kept.get("step"), int) and kept["step"] >= 0
    return (
        {name: value if name in ("step", "images_seen") else float(value) for name, value in kept.items()}
        if is_line
        else {}
    )


def settled_of(values: dict[str, Any]) -> tuple[AnySettled | None, str | None]:
    """The settings of a run, checked as a run checks them; else why they are none."""
    kind: type[SettledConfig] | type[SettledFinetune] | type[SettledProbe]
    kind = SettledConfig if "decoder_width" in values else SettledFinetune if "blocks" in values else SettledProbe
    try:
        return kind.from_dict(values), None
    except (RequestError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        told = "" if not values else f": {' '.join(str(error).split())[:100]}"
        return None, f"config.json is not of a run of pretrain, finetune or probe{told}"


def _state(
    run: Path, settled: AnySettled | None, lines: Sequence[dict[str, Any]], summary: dict[str, Any]
) -> dict[str, Any]:
    """Where it stands, and whether it is under way."""
    last = lines[-1] if lines else {}
    step = last.get("step", 0)
    num_steps = None
    if settled is not None and settled.steps is not None:
        num_steps = settled.steps
    elif settled is not None and settled.epochs is not None and (per_epoch := steps_per_epoch(lines)):
        length = settled.epochs * per_epoch
        num_steps = max(round(length), step) if length < LARGEST_NUMBER else None
    status = summary.get("status")
    status = status if status in ("complete", "interrupted", "failed", "running") else "unknown"
    if is_held(run):
        status = "running"
    elif status == "running":  # it was killed: nothing could be written
        status = "ended without a word"
    if status == "complete" and step:
        num_steps = step
    return {
        "status": status,
        "step": step,
        "num_steps": num_steps,
        "epoch": last.get("epoch"),
        "images_seen": last.get("images_seen"),
        "seconds": last.get("seconds")
        or next((line["seconds"] for line in reversed(lines) if "seconds" in line), None),
        "idle_seconds": _age(run / "metrics.jsonl"),
    }


def steps_per_epoch(lines: Sequence[dict[str, Any]]) -> float:
    """As the last line tells it, which is the most exact; 0 where none does."""
    return next((line["step"] / line["epoch"] for line in reversed(lines) if line.get("epoch", 0) > 1e-6), 0.0)


def _age(path: Path) -> float | None:
    try:
        return round(max(time.time() - path.stat().st_mtime, 0.0), 1)
    except OSError:
        return None


def _measured(lines: Sequence[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Any]:
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


def _health(settled: AnySettled | None, lines: Sequence[dict[str, Any]], report: dict[str, Any]) -> dict[str, Any]:
    """The verdict of `tasks/health`, as the run itself gives it; of pre-training only."""
    if not isinstance(settled, SettledConfig) or not report["num_steps"]:
        return {"health": None, "health_reason": None}
    trivial = next((line["trivial_loss"] for line in reversed(lines) if "trivial_loss" in line), None)
    verdict = Health(
        num_steps=report["num_steps"],
        warmup_steps=min(settled.warmup_epochs * steps_per_epoch(lines), report["num_steps"]),
        trivial_loss=trivial,
        lines=lines,
    ).verdict()
    return {"health": verdict.word, "health_reason": verdict.reason}


def resume_command(path: str, settled: AnySettled | None, report: dict[str, Any]) -> dict[str, Any]:
    """Whether the run can go on, why not, and the command that does it."""
    whole = [found for found in report["checkpoints"] if found["is_whole"]]
    if settled is None:
        return {"can": False, "why": "its settings cannot be read", "command": None}
    if report["status"] == "running":
        return {"can": False, "why": "it is running now", "command": None}
    if not whole:
        why = "none of its checkpoints is whole" if report["checkpoints"] else "it has no checkpoint"
        return {"can": False, "why": why, "command": None}
    named = [word for split, place in settled.parts.paths.items() for word in (f"--{split}", place)]
    named = named if settled.data is None else [settled.data]
    words = ["openmae", COMMANDS[type(settled)], *named, "--out", path, "--resume", "auto"]
    if settled.init is not None:
        words += ["--init", settled.init]
    why = f"from step {whole[0]['step']:,}"
    if report["status"] == "complete":
        words += ["--epochs", "MORE"] if settled.steps is None else ["--steps", "MORE"]
        why = "it is complete; more steps would continue it"
    return {"can": True, "why": why, "command": shown(shlex.join(words))}
