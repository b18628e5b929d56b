"""Metrics of class maps against scikit-learn, which knows nothing of images, and sums done by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as judge
from torchmetrics.classification import MulticlassJaccardIndex

from openmae.data.masks.palette import IGNORED
from openmae.inference.segmentation_metrics import ConfusionMatrix

NUM_CLASSES = 7


def maps(seed, absent=(), unpredicted=(), shape=(19, 23)):
    """A truth with ignored pixels and a prediction that is right for half of them."""
    chance = np.random.default_rng(seed)
    truth = chance.choice([k for k in range(NUM_CLASSES) if k not in absent], shape)
    guesses = chance.choice([k for k in range(NUM_CLASSES) if k not in unpredicted], shape)
    prediction = np.where((chance.random(shape) < 0.5) & ~np.isin(truth, unpredicted), truth, guesses)
    truth[chance.random(shape) < 0.2] = IGNORED
    return torch.from_numpy(truth), torch.from_numpy(prediction)


@pytest.mark.parametrize(("absent", "unpredicted"), [((), ()), ((2,), ()), ((), (3,)), ((2, 5), (2, 4))], ids=str)
def test_as_scikit_learn(absent, unpredicted):
    truth, prediction = maps(0, absent, unpredicted)
    found = ConfusionMatrix.count(truth, prediction, NUM_CLASSES)
    does_count = truth != IGNORED
    true, said = truth[does_count].numpy(), prediction[does_count].numpy()
    assert found.counts.tolist() == judge.confusion_matrix(true, said, labels=range(NUM_CLASSES)).tolist()
    occurs = np.union1d(true, said)
    # Measured: at most 7.1e-15 apart.
    iou = 100 * judge.jaccard_score(true, said, labels=occurs, average=None)
    assert found.class_iou[occurs] == pytest.approx(iou, abs=1e-12)
    assert found.miou == pytest.approx(100 * judge.jaccard_score(true, said, labels=occurs, average="macro"), abs=1e-12)
    assert found.pixel_accuracy == pytest.approx(100 * judge.accuracy_score(true, said), abs=1e-12)
    recall = judge.recall_score(true, said, labels=np.unique(true), average=None, zero_division=0)
    assert found.class_accuracy[np.unique(true)] == pytest.approx(100 * recall, abs=1e-12)
    assert found.mean_accuracy == pytest.approx(100 * recall.mean(), abs=1e-12)
    assert np.flatnonzero(np.isnan(found.class_iou)).tolist() == sorted(set(range(NUM_CLASSES)) - set(occurs.tolist()))
    assert np.flatnonzero(np.isnan(found.class_accuracy)).tolist() == list(absent)
    assert found.num_pixels == does_count.sum()


@pytest.mark.parametrize(("absent", "unpredicted"), [((), ()), ((2,), ()), ((), (3,)), ((2, 5), (2, 4))], ids=str)
def test_as_torchmetrics(absent, unpredicted):
    truth, prediction = maps(1, absent, unpredicted)
    found = ConfusionMatrix.count(truth, prediction, NUM_CLASSES)
    theirs = MulticlassJaccardIndex(NUM_CLASSES, average="macro", ignore_index=IGNORED)
    assert found.miou == pytest.approx(
        100 * float(theirs(prediction, truth)), abs=1e-4
    )  # single precision there; measured: 4.3e-6 apart


def test_by_hand():
    truth = torch.tensor([[0, 0, 1], [1, IGNORED, 1]])
    prediction = torch.tensor([[0, 1, 1], [1, 3, 2]])
    found = ConfusionMatrix.count(truth, prediction, 5)
    assert found.counts[:3, :3].tolist() == [[1, 1, 0], [0, 2, 1], [0, 0, 0]]
    assert found.pixels.tolist() == [2, 3, 0, 0, 0]
    # Class 2 is never true, but it is predicted: it occurs, with an IoU of 0. Class 3 only where nothing counts.
    assert found.miou == pytest.approx(100 * (1 / 2 + 2 / 4 + 0) / 3)
    assert found.mean_accuracy == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert found.pixel_accuracy == pytest.approx(60)


@given(st.integers(0, 99), st.integers(0, 19))
def test_the_whole_is_the_sum_of_its_parts_and_no_mean_of_them(seed, cut):
    truth, prediction = maps(seed)
    parts = [
        ConfusionMatrix.count(truth[rows], prediction[rows], NUM_CLASSES) for rows in (slice(cut), slice(cut, None))
    ]
    whole = ConfusionMatrix.count(truth, prediction, NUM_CLASSES)
    assert (ConfusionMatrix.empty(NUM_CLASSES) + parts[0] + parts[1]).counts.tolist() == whole.counts.tolist()


def test_the_mean_is_over_the_whole_set():
    few = ConfusionMatrix.count(torch.tensor([0]), torch.tensor([1]), 2)
    many = ConfusionMatrix.count(torch.zeros(99).long(), torch.zeros(99).long(), 2)
    assert (few + many).pixel_accuracy == 99
    assert (few + many).miou == pytest.approx((99 + 0) / 2)
    assert (few.miou + many.miou) / 2 == 50


def test_where_no_pixel_counts_nothing_is_defined():
    found = ConfusionMatrix.count(torch.full((2, 2), IGNORED), torch.zeros(2, 2).long(), 3)
    assert found.num_pixels == 0
    assert all(math.isnan(value) for value in (found.miou, found.pixel_accuracy, found.mean_accuracy))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_small_integer_types_do_not_overflow(dtype):
    labels = torch.tensor([199, 0, 120]).to(dtype)
    found = ConfusionMatrix.count(labels, labels, 200)
    assert found.pixel_accuracy == 100
    assert found.pixels[[0, 120, 199]].tolist() == [1, 1, 1]


@pytest.mark.parametrize(("truth", "prediction"), [(3, 0), (0, 3), (0, -1), (-2, 0)])
def test_a_class_out_of_range_is_not_counted_as_another(truth, prediction):
    with pytest.raises(AssertionError, match="out of range"):
        ConfusionMatrix.count(torch.tensor([truth]), torch.tensor([prediction]), 3)
