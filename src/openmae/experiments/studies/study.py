"""What an experiment is: rows that differ from a default row in a few settings; and what was measured of a row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

DEFAULT = "default"

# What is measured of a row, as results.json names it, and as a person reads it.
PROTOCOLS = {
    "finetune": "fine-tuning",
    "miou": "segmentation",
    "box_ap": "detection",
    "mask_ap": "instance segmentation",
    "linear": "linear probe",
    "knn": "kNN",
    "hours": "hours",
    "speedup": "speed-up",
    "speed": "speed",
    "psnr": "PSNR",
}
UNITS = {
    "finetune": "top-1, %",
    "miou": "mIoU, %",
    "box_ap": "box AP, %",
    "mask_ap": "mask AP, %",
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
        is_scratch: nothing is pre-trained: fine-tuning or transfer starts from random weights.
        init: nothing is pre-trained: it starts from this model.
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
    init: str = ""
    labels: str | None = None
    blocks: float | None = None
    protocols: tuple[str, ...] | None = None

    @property
    def is_pretrained_here(self) -> bool:
        return not self.is_scratch and not self.init


@dataclass(frozen=True)
class Measured:
    """What was measured of a row by one protocol.

    Attributes:
        values: of each seed.
        paper: the paper's figure; None where it gives none.
        details: further lists, a value of each seed: the chosen rate, what it was chosen by.
        is_median: whether their median stands for them, and not their mean.
    """

    values: tuple[float, ...]
    paper: float | None = None
    details: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    is_median: bool = False

    @property
    def centre(self) -> float:
        """What stands for all of them: the mean, of times the median."""
        return median(self.values) if self.is_median else self.mean

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds; None of a single one."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class RowResult:
    """A row with what is known of it so far.

    Attributes:
        protocols: by name, those that have a value.
        cost: as results.json holds it.
        failed: why a trial of it failed; empty where none did.
    """

    row: Row
    settings: dict[str, Any]
    protocols: dict[str, Measured]
    cost: dict[str, Any]
    failed: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The row as results.json holds it."""
        protocols = {
            name: {
                "values": list(measured.values),
                "paper": measured.paper,
                **{detail: list(values) for detail, values in measured.details.items()},
            }
            for name, measured in self.protocols.items()
        }
        row = {"row": self.row.name, "settings": self.settings, "protocols": protocols, "cost": self.cost}
        return {**row, "failed": self.failed} if self.failed else row


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
        draw: draws a picture of its own, given the PNG's path, the results, and the folders of the finished trials of
            seed 0 by their rows.
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
    derive: Callable[[list[RowResult]], list[RowResult]] | None = None
    findings: Callable[[Sequence[RowResult]], list[str]] | None = None
    draw: Callable[[Path, Sequence[RowResult], Mapping[str, Path]], None] | None = None

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
