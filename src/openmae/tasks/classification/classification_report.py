"""The report of a classifier: tables of its classes and of its answers, beside the pictures."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from openmae.config import Preprocessing
from openmae.data.sources.open import Source
from openmae.inference.metrics import (
    Predictions,
    answers,
    average_precisions,
    check,
    confusion,
    images_of_classes,
    losses,
)
from openmae.machine.files import atomic_write, disk_faults
from openmae.pictures.text import DPI
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

    The tables are UTF-8 as in RFC 4180; in names, what is no Unicode stands as an escape. Shares of a class are in per
    cent, probabilities 0..1; what is not defined (the recall of a class without images) is empty.

    Raises:
        RequestError: no image could be read.
        Fault: a score is not finite, or a file cannot be written.
    """
    assert len(classes) == predictions.num_classes, (len(classes), predictions.num_classes)
    check(predictions)
    table, answered = (_label_rows, _many_rows) if predictions.is_multi_label else (_class_rows, _one_rows)
    write_csv(run / "classes.csv", table(predictions, classes))
    names = [source.name(int(index)) for index in predictions.indices]
    write_csv(run / "predictions.csv", answered(predictions, classes, names))
    if not predictions.is_multi_label:
        save_picture(run / "pictures" / "confusion.png", confusion_picture(predictions, classes, title))
    save_picture(
        run / "pictures" / "most-wrong.png", most_wrong_picture(predictions, source, classes, preprocessing, title)
    )


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write a table whole or not at all."""
    with (
        disk_faults(path),
        atomic_write(path) as partial,
        open(partial, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        csv.writer(file).writerows(rows)


def save_picture(path: Path, figure: Figure) -> None:
    """Write a picture whole or not at all."""
    with disk_faults(path), atomic_write(path) as partial:
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
