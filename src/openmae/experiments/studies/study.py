"""What an experiment is: rows that differ from a default row in a few settings, and the paper's figures beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openmae.experiments.results.results import RowResult
    from openmae.experiments.trials.side_by_side import Job

DEFAULT = "default"

# What is measured of a row, as results.json names it, and as a person reads it.
PROTOCOLS = {
    "finetune": "fine-tuning",
    "linear": "linear probe",
    "knn": "kNN",
    "hours": "hours",
    "speedup": "speed-up",
    "speed": "speed",
    "psnr": "PSNR",
}
UNITS = {
    "finetune": "top-1, %",
    "linear": "top-1, %",
    "knn": "top-1, %",
    "hours": "h",
    "speedup": "×",
    "speed": "images a second",
    "psnr": "dB",
}
TIMES = ("hours", "speedup", "speed")  # whose values are medians of rounds, for a disturbed round says nothing


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table, or a point of a figure.

    Attributes:
        name: what tells it from the others of the experiment; also the name of its folder.
        label: what its section calls it, with the paper's number where ours is another.
        changes: the settings of pre-training that differ from the default row's.
        paper: the paper's figure for each protocol that it gives one for.
        paper_cost: the paper's "FLOPs" and "time" of pre-training, as multiples of the default row's.
        position: where it lies on the axis of a figure.
        curve: the curve of a figure that it belongs to.
        size: which of the setup's sizes it is of, where an experiment compares sizes.
        is_scratch: nothing is pre-trained: fine-tuning starts from random weights.
        labels, blocks: of fine-tuning: a share of the labels, and the last blocks that are trained; None: all.
        protocols: what is measured of this row where it is not what the experiment says.
    """

    name: str
    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    paper_cost: Mapping[str, float] = field(default_factory=dict)
    position: float | None = None
    curve: str = ""
    size: int | None = None
    is_scratch: bool = False
    labels: str | None = None
    blocks: float | None = None
    protocols: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Section:
    """One of the paper's tables: its title and its rows, the default row among them under the section's own label."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A table or figure of the paper, scaled to a person's data and machine.

    Attributes:
        title: a heading.
        sections: the tables that it has; a row that stands in several is run once.
        protocols: what is measured of each row, in the order of the columns.
        axis: what a figure's x-axis says; empty for tables, which are drawn as differences to the default row.
        is_log_axis: the positions are drawn as their logarithms.
        baseline: the row that others are compared with; empty: there is none.
        repeated: rows that are run as often as the scale says at least; None: the baseline, for its spread.
        budget: lines that say what each row is given, where that is not the default row's pre-training.
        remarks: sentences for results.md about what differs from the paper.
        derive: what is computed from several rows: from the measured rows to those of the results.
        findings: sentences for results.md that follow from the results, where no row is compared with another.
        draw: draws a picture of its own, given the PNG's path, the results and the trials.
    """

    name: str
    title: str
    sections: tuple[Section, ...]
    protocols: tuple[str, ...]
    axis: str = ""
    is_log_axis: bool = False
    baseline: str = DEFAULT
    repeated: tuple[str, ...] | None = None
    budget: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    derive: "Callable[[list[RowResult]], list[RowResult]] | None" = None
    findings: "Callable[[Sequence[RowResult]], list[str]] | None" = None
    draw: "Callable[[Path, Sequence[RowResult], Sequence[Job]], None] | None" = None

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every row once; the one that others are compared with first."""
        by_name = {row.name: row for section in reversed(self.sections) for row in reversed(section.rows)}
        ordered = [row.name for section in self.sections for row in section.rows]
        first = [self.baseline] if self.baseline in by_name else []
        return tuple(by_name[name] for name in dict.fromkeys([*first, *ordered]))

    def is_repeated(self, row: Row) -> bool:
        """Whether a row is run as often as the scale says at least."""
        return row.name in ((self.baseline,) if self.repeated is None else self.repeated)

    def protocols_of(self, row: Row) -> tuple[str, ...]:
        """What is measured of a row."""
        return self.protocols if row.protocols is None else row.protocols


def label_with_paper(ours: float | str, paper: float | str, unit: str) -> str:
    """A row's label: both numbers where ours was scaled, `16 wide (paper: 128)`, else one."""
    scaled = "" if str(ours) == str(paper) else f" (paper: {paper})"
    return f"{ours} {unit}{scaled}".replace("1 blocks", "1 block") if str(ours) == "1" else f"{ours} {unit}{scaled}"
