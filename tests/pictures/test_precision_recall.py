"""Curves of precision over recall: each class that occurs, and their mean."""

import numpy as np
import pytest

from openmae.pictures.precision_recall import MAX_NAMED, precision_recall

from .test_segmentation_sheet import HOSTILE, assert_no_text_overlaps, texts


@pytest.mark.parametrize("num_classes", [1, 3, 80])
def test_a_curve_for_each_class_that_occurs_and_their_mean(num_classes, caplog):
    chance = np.random.default_rng(0)
    precision = -np.sort(-100 * chance.random((num_classes, 101)))
    if num_classes > 1:
        precision[1] = np.nan
    objects = np.arange(num_classes)[::-1]
    classes = [f"{HOSTILE[k % len(HOSTILE)]}{k}" for k in range(num_classes)]
    figure = precision_recall(precision, objects, classes, title="t", subtitle="s.")
    curves = [line.get_ydata() for line in figure.axes[0].lines]
    occurring = [k for k in range(num_classes) if k != 1 or num_classes == 1]
    assert len(curves) == len(occurring) + 1
    assert np.allclose(curves[-1], precision[occurring].mean(0))
    assert sum("%" in text for text in texts(figure)) == min(len(occurring), MAX_NAMED) + 1
    assert any("20 classes with the most objects" in text for text in texts(figure)) == (num_classes == 80)
    assert_no_text_overlaps(figure, caplog)


def test_no_class_at_all():
    figure = precision_recall(np.full((2, 101), np.nan), np.zeros(2, int), ["a", "b"], title="t", subtitle="s")
    assert "no class occurs" in texts(figure)
