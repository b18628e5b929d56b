"""Interleaved rounds of measurements, their ratios, and the table of results."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

WARM_UP = 2  # discarded rounds, in which kernels are chosen, files cached, and (in the second) allocators filled
NOT_INSTALLED = "not installed: pip install 'openmae[bench]'"

Measurement = Callable[[], float]  # measures once: seconds, or images/s


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison of a benchmark: our raw numbers beside another program's.

    Attributes:
        case, peer: what was measured, and the program it is compared with or, where that is missing, why.
        unit: of the raw numbers.
        more_is_better: True for images/s, False for seconds and bytes.
        ours, theirs: raw numbers, one for each round; empty where a side did not run.
        details: further keys of the JSON row, like the share of the machine's ceiling.
    """

    case: str
    peer: str
    unit: str = "s"
    more_is_better: bool = False
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """The ratio of each round; above 1 ours is better."""
        if not self.theirs:
            return []
        pairs = zip(self.ours, self.theirs, strict=True)
        return [ours / theirs if self.more_is_better else theirs / ours for ours, theirs in pairs]

    def to_dict(self) -> dict[str, Any]:
        """A row of the JSON file; `ratio`, `low` and `high` are null without a peer."""
        ratios = self.ratios
        return {
            "case": self.case,
            "peer": self.peer,
            "ratio": statistics.median(ratios) if ratios else None,
            "low": min(ratios, default=None),
            "high": max(ratios, default=None),
            "ours": self.ours,
            "theirs": self.theirs,
            "unit": self.unit,
            **self.details,
        }


def run_interleaved(rounds: int, *measurements: Measurement) -> list[list[float]]:
    """The results of each measurement in each round. Every second round runs them in reverse order, for fairness."""
    results: list[list[float]] = [[] for _ in measurements]
    for number in range(WARM_UP + rounds):
        order = range(len(measurements))
        for i in order if number % 2 == 0 else reversed(order):
            value = measurements[i]()
            if number >= WARM_UP:
                results[i].append(value)
    return results


def timed(action: Callable[[], object], wait: Callable[[], None]) -> Measurement:
    """Measures the seconds of an action; `wait` waits for the device, see `machine.synchronizer`."""

    def measure() -> float:
        wait()
        start = time.perf_counter()
        action()
        wait()
        return time.perf_counter() - start

    return measure


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as aligned lines: ratio with its lowest and highest round, medians of both sides, details."""
    cells = [["case", "against", "ratio", "low", "high", "ours", "theirs", ""]]
    for row in rows:
        values = row.to_dict()
        ratio = [f"{values[name]:.2f}" if row.ratios else "-" for name in ("ratio", "low", "high")]
        sides = [_formatted(statistics.median(side), row.unit) if side else "-" for side in (row.ours, row.theirs)]
        cells.append([row.case, row.peer, *ratio, *sides, _details(row.details)])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in (0, 1, 7) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _formatted(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB"
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def _details(details: dict[str, Any]) -> str:
    texts = []
    if "share_of_ceiling" in details:
        share, theirs = details["share_of_ceiling"], details.get("their_share_of_ceiling")
        texts.append(f"{share:.0%} of the ceiling" + (f", theirs {theirs:.0%}" if theirs else ""))
    if "cpu_ratio" in details:
        texts.append(f"by CPU time {details['cpu_ratio']:.2f}")
    if "flops_ratio" in details:
        texts.append(f"by FLOPs {details['flops_ratio']:.2f}")
    if "paper" in details:
        texts.append(f"paper {details['paper']}")
    if "goal" in details:
        texts.append(f"goal {details['goal']}")
    if "note" in details:
        texts.append(details["note"])
    return "; ".join(texts)
