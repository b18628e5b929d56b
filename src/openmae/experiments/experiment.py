"""`openmae experiment NAME`: a table or figure of the paper, at any scale."""

from typing import Any

from openmae.config import ExperimentConfig
from openmae.experiments.figure_9 import figure_9


def experiment(config: ExperimentConfig) -> dict[str, Any]:
    """Run a table or figure of the paper, or continue one that was stopped; the results lie in `config.out`.

    Returns:
        What OUT/results.json holds.

    Raises:
        RequestError: a wrong setting or unusable data.
        Interrupted: a signal; the same command continues.
    """
    return {"figure-9": figure_9}[config.name](config)
