"""`openmae inspect RUN`: what a run is, how it goes or went, and whether it can go on; also while it runs."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openmae.config import InspectConfig, ResolvedFinetuneConfig, ResolvedPretrainConfig, ResolvedProbeConfig
from openmae.errors import shown
from openmae.machine.files import disk_faults, folder_written_aside, write_json
from openmae.pictures.sheet import loss_curve
from openmae.run.health import Health
from openmae.run.lock import is_held
from openmae.run.reader import (
    MAX_NUMBER,
    ResolvedConfig,
    checkpoints_of,
    measured_of,
    numbers_of,
    read_lines_of,
    read_values,
    settled_of,
    steps_per_epoch,
)
from openmae.tasks.inspect.out import check_out
from openmae.tasks.inspect.run_screen import run_lines
from openmae.tasks.inspect.screen import shorten

TITLES: dict[type, str] = {
    ResolvedPretrainConfig: "pre-training",
    ResolvedFinetuneConfig: "fine-tuning",
    ResolvedProbeConfig: "linear probe",
}
COMMANDS: dict[type, str] = {
    ResolvedPretrainConfig: "pretrain",
    ResolvedFinetuneConfig: "finetune",
    ResolvedProbeConfig: "probe",
}
# What matters of a run's settings, in the order of the screen.
# fmt: off
SHOWN_SETTINGS = (
    "recipe", "model", "width", "depth", "num_heads", "patch_size", "image_size", "channels", "decoder_width",
    "decoder_depth", "mask", "mask_ratio", "target", "augment", "init", "task", "blocks", "labels", "optimizer",
    "batch_size", "base_lr", "weight_decay", "warmup_epochs", "layer_decay", "epochs", "steps", "precision",
    "device", "seed",
)
# fmt: on


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
        "settings": {name: values[name] for name in SHOWN_SETTINGS if values.get(name) is not None},
        "data": shown(str(settled.dataset)) if settled is not None else None,
        **_state(run, settled, lines, summary),
        **measured_of(lines, summary),
        "checkpoints": checkpoints_of(run),
    }
    report |= _health(settled, lines, report)
    report["resume"] = resume_command(config.path, settled, report)
    print("\n".join(run_lines(report, lines)), flush=True)
    if out is not None:
        with disk_faults(out), folder_written_aside(out) as folder:
            write_json(folder / "inspect.json", report)
            title = shorten(report["path"], 70).replace("$", r"\$")  # or it would start a formula
            label = "loss on masked patches" if isinstance(settled, ResolvedPretrainConfig) else "loss"
            loss_curve(folder / "curve.png", [line for line in lines if "images_seen" in line], title, label)
        print(f"\nwrote      {shown(out)}: curve.png, inspect.json", flush=True)
    return report


def _state(
    run: Path, settled: ResolvedConfig | None, lines: Sequence[dict[str, Any]], summary: dict[str, Any]
) -> dict[str, Any]:
    """Where it stands, and whether it is under way."""
    last = lines[-1] if lines else {}
    step = last.get("step", 0)
    num_steps = None
    if settled is not None and settled.steps is not None:
        num_steps = settled.steps
    elif settled is not None and settled.epochs is not None and (per_epoch := steps_per_epoch(lines)):
        length = settled.epochs * per_epoch
        num_steps = max(round(length), step) if length < MAX_NUMBER else None
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


def _age(path: Path) -> float | None:
    try:
        return round(max(time.time() - path.stat().st_mtime, 0.0), 1)
    except OSError:
        return None


def _health(settled: ResolvedConfig | None, lines: Sequence[dict[str, Any]], report: dict[str, Any]) -> dict[str, Any]:
    """The verdict of `openmae.run.health`, as the run itself gives it; of pre-training only."""
    if not isinstance(settled, ResolvedPretrainConfig) or not report["num_steps"]:
        return {"health": None, "health_reason": None}
    trivial = next((line["trivial_loss"] for line in reversed(lines) if "trivial_loss" in line), None)
    verdict = Health(
        num_steps=report["num_steps"],
        warmup_steps=min(settled.warmup_epochs * steps_per_epoch(lines), report["num_steps"]),
        trivial_loss=trivial,
        lines=lines,
    ).verdict()
    return {"health": verdict.word, "health_reason": verdict.reason}


def resume_command(path: str, settled: ResolvedConfig | None, report: dict[str, Any]) -> dict[str, Any]:
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
