"""A sheet of segmented images and bars of classes: the right pixels, no text over another, any names."""

import logging
import warnings

import numpy as np
import pytest

from openmae.pictures.class_bars import MAX_DRAWN, class_bars
from openmae.pictures.class_colours import class_colours
from openmae.pictures.legend import MAX_IN_LEGEND
from openmae.pictures.segmentation_sheet import Row, SegmentedImage, segmentation_sheet

HOSTILE = ("$\\alpha$", "new\nline", "\udcff", "", "a" * 999, "Žluťoučký")


def texts(figure):
    return [text.get_text() for text in figure.texts]


def segmented(shape=(24, 40), num_classes=3, seed=0):
    chance = np.random.default_rng(seed)
    truth, prediction = chance.integers(0, num_classes, (2, *shape))
    truth[:5] = -1
    return SegmentedImage(image=np.full((*shape, 3), 90, np.uint8), truth=truth, prediction=prediction)


def assert_no_text_overlaps(figure, caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "matplotlib"):
        warnings.simplefilter("error")  # of a glyph that the font lacks
        figure.canvas.draw()
    assert not caplog.records
    boxes = [text.get_window_extent() for text in figure.texts]
    width, height = figure.canvas.get_width_height()
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)
    low, high = np.array([b.min for b in boxes]) + 1, np.array([b.max for b in boxes]) - 1
    meets = ((low[:, None] < high[None]) & (low[None] < high[:, None])).all(2)
    assert [(texts(figure)[i], texts(figure)[k]) for i, k in np.argwhere(np.triu(meets, 1)).tolist()] == []


def test_a_row_shows_the_image_and_both_maps_in_their_places():
    truth, prediction = np.array([[0, 1], [-1, 0]]), np.array([[2, 2], [1, 0]])
    image = np.full((2, 2, 3), 100, np.uint8)
    row = Row(content=SegmentedImage(image=image, truth=truth, prediction=prediction), name="n", score="s")
    figure = segmentation_sheet("t", "s", [row], ("a", "b", "c"))
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert [picture.shape for picture in shown] == [(240, 240, 3)] * 3  # enlarged to the height of the sheet
    corners = [picture[60::120, 60::120].tolist() for picture in shown]
    mixed = np.rint(0.5 * 100 + 0.5 * class_colours(3).astype(float)).astype(int).tolist()
    bare = [100, 100, 100]
    assert corners[0] == [[bare, bare], [bare, bare]]
    assert corners[1] == [[mixed[0], mixed[1]], [bare, mixed[0]]]
    assert corners[2] == [[mixed[2], mixed[2]], [mixed[1], mixed[0]]]
    assert [axes.get_position().x0 for axes in figure.axes] == sorted(axes.get_position().x0 for axes in figure.axes)


def test_the_legend_holds_what_occurs_the_most_pixels_first():
    content = SegmentedImage(
        image=np.zeros((1, 4, 3), np.uint8), truth=np.array([[2, 2, -1, -1]]), prediction=np.array([[2, 2, 2, 0]])
    )
    shown = texts(segmentation_sheet("t", "s", [Row(content=content, name="n", score="s")], ("a", "b", "c")))
    assert shown[-2:] == ["c (83 %)", "a (17 %)"]
    many = Row(content=segmented((40, 80), 50), name="n", score="s")
    shown = texts(segmentation_sheet("t", "s", [many], tuple(f"class {k}" for k in range(50))))
    assert sum(text.startswith("class ") for text in shown) == MAX_IN_LEGEND
    assert shown[-1] == "and 30 more classes with fewer pixels"


@pytest.mark.parametrize("shape", [(24, 40), (300, 20), (9, 900), (1, 1)])
def test_no_text_of_the_sheet_overlaps_another(shape, caplog):
    classes = tuple(f"{name}{k}" for k in range(5) for name in HOSTILE)
    rows = [
        Row(content=segmented(shape, len(classes)), name="folder/" * 50 + "\n.jpg", score="mIoU 100.0 %, 100.0 %"),
        Row(content="truncated\n" * 50, name="", score="all pixels ignored"),
    ]
    assert_no_text_overlaps(segmentation_sheet("t\n$" * 200, "a remark " * 40, rows, classes), caplog)


def test_an_image_that_vanished_leaves_its_place():
    figure = segmentation_sheet("t", "s", [Row(content="truncated", name="x.jpg", score="s")], ("a",))
    assert "unreadable: truncated" in texts(figure)
    assert "x.jpg" in texts(figure)
    assert not figure.axes


@pytest.mark.parametrize("num_classes", [1, 6, 60])
def test_bars_are_sorted_and_classes_that_do_not_occur_left_out(num_classes, caplog):
    values = np.linspace(0, 100, num_classes)
    values[num_classes // 2] = np.nan
    classes = [f"{HOSTILE[k % len(HOSTILE)]}{k}" for k in range(num_classes)]
    figure = class_bars(values, np.full(num_classes, 0.001), classes, title="t", subtitle="s.")
    (axes,) = figure.axes
    found = [bar.get_width() for bar in axes.patches]
    assert found == sorted(values[~np.isnan(values)], reverse=True)
    assert "s. 1 classes do not occur." in texts(figure)
    assert texts(figure).count("<0.01 %") == num_classes - 1
    assert_no_text_overlaps(figure, caplog)


def test_of_many_classes_those_with_the_most_pixels_are_drawn():
    count = MAX_DRAWN + 50
    figure = class_bars(
        np.full(count, 50.0), np.arange(count) / count, list(map(str, range(count))), title="t", subtitle="s."
    )
    assert len(figure.axes[0].patches) == MAX_DRAWN
    assert "49" not in texts(figure)
    assert "50" in texts(figure)
    assert f"s. The {MAX_DRAWN} classes with the most pixels are drawn." in texts(figure)


def test_without_predictions_there_is_no_column_for_them():
    truth = np.zeros((4, 6), np.int64)
    row = Row(content=SegmentedImage(image=np.zeros((4, 6, 3), np.uint8), truth=truth), name="n", score="s")
    shown = texts(segmentation_sheet("t", "s", [row], ("a", "b")))
    assert {"image", "mask"} <= set(shown)
    assert not {"truth", "prediction"} & set(shown)
    assert "a (100 %)" in shown
