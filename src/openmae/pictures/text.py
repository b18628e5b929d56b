"""Text in pictures, measured in pixels, in any script and never interpreted as a formula."""

import math
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from openmae.machine.files import atomic_write, disk_faults

if TYPE_CHECKING:  # it takes half a second, and most commands draw nothing
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

PAD = 16
DPI = 100
INK, FAINT = "#282828", "#707070"
# Fonts to use, where installed, for characters that matplotlib's own lacks: Chinese, Japanese and Korean.
FALLBACKS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei"),
    *("Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB", "Apple SD Gothic Neo", "Microsoft YaHei"),
    *("Malgun Gothic", "Yu Gothic", "Arial Unicode MS"),
)


@cache
def _fonts() -> dict[str, frozenset[int]]:
    """The available fonts in order of preference, each with its characters."""
    from matplotlib import font_manager
    from matplotlib.font_manager import FontProperties

    installed = set(font_manager.fontManager.get_font_names())
    families = ["DejaVu Sans", *(name for name in FALLBACKS if name in installed)]
    paths = [font_manager.findfont(FontProperties(family=[name])) for name in families]
    return {
        name: frozenset(font_manager.get_font(path).get_charmap()) for name, path in zip(families, paths, strict=True)
    }


def font_properties(size: float) -> "FontProperties":
    """Font properties of this size: each character is drawn in the first font that has it."""
    from matplotlib.font_manager import FontProperties

    return FontProperties(family=list(_fonts()), size=size)


@lru_cache(maxsize=4096)
def font_file(text: str) -> str:
    """The file of the font that has most of a text's characters, for pictures that are drawn without matplotlib."""
    from matplotlib import font_manager
    from matplotlib.font_manager import FontProperties

    fonts = _fonts()
    name = max(fonts, key=lambda name: sum(ord(char) in fonts[name] for char in text))
    return font_manager.findfont(FontProperties(family=[name]))


def legible(text: str) -> str:
    """`text` on one line, with escapes for control characters and for characters that no font has."""
    return "".join(
        char
        if char.isprintable() and any(ord(char) in has for has in _fonts().values())
        else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )


@lru_cache(maxsize=4096)
def text_width(text: str, size: float) -> int:
    """The width of a text in pixels."""
    from matplotlib.backends.backend_agg import RendererAgg

    width, _, _ = RendererAgg(1, 1, DPI).get_text_width_height_descent(text, font_properties(size), ismath=False)
    return math.ceil(width)


def fitted(text: str, width: float, size: float) -> str:
    """`text` made legible and, if wider than `width` pixels, shortened in the middle: names differ at both ends."""
    text = legible(text if len(text) <= 240 else text[:144] + text[-96:]) or "(no name)"
    if text_width(text, size) <= width:
        return text
    low, high = 0, len(text) - 1  # characters kept: `low` fit
    while low < high:
        keep = (low + high + 1) // 2
        low, high = (keep, high) if text_width(_cut(text, keep), size) <= width else (low, keep - 1)
    return _cut(text, low)


def wrapped_lines(text: str, width: float) -> list[str]:
    """A text of size 8 in at most three lines of a width in pixels."""
    lines, words = [""], text.split()
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and len(longer) * 5.2 > width:
            lines.append(word)
        else:
            lines[-1] = longer
    shown_lines = lines[:3] if len(lines) <= 3 else [*lines[:2], " ".join(lines[2:])]
    return [fitted(line, width, 8) for line in shown_lines]


def per_cent(share: float) -> str:
    """A share as text; 0 % and 100 % only where it is exactly that."""
    return "<1 %" if 0 < share < 0.005 else ">99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def short_count(count: int) -> str:
    """A number in at most five characters up to 10 billion: 99999, 100k, 10M, 10G."""
    if count < 100_000:
        return str(count)
    for unit, size in (("k", 1e3), ("M", 1e6)):
        if round(count / size) < 10_000:
            return f"{count / size:.0f}{unit}"
    return f"{count / 1e9:.0f}G"


def _cut(text: str, keep: int) -> str:
    head = -(-keep * 3 // 5)
    return text[:head] + "…" + text[len(text) - (keep - head) :]


def headings(title: str, subtitle: str, width: int) -> list[tuple[str, float, str]]:
    """A heading's lines, each with its size and colour: the title on one line, the wrapped subtitle below."""
    lines = [""]
    for word in subtitle.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, 9) > width - 2 * PAD:
            lines.append(word)
        else:
            lines[-1] = longer
    return [(fitted(title, width - 2 * PAD, 13), 13, INK), *((line, 9, FAINT) for line in lines)]


def heading_height(lines: list[tuple[str, float, str]]) -> int:
    """The height of a heading in pixels, margins included."""
    return PAD + 24 + 15 * (len(lines) - 1) + PAD


def draw_heading(figure: "Figure", lines: list[tuple[str, float, str]]) -> None:
    """Draw the lines of `headings` at the upper edge."""
    for number, (line, size, colour) in enumerate(lines):
        draw_text(figure, PAD, PAD + 8 + (number and 8 + 15 * number), line, size, colour)


def page(width: int, height: int) -> "Figure":
    """An empty figure of this size in pixels, without pyplot, so that a notebook's figures are not affected."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_picture(path: Path, figure: "Figure") -> None:
    """Write a picture whole or not at all. Raises Fault where it cannot be written."""
    with disk_faults(path), atomic_write(path) as partial:
        figure.savefig(partial, dpi=DPI, facecolor="white")


def box(figure: "Figure", left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
    """A rectangle in pixels from the upper left corner, in matplotlib's fractions from the lower left one."""
    across, down = figure.get_size_inches() * DPI
    return left / across, 1 - (top + height) / down, width / across, height / down


def draw_text(
    figure: "Figure",
    x: float,
    y: float,
    text: str,
    size: float,
    colour: str = INK,
    across: str = "left",
    down: str = "center",
    rotation: float = 0,
) -> None:
    """Draw plain text at a pixel: `$` and backslashes are literal, whatever matplotlibrc says."""
    left, low, _, _ = box(figure, x, y, 0, 0)
    figure.text(
        left,
        low,
        text,
        ha=across,
        va=down,
        rotation=rotation,
        color=colour,
        fontproperties=font_properties(size),
        parse_math=False,
        usetex=False,
    )
