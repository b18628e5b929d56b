"""Which of the learning rates that a probe tried at once is kept, and the metrics of the others."""

import csv
import math
from pathlib import Path

from openmae.data.labels.labelled import LabelledData
from openmae.machine.files import atomic_write, disk_faults


def choice_metric(data: LabelledData) -> str:
    """The name of the metric by which a rate is chosen."""
    if data.scale is not None:
        return "r2"
    return "map" if data.is_multi_label else "top1"


def best_head(metrics: list[dict[str, float]], data: LabelledData) -> int:
    """The head with the best metric; among equals, and where it is not defined, the one with the lowest loss.

    Args:
        metrics: of each head.
    """
    name = choice_metric(data)
    return max(range(len(metrics)), key=lambda i: (metrics[i].get(name, -math.inf), -metrics[i]["held_out_loss"]))


def chosen_by(data: LabelledData) -> str:
    """The images by which a rate is chosen, as summary.json names them."""
    if data.validation is None:
        return "nothing: one rate"
    return "split of train" if data.is_validation_split else "val"


def write_rates(path: Path, rates: tuple[float, ...], metrics: list[dict[str, float]]) -> None:
    """Write every rate and its metrics on the images by which one was chosen, as CSV."""
    names = list(metrics[0])
    with disk_faults(path), atomic_write(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["base_lr", *names])
        writer.writerows(
            [rate, *(own.get(name, "") for name in names)] for rate, own in zip(rates, metrics, strict=True)
        )


def rates_text(rates: tuple[float, ...], metrics: list[dict[str, float]], best: int, data: LabelledData) -> str:
    """The line on the screen that says how good each rate was and which is kept."""
    name = choice_metric(data)
    shown = ", ".join(f"{rate:g}: {_format_metric(own, name)}" for rate, own in zip(rates, metrics, strict=True))
    return f"rates      {shown} ({chosen_by(data)}); {rates[best]:g} is kept"


def _format_metric(metrics: dict[str, float], name: str) -> str:
    if name not in metrics:
        return f"loss {metrics['held_out_loss']:.4f}"
    return f"R2 {metrics[name]:.4f}" if name == "r2" else f"{metrics[name]:.2f} %"
