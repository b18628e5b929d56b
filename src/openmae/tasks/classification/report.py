"""The report at the end of a run on labels, of classes or of numbers."""

from pathlib import Path

from openmae.config import Preprocessing
from openmae.data.sources.open import Source
from openmae.inference.metrics import Predictions
from openmae.tasks.classification.classification_report import write_report as write_classification_report
from openmae.tasks.classification.regression_report import write_regression_report


def write_report(
    run: Path,
    predictions: Predictions,
    source: Source,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    title: str,
) -> None:
    """Write the report of a classification or of a regression, whichever the predictions are of."""
    if predictions.scale is not None:
        write_regression_report(run, predictions, source, preprocessing, title)
    else:
        write_classification_report(run, predictions, source, classes, preprocessing, title)
