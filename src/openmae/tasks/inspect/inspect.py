"""`openmae inspect`: what a data set, a run or a model is, and what is wrong with it."""

from typing import Any

from openmae.config import InspectConfig
from openmae.preflight.inspect import requested_kind


def inspect(config: InspectConfig) -> dict[str, Any]:
    """Report on the data set, run or model at `path`, on the screen and, with `out`, as JSON and pictures.

    Returns:
        The content of `inspect.json`; its `kind` is data, run or model.

    Raises:
        RequestError: there is no such thing, or --out exists.
    """
    config = config.plain()
    kind = requested_kind(config)
    if kind == "model":
        from openmae.tasks.inspect.model import inspect_model

        return inspect_model(config)
    if kind == "run":
        from openmae.tasks.inspect.run import inspect_run

        return inspect_run(config)
    from openmae.tasks.inspect.data import inspect_data

    return inspect_data(config)
