"""Robustness metrics by name, marked partial over incomplete sets, and tables beside the paper's (table 13)."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from openmae.config import SIZES, ViTShape
from openmae.data.sources.imagenet_variants import (
    ALEXNET,
    IMAGENET_C,
    MAX_NAMED,
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
    """The result on one part: a set, or a corruption and severity of ImageNet-C.

    Attributes:
        part: its name, `VariantPart.name`.
        images, wrong: how many images are readable, and how many of them are misclassified.
        classes: how many classes have an image, readable or not.
        bad: name and reason of each image that could not be read.
        crop_fraction: the fraction of the largest centred box that the model saw, along each side; stored as `margin`.
        fingerprint: of the part's files, so that a resumed run notices a change.
        settings: what else the result depends on.
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
        """From a line of the rows' file. Raises TypeError for other fields."""
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
        """Lines about classes and images that the part lacks of the released set."""
        num_classes, count = len(variant.classes), self.images + len(self.bad)
        lines = [f"{num_classes - self.classes} of {num_classes} classes"] if self.classes < num_classes else []
        if count < variant.num_images:
            lines.append(f"{variant.num_images - count:,} of {variant.num_images:,} images")
        return lines


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A set to evaluate: its parts, and the classes to which predictions are restricted, in the order of its labels."""

    variant: Variant
    parts: list[VariantPart]
    classes: tuple[str, ...]


def summarise(sets: list[EvaluationSet], rows: dict[str, Row]) -> dict[str, Any]:
    """All metrics by name, in per cent. A metric over less than the released set has `_partial` behind its name."""
    summary: dict[str, Any] = {"status": "complete"}
    for image_set in sets:
        own = {part: rows[part.name] for part in image_set.parts}
        if image_set.variant is IMAGENET_C:
            summary |= corruption_metrics(own)
        else:
            (row,) = own.values()
            summary |= class_metrics(image_set, row)
    summary["images"] = sum(row.images for row in rows.values())
    summary["unreadable"] = sum(len(row.bad) for row in rows.values())
    summary["seconds"] = round(sum(row.seconds for row in rows.values()), 1)
    return summary


def corruption_metrics(rows: dict[VariantPart, Row]) -> dict[str, Any]:
    """mce or, where something is missing, mce_partial (over corruptions with all severities); and the single errors.

    With unreadable images also mce_upper_bound, which counts them as wrong.
    """
    by_severity = {(str(part.corruption), part.severity or 0): row for part, row in rows.items()}
    missing = missing_corruptions(by_severity)
    for part, row in rows.items():
        missing += [f"{part.corruption} {part.severity}: {what}" for what in row.missing_from(IMAGENET_C)]
    relative = corruption_errors({key: row.error for key, row in by_severity.items()})
    metrics: dict[str, Any] = {}
    if relative:
        metrics["mce_partial" if missing else "mce"] = sum(relative.values()) / len(relative)
        if any(row.bad for row in rows.values()):
            highest = corruption_errors({key: row.highest_error for key, row in by_severity.items()})
            metrics["mce_upper_bound"] = sum(highest.values()) / len(highest)
    if missing:
        metrics["mce_missing"] = shortened(missing)
        metrics["mce_corruptions"] = len(relative)
    for corruption in ALEXNET:
        errors = [row.error for (name, _), row in by_severity.items() if name == corruption]
        if errors:
            metrics[f"error_{corruption}"] = 100 * sum(errors) / len(errors)
    return metrics | {f"ce_{corruption}": value for corruption, value in relative.items()}


def class_metrics(image_set: EvaluationSet, row: Row) -> dict[str, Any]:
    """PREFIX_top1, or PREFIX_top1_partial, with its 95 % interval; with unreadable images also a lower bound."""
    prefix = prefix_of(image_set.variant)
    missing = row.missing_from(image_set.variant)
    low, high = interval(row.images - row.wrong, row.images)
    metrics: dict[str, Any] = {
        f"{prefix}_top1_partial" if missing else f"{prefix}_top1": 100 * (1 - row.error),
        f"{prefix}_top1_low": 100 * low,
        f"{prefix}_top1_high": 100 * high,
        f"{prefix}_images": row.images,
        f"{prefix}_classes": row.classes,
    }
    if row.bad:
        metrics[f"{prefix}_unreadable"] = len(row.bad)
        metrics[f"{prefix}_top1_lower_bound"] = 100 * (1 - row.highest_error)
    if missing:
        metrics[f"{prefix}_top1_missing"] = shortened(missing)
    return metrics


def metric_of(variant: Variant) -> tuple[str, str]:
    """The name of a set's metric in summary.json, and in tables."""
    if variant is IMAGENET_C:
        return "mce", f"{variant.title} mCE ↓"
    return f"{prefix_of(variant)}_top1", f"{variant.title} top-1 ↑"


def prefix_of(variant: Variant) -> str:
    """The prefix of its metrics' names: c, a, r or sketch."""
    return variant.title.removeprefix("ImageNet-").lower()


def shortened(missing: list[str]) -> str:
    """The first few as text."""
    more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
    return "; ".join(missing[:MAX_NAMED]) + more


def paper_row(shape: ViTShape, size: tuple[int, int]) -> tuple[str, dict[str, float]] | None:
    """The paper's name and metrics of a model of this size; None where it has none."""
    own = (shape.width, shape.depth, shape.num_heads, shape.patch_size)
    name = next((name for name, numbers in SIZES.items() if numbers == own), "")
    return TABLE_13.get((name, size[0])) if size[0] == size[1] else None


def result_lines(
    sets: list[EvaluationSet],
    rows: dict[str, Row],
    summary: dict[str, Any],
    paper: tuple[str, dict[str, float]] | None,
) -> list[str]:
    """Tables of all metrics, beside the paper's where the model is of one of its sizes."""
    lines = corruption_table(sets, rows, summary)
    column, rule = (f" MAE {paper[0]} in the paper |", "---|") if paper else ("", "")
    lines += ["", f"| figure, % | images | ours |{column}", f"|---|---|---|{rule}"]
    notes = []
    for image_set in sets:
        name, title = metric_of(image_set.variant)
        images = sum(rows[part.name].images for part in image_set.parts)
        value = summary.get(name, summary.get(f"{name}_partial"))
        if name not in summary:
            title += ", partial"
            notes.append(f"{title}: it lacks {summary[f'{name}_missing']}")
        paper_cell = f" {paper[1][name]} |" if paper else ""
        lines.append(f"| {title} | {images:,} | {'–' if value is None else f'{value:.1f}'} |{paper_cell}")
    if summary["unreadable"]:
        notes.append(f"{summary['unreadable']:,} images could not be read: named in quarantine.jsonl")
    return lines + notes


def corruption_table(sets: list[EvaluationSet], rows: dict[str, Row], summary: dict[str, Any]) -> list[str]:
    """Errors in per cent by corruption and severity, and relative to AlexNet's; nothing without ImageNet-C."""
    parts = [part for image_set in sets for part in image_set.parts if part.corruption is not None]
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
