"""The report on annotated objects: lines of at most 100 columns, what to mend, and the command that trains."""

from typing import Any

from openmae.config import InspectConfig, words_of
from openmae.errors import quoted, shorten, shown
from openmae.tasks.inspect.screen import INDENT, given_words, labelled_lines

MAX_CLASSES = 16  # in the table; inspect.json has all


def object_lines(objects: dict[str, Any]) -> list[str]:
    """The lines about images, objects and classes."""
    counts = []
    for split, facts in objects["splits"].items():
        bad = f", of which {facts['unusable']:,} cannot be used" if facts["unusable"] else ""
        crowds = f" and {facts['crowds']:,} crowds" if facts["crowds"] else ""
        sizes = ", ".join(f"{count:,} {name}" for name, count in facts["sizes"].items())
        counts.append(
            f"{facts['objects']:,} in {split}{crowds} ({sizes}) on {facts['images']:,} images{bad}, "
            f"{facts['without_objects']:,} of them without any"
        )
    counts.append("all have masks" if objects["has_masks"] else "boxes only" if counts else "cannot be used, see below")
    lines = labelled_lines("objects", "; ".join(counts))
    for note in objects["notes"]:
        lines += labelled_lines("", shown(note))
    rows, splits = objects["classes"], list(objects["splits"])
    if not rows:
        return lines
    rows = sorted(rows, key=lambda row: -sum(row[split] for split in splits))
    lines += ["", f"{'classes':<{INDENT}}{'id':>6}  {'class':<40}" + "".join(f"{split:>9}" for split in splits)]
    for row in rows[:MAX_CLASSES]:
        number, name = shorten(shown(str(row["id"])), 6), shorten(row["class"], 40)
        lines.append(f"{'':<{INDENT}}{number:>6}  {name:<40}" + "".join(f"{row[split]:>9,}" for split in splits))
    if more := len(rows) - MAX_CLASSES:
        lines += [f"{'':<{INDENT}}and {more:,} more"] if more > 0 else []
    return lines


def object_problems(objects: dict[str, Any]) -> list[str]:
    """What to mend about objects before training, the most serious first."""
    lines = [] if objects["refusal"] is None else [f"openmae detect would refuse: {objects['refusal']}."]
    for split, facts in objects["splits"].items():
        if facts["unusable"]:
            lines.append(
                f"{facts['unusable']:,} of {facts['images']:,} images of {split} would be left out: mend them."
            )
        for kind, count in facts["dropped_or_clipped"].items():
            lines.append(f"{split}: {count:,} {kind}.")
    return lines


def detect_command(config: InspectConfig, objects: dict[str, Any]) -> str | None:
    """The command that trains on the data; None where it would refuse."""
    if objects["refusal"] is not None:
        return None
    words = ["openmae", "detect", *words_of(config.dataset), "--init", "RUN", "--out", "OUT"]
    return quoted(*words, *given_words(config, ("axes", "value_range", "nodata", "max_pixels")))
