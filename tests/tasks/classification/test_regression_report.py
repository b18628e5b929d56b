"""The figures of predicted numbers are scikit-learn's; tables and pictures of them."""

import numpy as np
import pytest
import torch
from sklearn import metrics as judge

from openmae.config import Preprocessing, TargetScale
from openmae.inference.metrics import Predictions, compute_metrics, merge
from openmae.inference.regression import squared_error
from openmae.tasks.classification.regression_report import (
    largest_errors_picture,
    scatter_picture,
    write_regression_report,
)

from .regression_runs import table

# --- the figures ---


def made(count=50, columns=("a", "b", "c"), seed=0, bad=None, constant=()):
    chance = np.random.default_rng(seed)
    targets = chance.normal(size=(count, len(columns))) * [10.0**k for k in range(len(columns))] + 100
    targets[:, list(constant)] = 7.25
    scale = TargetScale(columns=columns, mean=(100.0,) * len(columns), std=tuple(10.0**k for k in range(len(columns))))
    standard = (targets - scale.mean) / scale.std
    logits = torch.from_numpy(0.8 * standard + chance.normal(size=targets.shape) * 0.3).float()
    return Predictions(
        logits=logits, targets=torch.from_numpy(targets), indices=np.arange(count), bad=bad or {}, scale=scale
    )


def test_the_figures_are_scikit_learns():
    predictions = made(bad={"x.png": "empty"})
    found, targets, numbers = compute_metrics(predictions, "val_"), predictions.targets.numpy(), predictions.numbers
    expected = {
        "val_r2": judge.r2_score(targets, numbers),
        "val_mae": judge.mean_absolute_error(targets, numbers),
        "val_loss": np.square((targets - numbers) / predictions.scale.std).mean(),
        "val_images": 50,
        "val_unreadable": 1,
    }
    for k, name in enumerate("abc"):
        expected[f"val_r2_{name}"] = judge.r2_score(targets[:, k], numbers[:, k])
        expected[f"val_mae_{name}"] = judge.mean_absolute_error(targets[:, k], numbers[:, k])
    assert found == pytest.approx(expected, rel=1e-6)  # outputs are float32; not measured apart
    assert len({round(found[f"val_r2_{name}"], 3) for name in "abc"}) == 3


def test_what_is_not_defined_is_left_out():
    """Of a column that is the same throughout no share of the variance can be explained."""
    found, whole = compute_metrics(made(constant=(1,))), compute_metrics(made())
    assert "r2_b" not in found
    assert found["r2"] == pytest.approx((whole["r2_a"] + whole["r2_c"]) / 2)
    assert found["mae_b"] > 0
    alone = compute_metrics(made(count=1))
    assert not any(name.startswith("r2") for name in alone)
    assert alone["mae"] > 0


def test_parts_of_several_processes_are_one():
    whole = made()
    parts = [
        Predictions(logits=whole.logits[rows], targets=whole.targets[rows], indices=rows, bad={}, scale=whole.scale)
        for rows in (np.arange(0, 50, 2), np.arange(1, 50, 2))
    ]
    assert compute_metrics(merge(parts)) == compute_metrics(whole)


def test_an_error_beyond_measure_pulls_no_harder():
    """So a rate that diverges stays finite; within 10,000 deviations it is the squared error."""
    outputs = torch.tensor([[3.0, 1.0], [2e30, -2.0]], requires_grad=True)
    loss = squared_error(outputs, torch.zeros(2, 2))
    assert float(loss.detach()) == pytest.approx((9 + 1 + 1e8 + 4) / 2)
    loss.backward()
    assert outputs.grad.tolist() == [[3.0, 1.0], [0.0, -2.0]]


# --- the report ---

EIGHT_BIT = Preprocessing(value_range=(0.0, 255.0), mean=(0.5,), std=(0.5,), image_size=(8, 8), channels=1)
HOSTILE = ("$\\alpha$", "new\nline", 'quo"te, comma', "\udcff")


class Pictures:
    """A source of made images that remembers which were read."""

    classes, ignored = None, None

    def __init__(self):
        self.seen = []

    def name(self, index):
        return f"{index}.png"

    def read(self, index):
        self.seen.append(index)
        return np.full((6, 8, 1), 5 * index % 256, np.uint8)


def text_of(figure):
    return [text.get_text() for text in figure.texts]


def test_the_furthest_off_come_first():
    predictions, source = made(columns=("a", "b")), Pictures()
    figure = largest_errors_picture(predictions, source, EIGHT_BIT, "run")
    relative = (predictions.numbers - predictions.targets.numpy()) / predictions.scale.std
    order = np.argsort(-np.square(relative).mean(1))[:24]
    assert source.seen == order.tolist()
    first, worst = int(order[0]), int(np.abs(relative[order[0]]).argmax())
    true, told = predictions.targets[first, worst], predictions.numbers[first, worst]
    assert f"{'ab'[worst]} true {true:.6g}" in text_of(figure)
    assert f"predicted {told:.6g} ({told - true:+.4g})" in text_of(figure)


def test_a_scatter_plot_shows_every_image_of_every_column():
    predictions = made(columns=("a", "b", "c"))
    figure = scatter_picture(predictions, "run")
    assert len(figure.axes) == 3
    for k, axes in enumerate(figure.axes):
        (points,) = axes.collections
        np.testing.assert_array_equal(
            points.get_offsets(), np.stack([predictions.targets[:, k], predictions.numbers[:, k]], axis=1)
        )
        assert axes.get_xlim() == axes.get_ylim()
    many = scatter_picture(made(columns=tuple(f"c{k}" for k in range(20))), "run")
    assert len(many.axes) == 12
    assert any("of the 12 columns with the lowest R2, of 20" in text for text in text_of(many))


def test_names_of_columns_start_no_formula(tmp_path):
    """And a column that is the same throughout, one image alone, numbers of any size are drawn."""
    write_regression_report(
        tmp_path, made(columns=HOSTILE, constant=(2,), bad={"x.png": "empty"}), Pictures(), EIGHT_BIT, "$run$"
    )
    rows = table(tmp_path / "columns.csv")
    assert [row["column"] for row in rows[:3]] == list(HOSTILE[:3])
    assert rows[2]["r2"] == ""
    predictions = table(tmp_path / "predictions.csv")
    assert (len(predictions), predictions[-1]["unreadable"]) == (51, "empty")
    write_regression_report(tmp_path / "one", made(count=1, constant=(0,)), Pictures(), EIGHT_BIT, "one")


def test_a_heading_stands_once(tmp_path):
    """Numbers may be called as our own columns are."""
    columns = ("name", "loss", "predicted_name")
    predictions = made(count=3, columns=columns)
    write_regression_report(tmp_path, predictions, Pictures(), EIGHT_BIT, "run")
    rows = table(tmp_path / "predictions.csv")
    assert list(rows[0]) == [
        *("name", "name_1", "loss", "predicted_name", "predicted_name_4"),
        *("predicted_loss", "predicted_predicted_name", "loss_7", "unreadable"),
    ]
    assert [row["name"] for row in rows] == ["0.png", "1.png", "2.png"]
