"""The report on a run as lines of at most 100 columns, with sparklines of its losses."""

import itertools
import math
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

from openmae.errors import shorten, shown
from openmae.tasks.inspect.screen import format_bytes, labelled_lines
from openmae.training.telemetry import format_duration

BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
SPARKS = 60  # columns of a curve


def run_lines(report: dict[str, Any], lines: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of the report; `lines` are those of metrics.jsonl."""
    rows = [""]
    rows += labelled_lines("run", f"{report['path']}: {report['task'] or 'of another kind'}")
    if report["problem"]:
        rows += labelled_lines("problem", shown(report["problem"]))
    if report["data"]:
        rows += labelled_lines("data", report["data"])
    settings = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in report["settings"].items())
    if settings:
        rows += labelled_lines("settings", settings)
    if report["classes"] is not None:
        names = ", ".join(shorten(shown(name), 30) for name in report["classes"][:8])
        more = ", …" if len(report["classes"]) > 8 else ""
        rows += labelled_lines("classes", f"{len(report['classes']):,}: {names}{more}")
    rows += labelled_lines("status", _status(report))
    rows += _curve("loss", lines, report["first_loss"], report["lowest_loss"], report["loss"])
    held_out = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    if held_out:
        rows += _curve("held_out_loss", lines, held_out[0], min(held_out), held_out[-1])
    for name, value in report["other_figures"].items():
        rows += labelled_lines(name.replace("_", " "), f"{value:.4g}")
    if report["lr"] is not None:
        rows += labelled_lines("rate", f"{report['lr']:.3g} at the last step")
    if report["images_per_second"] is not None:
        pace = f"{report['images_per_second']:,.0f} images/s (median)"
        if report["data_wait"] is not None:
            pace += f", {report['data_wait']:.0%} of the time waiting for data"
        if report["memory"] is not None:
            pace += f", at most {format_bytes(report['memory'])} of memory"
        rows += labelled_lines("pace", pace)
    unusual = [
        f"{report[name]:,} {label}"
        for name, label in (
            ("skipped_steps", "steps skipped (no finite gradient)"),
            ("loss_spikes", "loss spikes"),
            ("rollbacks", "roll-backs"),
            ("bad_inputs", "unreadable inputs (quarantine.jsonl names them)"),
        )
        if report.get(name)
    ]
    rows += labelled_lines("unusual", "; ".join(unusual) or "nothing")
    if report["health"] is not None:
        rows += labelled_lines("health", f"{report['health']}: {report['health_reason']}")
    rows += _checkpoints(report["checkpoints"])
    resume = report["resume"]
    rows += labelled_lines("resume", f"{'possible' if resume['can'] else 'not possible'}: {resume['why']}")
    if resume["command"]:
        rows.append(f"  {resume['command']}")  # not wrapped, so that it can be copied
    if report["use"]:
        rows += [*labelled_lines("use", "segment images, whole ones of any size:"), f"  {report['use']}"]
    return rows


def _status(report: dict[str, Any]) -> str:
    total = f" of {report['num_steps']:,}" if report["num_steps"] else ""
    text = f"{report['status']}, step {report['step']:,}{total}"
    if report["epoch"] is not None:
        text += f", epoch {report['epoch']:.2f}"
    if report["seconds"] is not None:
        text += f", {format_duration(report['seconds'])} of work"
    if report["status"] == "running" and report["idle_seconds"] is not None:
        text += f"; the last line was written {format_duration(report['idle_seconds'])} ago"
    return text


def _curve(name: str, lines: Sequence[dict[str, Any]], first: Any, lowest: Any, last: Any) -> list[str]:
    values = [line[name] for line in lines if name in line]
    if not values:
        return []
    label = {"loss": "loss", "held_out_loss": "held out"}[name]
    return [
        *labelled_lines(label, f"{first:.4g} at first, lowest {lowest:.4g}, last {last:.4g}"),
        *([f"{'':<11}{sparkline(values)}"] if len(values) > 1 else []),
    ]


def sparkline(values: Sequence[float], columns: int = SPARKS, bars: str | None = None) -> str:
    """A curve in one line of characters, each the median of a range of the values."""
    if bars is None:
        try:
            BARS.encode(sys.stdout.encoding or "ascii")
            bars = BARS
        except (UnicodeEncodeError, LookupError):
            bars = PLAIN_BARS
    count = min(columns, len(values))
    cuts = [round(i * len(values) / count) for i in range(count + 1)]
    points = [median(values[low:high]) for low, high in itertools.pairwise(cuts)]
    low, high = min(points), max(points)
    scale = (len(bars) - 1) / (high - low) if math.isfinite(high - low) and high > low else 0.0
    return "".join(bars[round((point - low) * scale)] for point in points)


def _checkpoints(checkpoints: list[dict[str, Any]]) -> list[str]:
    if not checkpoints:
        return labelled_lines("saved", "no checkpoint")
    rows: list[str] = []
    for number, checkpoint in enumerate(checkpoints[:5]):
        state = "whole" if checkpoint["is_whole"] else f"damaged: {shorten(shown(checkpoint['problem']), 60)}"
        text = f"{shorten(checkpoint['name'], 30)}  {format_bytes(checkpoint['bytes'])}  {state}"
        rows += labelled_lines("saved" if number == 0 else "", text)
    return rows + (labelled_lines("", f"and {len(checkpoints) - 5} more") if len(checkpoints) > 5 else [])


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " x ".join(map(_short, value[:4]))
    return f"{value:g}" if isinstance(value, float) else shown(shorten(str(value), 40))
