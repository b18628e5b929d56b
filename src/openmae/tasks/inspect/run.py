"""`openmae inspect RUN`: settings, progress and health of a run, and whether it can be resumed; also while it runs."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openmae.config import (
    InspectConfig,
    ResolvedDetectConfig,
    ResolvedFinetuneConfig,
    ResolvedPretrainConfig,
    ResolvedProbeConfig,
    ResolvedSegmentConfig,
    ResolvedTokenizerConfig,
    ResolvedTransferConfig,
    words_of,
)
from openmae.errors import quoted, shorten, shown
from openmae.machine.files import atomic_write_folder, disk_faults, write_json
from openmae.pictures.sheet import loss_curve
from openmae.preflight.inspect import check_report_folder
from openmae.run.health import Health
from openmae.run.lock import is_locked
from openmae.run.reader import (
    MAX_NUMBER,
    ResolvedConfig,
    finite_numbers,
    list_checkpoints,
    parse_resolved_config,
    read_json_object,
    read_metrics,
    saved_classes,
    steps_per_epoch,
    summarise_metrics,
)
from openmae.tasks.inspect.run_screen import run_lines
from openmae.training.checkpoint import MODEL

TITLES: dict[type, str] = {
    ResolvedPretrainConfig: "pre-training",
    ResolvedFinetuneConfig: "fine-tuning",
    ResolvedProbeConfig: "linear probe",
    ResolvedSegmentConfig: "semantic segmentation",
    ResolvedDetectConfig: "detection",
    ResolvedTokenizerConfig: "tokenizer",
}
COMMANDS: dict[type, str] = {
    ResolvedPretrainConfig: "pretrain",
    ResolvedFinetuneConfig: "finetune",
    ResolvedProbeConfig: "probe",
    ResolvedSegmentConfig: "segment",
    ResolvedDetectConfig: "detect",
    ResolvedTokenizerConfig: "tokenizer",
}
# The settings of a run that are shown, in this order.
# fmt: off
SHOWN_SETTINGS = (
    "recipe", "model", "width", "depth", "num_heads", "patch_size", "image_size", "channels", "decoder_width",
    "decoder_depth", "pyramid", "window_size", "head_width", "roi_samples", "codebook", "inference", "stride",
    "mask", "mask_ratio", "target", "tokenizer", "augment", "init", "task",
    "blocks", "labels", "optimizer", "batch_size", "base_lr", "weight_decay", "warmup_epochs", "layer_decay",
    "epochs", "steps", "precision", "device", "seed",
)
# fmt: on


def inspect_run(config: InspectConfig) -> dict[str, Any]:
    """Report on a run folder; see `openmae.tasks.inspect.inspect.inspect`.

    Raises:
        RequestError: --out exists.
        Fault: the report cannot be written.
    """
    out = None if config.out is None else check_report_folder(config.out)
    assert config.path is not None
    run = Path(config.path)
    values, problem = read_json_object(run / "config.json")
    config_of_run, config_problem = parse_resolved_config(values)
    lines = [line for line in map(finite_numbers, read_metrics(run / "metrics.jsonl")) if line]
    summary, _ = read_json_object(run / "summary.json")
    report: dict[str, Any] = {
        "kind": "run",
        "path": shown(config.path),
        "task": TITLES[type(config_of_run)] if config_of_run is not None else None,
        "problem": problem or config_problem,
        "settings": {name: values[name] for name in SHOWN_SETTINGS if values.get(name) is not None},
        "data": shown(str(config_of_run.dataset)) if config_of_run is not None else None,
        **_state(run, config_of_run, lines, summary),
        **summarise_metrics(lines, summary),
        "checkpoints": list_checkpoints(run),
    }
    report |= _health(config_of_run, lines, report)
    report["classes"] = report["use"] = None
    if isinstance(config_of_run, ResolvedTransferConfig):
        report["classes"] = saved_classes(run, report["checkpoints"])
        has_model = (run / MODEL).is_file()
        report["use"] = use_command(config.path, config_of_run.command) if has_model else None
    report["resume"] = resume_command(config.path, config_of_run, report)
    print("\n".join(run_lines(report, lines)), flush=True)
    if out is not None:
        with disk_faults(out), atomic_write_folder(out) as folder:
            write_json(folder / "inspect.json", report)
            title = shorten(report["path"], 70).replace("$", r"\$")  # or matplotlib would read a formula
            label = "loss on masked patches" if isinstance(config_of_run, ResolvedPretrainConfig) else "loss"
            loss_curve(folder / "curve.png", [line for line in lines if "images_seen" in line], title, label)
        print(f"\nwrote      {shown(out)}: curve.png, inspect.json", flush=True)
    return report


def _state(
    run: Path, config: ResolvedConfig | None, lines: Sequence[dict[str, Any]], summary: dict[str, Any]
) -> dict[str, Any]:
    """Status, step and pace of the run."""
    last = lines[-1] if lines else {}
    step = last.get("step", 0)
    num_steps = None
    if config is not None and config.steps is not None:
        num_steps = config.steps
    elif config is not None and config.epochs is not None and (per_epoch := steps_per_epoch(lines)):
        length = config.epochs * per_epoch
        num_steps = max(round(length), step) if length < MAX_NUMBER else None
    status = summary.get("status")
    status = status if status in ("complete", "interrupted", "failed", "running") else "unknown"
    if is_locked(run):
        status = "running"
    elif status == "running":  # it was killed before it could write its status
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


def _health(config: ResolvedConfig | None, lines: Sequence[dict[str, Any]], report: dict[str, Any]) -> dict[str, Any]:
    """The verdict of `openmae.run.health` on a pre-training run, the same as the run's own."""
    if not isinstance(config, ResolvedPretrainConfig) or not report["num_steps"]:
        return {"health": None, "health_reason": None}
    trivial = next((line["trivial_loss"] for line in reversed(lines) if "trivial_loss" in line), None)
    verdict = Health(
        num_steps=report["num_steps"],
        warmup_steps=min(config.warmup_epochs * steps_per_epoch(lines), report["num_steps"]),
        trivial_loss=trivial,
        target=config.target,
        lines=lines,
    ).verdict()
    return {"health": verdict.word, "health_reason": verdict.reason}


def use_command(path: str, command: str) -> str:
    """The command that uses a segmenter or a detector on images."""
    return f"openmae {command} IMAGES --init {quoted(path)} --predict --out FOLDER"


def resume_command(path: str, config: ResolvedConfig | None, report: dict[str, Any]) -> dict[str, Any]:
    """Whether the run can be resumed, why or why not, and the command for it."""
    intact = [checkpoint for checkpoint in report["checkpoints"] if checkpoint["is_whole"]]
    if config is None:
        return {"can": False, "why": "its settings cannot be read", "command": None}
    if report["status"] == "running":
        return {"can": False, "why": "it is running now", "command": None}
    if not intact:
        why = "none of its checkpoints is whole" if report["checkpoints"] else "it has no checkpoint"
        return {"can": False, "why": why, "command": None}
    words = ["openmae", COMMANDS[type(config)], *words_of(config.dataset), "--out", path, "--resume", "auto"]
    if config.init is not None:
        words += ["--init", config.init]
    why = f"from step {intact[0]['step']:,}"
    if report["status"] == "complete":
        words += ["--epochs", "MORE"] if config.steps is None else ["--steps", "MORE"]
        why = "it is complete; more steps would continue it"
    return {"can": True, "why": why, "command": quoted(*words)}
