"""Which of the rates that a probe tried at once is kept, and what is said of the others."""

import csv
import math
from pathlib import Path

from openmae.data.labels.labelled import LabelledData
from openmae.machine.files import atomic_write, disk_faults


def figure_of(data: LabelledData) -> str:
    """The name of the figure that chooses."""
    if data.scale is not None:
        return "r2"
    return "map" if data.is_multi_label else "top1"


def best_of(found: list[dict[str, float]], data: LabelledData) -> int:
    """The head with the best figure; among equals, and where it is not defined, the one with the lowest loss."""
    figure = figure_of(data)
    return max(range(len(found)), key=lambda i: (found[i].get(figure, -math.inf), -found[i]["held_out_loss"]))


def chosen_by(data: LabelledData) -> str:
    """The images that choose, in words."""
    if data.validation is None:
        return "nothing: one rate"
    return "split of train" if data.is_validation_split else "val"


def write_rates(path: Path, rates: tuple[float, ...], found: list[dict[str, float]]) -> None:
    """Every rate and its figures on the images that chose among them."""
    names = list(found[0])
    with disk_faults(path), atomic_write(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["base_lr", *names])
        writer.writerows([rate, *(own.get(name, "") for name in names)] for rate, own in zip(rates, found, strict=True))


def rate_lines(rates: tuple[float, ...], found: list[dict[str, float]], number: int, data: LabelledData) -> str:
    """What the screen says of the choice."""
    figure = figure_of(data)
    shown = ", ".join(f"{rate:g}: {_words(own, figure)}" for rate, own in zip(rates, found, strict=True))
    return f"rates      {shown} ({chosen_by(data)}); {rates[number]:g} is kept"


def _words(figures: dict[str, float], name: str) -> str:
    if name not in figures:
        return f"loss {figures['held_out_loss']:.4f}"
    return f"R2 {figures[name]:.4f}" if name == "r2" else f"{figures[name]:.2f} %"
