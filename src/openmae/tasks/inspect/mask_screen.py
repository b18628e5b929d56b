"""The report on masks as lines of at most 100 columns."""

from typing import Any

from openmae.errors import shorten, shown
from openmae.tasks.inspect.screen import INDENT, NAMED, labelled_lines

MAX_VALUES = 16  # in the table; inspect.json has all
NAME_WIDTH = 40


def mask_lines(masks: dict[str, Any]) -> list[str]:
    """The lines about pairs, classes and values."""
    counts = []
    for split, facts in masks["splits"].items():
        some = f" ({facts['looked_at']:,} looked at)" if facts["looked_at"] < facts["pairs"] else ""
        bad = f", of which {facts['unusable']:,} cannot be used" if facts["unusable"] else ""
        counts.append(f"{facts['pairs']:,} pairs in {split}{some}{bad}")
    lines = labelled_lines("masks", "; ".join(counts))
    for note in masks["notes"]:
        lines += labelled_lines("", shown(note))
    for found in masks["bad"][:NAMED]:
        lines += labelled_lines("", f"{shorten(found['name'], 40)}: {shorten(shown(found['reason']), 100)}")
    if len(masks["bad"]) > NAMED:
        lines += labelled_lines("", f"and {len(masks['bad']) - NAMED:,} more that cannot be used")
    return lines + _values(masks["values"])


def _values(rows: list[dict[str, Any]]) -> list[str]:
    """The table of stored values, the most frequent first."""
    if not rows:
        return []
    lines = ["", f"{'values':<{INDENT}}{'value':>6}  {'class':<{NAME_WIDTH}} {'of pixels':>9} {'images':>9}"]
    for row in rows[:MAX_VALUES]:
        name = row["class"] if row["meaning"] == "class" else f"({row['meaning']})"
        value = row["value"] if row["value"] >= 0 else "-"  # a colour that the palette ignores
        name = f"{shorten(name, NAME_WIDTH):<{NAME_WIDTH}}"
        lines.append(f"{'':<{INDENT}}{value:>6}  {name} {row['share']:>9.2%} {row['images']:>9,}")
    if len(rows) > MAX_VALUES:
        rest = rows[MAX_VALUES:]
        share = sum(row["share"] for row in rest)
        lines.append(f"{'':<{INDENT}}and {len(rest):,} more with {share:.2%} of all pixels")
    return lines
