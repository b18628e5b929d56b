"""A classifier's figures against scikit-learn and sums done by hand; its tables and pictures on hostile names."""

import csv
import json
import logging
import math
import warnings

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as judge

from openmae.config import Preprocessing
from openmae.data.decoding.decode import BadImage
from openmae.errors import Fault, RequestError
from openmae.inference.metrics import Predictions, compute_metrics, confusion_counts, interval, merge, true_ranks
from openmae.pictures.text import FALLBACKS, fitted, legible, text_width
from openmae.tasks.classification.classification_report import write_report
from openmae.tasks.classification.report_pictures import confusion_picture, most_wrong_picture

HOSTILE = (
    "$\\alpha$",
    "new\nline",
    "\udcff",
    "",
    "a" * 999,
    'quo"te, comma',
    "\u202eback",
    "Žluťoučký",
    "\\frac",
    " x ",
)
UNIT = {"mean": (0.5,), "std": (0.5,), "image_size": (8, 8), "channels": 1}
EIGHT_BIT = Preprocessing(value_range=(0.0, 255.0), **UNIT)


class Pictures:
    """A source of made images that remembers what was read of it."""

    classes, ignored = None, None

    def __init__(self, image, names=None, gone=()):
        self.image, self.names, self.gone, self.seen = image, names, gone, []

    def __len__(self):
        return 1_000_000

    def name(self, index):
        return self.names[index] if self.names else f"{index}.png"

    def label(self, index):
        return None

    def read(self, index):
        self.seen.append(index)
        if index in self.gone:
            raise BadImage("No such file or directory")
        return self.image


GREY = np.arange(48, dtype=np.uint8).reshape(6, 8, 1) * 5


def predictions(logits, targets, bad=None, indices=None):
    logits = torch.as_tensor(logits, dtype=torch.float32)
    targets = torch.as_tensor(targets)
    return Predictions(
        logits=logits,
        targets=targets.float() if targets.ndim == 2 else targets.long(),
        indices=np.arange(len(logits)) if indices is None else np.asarray(indices, np.int64),
        bad=bad or {},
    )


def made(num_classes=7, count=300, several=False, absent=(), seed=0, bad=None):
    chance = np.random.default_rng(seed)
    logits = chance.normal(size=(count, num_classes))
    if several:
        targets = chance.random((count, num_classes)) < 0.3
        targets[:, list(absent)] = False
        return predictions(logits + 1.5 * targets, targets, bad)
    targets = chance.choice([k for k in range(num_classes) if k not in absent], count)
    logits[np.arange(count), targets] += 1.5
    return predictions(logits, targets, bad)


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# Figures


@pytest.mark.parametrize("num_classes", [2, 5, 6, 40])
@pytest.mark.parametrize("absent", [(), (1,)], ids=["all", "one absent"])
def test_one_label_as_scikit_learn(num_classes, absent):
    given = made(num_classes, absent=absent)
    logits, targets = given.logits.double().numpy(), given.targets.numpy()
    said, classes = logits.argmax(1), np.arange(num_classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that were said and do not occur
        expected = {
            "top1": 100 * judge.accuracy_score(targets, said),
            "balanced_top1": 100 * judge.balanced_accuracy_score(targets, said),
            "loss": judge.log_loss(targets, torch.softmax(torch.from_numpy(logits), 1).numpy(), labels=classes),
        }
    if num_classes > 5:
        expected["top5"] = 100 * judge.top_k_accuracy_score(targets, logits, k=5, labels=classes)
    found = compute_metrics(given)
    # Measured: at most 7.1e-15 apart.
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert set(found) - set(expected) == {"top1_low", "top1_high", "images", "unreadable", "absent_classes"}
    assert (found["images"], found["unreadable"], found["absent_classes"]) == (300, 0, len(absent))


def test_one_label_by_hand():
    given = predictions([[2, 0, 0], [0, 0, 3], [0, 1, 0], [0, 1, 0]], [0, 1, 1, 1], {"x.png": "truncated"})
    found = compute_metrics(given, prefix="test_")
    nats = [math.log(1 + 2 / math.e**2), math.log(2 + math.e**3), *[math.log(1 + 2 / math.e)] * 2]
    assert found["test_loss"] == pytest.approx(sum(nats) / 4, abs=1e-12)
    assert found["test_top1"] == 75
    assert found["test_top1_lower_bound"] == 60
    assert found["test_balanced_top1"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert (found["test_images"], found["test_unreadable"], found["test_absent_classes"]) == (4, 1, 1)
    assert all(name.startswith("test_") for name in found)


def test_a_collapsed_classifier_gains_nothing_from_equal_scores():
    given = predictions(np.zeros((20, 10)), np.repeat(np.arange(10), 2))
    assert true_ranks(given).tolist() == np.repeat(np.arange(10), 2).tolist()
    found = compute_metrics(given)
    assert (found["top1"], found["top5"], found["balanced_top1"]) == (10, 50, 10)


@pytest.mark.parametrize("absent", [(), (2, 4)], ids=["all", "two absent"])
def test_several_labels_as_scikit_learn(absent):
    given = made(several=True, absent=absent)
    logits, true = given.logits.numpy(), given.targets.numpy().astype(int)
    said, present = (logits > 0).astype(int), true.any(0)
    chances = 1 / (1 + np.exp(-logits.astype(np.float64)))
    found = compute_metrics(given)
    expected = {
        "map": 100 * judge.average_precision_score(true[:, present], logits[:, present], average="macro"),
        "f1": 100 * judge.f1_score(true, said, average="micro"),
        "exact_match": 100 * judge.accuracy_score(true, said),
        "loss": judge.log_loss(true.ravel(), np.stack([1 - chances.ravel(), chances.ravel()], 1), labels=[0, 1]),
        "images": 300,
        "unreadable": 0,
        "absent_classes": len(absent),
    }
    assert found == pytest.approx(expected, abs=1e-12)  # measured: equal


def test_several_labels_by_hand():
    # Scores of the first class order its images + - +: precisions 1 and 2/3 where a + is met.
    found = compute_metrics(predictions([[3, -1], [2, -1], [1, -1]], [[1, 0], [0, 0], [1, 0]]))
    assert found["map"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert found["f1"] == pytest.approx(100 * 2 * 2 / (3 + 2))
    assert found["exact_match"] == pytest.approx(200 / 3)
    assert found["absent_classes"] == 1
    nothing = compute_metrics(predictions([[-1.0, -1.0]], [[0, 0]]))
    assert "map" not in nothing
    assert (nothing["f1"], nothing["exact_match"]) == (0, 100)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_the_published_one(right, count, low, high):
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3 (Wilson without continuity correction)."""
    assert interval(right, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_a_fault(tmp_path, value):
    given = made()
    given.logits[3, 1] = value
    with pytest.raises(Fault, match="the scores of 1 of 300 images are not finite"):
        compute_metrics(given)
    with pytest.raises(Fault):
        write_report(tmp_path, given, Pictures(GREY), tuple("abcdefg"), EIGHT_BIT, "t")
    assert not list(tmp_path.rglob("*.*"))


def test_no_readable_image_is_refused():
    with pytest.raises(RequestError, match=r"none of 3 images can be read \(2 of them: truncated\)"):
        compute_metrics(predictions(np.zeros((0, 3)), [], {"a": "truncated", "b": "empty file", "c": "truncated"}))
    with pytest.raises(RequestError, match="no image"):
        compute_metrics(predictions(np.zeros((0, 3)), []))


# Merging


@pytest.mark.parametrize("several", [False, True])
def test_parts_of_processes_make_the_whole(several):
    whole = made(several=several, bad={"b": "1", "a": "2"})
    order = np.random.default_rng(1).permutation(300)
    parts = [
        predictions(whole.logits[rows], whole.targets[rows], bad, rows)
        for rows, bad in ((order[:100], {"b": "1"}), (order[100:100], {}), (order[100:], {"a": "2"}))
    ]
    found = merge(parts)
    assert torch.equal(found.logits, whole.logits)
    assert torch.equal(found.targets, whole.targets)
    assert found.indices.tolist() == list(range(300))
    assert list(found.bad.items()) == [("a", "2"), ("b", "1")]


@pytest.mark.parametrize(
    "second",
    [
        predictions([[1, 0]], [0], indices=[5]),
        predictions([[1, 0]], [0], {"x": "bad"}, [6]),
        predictions([[1, 0, 0]], [0], indices=[6]),
        predictions([[1, 0]], [[1, 0]], indices=[6]),
    ],
    ids=["an image twice", "an unreadable image twice", "other classes", "other labels"],
)
def test_parts_that_do_not_belong_together_are_refused(second):
    with pytest.raises(AssertionError):
        merge([predictions([[1, 0]], [0], {"x": "bad"}, [5]), second])


# Tables


def test_confusions_as_scikit_learn():
    given = made(absent=(3,))
    matrix = np.zeros((7, 7), int)
    pairs = confusion_counts(given)
    matrix[pairs[:, 0], pairs[:, 1]] = pairs[:, 2]
    expected = judge.confusion_matrix(given.targets, given.logits.argmax(1), labels=range(7))
    assert matrix.tolist() == expected.tolist()


def test_the_table_of_classes_as_scikit_learn(tmp_path):
    given, classes = made(absent=(3,)), HOSTILE[:2] + tuple("cdefg")
    given.logits[:, 5] -= 100  # never said
    write_report(tmp_path, given, Pictures(GREY), classes, EIGHT_BIT, "t")
    targets, said = given.targets.numpy(), given.logits.argmax(1).numpy()
    precision, recall, f1, images = judge.precision_recall_fscore_support(
        targets, said, labels=range(7), zero_division=np.nan
    )
    matrix = judge.confusion_matrix(targets, said, labels=range(7))
    np.fill_diagonal(matrix, 0)
    rows = table(tmp_path / "classes.csv")
    assert [row["class"] for row in rows] == list(classes)
    assert [int(row["images"]) for row in rows] == images.tolist()
    for name, values in (("recall", recall), ("precision", precision), ("f1", f1)):
        found = [float(row[name] or "nan") for row in rows]
        assert found == pytest.approx(100 * values, abs=5.1e-5, nan_ok=True), name
    assert rows[3]["recall"] == rows[5]["precision"] == ""
    assert rows[5]["recall"] == rows[5]["f1"] == "0.0000"
    for k, row in enumerate(rows):
        expected = (classes[matrix[k].argmax()], str(matrix[k].max())) if matrix[k].any() else ("", "")
        assert (row["most_confused_with"], row["images_confused"]) == expected


def test_the_table_of_labels_as_scikit_learn(tmp_path):
    given, classes = made(several=True, absent=(2,)), HOSTILE[:3] + tuple("cdef")
    write_report(tmp_path, given, Pictures(GREY), classes, EIGHT_BIT, "t")
    true, said = given.targets.numpy().astype(int), (given.logits > 0).numpy().astype(int)
    precision, recall, _, positives = judge.precision_recall_fscore_support(true, said, zero_division=np.nan)
    averages = [judge.average_precision_score(true[:, k], given.logits[:, k]) if k != 2 else math.nan for k in range(7)]
    rows = table(tmp_path / "classes.csv")
    assert [int(row["positives"]) for row in rows] == positives.tolist()
    for name, values in (("average_precision", averages), ("precision", precision), ("recall", recall)):
        found = [float(row[name] or "nan") for row in rows]
        assert found == pytest.approx(100 * np.array(values), abs=5.1e-5, nan_ok=True), name
    assert not (tmp_path / "pictures" / "confusion.png").exists()
    assert (tmp_path / "pictures" / "most-wrong.png").exists()


def test_a_row_for_every_image_and_names_survive(tmp_path):
    names = {4: 'new\nline, "quoted"\r\n', 7: "latin\udce9.png", 9: "猫.png"}
    given = predictions([[2, 0], [0, 2], [0, 3]], [0, 0, 1], {"bad\n1": "truncated"}, [4, 7, 9])
    write_report(tmp_path, given, Pictures(GREY, names), ("c,at", "d\nog"), EIGHT_BIT, "t")
    rows = table(tmp_path / "predictions.csv")
    assert [row["name"] for row in rows] == [names[4], "latin\\udce9.png", names[9], "bad\n1"]
    assert [row["label"] for row in rows] == ["c,at", "c,at", "d\nog", ""]
    assert [row["predicted"] for row in rows] == ["c,at", "d\nog", "d\nog", ""]
    assert [row["unreadable"] for row in rows] == ["", "", "", "truncated"]
    two, three = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-3))
    assert [float(row["confidence"]) for row in rows[:3]] == pytest.approx([two, two, three], abs=1e-6)
    assert [float(row["true_probability"]) for row in rows[:3]] == pytest.approx([two, 1 - two, three], abs=1e-6)


def test_rows_of_several_labels(tmp_path):
    given = predictions([[2, -2, 0.5], [-1, -1, -1]], [[1, 1, 0], [0, 0, 0]])
    write_report(tmp_path, given, Pictures(GREY), ("a,b", 'c"', "d"), EIGHT_BIT, "t")
    rows = table(tmp_path / "predictions.csv")
    assert [json.loads(row["label"]) for row in rows] == [["a,b", 'c"'], []]
    assert [json.loads(row["predicted"]) for row in rows] == [["a,b", "d"], []]
    one, two, half = (1 / (1 + math.exp(-x)) for x in (1, 2, 0.5))
    assert [float(row["confidence"]) for row in rows] == pytest.approx([(2 * two + half) / 3, one], abs=1e-6)
    expected = [(two + 1 - two + 1 - half) / 3, one]
    assert [float(row["true_probability"]) for row in rows] == pytest.approx(expected, abs=1e-6)


# Pictures


def texts(figure):
    return [text.get_text() for text in figure.texts]


def drawn(figure):
    """The figure's pixels and the boxes of its texts, in pixels."""
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.texts]
    return np.asarray(figure.canvas.buffer_rgba()), boxes


@pytest.mark.parametrize("num_classes", [1, 2, 10, 31, 120])
@pytest.mark.parametrize("is_hostile", [False, True], ids=["plain", "hostile"])
def test_no_text_of_the_matrix_overlaps_another_or_leaves_the_page(num_classes, is_hostile, caplog):
    names = HOSTILE if is_hostile else ("cat", "dog")
    classes = tuple(f"{names[k % len(names)]}{k // len(names) or ''}" for k in range(num_classes))
    title = "t\n$" * 200 if is_hostile else "a run"
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "matplotlib"):
        warnings.simplefilter("error")  # of a glyph that the font lacks
        figure = confusion_picture(made(num_classes, 400, absent=(1,)), classes, title)
        pixels, boxes = drawn(figure)
    assert not caplog.records
    height, width = pixels.shape[:2]
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)
    # A pixel's overlap is the room around letters.
    low, high = np.array([b.min for b in boxes]) + 1, np.array([b.max for b in boxes]) - 1
    meets = ((low[:, None] < high[None]) & (low[None] < high[:, None])).all(2)
    first, second = np.argwhere(np.triu(meets, 1)).T.tolist() or ([], [])
    assert [(texts(figure)[i], texts(figure)[k]) for i, k in zip(first, second, strict=True)] == []


def test_cells_hold_shares_of_the_true_class_and_counts():
    given = predictions(np.eye(2)[[0] * 3 + [1] + [1] * 200 + [0]], [0] * 4 + [1] * 201)
    shown = texts(confusion_picture(given, ("cat", "dog"), "my run"))
    for text in ("75 %", "3", "25 %", "1", ">99 %", "200", "<1 %", "cat (4)", "dog (201)", "predicted class"):
        assert text in shown
    assert shown[0] == "Confusion matrix: my run"
    assert any("Top-1 99.0 % of 205 images" in text for text in shown)
    counts = [shown[i + 1] for i, text in enumerate(shown) if text.endswith(" %")]
    assert counts == ["3", "1", "1", "200"]  # row by row: a transposed matrix would have 3 1 200 1


def test_of_many_classes_the_most_confused_are_drawn():
    num_classes = 150
    targets = np.repeat(np.arange(num_classes), 4)
    said = targets.copy()
    said[4 * 140 : 4 * 140 + 3] = 20  # 140 is taken for 20 three times
    said[4 * 7] = 90
    shown = texts(confusion_picture(predictions(np.eye(num_classes)[said], targets), tuple(map(str, range(150))), "t"))
    assert shown[0] == "Confusion matrix of the 30 most confused of 150 classes: t"
    rows = [text for text in shown if text.endswith(" (4)")]
    assert rows[:4] == ["20 (4)", "140 (4)", "7 (4)", "90 (4)"]
    assert len(rows) == 30
    assert "all other classes" in shown
    right = predictions(np.eye(num_classes)[targets], targets)
    assert "30 most frequent of 150" in texts(confusion_picture(right, tuple(map(str, range(150))), "t"))[0]


def test_the_most_wrong_images_are_shown_first():
    # Images 3, 2 and 1 are wrong, in this order; 0 is right with the largest loss of all right ones.
    given = predictions([[0.1, 0], [0, 1], [0, 2], [0, 3], [4, 0]], [0] * 5, {"x": "bad"}, [10, 11, 12, 13, 14])
    source = Pictures(GREY)
    shown = texts(most_wrong_picture(given, source, ("$cat$", "dog"), EIGHT_BIT, "my run"))
    assert source.seen == [13, 12, 11]
    assert shown[:2] == [
        "The 3 most wrong images: my run",
        "3 of 5 images are wrong, 1 more cannot be read; the highest loss first.",
    ]
    assert shown[2:5] == ["true $cat$", "predicted dog (95 %)", "13.png"]


def test_without_a_wrong_image_the_least_certain_are_shown():
    source = Pictures(GREY)
    given = predictions([[1, 0], [0.1, 0], [3, 0]], [0] * 3)
    shown = texts(most_wrong_picture(given, source, ("a", "b"), EIGHT_BIT, "t"))
    assert shown[0] == "No image is wrong; the 3 least certain: t"
    assert source.seen == [1, 0, 2]


def test_captions_of_several_labels_begin_with_what_is_wrong():
    given = predictions([[-1, 2, 3, 4, 5, -9]], [[1, 1, 0, 0, 0, 0]])
    shown = texts(most_wrong_picture(given, Pictures(GREY), tuple("abcdef"), EIGHT_BIT, "t"))
    assert shown[0] == "The only wrong image: t"
    assert shown[2:4] == ["true a, b", "predicted e, d, c +1"]
    nothing = predictions([[-1, -1]], [[1, 0]])
    assert "predicted no label" in texts(most_wrong_picture(nothing, Pictures(GREY), ("a", "b"), EIGHT_BIT, "t"))


def test_an_image_that_vanished_leaves_its_place():
    given = predictions([[0, 1], [0, 2]], [0, 0])
    shown = texts(most_wrong_picture(given, Pictures(GREY, gone={1}), ("a", "b"), EIGHT_BIT, "t"))
    assert any(text.startswith("unreadable: ") for text in shown)
    assert "predicted b (73 %)" in shown


@pytest.mark.parametrize("multi", [False, True])
def test_captions_stay_below_their_images(multi):
    given = made(10, 16, several=multi)
    names = {k: "folder/" * 50 + f"\n{k}" for k in range(60)}
    figure = most_wrong_picture(given, Pictures(GREY, names), HOSTILE, EIGHT_BIT, "t" * 500)
    pixels, boxes = drawn(figure)
    assert all(b.x0 >= 0 and b.x1 <= pixels.shape[1] and b.y0 >= 0 for b in boxes)
    # A glyph may lean a pixel out of its measured width.
    assert max(b.width for b in boxes[2:]) <= (300 if multi else 200) + 1
    low, high = np.array([b.min for b in boxes]) + 1.5, np.array([b.max for b in boxes]) - 1.5
    meets = ((low[:, None] < high[None]) & (low[None] < high[:, None])).all(2)
    assert not np.triu(meets, 1).any()


@pytest.mark.parametrize(
    ("image", "dtype", "value_range", "expected"),
    [
        (np.full((4, 8, 1), 51, np.uint8), "uint8", (0.0, 255.0), (51, 51, 51)),
        (np.full((4, 8, 3), (10, 20, 30), np.uint8), "uint8", (0.0, 255.0), (10, 20, 30)),
        (np.full((4, 8, 1), 1500, np.uint16), "uint16", (1000.0, 3500.0), (51, 51, 51)),
        (np.full((4, 8, 5), (-1, 0, 1, 9, 9), np.float32), "float32", (-1.0, 1.0), (0, 128, 255)),
        (np.full((4, 8, 2), (0.2, 9), np.float32), "float32", (0.0, 1.0), (51, 51, 51)),
        (np.full((4, 8, 1), 51, np.uint8), "uint16", (0.0, 65535.0), (51, 51, 51)),
        (np.full((3000, 6000, 1), 51, np.uint8), "uint8", (0.0, 255.0), (51, 51, 51)),
    ],
    ids=["grey", "rgb", "uint16", "five floats", "two floats", "8 bits among 16", "large"],
)
def test_images_are_shown_as_they_are(image, dtype, value_range, expected):
    settings = {**UNIT, "dtype": dtype, "value_range": value_range}
    figure = most_wrong_picture(predictions([[0, 1]], [0]), Pictures(image), ("a", "b"), Preprocessing(**settings), "t")
    (axes,) = figure.axes
    shown = axes.images[0].get_array()
    assert shown.shape == (100, 200, 3)  # twice as wide as high, as they were
    assert np.unique(shown.reshape(-1, 3), axis=0).tolist() == [list(expected)]
    pixels = drawn(figure)[0]
    assert (pixels[..., :3] == expected).all(2).sum() >= 100 * 200


def test_images_stand_upright_whatever_matplotlib_is_told():
    image = np.zeros((2, 2, 1), np.uint8)
    image[0, 0] = 77  # upper left
    with matplotlib.rc_context({"image.origin": "lower", "text.usetex": True, "figure.dpi": 33}):
        figure = most_wrong_picture(predictions([[0, 1]], [0]), Pictures(image), ("a$", "b_"), EIGHT_BIT, "t")
        pixels = drawn(figure)[0]
        box = figure.axes[0].get_window_extent()
    left, top = round(box.x0), round(len(pixels) - box.y1)
    assert (
        pixels[top : top + 200, left : left + 200, 0].tolist() == np.kron(image[..., 0], np.ones((100, 100))).tolist()
    )


def test_names_are_made_legible():
    assert legible("a\nb\t\x00\u202e\udcff") == "a\\nb\\t\\x00\\u202e\\udcff"
    assert legible("naïve Žluťoučký кот $x^2$") == "naïve Žluťoučký кот $x^2$"
    assert legible("\U0001f9ff\U000e0041").isprintable()
    if not set(FALLBACKS) & set(matplotlib.font_manager.get_font_names()):
        assert legible("猫") == "\\u732b"


def test_long_names_are_cut_in_the_middle():
    assert fitted("short", 200, 9) == "short"
    assert fitted("", 200, 9) == "(no name)"
    cut = fitted("n01234567 some very long name of a class that ends in number 17", 150, 9)
    assert cut.startswith("n0123")
    assert cut.endswith("17")
    assert "…" in cut
    assert 130 < text_width(cut, 9) <= 150
    assert fitted("x" * 10_000_000, 150, 9).count("…") == 1


def test_a_report_is_whole_and_repeatable(tmp_path):
    given = made(10, 16, bad={"\n": "bad"})
    for name in ("one", "two"):
        write_report(tmp_path / name, given, Pictures(GREY), HOSTILE, EIGHT_BIT, "$t")
    found = {str(p.relative_to(tmp_path / "one")) for p in (tmp_path / "one").rglob("*") if p.is_file()}
    assert found == {"classes.csv", "predictions.csv", "pictures/confusion.png", "pictures/most-wrong.png"}
    for name in found:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    for name in ("confusion", "most-wrong"):
        with Image.open(tmp_path / "one" / "pictures" / f"{name}.png") as image:
            image.load()
            assert image.format == "PNG"


def test_a_report_that_cannot_be_written_is_a_fault(tmp_path):
    (tmp_path / "run").write_text("no folder")
    with pytest.raises(Fault, match="was not saved"):
        write_report(tmp_path / "run", made(2), Pictures(GREY), ("a", "b"), EIGHT_BIT, "t")
