"""What fine-tuning and probing share: the labelled data, the loss, the metrics and what is printed of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from openmae.config import ClassifierShape, LabelledConfig, Preprocessing
from openmae.data.labels.labelled import LabelledData, open_labelled
from openmae.data.sources.reading import reading_options
from openmae.errors import RequestError
from openmae.inference.metrics import Predictions, compute_metrics
from openmae.machine.files import disk_faults, write_json
from openmae.run.folder import PreviousRun
from openmae.training.checkpoint import MODEL


def open_data(
    config: LabelledConfig, model: Preprocessing | None, background: float | None = None, needs_validation: bool = False
) -> LabelledData:
    """Open the labelled splits of DATA by `reading_options`. Raises RequestError where they cannot be used."""
    return open_labelled(
        config.dataset,
        split_rules=config.split_rules,
        labels=config.labels,
        label_file=config.label_file,
        held_out=config.held_out,
        **reading_options(config, model, background),
        needs_validation=needs_validation,
        task=config.task,
    )


def without_test(data: LabelledData) -> LabelledData:
    """The data without its test split: the final metrics are of the validation images."""
    return replace(data, test=None, final_split="split of train" if data.is_validation_split else "val")


def check_classes(previous: PreviousRun | None, data: LabelledData) -> None:
    """Raise RequestError where DATA has not the classes, or columns of numbers, of the run that is resumed (if any)."""
    if previous is None:
        return
    columns = previous.state.get("columns", [])
    if columns != list(data.columns):
        raise RequestError(
            f"{previous.config.dataset} has the numbers {', '.join(data.columns)}, the run began with "
            f"{', '.join(columns)}: restore it, or start a new run with another --out"
        )
    before = previous.state.get("classes")
    if before is None or before == list(data.classes):
        return
    if len(before) != data.num_classes:
        what = f"has {data.num_classes} classes, the run began with {len(before)}"
    else:
        new = next(name for name, old in zip(data.classes, before, strict=True) if name != old)
        what = f"has the class {new!r}, which the run did not begin with"
    raise RequestError(f"{previous.config.dataset} {what}: restore it, or start a new run with another --out")


def classification_loss(logits: Tensor, targets: Tensor, is_multi_label: bool, weights: Tensor | None) -> Tensor:
    """Cross-entropy with soft targets, or with several labels an image the mean binary one, summed over images."""
    if is_multi_label:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1).sum()
    return F.cross_entropy(logits, targets, weight=weights, reduction="sum")


def write_split(run: Path, config: LabelledConfig, data: LabelledData) -> None:
    """Write RUN/split.json: which images of train were held out and, with `--labels`, which were trained on."""
    split: dict[str, Any] = {}
    if names := data.held_out_names():
        split["held_out"] = names
    if config.labels is not None:
        split["train"] = [data.train.name(i) for i in range(len(data.train))]
    if split:
        with disk_faults(run):
            write_json(run / "split.json", split)


def named_metrics(predictions: Predictions, prefix: str = "") -> dict[str, float]:
    """`compute_metrics` with its loss renamed to `held_out_loss`, for `loss` is that of the training."""
    metrics = compute_metrics(predictions)
    metrics["held_out_loss"] = metrics.pop("loss")
    return {prefix + name: value for name, value in metrics.items()}


def result_text(summary: dict[str, Any], data: LabelledData, run: Path) -> str:
    """The last lines on the screen."""
    if data.scale is not None:
        return _regression_text(summary, data, run)
    if data.is_multi_label:
        precision = f"{summary['map']:.2f} %" if "map" in summary else "not defined (no image has any of the classes)"
        result = f"mean average precision {precision}, F1 {summary['f1']:.2f} %"
    else:
        result = (
            f"top-1 {summary['top1']:.2f} % (95 % interval {summary['top1_low']:.2f} to {summary['top1_high']:.2f})"
        )
        if "top5" in summary:
            result += f", top-5 {summary['top5']:.2f} %"
    return _closing_lines(result, summary, data, run, "classes.csv")


def _regression_text(summary: dict[str, Any], data: LabelledData, run: Path) -> str:
    lines = [f"{column:<10} {format_regression(summary, '_' + column)}" for column in data.columns]
    overall = format_regression(summary, "", is_mean=len(lines) > 1)
    return _closing_lines("\n".join([*(lines if len(lines) > 1 else []), overall]), summary, data, run, "columns.csv")


def format_regression(metrics: dict[str, Any], suffix: str, is_mean: bool = False) -> str:
    """R2 and the mean absolute error, of a column or over all columns, as text.

    Args:
        suffix: of the metrics' names: empty over all columns, `_COLUMN` for a column.
    """
    r2 = (
        f"{metrics['r2' + suffix]:.4f}" if "r2" + suffix in metrics else "not defined (all images have the same number)"
    )
    over = " (means over columns)" if is_mean else ""
    return f"R2 {r2}, mean absolute error {metrics['mae' + suffix]:.4g}{over}"


def _closing_lines(result: str, summary: dict[str, Any], data: LabelledData, run: Path, table: str) -> str:
    unreadable = f"; {summary['unreadable']:.0f} could not be read" if summary.get("unreadable") else ""
    return (
        f"{result} on {summary['images']:.0f} images of {data.final_split}{unreadable}\n"
        f"done       {run / MODEL}; see {run / 'pictures'}, {run / table} and {run / 'predictions.csv'}"
    )


def label_state(data: LabelledData) -> dict[str, Any]:
    """The classes, and columns of numbers, as a checkpoint keeps them to compare with when the run is resumed."""
    return {"classes": list(data.classes), **({"columns": list(data.columns)} if data.columns else {})}


def data_counts(data: LabelledData) -> dict[str, Any]:
    """The summary's entries about the labelled data: the final split, and how many images and classes there are."""
    return {
        "report": data.final_split,
        "report_images": len(data.final_source),
        "train_images": len(data.train),
        **({"classes": data.num_classes} if data.scale is None else {"columns": len(data.columns)}),
    }


def describe_model(
    shape: ClassifierShape, preprocessing: Preprocessing, data: LabelledData, recipe: str | None, seed: int
) -> dict[str, Any]:
    """What determines the weights or their use; no path, host, worker count or time: equal runs, equal bytes."""
    if data.scale is not None:
        return {
            "kind": "regressor",
            "shape": shape.to_dict(),
            "preprocessing": preprocessing.to_dict(),
            **data.scale.to_description(),
            "recipe": recipe,
            "seed": seed,
        }
    return {
        "kind": "classifier",
        "shape": shape.to_dict(),
        "preprocessing": preprocessing.to_dict(),
        "classes": list(data.classes),
        "is_multi_label": data.is_multi_label,
        "recipe": recipe,
        "seed": seed,
    }
