"""`openmae inspect`: what a data set, a run or a model is, and what is wrong with it."""

import os
from pathlib import Path
from typing import Any

from openmae.config import InspectConfig, flag_of
from openmae.errors import RequestError, shown

WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".onnx")
PUBLIC_PREFIXES = ("hf:", "timm:")
DATA_SETTINGS = ("limit", "tiles", "value_range", "axes", "max_pixels")  # settings that apply to data sets only


def inspect(config: InspectConfig) -> dict[str, Any]:
    """Report on the data set, run or model at `path`, on the screen and, with `out`, as JSON and pictures.

    Returns:
        The content of `inspect.json`; its `kind` is data, run or model.

    Raises:
        RequestError: there is no such thing, or --out exists.
    """
    config = config.plain()
    kind = "data" if config.path is None else kind_of(config.path)
    for name in config.explicit() if kind != "data" else ():
        if name in DATA_SETTINGS:
            raise RequestError(
                f"{flag_of(name)} is for a data set, and {shown(str(config.path))} is a {kind}: leave it out"
            )
    if kind == "model":
        from openmae.tasks.inspect.model import inspect_model

        return inspect_model(config)
    if kind == "run":
        from openmae.tasks.inspect.run import inspect_run

        return inspect_run(config)
    from openmae.tasks.inspect.data import inspect_data

    return inspect_data(config)


def kind_of(path: str) -> str:
    """What is at `path`: "run", "model" or, for everything else, "data", whose inspection reports errors.

    Raises:
        RequestError: it cannot be read.
    """
    if path.startswith(PUBLIC_PREFIXES):
        return "model"
    if path.startswith("embedded:"):
        return "data"
    try:
        location = Path(path)
        if location.is_file():
            return "model" if location.suffix.lower() in WEIGHTS else "data"
        if not location.is_dir():
            return "data"
        names = set(os.listdir(location))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise RequestError(f"cannot open {shown(path[:200])}: {why}") from None
    if "config.json" in names and names & {"metrics.jsonl", "summary.json"}:
        return "run"
    if names & {"model.safetensors", "manifest.json"}:
        return "model"
    has_weights = any(os.path.splitext(name)[1].lower() in WEIGHTS for name in names)
    return "model" if "config.json" in names and has_weights else "data"
