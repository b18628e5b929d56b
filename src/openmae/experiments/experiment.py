"""`openmae experiment NAME`."""

from typing import Any

from openmae.config import ExperimentConfig
from openmae.experiments.figure_9 import figure_9


def experiment(config: ExperimentConfig) -> dict[str, Any]:
    """Run a table or figure of the paper, or go on with it; results lie in `config.out`.

    Raises:
        RequestError: a wrong setting or unusable data.
        Interrupted: a signal; the same command goes on.
    """
    return {"figure-9": figure_9}[config.name](config)
