"""The report of a classifier: tables of its classes and of its predictions, and pictures."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from openmae.config import Preprocessing
from openmae.data.sources.open import Source
from openmae.inference.metrics import (
    Predictions,
    average_precisions,
    check,
    class_counts,
    confusion_counts,
    losses,
    predicted_labels,
)
from openmae.machine.files import write_csv
from openmae.pictures.text import save_picture
from openmae.tasks.classification.report_pictures import confusion_picture, most_wrong_picture


def write_report(
    run: Path,
    predictions: Predictions,
    source: Source,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    title: str,
) -> None:
    """Write RUN/classes.csv, RUN/predictions.csv, RUN/pictures/confusion.png (one label only) and most-wrong.png.

    The tables are CSV (RFC 4180) in UTF-8; bytes in names that are not Unicode are escaped. Recall, precision and the
    like are in per cent, probabilities 0..1; what is not defined (the recall of a class without images) is empty.

    Raises:
        RequestError: no image could be read.
        Fault: a score is not finite, or a file cannot be written.
    """
    assert len(classes) == predictions.num_classes, (len(classes), predictions.num_classes)
    check(predictions)
    if predictions.is_multi_label:
        class_rows, image_rows = _multi_label_class_rows, _multi_label_rows
    else:
        class_rows, image_rows = _class_rows, _single_label_rows
    write_csv(run / "classes.csv", class_rows(predictions, classes))
    names = [source.name(int(index)) for index in predictions.indices]
    write_csv(run / "predictions.csv", image_rows(predictions, classes, names))
    if not predictions.is_multi_label:
        save_picture(run / "pictures" / "confusion.png", confusion_picture(predictions, classes, title))
    save_picture(
        run / "pictures" / "most-wrong.png", most_wrong_picture(predictions, source, classes, preprocessing, title)
    )


def _class_rows(predictions: Predictions, classes: tuple[str, ...]) -> list[list[object]]:
    pairs = confusion_counts(predictions)
    is_right = pairs[:, 0] == pairs[:, 1]
    right = np.bincount(pairs[is_right, 0], pairs[is_right, 2], minlength=len(classes))
    predicted = np.bincount(pairs[:, 1], pairs[:, 2], minlength=len(classes))
    wrong = pairs[~is_right]
    wrong = wrong[np.lexsort((wrong[:, 1], -wrong[:, 2], wrong[:, 0]))]  # most images first, then lower class
    worst = {int(true): pair for true, *pair in wrong[np.unique(wrong[:, 0], return_index=True)[1]]}
    rows: list[list[object]] = [
        ["class", "images", "recall", "precision", "f1", "most_confused_with", "images_confused"]
    ]
    for k, (name, images) in enumerate(zip(classes, class_counts(predictions).tolist(), strict=True)):
        shares = [
            _per_cent(right[k], images),
            _per_cent(right[k], predicted[k]),
            _per_cent(2 * right[k], images + predicted[k]),
        ]
        confused = [classes[worst[k][0]], worst[k][1]] if k in worst else ["", ""]
        rows.append([name, images, *shares, *confused])
    return rows


def _multi_label_class_rows(predictions: Predictions, classes: tuple[str, ...]) -> list[list[object]]:
    predicted, true = predicted_labels(predictions), predictions.targets.numpy() > 0
    right = (predicted & true).sum(0)
    rows: list[list[object]] = [["class", "positives", "average_precision", "precision", "recall"]]
    for k, average in enumerate(average_precisions(predictions)):
        positives = int(true[:, k].sum())
        average_text = "" if np.isnan(average) else f"{100 * average:.4f}"
        shares = [_per_cent(right[k], predicted[:, k].sum()), _per_cent(right[k], positives)]
        rows.append([classes[k], positives, average_text, *shares])
    return rows


def _per_cent(part: float, whole: float) -> str:
    """As text in per cent; empty where the whole is 0."""
    return f"{100 * part / whole:.4f}" if whole else ""


def _single_label_rows(predictions: Predictions, classes: tuple[str, ...], names: list[str]) -> Iterable[list[object]]:
    yield ["name", "label", "predicted", "confidence", "true_probability", "unreadable"]
    targets, predicted = predictions.targets.tolist(), predicted_labels(predictions).tolist()
    confidence, true = _confidence(predictions), np.exp(-losses(predictions))
    for row, name in enumerate(names):
        yield [name, classes[targets[row]], classes[predicted[row]], f"{confidence[row]:.6g}", f"{true[row]:.6g}", ""]
    for name, reason in predictions.bad.items():
        yield [name, "", "", "", "", reason]


def _multi_label_rows(predictions: Predictions, classes: tuple[str, ...], names: list[str]) -> Iterable[list[object]]:
    """As `_single_label_rows`, with lists of labels as JSON; probabilities are means over the classes' yes or no."""
    yield ["name", "label", "predicted", "confidence", "true_probability", "unreadable"]
    predicted, true = predicted_labels(predictions), predictions.targets.numpy() > 0
    confidence = _confidence(predictions)
    for row, name in enumerate(names):
        yes = torch.sigmoid(predictions.logits[row].double()).numpy()
        lists = [
            json.dumps([classes[k] for k in np.flatnonzero(is_set[row])], ensure_ascii=False)
            for is_set in (true, predicted)
        ]
        yield [name, *lists, f"{confidence[row]:.6g}", f"{np.where(true[row], yes, 1 - yes).mean():.6g}", ""]
    for name, reason in predictions.bad.items():
        yield [name, "", "", "", "", reason]


def _confidence(predictions: Predictions) -> NDArray[np.float64]:
    """(n,) the probability of the predicted class; several labels: the mean over classes of that of yes or no."""
    if predictions.is_multi_label:
        return torch.sigmoid(predictions.logits.abs()).mean(1, dtype=torch.float64).numpy()
    own = Predictions(
        logits=predictions.logits,
        targets=torch.from_numpy(predicted_labels(predictions)),
        indices=predictions.indices,
        bad={},
    )
    return np.exp(-losses(own))
