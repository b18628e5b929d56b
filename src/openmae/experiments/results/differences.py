"""Each row's difference to the one that all are compared with, beside the paper's, and what chance makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from openmae.experiments.results.statistics import noise_of
from openmae.experiments.studies.study import DEFAULT, UNITS, Measured, RowResult, Study


@dataclass(frozen=True)
class Difference:
    """Of two rows by one protocol.

    Attributes:
        label: of the row, with its section's title where that says what it is.
        ours, paper: the differences; `paper` is None where the paper has no figure for both.
        threshold: how large ours must be to be more than chance; None where nothing is known of chance.
    """

    label: str
    protocol: str
    ours: float
    paper: float | None
    threshold: float | None

    @property
    def is_clear(self) -> bool:
        """Whether ours is more than chance."""
        return self.threshold is not None and abs(self.ours) > self.threshold

    @property
    def is_against_paper(self) -> bool:
        """Whether ours is more than chance, and the paper's of the other sign or none at all."""
        return self.is_clear and self.paper is not None and self.ours * _rounded(self.paper) <= 0

    @property
    def is_missed(self) -> bool:
        """Whether the paper's is so large that it would be more than chance here, and ours is not."""
        is_large = self.paper is not None and self.threshold is not None and abs(self.paper) > self.threshold
        return is_large and not self.is_clear

    @property
    def is_found(self) -> bool:
        """Whether ours is more than chance, and of the paper's sign."""
        return self.is_clear and self.paper is not None and self.ours * _rounded(self.paper) > 0


def _rounded(difference: float) -> float:
    """A difference of two of the paper's figures, which have one decimal."""
    return round(difference, 6)


def images_behind(protocol: str, num_test: int) -> int:
    """The test images behind a figure that is a share of them, else 0: a mean IoU is of pixels, which depend."""
    return num_test if UNITS[protocol].startswith("top-1") else 0


def difference_of(label: str, protocol: str, row: Measured, base: Measured, num_test: int) -> Difference:
    """The difference of a row to the one that it is compared with."""
    has_paper = row.paper is not None and base.paper is not None
    paper = row.paper - base.paper if has_paper else None  # type: ignore[operator]
    seeds = len(row.values), len(base.values)
    threshold = noise_of(base, images_behind(protocol, num_test), seeds=seeds).threshold
    return Difference(label, protocol, row.mean - base.mean, paper, threshold)


def differences(study: Study, rows: Sequence[RowResult], num_test: int) -> list[Difference]:
    """Of every row to the one that all are compared with, and of each curve of a figure to the last one."""
    base = next((row for row in rows if row.row.name == study.baseline), None)
    if base is None:
        return []
    found = [
        difference_of(full_label(study, row), name, measured, base.protocols[name], num_test)
        for row in rows
        for name, measured in row.protocols.items()
        if row is not base and name in base.protocols
    ]
    return found + leads(study, rows, base, num_test)


def leads(study: Study, rows: Sequence[RowResult], base: RowResult, num_test: int) -> list[Difference]:
    """How far a figure's curves lie above the last of them, at each position that both have."""
    curves = list(dict.fromkeys(row.curve for row in study.rows))
    by_place = {(row.row.curve, row.row.position): row for row in rows}
    found = []
    for row in rows:
        other = by_place.get((curves[-1], row.row.position))
        if row.row.curve == curves[-1] or other is None:
            continue
        what = row.row.label.removeprefix(f"{row.row.curve}, ")
        for name in row.protocols.keys() & other.protocols.keys() & base.protocols.keys():
            # Chance is known of the row that all are compared with alone: its spread serves for both of these.
            mine, theirs = row.protocols[name], other.protocols[name]
            seeds = len(mine.values), len(theirs.values)
            noise = noise_of(base.protocols[name], images_behind(name, num_test), seeds=seeds)
            paper = mine.paper - theirs.paper if mine.paper is not None and theirs.paper is not None else None
            label = f"{row.row.curve} − {curves[-1]}, {what}"
            found.append(Difference(label, name, mine.mean - theirs.mean, paper, noise.threshold))
    return found


def full_label(study: Study, row: RowResult) -> str:
    """A row's label behind its section's title, where there are several rows under one: `decoder depth, 1 block`."""
    title = next((section.title for section in study.sections if row.row in section.rows), "")
    title = title.partition(": ")[2] or title
    return row.row.label if not title or row.row.curve else f"{title}, {row.row.label}"


def base_name(study: Study, *, is_start: bool = False) -> str:
    """What the row is called that all are compared with, perhaps at the start of a sentence."""
    if study.baseline == DEFAULT:
        return "The default row" if is_start else "the default row"
    label = next((row.label for row in study.rows if row.name == study.baseline), study.baseline)
    return f"“{label.partition(' (paper: ')[0]}”"
