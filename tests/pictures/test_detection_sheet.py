"""Objects in photographs: in their places, at any scale, no name over another, any names."""

import numpy as np
import pytest
from PIL import Image

from openmae.data.coco.run_lengths import encoded
from openmae.pictures.class_colours import class_colours
from openmae.pictures.detection_sheet import DetectedImage, DetectedRow, detection_sheet
from openmae.pictures.objects import ALPHA, DrawnObjects, Pen, _free_place, with_objects

from ..inference.detection.objects_found import random_boxes
from .test_segmentation_sheet import HOSTILE, assert_no_text_overlaps, texts

COLOURS = class_colours(3)


def objects_of(boxes, labels=None, size=(40, 60), **more):
    boxes = np.reshape(np.array(boxes, np.float64), (-1, 4))
    return DrawnObjects(
        size=size, boxes=boxes, labels=np.zeros(len(boxes), int) if labels is None else np.array(labels), **more
    )


def drawn(objects, shape=(40, 60), pen=None):
    image = np.full((*shape, 3), 90, np.uint8)
    return with_objects(image, objects, ("a", "b", "c"), COLOURS, pen or Pen(line=1))


def test_a_box_and_its_mask_are_drawn_in_their_places_at_any_scale():
    mask = encoded(np.ones((10, 20), bool), 20, 20, (40, 60))
    objects = objects_of([[20, 15, 50, 35]], [1], masks=[mask])
    tint = np.rint((1 - ALPHA) * 90 + ALPHA * COLOURS[1]).tolist()
    for scale in (1, 3):
        picture = drawn(objects, (40 * scale, 60 * scale))
        left, top, right, bottom = (scale * edge for edge in (20, 15, 50, 35))
        assert (picture[bottom - 1, left:right] == COLOURS[1]).all()
        assert (picture[top:bottom, right - 1] == COLOURS[1]).all()
        assert (picture[bottom:, :] == 90).all()
        assert picture[29 * scale, 30 * scale].tolist() == tint
        assert picture[32 * scale, 30 * scale].tolist() == [90] * 3  # in the box, outside the mask
        assert picture[25 * scale, 45 * scale].tolist() == [90] * 3


def test_the_first_object_lies_on_top():
    masks = [encoded(np.ones((40, 60), bool), 0, 0, (40, 60))] * 2
    both = drawn(objects_of([[0, 0, 60, 40]] * 2, [2, 1], masks=masks))
    assert (both[20:, 59] == COLOURS[2]).all()


@pytest.mark.parametrize("box", [[59.7, 0, 60, 40], [0, 39.8, 60, 40], [59.9, 39.9, 60, 40], [3, 2, 3, 2]])
def test_a_sliver_at_an_edge_is_drawn(box):
    """As in images of extreme sides, where all that is found is thinner than a pixel."""
    assert (drawn(objects_of([box])) != 90).any()
    assert drawn(objects_of([box]), (1, 1)).shape == (1, 1, 3)


def test_nothing_to_draw_leaves_the_photograph():
    assert (drawn(objects_of([])) == 90).all()
    assert (drawn(objects_of([], masks=[])) == 90).all()


def test_captions_tell_score_crowd_and_mistakes():
    objects = objects_of(
        [[0, 0, 9, 9]] * 2,
        [0, 1],
        scores=np.array([0.456, 0.9]),
        is_wrong=np.array([True, False]),
        is_crowd=np.array([False, True]),
    )
    assert "".join(objects.caption(0, ("a", "b"))) == "× a 0.46"
    assert "".join(objects.caption(1, ("a", "b"))) == "b 0.90 (crowd)"


def test_names_stay_in_the_image_and_do_not_meet():
    chance, size, taken = np.random.default_rng(0), (200, 300), []
    for box in random_boxes(chance, 200, size):
        place = _free_place(box, 60, 14, size, taken)
        if place is not None:
            assert 0 <= place[0] < place[2] <= 300
            assert 0 <= place[1] < place[3] <= 200
            assert not any(place[0] < t[2] and t[0] < place[2] and place[1] < t[3] and t[1] < place[3] for t in taken)
            taken.append(place)
    assert 30 < len(taken) < 200
    assert _free_place(np.array([1.0, 1, 5, 5]), 60, 14, (10, 30), []) is None  # no room at all


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (30, 30), (900, 1200)])
def test_any_size_and_any_name(size):
    classes = tuple(HOSTILE)
    objects = DrawnObjects(
        size=size, boxes=np.array([[0.0, 0, size[1], size[0]]] * len(classes)), labels=np.arange(len(classes))
    )
    image = np.zeros((*size, 3), np.uint8)
    picture = with_objects(image, objects, classes, class_colours(len(classes)), Pen.for_image(size))
    assert picture.shape == (*size, 3)
    assert picture.any()


@pytest.mark.parametrize(("num_classes", "count"), [(1, 1), (80, 60)])
def test_no_text_of_the_sheet_overlaps_another(num_classes, count, caplog):
    chance = np.random.default_rng(0)
    classes = tuple(f"{HOSTILE[k % len(HOSTILE)]}{k}" for k in range(num_classes))
    rows = []
    for shape in ((24, 40), (300, 20), (9, 900)):
        truth = objects_of(random_boxes(chance, count, shape), chance.integers(0, num_classes, count), size=shape)
        content = DetectedImage(image=np.full((*shape, 3), 90, np.uint8), truth=truth, prediction=truth)
        rows.append(DetectedRow(content=content, name="folder/" * 50 + "\n.jpg", score="3 of 5 objects found, 2 false"))
    rows.append(DetectedRow(content="truncated\n" * 50, name="", score="0 of 0 objects found"))
    figure = detection_sheet("t\n$" * 200, "a remark " * 40, rows, classes)
    assert_no_text_overlaps(figure, caplog)
    assert len(figure.axes) == 6


def test_the_legend_counts_truth_and_prediction():
    image = np.zeros((40, 60, 3), np.uint8)
    boxes = [[0, 0, 9, 9]] * 3
    content = DetectedImage(image=image, truth=objects_of(boxes, [2, 2, 0]), prediction=objects_of(boxes[:1], [2]))
    shown = texts(detection_sheet("t", "s", [DetectedRow(content=content, name="n", score="s")], ("a", "b", "c")))
    assert shown[-2:] == ["c (2, 1)", "a (1, 0)"]
    alone = DetectedImage(image=image, truth=objects_of(boxes, [2, 2, 0]))
    shown = texts(detection_sheet("t", "s", [DetectedRow(content=alone, name="n", score="s")], ("a", "b", "c")))
    assert shown[-2:] == ["c (2)", "a (1)"]
    assert "prediction" not in shown


def test_a_photograph_is_shown_as_large_as_fits():
    content = DetectedImage(image=np.asarray(Image.new("RGB", (60, 40), (9, 9, 9))), truth=objects_of([]))
    (axes,) = detection_sheet("t", "s", [DetectedRow(content=content, name="n", score="s")], ("a",)).axes
    assert np.asarray(axes.images[0].get_array()).shape == (373, 560, 3)
