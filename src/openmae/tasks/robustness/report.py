"""What robustness comes to: figures by name, named partial where they are, and tables beside the paper's (table 13)."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from openmae.config import SIZES, ViTShape
from openmae.data.sources.imagenet_variants import (
    ALEXNET,
    IMAGENET_C,
    NAMED,
    SEVERITIES,
    Variant,
    VariantPart,
    corruption_errors,
    missing_corruptions,
)
from openmae.inference.metrics import interval

# The paper's table 13, by model and image size: mCE on -C; top-1 on -A, -R and -Sketch.
TABLE_13 = {
    ("base", 224): ("ViT-B", {"mce": 51.7, "a_top1": 35.9, "r_top1": 48.3, "sketch_top1": 34.5}),
    ("large", 224): ("ViT-L", {"mce": 41.8, "a_top1": 57.1, "r_top1": 59.9, "sketch_top1": 45.3}),
    ("huge", 224): ("ViT-H", {"mce": 33.8, "a_top1": 68.2, "r_top1": 64.4, "sketch_top1": 49.6}),
    ("huge", 448): ("ViT-H, 448 px", {"mce": 36.8, "a_top1": 76.7, "r_top1": 66.5, "sketch_top1": 50.9}),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was found on a part.

    Attributes:
        images, wrong: readable ones, and those of them that got another class.
        classes: how many classes have an image, readable or not.
        bad: name and reason of each image that could not be read.
        crop_fraction: of the largest centred box of an image, what was shown, along each side; stored as `margin`.
        fingerprint: of the part's files, so that a resumed run notices a change.
        settings: what else the numbers depend on.
    """

    part: str
    images: int
    wrong: int
    classes: int
    bad: dict[str, str]
    crop_fraction: float
    seconds: float
    fingerprint: str
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For a line of the rows' file."""
        values = asdict(self)
        return {"margin" if name == "crop_fraction" else name: value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From a line of the rows' file. Raises TypeError where it is of another kind."""
        return cls(**{"crop_fraction" if name == "margin" else name: value for name, value in values.items()})

    @property
    def error(self) -> float:
        """0..1, of the readable images."""
        return self.wrong / self.images

    @property
    def highest_error(self) -> float:
        """0..1, if every unreadable image counts as wrong."""
        return (self.wrong + len(self.bad)) / (self.images + len(self.bad))

    def missing_from(self, variant: Variant) -> list[str]:
        """In words, what the part lacks of the released set."""
        wanted, count = len(variant.classes), self.images + len(self.bad)
        lines = [f"{wanted - self.classes} of {wanted} classes"] if self.classes < wanted else []
        if count < variant.num_images:
            lines.append(f"{variant.num_images - count:,} of {variant.num_images:,} images")
        return lines


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A set as it is to be measured: its parts, and the classes that compete, in the order of its labels."""

    variant: Variant
    parts: list[VariantPart]
    classes: tuple[str, ...]


def summarise(sets: list[EvaluationSet], rows: dict[str, Row]) -> dict[str, Any]:
    """All figures by name, in per cent. A figure over less than the released set has `_partial` behind its name."""
    summary: dict[str, Any] = {"status": "complete"}
    for measured in sets:
        own = {part: rows[part.name] for part in measured.parts}
        if measured.variant is IMAGENET_C:
            summary |= corruption_metrics(own)
        else:
            (row,) = own.values()
            summary |= class_metrics(measured, row)
    summary["images"] = sum(row.images for row in rows.values())
    summary["unreadable"] = sum(len(row.bad) for row in rows.values())
    summary["seconds"] = round(sum(row.seconds for row in rows.values()), 1)
    return summary


def corruption_metrics(rows: dict[VariantPart, Row]) -> dict[str, Any]:
    """mce, or mce_partial (over the corruptions that have all severities) and what is missing; the errors themselves.

    With unreadable images mce_upper_bound too, which counts them as wrong.
    """
    by_place = {(str(part.corruption), part.severity or 0): row for part, row in rows.items()}
    missing = missing_corruptions(by_place)
    for part, row in rows.items():
        missing += [f"{part.corruption} {part.severity}: {what}" for what in row.missing_from(IMAGENET_C)]
    relative = corruption_errors({place: row.error for place, row in by_place.items()})
    figures: dict[str, Any] = {}
    if relative:
        figures["mce_partial" if missing else "mce"] = sum(relative.values()) / len(relative)
        if any(row.bad for row in rows.values()):
            highest = corruption_errors({place: row.highest_error for place, row in by_place.items()})
            figures["mce_upper_bound"] = sum(highest.values()) / len(highest)
    if missing:
        figures["mce_missing"] = shortened(missing)
        figures["mce_corruptions"] = len(relative)
    for corruption in ALEXNET:
        errors = [row.error for (name, _), row in by_place.items() if name == corruption]
        if errors:
            figures[f"error_{corruption}"] = 100 * sum(errors) / len(errors)
    return figures | {f"ce_{corruption}": value for corruption, value in relative.items()}


def class_metrics(measured: EvaluationSet, row: Row) -> dict[str, Any]:
    """PREFIX_top1 with its 95 % interval, or PREFIX_top1_partial; with unreadable images also a lower bound."""
    prefix = prefix_of(measured.variant)
    missing = row.missing_from(measured.variant)
    low, high = interval(row.images - row.wrong, row.images)
    figures: dict[str, Any] = {
        f"{prefix}_top1_partial" if missing else f"{prefix}_top1": 100 * (1 - row.error),
        f"{prefix}_top1_low": 100 * low,
        f"{prefix}_top1_high": 100 * high,
        f"{prefix}_images": row.images,
        f"{prefix}_classes": row.classes,
    }
    if row.bad:
        figures[f"{prefix}_unreadable"] = len(row.bad)
        figures[f"{prefix}_top1_lower_bound"] = 100 * (1 - row.highest_error)
    if missing:
        figures[f"{prefix}_top1_missing"] = shortened(missing)
    return figures


def metric_of(variant: Variant) -> tuple[str, str]:
    """The name of a set's figure in summary.json, and in tables."""
    if variant is IMAGENET_C:
        return "mce", f"{variant.title} mCE ↓"
    return f"{prefix_of(variant)}_top1", f"{variant.title} top-1 ↑"


def prefix_of(variant: Variant) -> str:
    """What its figures' names begin with: c, a, r, sketch."""
    return variant.title.removeprefix("ImageNet-").lower()


def shortened(missing: list[str]) -> str:
    """The first few in words."""
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    return "; ".join(missing[:NAMED]) + more


def paper_row(shape: ViTShape, size: tuple[int, int]) -> tuple[str, dict[str, float]] | None:
    """The paper's figures for a model of this size, if it has any."""
    own = (shape.width, shape.depth, shape.num_heads, shape.patch_size)
    name = next((name for name, numbers in SIZES.items() if numbers == own), "")
    return TABLE_13.get((name, size[0])) if size[0] == size[1] else None


def result_lines(
    sets: list[EvaluationSet],
    rows: dict[str, Row],
    summary: dict[str, Any],
    paper: tuple[str, dict[str, float]] | None,
) -> list[str]:
    """Tables of all figures, beside the paper's where the model is of one of its sizes."""
    lines = corruption_table(sets, rows, summary)
    column, rule = (f" MAE {paper[0]} in the paper |", "---|") if paper else ("", "")
    lines += ["", f"| figure, % | images | ours |{column}", f"|---|---|---|{rule}"]
    notes = []
    for measured in sets:
        name, title = metric_of(measured.variant)
        images = sum(rows[part.name].images for part in measured.parts)
        value = summary.get(name, summary.get(f"{name}_partial"))
        if name not in summary:
            title += ", partial"
            notes.append(f"{title}: it lacks {summary[f'{name}_missing']}")
        told = f" {paper[1][name]} |" if paper else ""
        lines.append(f"| {title} | {images:,} | {'–' if value is None else f'{value:.1f}'} |{told}")
    if summary["unreadable"]:
        notes.append(f"{summary['unreadable']:,} images could not be read: named in quarantine.jsonl")
    return lines + notes


def corruption_table(sets: list[EvaluationSet], rows: dict[str, Row], summary: dict[str, Any]) -> list[str]:
    """Errors in per cent by corruption and severity, and relative to AlexNet's; nothing without ImageNet-C."""
    parts = [part for measured in sets for part in measured.parts if part.corruption is not None]
    if not parts:
        return []
    errors = {(part.corruption, part.severity): f"{100 * rows[part.name].error:.1f}" for part in parts}
    lines = ["", "| error, % | 1 | 2 | 3 | 4 | 5 | CE |", "|---|---|---|---|---|---|---|"]
    for corruption in ALEXNET:
        if f"error_{corruption}" in summary:
            cells = [errors.get((corruption, severity), "–") for severity in SEVERITIES]
            relative = summary.get(f"ce_{corruption}")
            cells.append("–" if relative is None else f"{relative:.1f}")
            lines.append(f"| {corruption} | {' | '.join(cells)} |")
    return lines
