"""The rows of an experiment: a finished row is stored, and tables and picture are rewritten after each."""

import csv
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openmae.machine.files import atomic_write, disk_faults, write_json

# Top-1 on the final split, of each seed; the chosen learning rate; and top-1 on the split that it was chosen by.
ProtocolResult = tuple[list[float], float | None, float | None]


@dataclass(frozen=True)
class Row:
    """The result of a protocol at a share of the labels.

    Attributes:
        top1: on the final split, in per cent, of each seed.
        base_lr: the chosen learning rate; None where there was no choice.
        chosen_by: top-1 in per cent on the split that it was chosen by; None where there was none.
    """

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
        """The standard deviation over seeds; 0 of a single one."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else 0.0

    @property
    def text(self) -> str:
        """The mean, and the spread where there are several seeds, as results.md has them."""
        return f"{self.mean:.1f}" if len(self.top1) == 1 else f"{self.mean:.1f} ± {self.spread:.1f}"


@dataclass
class Ledger:
    """The rows so far, written to results.json, results.csv, results.md and a picture.

    Attributes:
        columns: shares of the labels, the columns of results.md.
        position: a sort key of protocols, for the rows of results.md.
        draw: draws the picture.
        finished: results by "protocol labels", those of previous starts among them: what results.json holds.
    """

    out: Path
    columns: tuple[str, ...]
    position: Callable[[str], float]
    draw: Callable[[list[Row]], None]
    finished: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def run(self, protocol: str, labels: str, measure: Callable[..., ProtocolResult], *arguments: Any) -> None:
        """Add a row: its stored result or, where there is none, what `measure(labels, *arguments)` returns."""
        key = f"{protocol} {labels}"
        if key not in self.finished:
            print(f"running {key}", flush=True)
            self.finished[key] = measure(labels, *arguments)
        self.rows.append(Row(protocol, labels, *self.finished[key]))
        print(f"{key}: {self.rows[-1].text} %", flush=True)
        with disk_faults(self.out):
            write_json(self.out / "results.json", self.finished)
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
        """A Markdown table: protocols are rows, shares of the labels columns."""
        lines = ["| | " + " | ".join(self.columns) + " |", "|---|" + "---|" * len(self.columns)]
        cells = {(r.protocol, r.labels): r.text for r in self.rows}
        for protocol in sorted(dict.fromkeys(r.protocol for r in self.rows), key=self.position):
            values = [cells.get((protocol, share), "") for share in self.columns]
            lines.append(f"| {protocol} | " + " | ".join(values) + " |")
        return "\n".join(lines) + "\n"
