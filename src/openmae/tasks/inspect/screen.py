"""The report on a data set as lines of at most 100 columns."""

import textwrap
from collections.abc import Sequence
from typing import Any

from openmae.config import InspectConfig, flag_of
from openmae.errors import shorten

WIDTH = 100
INDENT = 11
NAMED = 5
TINY = 16  # px


def data_lines(report: dict[str, Any], about_annotations: Sequence[str] = ()) -> list[str]:
    """The lines of the report; those about masks or objects stand in place of those about labels."""
    lines: list[str] = [""]
    limited = f", of which {report['looked_at']:,} were looked at (--limit)" if report["is_limited"] else ""
    parts = ", ".join(f"{facts['images']:,} {split}" for split, facts in report["splits"].items())
    lines += labelled_lines("data", f"{report['path']}: {parts}{limited}")
    lines += labelled_lines("parts", report["parts_line"])
    if report["axes_reason"] is not None:
        lines += labelled_lines("axes", f"{report['axes']}: {report['axes_reason']}")
    for line in report["ignored"]:
        lines += labelled_lines("ignored", line)
    if about_annotations:
        lines += about_annotations
    elif report["classes"] is not None or report["numbers"] is None:
        lines += _classes(report["classes"])
    lines += _numbers(report["numbers"])
    for split, facts in report["splits"].items():
        lines += ["", *_split(split, facts)]
    lines += ["", *_statistics(report)]
    lines += _bad(report)
    lines += _duplicates(report)
    lines += ["", "Before training"]
    for line in report["to_mend"] or [
        "Nothing was found that must be mended. Whether the images suit your purpose, only you can say."
    ]:
        lines += bullet(line)
    for annotated in (report["masks"], report["objects"]):
        if annotated is not None and annotated["command"] is not None:
            lines += ["", "Then", f"  {annotated['command']}"]  # not wrapped, so that it can be copied
    if report["would_choose"]:
        lines += ["", "What openmae pretrain would choose here"]
        for line in [*report["would_choose"], *([report["size_advice"]] if report["size_advice"] else [])]:
            lines += bullet(line)
    return lines


def given_words(config: InspectConfig, names: Sequence[str]) -> list[str]:
    """Those of the settings that were given, as the words of a command."""
    words: list[str] = []
    for name in names:
        if name in config.explicit():
            value = getattr(config, name)
            values = () if value is True else value if isinstance(value, tuple) else (value,)
            words += [flag_of(name), *map(str, values)]
    return words


def labelled_lines(label: str, text: str) -> list[str]:
    """A label and a text beside it, wrapped."""
    lines = textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False) or [""]
    return [f"{label:<{INDENT - 1}} {lines[0]}", *(" " * INDENT + line for line in lines[1:])]


def bullet(text: str) -> list[str]:
    """A point of a list, wrapped."""
    lines = textwrap.wrap(text, WIDTH - 4, break_on_hyphens=False)
    return [f"  - {lines[0]}", *(" " * 4 + line for line in lines[1:])]


def format_bytes(count: float) -> str:
    """A number of bytes with a decimal unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _classes(classes: dict[str, Any] | None) -> list[str]:
    if classes is None:
        return labelled_lines("labels", "none (pre-training needs none)")
    text = f"{classes['count']:,}"
    if classes["smallest"] is not None:
        low, high = classes["smallest"], classes["largest"]
        text += (
            f"; in train from {low['images']:,} ({shorten(low['class'], 30)}) to {high['images']:,} images "
            f"({shorten(high['class'], 30)}), ratio {classes['imbalance']:g}"
        )
    missing = [f"{split} lacks {len(names):,}" for split, names in classes["missing"].items() if names]
    unlabelled = [f"{n:,} of {split} have no label" for split, n in classes["unlabelled"].items() if n]
    return labelled_lines("classes", "; ".join([text, *missing, *unlabelled]))


def _numbers(numbers: dict[str, Any] | None) -> list[str]:
    if numbers is None:
        return []
    text = (
        f"{numbers['count']:,} from {numbers['lowest']:.6g} to {numbers['highest']:.6g}, not all of them whole: "
        "--task regression predicts them"
    )
    return labelled_lines("numbers", text)


def _split(split: str, facts: dict[str, Any]) -> list[str]:
    if facts["short_side"] is None:
        return labelled_lines(split, f"none of {facts['looked_at']:,} images can be read")
    short, long = facts["short_side"], facts["long_side"]
    common = ", ".join(f"{s['width']} x {s['height']} ({s['images']:,})" for s in facts["common_sizes"][:3])
    smaller = ", ".join(f"{share:.1%} below {side} px" for side, share in facts["smaller_than"].items() if share)
    lines = labelled_lines(
        split,
        f"short side {short['least']} to {short['most']} px, median {short['median']}; long side {long['least']} to "
        f"{long['most']}, median {long['median']}" + (f"; short sides {smaller}" if smaller else ""),
    )
    lines += labelled_lines("", f"{facts['sizes']:,} size{'s' * (facts['sizes'] != 1)}, most often {common}")
    files = _list(facts["formats"])
    if facts["file_bytes"] is not None:
        sizes = facts["file_bytes"]
        least, most, median, total = (format_bytes(sizes[name]) for name in ("least", "most", "median", "total"))
        files += f"; files of {least} to {most}, median {median}, together {total}"
    if files:
        lines += labelled_lines("", files)
    kinds = f"channels {_list(facts['channels'])}; values {_list(facts['number_types'])}{_value_ranges(facts)}"
    others = [
        f"{facts[name]:,} {label}"
        for name, label in (
            ("turned_by_exif", "turned by EXIF"),
            ("transparent", "with transparency"),
            ("blank", "blank (one value)"),
            ("nearly_blank", "nearly blank"),
            ("with_empty_values", f"with nodata values ({facts['empty_share']:.2%} of all values)"),
            ("wrong_extensions", "with the extension of another format"),
        )
        if facts[name]
    ]
    lines += labelled_lines("", "; ".join([kinds, *others]))
    if "tiles" in facts:
        tiles = facts["tiles"]
        lines += labelled_lines(
            "",
            f"--tiles {tiles['size']}: {tiles['tiles']:,} tiles, {tiles['images_cut']:,} images are cut; of "
            f"{tiles['looked_at']:,} looked at {tiles['blank']:,} are blank",
        )
    return lines


def _value_ranges(facts: dict[str, Any]) -> str:
    """The highest values and bit depths, but for uint8."""
    texts = [f"{kind} up to {top:g}" for kind, top in facts["highest"].items() if kind != "uint8"]
    if len(facts["bits"]) > 1:
        texts.append("by the highest value " + ", ".join(f"{bits} bits in {n:,}" for bits, n in facts["bits"].items()))
    elif facts["bits"]:
        texts.append(f"{next(iter(facts['bits']))} bits")
    return f" ({', '.join(texts)})" if texts else ""


def _list(counts: dict[str, int]) -> str:
    """A single kind by its name, several with their counts."""
    return next(iter(counts), "") if len(counts) < 2 else ", ".join(f"{name} ({n:,})" for name, n in counts.items())


def _statistics(report: dict[str, Any]) -> list[str]:
    found = report["statistics"]
    if found is None:
        return []
    low, high = found["value_range"]
    over = f"{found['images']:,} looked at (--limit)" if report["is_limited"] else f"all {found['images']:,}"
    lines = labelled_lines(
        "channels", f"over {over} training images, each counting alike, where {low:g} is 0 and {high:g} is 1:"
    )
    for name in ("mean", "deviation"):
        values, other = found[name], found[f"imagenet_{name}"]
        text = f"{name:<9}  " + " ".join(f"{value:.4f}" for value in values[:8]) + (" ..." if len(values) > 8 else "")
        text += f"   (ImageNet {' '.join(f'{value:.3f}' for value in other)})" if other else ""
        lines.append(" " * INDENT + text)
    return lines


def _bad(report: dict[str, Any]) -> list[str]:
    if not report["unreadable"]:
        return []
    lines = ["", *labelled_lines("unreadable", f"{report['unreadable']:,} of {report['looked_at']:,}:")]
    for reason, count in list(report["unreadable_reasons"].items())[:NAMED]:
        lines += [" " * INDENT + f"{count:>6,}  {shorten(reason, 78)}"]
    if len(report["unreadable_reasons"]) > NAMED:
        lines.append(" " * INDENT + f"and {len(report['unreadable_reasons']) - NAMED} more reasons")
    names = ", ".join(shorten(found["name"], 40) for found in report["bad"][:NAMED])
    more = report["unreadable"] - NAMED
    return lines + labelled_lines("", f"such as {names}" + (f" and {more:,} more" if more > 0 else ""))


def _duplicates(report: dict[str, Any]) -> list[str]:
    exact, near = report["exact_duplicates"], report["near_duplicates"]
    if not (exact or near or report["leaks"]):
        lines = labelled_lines("duplicates", "none found")
    else:
        lines = labelled_lines(
            "duplicates",
            f"{exact:,} equal {'copies' if exact != 1 else 'copy'} of other images; {near:,} more that only look the "
            "same (another size, compression or brightness)",
        )
    if not report["near_search_complete"]:
        lines += labelled_lines("", "very many images look alike: not all were compared, so there may be more")
    sides = report["splits"]["train"]["short_side"]
    if near and sides is not None and sides["median"] < TINY:
        lines += labelled_lines("", f"images below {TINY} px look alike easily: see whether these are truly copies")
    for where, count in report["leaks"].items():
        lines += labelled_lines("", f"{where}: {count:,} equal or look the same")
    for leak in report["listed_leaks"][:3]:
        is_or = "is" if leak["is_equal"] else "looks like"
        text = f"  {leak['split']} {shorten(leak['name'], 34)} {is_or} {leak['in']} {shorten(leak['looks_like'], 34)}"
        lines.append(" " * INDENT + text)
    if not report["leaks"]:
        for group in [*report["listed_exact"][:2], *report["listed_near"][:2]]:
            lines.append(" " * INDENT + "  " + ", ".join(shorten(member["name"], 36) for member in group[:2]))
    return lines
