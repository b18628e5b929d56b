"""The rows of an experiment: each is kept when it is finished, and all are written anew after every one."""

import csv
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openmae.machine.files import atomic_write, disk_faults, write_json

# Top-1 on the test part of each seed, the chosen rate, and top-1 on the split that chose it.
Found = tuple[list[float], float | None, float | None]


@dataclass(frozen=True)
class Row:
    """A protocol at a share of the labels: top-1 in per cent on the test part, of each seed; what chose it."""

    protocol: str
    labels: str
    top1: list[float]
    base_lr: float | None
    chosen_by: float | None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.top1)

    @property
    def spread(self) -> float:
        """The standard deviation over seeds; 0 of one."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else 0.0

    @property
    def words(self) -> str:
        return f"{self.mean:.1f}" if len(self.top1) == 1 else f"{self.mean:.1f} ± {self.spread:.1f}"


@dataclass
class Ledger:
    """The rows so far, in results.json, results.csv, results.md and a picture.

    Attributes:
        columns: shares of the labels, as results.md has them across.
        position: where a protocol stands among the rows of results.md.
        draw: makes the picture.
        kept: by "protocol labels", what was found: rows of earlier starts, too.
    """

    out: Path
    columns: tuple[str, ...]
    position: Callable[[str], float]
    draw: Callable[[list[Row]], None]
    kept: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def run(self, protocol: str, labels: str, find: Callable[..., Found], *arguments: Any) -> None:
        """Add a row: what is kept of it, or else what `find(labels, *arguments)` returns."""
        key = f"{protocol} {labels}"
        if key not in self.kept:
            print(f"running {key}", flush=True)
            self.kept[key] = find(labels, *arguments)
        self.rows.append(Row(protocol, labels, *self.kept[key]))
        print(f"{key}: {self.rows[-1].words} %", flush=True)
        with disk_faults(self.out):
            write_json(self.out / "results.json", self.kept)
            self._write_csv(self.out / "results.csv")
            with atomic_write(self.out / "results.md") as partial:
                partial.write_text(self.table())
        self.draw(self.rows)

    def _write_csv(self, path: Path) -> None:
        with atomic_write(path) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["protocol", "labels", "top1", "seeds", "base_lr", "top1_on_the_split_that_chose"])
            for r in self.rows:
                writer.writerow([r.protocol, r.labels, f"{r.mean:.4f}", len(r.top1), r.base_lr, r.chosen_by])

    def table(self) -> str:
        """Protocols down, shares of the labels across, in Markdown."""
        lines = ["| | " + " | ".join(self.columns) + " |", "|---|" + "---|" * len(self.columns)]
        cells = {(r.protocol, r.labels): r.words for r in self.rows}
        for protocol in sorted(dict.fromkeys(r.protocol for r in self.rows), key=self.position):
            of_protocol = [cells.get((protocol, share), "") for share in self.columns]
            lines.append(f"| {protocol} | " + " | ".join(of_protocol) + " |")
        return "\n".join(lines) + "\n"
