"""The speed of a row that is timed, from the lines of its run."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

WARM_UP = 0.25  # the share of the steps, the first ones, that are not timed


def num_warm_up(steps: int) -> int:
    """How many first steps are not timed."""
    return min(max(1, round(WARM_UP * steps)), steps - 1)


def speed_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The speed of a run that wrote a line of metrics.jsonl for each step.

    Returns:
        `value`, images a second; `data_wait`, the share of time spent waiting for data (both medians over the steps
        behind the warm-up); and `memory`, the peak in bytes.
    """
    steps = [line for line in lines if "images_per_second" in line]
    timed = steps[num_warm_up(len(steps)) :]
    return {
        "value": median(float(line["images_per_second"]) for line in timed),
        "data_wait": median(float(line["data_wait"]) for line in timed),
        "memory": max(int(line["memory"]) for line in steps),
    }
