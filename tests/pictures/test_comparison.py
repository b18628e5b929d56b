"""Ours beside the paper's, drawn: every mark where its number is, every label, and the size that follows from them."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from openmae.pictures import comparison as drawn
from openmae.pictures.comparison import (
    GROUP,
    OURS,
    PAPER,
    ROW,
    Column,
    Group,
    Mark,
    comparison,
    draw_comparison,
    signed,
)
from openmae.pictures.paired_curves import (
    CurvePanel,
    PairedCurve,
    PairedPoint,
    XAxis,
    draw_paired_curves,
    paired_curves,
)

LABELS = ("encoder with mask tokens", "PCA, 6 coefficients (paper: 96)", "one, default")
COLUMNS = (
    Column(title="fine-tuning", subtitle="default row: 70", x_label="points", band=(-2.5, 2.5)),
    Column(title="kNN", subtitle="", x_label="points"),
)
BASE = (Mark(ours=0.0, spread=0.5, paper=0.0), Mark(ours=0.0))
GROUPS = (
    Group(title="a: first", rows=((LABELS[0], (Mark(ours=-3.0, paper=-13.9), Mark(ours=1.0))), (LABELS[2], BASE))),
    Group(title="b: second", rows=((LABELS[1], (Mark(ours=1.5, paper=0.0), Mark())), (LABELS[2], BASE))),
)
TEXTS = {"title": "Table 0", "subtitle": "what it is", "chance": "within chance"}


def make(columns=COLUMNS, groups=GROUPS):
    return comparison(columns, groups, **TEXTS)


def marks(axes, colour):
    """The places of an axis's round marks of a colour."""
    lines = [line for line in axes.lines if line.get_marker() == "o" and line.get_markeredgecolor() == colour]
    return [(float(x), float(y)) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def texts(figure):
    return [text.get_text() for text in figure.texts]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def pixels(figure):
    return tuple(round(side * figure.dpi) for side in figure.get_size_inches())


def test_every_mark_lies_where_its_number_is():
    first, second = make().axes
    ys = [GROUP + ROW * 0.5, GROUP + ROW * 1.5, 2 * GROUP + ROW * 2.5, 2 * GROUP + ROW * 3.5]
    assert marks(first, OURS) == list(zip([-3.0, 0.0, 1.5, 0.0], ys, strict=True))
    assert marks(first, PAPER) == list(zip([-13.9, 0.0, 0.0, 0.0], ys, strict=True))
    assert marks(second, OURS) == [(1.0, ys[0]), (0.0, ys[1]), (0.0, ys[3])]
    assert marks(second, PAPER) == []


def test_the_papers_marks_are_open_and_ours_are_filled():
    figure = make()
    styles = {line.get_markeredgecolor(): line for line in figure.axes[0].lines if line.get_marker() == "o"}
    assert styles[PAPER].get_markerfacecolor() == "white"
    assert styles[OURS].get_markerfacecolor() == OURS
    assert styles[PAPER].get_markersize() > styles[OURS].get_markersize()  # seen around ours where both are equal


def test_lines_join_both_and_bars_show_the_spread():
    axes = make().axes[0]
    joints, bars = (collection.get_segments() for collection in axes.collections)
    assert [sorted(segment[:, 0].tolist()) for segment in joints] == [[-13.9, -3.0], [0.0, 0.0], [0.0, 1.5], [0.0, 0.0]]
    assert [segment[:, 0].tolist() for segment in bars] == [[-0.5, 0.5], [-0.5, 0.5]]


def test_the_band_is_as_wide_as_chance():
    with_band, without = make().axes
    (band,) = with_band.patches
    assert (band.get_x(), band.get_width()) == (-2.5, 5.0)
    assert to_hex(band.get_facecolor()) == drawn.BAND
    assert not without.patches
    assert legend(make()) == ["the paper", "ours (bar: standard deviation over seeds)", "within chance"]


def test_the_legend_names_only_what_is_there():
    groups = (Group(title="a", rows=(("x", (Mark(ours=1.0),)), ("y", (Mark(ours=2.0),)))),)
    assert legend(make(COLUMNS[1:], groups)) == ["ours"]


def test_labels_stand_once_and_numbers_beside_the_marks():
    found = texts(make())
    for text in (*LABELS[:2], "a: first", "b: second", "fine-tuning", "kNN", "Table 0", "what it is"):
        assert found.count(text) == 1, text
    assert found.count(LABELS[2]) == 2  # a row of both groups
    for number in ("−13.9", "−3.0", "+1.5", "0.0", "+1.0"):
        assert found.count(number) == 1, number  # and none beside the row that all are compared with
    assert (found.count("paper"), found.count("ours")) == (1, 2)


def test_nothing_is_cut_or_overlaps_the_labels():
    figure = make()
    figure.canvas.draw()
    width, height = pixels(figure)
    boxes = {text.get_text(): text.get_window_extent() for text in figure.texts}
    left = figure.axes[0].get_window_extent().x0
    for text, box in boxes.items():
        assert box.x0 >= 0, text
        assert box.x1 <= width, text
        assert box.y0 >= 0, text
        assert box.y1 <= height, text
    for label in LABELS:
        assert boxes[label].x1 < left
    assert figure.legends[0].get_window_extent().x1 <= width
    for axes in figure.axes:
        assert axes.xaxis.label.get_window_extent().y0 >= 0


def test_it_grows_with_rows_and_columns():
    width, height = pixels(make())
    assert pixels(make(groups=GROUPS[:1]))[1] == height - GROUP - 2 * ROW
    one = tuple(Group(title=g.title, rows=tuple((label, of[:1]) for label, of in g.rows)) for g in GROUPS)
    assert pixels(make(COLUMNS[:1], one))[0] == width - drawn.PANEL - drawn.NUMBER - drawn.GAP


def test_a_far_too_long_label_is_shortened():
    groups = (Group(title="a", rows=(("a very long label " * 12, BASE), ("b", BASE))),)
    figure = make(groups=groups)
    assert any("…" in text for text in texts(figure))
    assert pixels(figure)[0] < 1300


def test_ratios_are_drawn_on_a_logarithmic_axis():
    column = Column(title="hours", subtitle="", x_label="times", reference=1.0, is_log=True)
    groups = (Group(title="a", rows=(("slow", (Mark(ours=4.0, paper=2.8),)), ("base", (Mark(ours=1.0, paper=1.0),)))),)
    figure = make((column,), groups)
    assert figure.axes[0].get_xscale() == "log"
    assert {"4.00×", "2.80×"} <= set(texts(figure))
    low, high = figure.axes[0].get_xlim()
    assert 0 < low < 1
    assert high > 4


@pytest.mark.parametrize(
    ("value", "text"), [(1.25, "+1.2"), (-13.9, "−13.9"), (0.0, "0.0"), (-0.04, "0.0"), (0.04, "0.0"), (-10.0, "−10.0")]
)
def test_signs(value, text):
    assert signed(value) == text


def test_a_file_is_written_whole(tmp_path):
    draw_comparison(tmp_path / "table.png", COLUMNS, GROUPS, **TEXTS)
    with Image.open(tmp_path / "table.png") as picture:
        assert picture.size == pixels(make())
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    assert [path.name for path in tmp_path.iterdir()] == ["table.png"]


# --- curves ---

MAE = PairedCurve(
    "MAE", (PairedPoint(x=10, ours=70.0, spread=0.5, paper=83.0), PairedPoint(x=100, ours=72.0, paper=86.0))
)
PLAIN = PairedCurve("plain", (PairedPoint(x=10, ours=65.0), PairedPoint(x=100, ours=64.0, paper=82.0)))
AXIS = XAxis(label="size", ticks=((10.0, "8 wide\n(B)"), (100.0, "16 wide\n(L)")), is_log=True)


def panel(*curves, **changes):
    settings = {"title": "fine-tuning", "subtitle": "", "unit": "top-1, %", "shift": 13.0, "band": (68.0, 72.0)}
    return CurvePanel(curves=curves, **{**settings, **changes})


def curves(*panels, axis=AXIS):
    return paired_curves(panels, axis, **TEXTS)


def test_the_papers_points_keep_their_distance_from_ours():
    """The right axis says 13 more at every height: there the paper's first point lies at ours."""
    left, right = curves(panel(MAE)).axes
    assert marks(left, OURS) == [(10.0, 70.0), (100.0, 72.0)]
    assert marks(left, PAPER) == [(10.0, 70.0), (100.0, 73.0)]
    assert np.allclose(np.subtract(right.get_ylim(), left.get_ylim()), 13.0)
    low, high = left.get_ylim()
    assert low < 68.0 < 73.0 < high
    assert (left.get_xscale(), right.get_xscale()) == ("log", "log")
    assert [label.get_text() for label in left.get_xticklabels()] == ["8 wide\n(B)", "16 wide\n(L)"]


def test_the_paper_is_joined_only_where_it_gives_every_point():
    axes = curves(panel(MAE, PLAIN)).axes[0]
    joined = [line.get_linestyle() for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert joined == ["--", "None"]


def test_several_curves_have_a_colour_each_which_the_papers_share():
    figure = curves(panel(MAE, PLAIN))
    round_ones = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    colours = [line.get_markeredgecolor() for line in round_ones]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    names = ["ours, MAE (bar: standard deviation over seeds)", "the paper, MAE", "ours, plain", "the paper, plain"]
    assert legend(figure) == [*names, "within chance"]
    figure.canvas.draw()
    assert figure.legends[0].get_window_extent().x1 <= pixels(figure)[0]


def test_without_the_papers_figures_there_is_no_right_axis():
    figure = curves(
        panel(PairedCurve("", (PairedPoint(x=1, ours=5.0),)), shift=None, band=None),
        axis=XAxis(label="x", ticks=((1.0, "1"),)),
    )
    assert len(figure.axes) == 1
    assert legend(figure) == ["ours"]


def test_panels_stand_side_by_side(tmp_path):
    one, three = pixels(curves(panel(MAE), panel(MAE))), pixels(curves(*[panel(MAE)] * 3))
    assert one[1] == three[1]
    assert one[0] < three[0]
    draw_paired_curves(tmp_path / "curves.png", [panel(MAE)] * 3, AXIS, **TEXTS)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == three
