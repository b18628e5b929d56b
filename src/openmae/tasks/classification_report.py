"""The report of a classifier: tables of its classes and answers, the confusion matrix, the most wrong images."""

import csv
import json
import math
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import Colormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from numpy.typing import NDArray
from PIL import Image

from openmae.config import Preprocessing
from openmae.data.decode import BadImage
from openmae.data.preprocess import conform
from openmae.data.sources import Source
from openmae.tasks.metrics import (
    Predictions,
    answers,
    average_precisions,
    check,
    confusion,
    images_of_classes,
    interval,
    losses,
)
from openmae.tasks.pictures import to_picture
from openmae.training.files import disk_faults, written_aside

MOST_DRAWN = 100  # classes; of more only the most confused are drawn
MOST_CONFUSED = 30
MOST_WITH_NUMBERS = 30
MOST_WRONG = 24
TILE = 200  # side of an image among the most wrong, in pixels
NAME = 190  # longest name beside the matrix, in pixels
PAD = 16
DPI = 100
INK, FAINT, WRONG, NOTHING = "#282828", "#707070", "#b3261e", "#e4e4e4"
# After matplotlib's own font, which lacks Chinese, Japanese and Korean: where one of these is installed it is used.
FALLBACKS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei"),
    *("Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB", "Apple SD Gothic Neo", "Microsoft YaHei"),
    *("Malgun Gothic", "Yu Gothic", "Arial Unicode MS"),
)


def write_report(
    run: Path,
    predictions: Predictions,
    source: Source,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    title: str,
) -> None:
    """Write RUN/classes.csv, RUN/predictions.csv, RUN/pictures/confusion.png (one label only) and most-wrong.png.

    The tables are UTF-8 as in RFC 4180; in names, what is no Unicode stands as an escape. Shares of a class are in per
    cent, probabilities 0..1; what is not defined (the recall of a class without images) is empty.

    Raises:
        RequestError: no image could be read.
        Fault: a score is not finite, or a file cannot be written.
    """
    assert len(classes) == predictions.num_classes, (len(classes), predictions.num_classes)
    check(predictions)
    table, answered = (_label_rows, _many_rows) if predictions.is_multi_label else (_class_rows, _one_rows)
    _write_csv(run / "classes.csv", table(predictions, classes))
    names = [source.name(int(index)) for index in predictions.indices]
    _write_csv(run / "predictions.csv", answered(predictions, classes, names))
    if not predictions.is_multi_label:
        _save(run / "pictures" / "confusion.png", confusion_picture(predictions, classes, title))
    _save(run / "pictures" / "most-wrong.png", most_wrong_picture(predictions, source, classes, preprocessing, title))


def _write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    with (
        disk_faults(path),
        written_aside(path) as partial,
        open(partial, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        csv.writer(file).writerows(rows)


def _save(path: Path, figure: Figure) -> None:
    with disk_faults(path), written_aside(path) as partial:
        figure.savefig(partial, dpi=DPI, facecolor="white")


def _class_rows(predictions: Predictions, classes: tuple[str, ...]) -> list[list[object]]:
    pairs = confusion(predictions)
    is_right = pairs[:, 0] == pairs[:, 1]
    right = np.bincount(pairs[is_right, 0], pairs[is_right, 2], minlength=len(classes))
    said = np.bincount(pairs[:, 1], pairs[:, 2], minlength=len(classes))
    wrong = pairs[~is_right]
    wrong = wrong[np.lexsort((wrong[:, 1], -wrong[:, 2], wrong[:, 0]))]  # most images first, of equal the lower class
    worst = {int(true): pair for true, *pair in wrong[np.unique(wrong[:, 0], return_index=True)[1]]}
    rows: list[list[object]] = [
        ["class", "images", "recall", "precision", "f1", "most_confused_with", "images_confused"]
    ]
    for k, (name, images) in enumerate(zip(classes, images_of_classes(predictions).tolist(), strict=True)):
        shares = [_share(right[k], images), _share(right[k], said[k]), _share(2 * right[k], images + said[k])]
        confused = [classes[worst[k][0]], worst[k][1]] if k in worst else ["", ""]
        rows.append([name, images, *shares, *confused])
    return rows


def _label_rows(predictions: Predictions, classes: tuple[str, ...]) -> list[list[object]]:
    said, true = answers(predictions), predictions.targets.numpy() > 0
    right = (said & true).sum(0)
    rows: list[list[object]] = [["class", "positives", "average_precision", "precision", "recall"]]
    for k, average in enumerate(average_precisions(predictions)):
        positives = int(true[:, k].sum())
        average_text = "" if np.isnan(average) else f"{100 * average:.4f}"
        shares = [_share(right[k], said[:, k].sum()), _share(right[k], positives)]
        rows.append([classes[k], positives, average_text, *shares])
    return rows


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.4f}" if whole else ""


def _one_rows(predictions: Predictions, classes: tuple[str, ...], names: list[str]) -> Iterable[list[object]]:
    yield ["name", "label", "predicted", "confidence", "true_probability", "unreadable"]
    targets, said = predictions.targets.tolist(), answers(predictions).tolist()
    sure, true = _confidence(predictions), np.exp(-losses(predictions))
    for row, name in enumerate(names):
        yield [name, classes[targets[row]], classes[said[row]], f"{sure[row]:.6g}", f"{true[row]:.6g}", ""]
    for name, reason in predictions.bad.items():
        yield [name, "", "", "", "", reason]


def _many_rows(predictions: Predictions, classes: tuple[str, ...], names: list[str]) -> Iterable[list[object]]:
    """As `_one_rows`, labels as JSON lists; probabilities are means over the classes' yes or no."""
    yield ["name", "label", "predicted", "confidence", "true_probability", "unreadable"]
    said, true = answers(predictions), predictions.targets.numpy() > 0
    sure = _confidence(predictions)
    for row, name in enumerate(names):
        yes = torch.sigmoid(predictions.logits[row].double()).numpy()
        lists = [json.dumps([classes[k] for k in np.flatnonzero(of[row])], ensure_ascii=False) for of in (true, said)]
        yield [name, *lists, f"{sure[row]:.6g}", f"{np.where(true[row], yes, 1 - yes).mean():.6g}", ""]
    for name, reason in predictions.bad.items():
        yield [name, "", "", "", "", reason]


def _confidence(predictions: Predictions) -> NDArray[np.float64]:
    """(n,) the probability of the answer; several labels: the mean over classes of that of its yes or no."""
    if predictions.is_multi_label:
        return torch.sigmoid(predictions.logits.abs()).mean(1, dtype=torch.float64).numpy()
    own = Predictions(
        logits=predictions.logits,
        targets=torch.from_numpy(answers(predictions)),
        indices=predictions.indices,
        bad={},
    )
    return np.exp(-losses(own))


def confusion_picture(predictions: Predictions, classes: tuple[str, ...], title: str) -> Figure:
    """The confusion matrix, a row for each true class; of more than 100 classes the 30 most confused."""
    pairs, images = confusion(predictions), images_of_classes(predictions)
    is_part = len(classes) > MOST_DRAWN
    ids = _most_confused(pairs, images)[:MOST_CONFUSED] if is_part else np.arange(len(classes))
    counts = _matrix(pairs, ids, len(classes))
    with np.errstate(invalid="ignore"):
        shares = counts / images[ids, None]  # of a class without images: NaN, drawn grey
    has_numbers = len(ids) <= MOST_WITH_NUMBERS
    cell, size = (max(64, 140 // len(ids)), 10) if len(ids) <= 12 else (50, 9) if has_numbers else (16, 7)
    rows = [f"{fitted(classes[k], NAME, size)} ({images[k]})" for k in ids]
    columns = [fitted(classes[k], NAME, size) for k in ids] + ["all other classes"] * is_part
    is_upright = any(width_of(name, size) > cell - 6 for name in columns)
    room = 8 + (max(width_of(name, size) for name in columns) if is_upright else 16)
    left, matrix = PAD + 32 + max(width_of(name, size) for name in rows), (counts.shape[1] * cell, len(ids) * cell)
    width = max(600, left + matrix[0] + PAD + (0 if has_numbers else 70))

    right, count = int(pairs[pairs[:, 0] == pairs[:, 1], 2].sum()), len(predictions.indices)
    low, high = (100 * bound for bound in interval(right, count))
    most = "most confused" if right < count else "most frequent"
    part = f" of the {len(ids)} {most} of {len(classes)} classes" if is_part else ""
    heads = _heads(
        f"Confusion matrix{part}: {title}",
        f"Top-1 {100 * right / count:.1f} % of {count} images (95 % interval: {low:.1f} to {high:.1f} %)"
        f"{_unreadable(predictions)}. Each row shows what the images of one true class were taken for"
        + (": per cent of the row, below it images." if has_numbers else ", as a share of the row.")
        + " Grey rows are classes without images." * bool((images[ids] == 0).any()),
        width,
    )
    top = _height(heads)
    figure = _page(width, top + matrix[1] + room + 24 + PAD)
    _write_heads(figure, heads)
    axes = figure.add_axes(_box(figure, left, top, *matrix))
    colours, norm = _colours(), PowerNorm(0.5, 0, 1)  # the root makes a few per cent visible
    axes.imshow(shares, cmap=colours, norm=norm, aspect="auto", interpolation="nearest", origin="upper")
    axes.set_xticks(np.arange(1, counts.shape[1]) - 0.5, [])
    axes.set_yticks(np.arange(1, len(ids)) - 0.5, [])
    axes.tick_params(length=0)
    axes.grid(color="#dddddd", lw=0.5)
    for row, name in enumerate(rows):
        _write(figure, left - 8, top + (row + 0.5) * cell, name, size, across="right")
    for column, name in enumerate(columns):
        x, turn = left + (column + 0.5) * cell, 90 if is_upright else 0
        _write(figure, x, top + matrix[1] + 8, name, size, across="center", down="top", rotation=turn)
    _write(figure, PAD + 4, top + matrix[1] / 2, "true class (images)", 10, FAINT, "center", rotation=90)
    _write(figure, left + matrix[0] / 2, top + matrix[1] + room + 18, "predicted class", 10, FAINT, "center")
    if has_numbers:
        for row, column in np.argwhere(counts).tolist():
            x, y = left + (column + 0.5) * cell, top + (row + 0.5) * cell
            colour = "white" if shares[row, column] > 0.35 else INK
            _write(figure, x, y - cell * 0.15, _per_cent(shares[row, column]), size, colour, "center")
            _write(figure, x, y + cell * 0.2, _short(counts[row, column]), size - 2, colour, "center")
    else:
        start, length = left + matrix[0] + PAD, min(300, matrix[1])
        bar = figure.add_axes(_box(figure, start, top, 12, length), xticks=[], yticks=[])
        bar.imshow(np.linspace(1, 0, length)[:, None] ** 2, cmap=colours, norm=norm, aspect="auto", origin="upper")
        for share in (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1):
            _write(figure, start + 18, top + length * (1 - share**0.5), f"{100 * share:.0f} %", 7)
    return figure


def _most_confused(pairs: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.int64]:
    """All classes: first the two most often taken for one another, and so on; last those never confused, by images."""
    wrong = pairs[pairs[:, 0] != pairs[:, 1]]
    num_classes = len(images)
    codes, each = np.unique(wrong[:, :2].min(1) * num_classes + wrong[:, :2].max(1), return_inverse=True)
    order = np.argsort(-np.bincount(each, wrong[:, 2], minlength=len(codes)), kind="stable")
    by_pair = np.stack(np.divmod(codes[order], num_classes), axis=1).ravel()
    ids = np.concatenate([by_pair, np.argsort(-images, kind="stable")])
    return ids[np.sort(np.unique(ids, return_index=True)[1])]


def _matrix(pairs: NDArray[np.int64], ids: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """(rows, columns) images by true and said class, for the classes `ids`; all others said are one last column."""
    place = np.full(num_classes, len(ids))
    place[ids] = np.arange(len(ids))
    counts = np.zeros((len(ids) + 1, len(ids) + 1), np.int64)
    np.add.at(counts, (place[pairs[:, 0]], place[pairs[:, 1]]), pairs[:, 2])
    return counts[:-1, : len(ids) + (len(ids) < num_classes)]


def most_wrong_picture(
    predictions: Predictions, source: Source, classes: tuple[str, ...], preprocessing: Preprocessing, title: str
) -> Figure:
    """Up to 24 wrong images, the highest loss first, with what they are and what was said; without any, the least
    certain ones."""
    loss = losses(predictions)
    is_wrong = answers(predictions) != predictions.targets.numpy()
    is_wrong = is_wrong.any(1) if predictions.is_multi_label else is_wrong
    candidates = np.flatnonzero(is_wrong) if is_wrong.any() else np.arange(len(loss))
    rows = candidates[np.argsort(-loss[candidates], kind="stable")][:MOST_WRONG].tolist()
    tile = TILE * 3 // 2 if predictions.is_multi_label else TILE  # wide enough for three labels
    across = max(min(4 if predictions.is_multi_label else 6, len(rows)), 3)
    width, height = PAD + across * (tile + PAD), TILE + 62
    if is_wrong.any():
        what = f"The {len(rows)} most wrong images" if len(rows) > 1 else "The only wrong image"
        below = (
            f"{int(is_wrong.sum())} of {len(loss)} images are wrong{_unreadable(predictions)}; the highest loss first."
        )
    else:
        what = f"No image is wrong; the {len(rows)} least certain"
        below = f"All {len(loss)} images are right{_unreadable(predictions)}; the highest loss first."
    heads = _heads(f"{what}: {title}", below, width)
    top = _height(heads)
    figure = _page(width, top + -(-len(rows) // across) * height)
    _write_heads(figure, heads)
    for number, row in enumerate(rows):
        line, column = divmod(number, across)
        x, y = PAD + column * (tile + PAD), top + line * height
        index = int(predictions.indices[row])
        try:
            picture = np.asarray(_shown_as_it_is(source.read(index), preprocessing, tile))
        except BadImage as error:  # it was readable a moment ago
            _write(figure, x + tile / 2, y + TILE / 2, fitted(f"unreadable: {error}", tile, 8), 8, WRONG, "center")
        else:
            down, left = y + (TILE - picture.shape[0]) // 2, x + (tile - picture.shape[1]) // 2
            axes = figure.add_axes(_box(figure, left, down, picture.shape[1], picture.shape[0]))
            axes.imshow(picture, aspect="auto", interpolation="nearest", origin="upper")
            axes.axis("off")
        true, said = _captions(predictions, classes, row, tile)
        _write(figure, x, y + TILE + 11, true, 9)
        _write(figure, x, y + TILE + 26, said, 9, WRONG if is_wrong[row] else INK)
        _write(figure, x, y + TILE + 40, fitted(source.name(index), tile, 7), 7, FAINT)
    return figure


def _shown_as_it_is(image: NDArray, preprocessing: Preprocessing, width: int) -> Image.Image:
    """A decoded image as an RGB picture that just fits `width` × TILE pixels; small ones keep their hard pixels."""
    step = max(1, min(image.shape[0] // (4 * TILE), image.shape[1] // (4 * width)))
    values = conform(image[::step, ::step], image.shape[2], preprocessing.dtype)
    low, high = preprocessing.value_range
    picture = to_picture(torch.from_numpy((values.astype(np.float32) - low) / (high - low)).permute(2, 0, 1))
    scale = min(width / picture.width, TILE / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    is_small = scale >= 2
    return picture.resize(size, Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS)


def _captions(predictions: Predictions, classes: tuple[str, ...], row: int, width: int) -> tuple[str, str]:
    """What the image is and what was said of it, each on a line of `width` pixels."""
    logits, said = predictions.logits[row].double(), answers(predictions)[row]
    if not predictions.is_multi_label:
        sure = f" ({_per_cent(float(torch.softmax(logits, 0)[said]))})"
        true_name = classes[int(predictions.targets[row])]
        return _caption("true ", [true_name], "", width), _caption("said ", [classes[said]], sure, width)
    true = predictions.targets[row].numpy() > 0
    # The labels that are wrong come first, of them the furthest off: they are why the image is here.
    order = np.lexsort((-logits.abs().numpy(), true == said))
    of_true, of_said = ([classes[k] for k in order if has[k]] for has in (true, said))
    return _caption("true ", of_true, "", width), _caption("said ", of_said, "", width)


def _caption(start: str, names: list[str], end: str, width: int) -> str:
    """At most three names between `start` and `end`, cut evenly where they do not fit."""
    end = (f" +{len(names) - 3}" if len(names) > 3 else "") + end
    names = names[:3]
    room: float = width - width_of(start + ", " * (len(names) - 1) + end, 9)
    is_roomy = sum(width_of(fitted(name, width, 9), 9) for name in names) <= room
    each = room if is_roomy else room / len(names)
    return start + (", ".join(fitted(name, each, 9) for name in names) or "no label") + end


def _unreadable(predictions: Predictions) -> str:
    count = len(predictions.bad)
    return f", {count} more cannot be read" if count else ""


def _per_cent(share: float) -> str:
    """Nothing and all are said only where it is so."""
    return "<1 %" if 0 < share < 0.005 else ">99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def _short(count: int) -> str:
    return str(count) if count < 100_000 else f"{count / 1000:.0f}k" if count < 10_000_000 else f"{count / 1e6:.0f}M"


def _colours() -> Colormap:
    return matplotlib.colormaps["Blues"].with_extremes(bad=NOTHING)


@cache
def _fonts() -> dict[str, frozenset[int]]:
    """The fonts that pictures are written in, each with the characters it has."""
    installed = set(font_manager.fontManager.get_font_names())
    families = ["DejaVu Sans", *(name for name in FALLBACKS if name in installed)]
    paths = [font_manager.findfont(FontProperties(family=[name])) for name in families]
    return {
        name: frozenset(font_manager.get_font(path).get_charmap()) for name, path in zip(families, paths, strict=True)
    }


def _font(size: float) -> FontProperties:
    return FontProperties(family=list(_fonts()), size=size)


def legible(text: str) -> str:
    """`text` on one line, with escapes for control characters and for what no font here has."""
    return "".join(
        char
        if char.isprintable() and any(ord(char) in has for has in _fonts().values())
        else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )


@lru_cache(maxsize=4096)
def width_of(text: str, size: float) -> int:
    """Its width in pixels when drawn."""
    measured = RendererAgg(1, 1, DPI).get_text_width_height_descent(text, _font(size), ismath=False)
    return math.ceil(measured[0])


def fitted(text: str, width: float, size: float) -> str:
    """`text` made legible and, if wider than `width` pixels, cut in the middle: names differ at both ends."""
    text = legible(text if len(text) <= 240 else text[:144] + text[-96:]) or "(no name)"
    if width_of(text, size) <= width:
        return text
    low, high = 0, len(text) - 1  # characters kept: `low` fit
    while low < high:
        keep = (low + high + 1) // 2
        low, high = (keep, high) if width_of(_cut(text, keep), size) <= width else (low, keep - 1)
    return _cut(text, low)


def _cut(text: str, keep: int) -> str:
    head = -(-keep * 3 // 5)
    return text[:head] + "…" + text[len(text) - (keep - head) :]


def _heads(title: str, below: str, width: int) -> list[tuple[str, float, str]]:
    """A heading's lines, each with its size and colour: the title on one, the sentence below it on some."""
    lines = [""]
    for word in below.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and width_of(longer, 9) > width - 2 * PAD:
            lines.append(word)
        else:
            lines[-1] = longer
    return [(fitted(title, width - 2 * PAD, 13), 13, INK), *((line, 9, FAINT) for line in lines)]


def _height(heads: list[tuple[str, float, str]]) -> int:
    return PAD + 24 + 15 * (len(heads) - 1) + PAD


def _write_heads(figure: Figure, heads: list[tuple[str, float, str]]) -> None:
    for number, (line, size, colour) in enumerate(heads):
        _write(figure, PAD, PAD + 8 + (number and 8 + 15 * number), line, size, colour)


def _page(width: int, height: int) -> Figure:
    """An empty picture of so many pixels, without pyplot: a notebook's own pictures are left alone."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _box(figure: Figure, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Pixels from the upper left corner → matplotlib's shares from the lower left one."""
    across, down = figure.get_size_inches() * DPI
    return left / across, 1 - (top + height) / down, width / across, height / down


def _write(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    size: float,
    colour: str = INK,
    across: str = "left",
    down: str = "center",
    rotation: float = 0,
) -> None:
    """Plain text at a pixel: a `$` or a backslash in a name starts no formula, whatever matplotlibrc says."""
    left, low, _, _ = _box(figure, x, y, 0, 0)
    figure.text(
        left,
        low,
        text,
        ha=across,
        va=down,
        rotation=rotation,
        color=colour,
        fontproperties=_font(size),
        parse_math=False,
        usetex=False,
    )
