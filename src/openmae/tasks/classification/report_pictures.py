"""The pictures of a classifier's report: the confusion matrix, the most wrong images."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from openmae.config import Preprocessing
from openmae.data.sources.open import Source
from openmae.inference.metrics import Predictions, class_counts, confusion_counts, interval, losses, predicted_labels
from openmae.pictures.captioned import IMAGE_HEIGHT, CaptionedImage, captioned_grid
from openmae.pictures.confusion import draw_confusion
from openmae.pictures.text import fitted, per_cent, text_width

if TYPE_CHECKING:  # it takes half a second, and most commands draw nothing
    from matplotlib.figure import Figure

MAX_DRAWN = 100  # classes; of more than these only the most confused are drawn
MAX_CONFUSED = 30
MAX_WRONG = 24


def confusion_picture(predictions: Predictions, classes: tuple[str, ...], title: str) -> "Figure":
    """The confusion matrix, a row for each true class; of more than 100 classes the 30 most confused."""
    pairs, images = confusion_counts(predictions), class_counts(predictions)
    is_part = len(classes) > MAX_DRAWN
    ids = _most_confused(pairs, images)[:MAX_CONFUSED] if is_part else np.arange(len(classes))
    right, count = int(pairs[pairs[:, 0] == pairs[:, 1], 2].sum()), len(predictions.indices)
    low, high = (100 * bound for bound in interval(right, count))
    most = "most confused" if right < count else "most frequent"
    part = f" of the {len(ids)} {most} of {len(classes)} classes" if is_part else ""
    return draw_confusion(
        _matrix(pairs, ids, len(classes)),
        images[ids],
        [classes[k] for k in ids],
        title=f"Confusion matrix{part}: {title}",
        subtitle=f"Top-1 {100 * right / count:.1f} % of {count} images (95 % interval: {low:.1f} to {high:.1f} %)"
        f"{_unreadable(predictions)}.",
    )


def _most_confused(pairs: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.int64]:
    """All classes, those of the pair most often confused first; last those never confused, by number of images."""
    wrong = pairs[pairs[:, 0] != pairs[:, 1]]
    num_classes = len(images)
    codes, each = np.unique(wrong[:, :2].min(1) * num_classes + wrong[:, :2].max(1), return_inverse=True)
    order = np.argsort(-np.bincount(each, wrong[:, 2], minlength=len(codes)), kind="stable")
    by_pair = np.stack(np.divmod(codes[order], num_classes), axis=1).ravel()
    ids = np.concatenate([by_pair, np.argsort(-images, kind="stable")])
    return ids[np.sort(np.unique(ids, return_index=True)[1])]


def _matrix(pairs: NDArray[np.int64], ids: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """(rows, columns) images by true and predicted class of `ids`; all other predictions are one last column."""
    position = np.full(num_classes, len(ids))
    position[ids] = np.arange(len(ids))
    counts = np.zeros((len(ids) + 1, len(ids) + 1), np.int64)
    np.add.at(counts, (position[pairs[:, 0]], position[pairs[:, 1]]), pairs[:, 2])
    return counts[:-1, : len(ids) + (len(ids) < num_classes)]


def most_wrong_picture(
    predictions: Predictions, source: Source, classes: tuple[str, ...], preprocessing: Preprocessing, title: str
) -> "Figure":
    """Up to 24 wrong images, the highest loss first, with what they are and what was predicted.

    Without a wrong one, those with the highest loss.
    """
    loss = losses(predictions)
    is_wrong = predicted_labels(predictions) != predictions.targets.numpy()
    is_wrong = is_wrong.any(1) if predictions.is_multi_label else is_wrong
    candidates = np.flatnonzero(is_wrong) if is_wrong.any() else np.arange(len(loss))
    rows = candidates[np.argsort(-loss[candidates], kind="stable")][:MAX_WRONG].tolist()
    width = IMAGE_HEIGHT * 3 // 2 if predictions.is_multi_label else IMAGE_HEIGHT  # wide enough for three labels
    if is_wrong.any():
        what = f"The {len(rows)} most wrong images" if len(rows) > 1 else "The only wrong image"
        below = (
            f"{int(is_wrong.sum())} of {len(loss)} images are wrong{_unreadable(predictions)}; the highest loss first."
        )
    else:
        what = f"No image is wrong; the {len(rows)} least certain"
        below = f"All {len(loss)} images are right{_unreadable(predictions)}; the highest loss first."
    tiles = [
        CaptionedImage(int(predictions.indices[row]), *_captions(predictions, classes, row, width), bool(is_wrong[row]))
        for row in rows
    ]
    return captioned_grid(f"{what}: {title}", below, tiles, source, preprocessing, width)


def _captions(predictions: Predictions, classes: tuple[str, ...], row: int, width: int) -> tuple[str, str]:
    """The captions with the true and the predicted class or labels, each a line of `width` pixels."""
    logits, predicted = predictions.logits[row].double(), predicted_labels(predictions)[row]
    if not predictions.is_multi_label:
        confidence = f" ({per_cent(float(torch.softmax(logits, 0)[predicted]))})"
        true_name = classes[int(predictions.targets[row])]
        return _caption("true ", [true_name], "", width), _caption(
            "predicted ", [classes[predicted]], confidence, width
        )
    true = predictions.targets[row].numpy() > 0
    # The labels that are wrong come first, of them the furthest off: they are why the image is here.
    order = np.lexsort((-logits.abs().numpy(), true == predicted))
    true_names, predicted_names = ([classes[k] for k in order if is_set[k]] for is_set in (true, predicted))
    return _caption("true ", true_names, "", width), _caption("predicted ", predicted_names, "", width)


def _caption(start: str, names: list[str], end: str, width: int) -> str:
    """`start`, at most three names, shortened evenly where they do not fit, and `end`."""
    end = (f" +{len(names) - 3}" if len(names) > 3 else "") + end
    names = names[:3]
    room: float = width - text_width(start + ", " * (len(names) - 1) + end, 9)
    is_roomy = sum(text_width(fitted(name, width, 9), 9) for name in names) <= room
    each = room if is_roomy else room / len(names)
    return start + (", ".join(fitted(name, each, 9) for name in names) or "no label") + end


def _unreadable(predictions: Predictions) -> str:
    count = len(predictions.bad)
    return f", {count} more cannot be read" if count else ""
