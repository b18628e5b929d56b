"""`inspect`: what its path is, and whether all that was asked for is of such a thing."""

import os
from pathlib import Path

from openmae.config import InspectConfig, flag_of, paths_of
from openmae.data.sources.named import check_named
from openmae.errors import RequestError, shown
from openmae.interchange.incoming.named import check_init
from openmae.run.lock import check_run_folder

WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".onnx")
PUBLIC = ("hf:", "timm:")
OF_DATA = ("limit", "tiles", "value_range", "axes", "max_pixels")  # what is said of a data set alone


def check_inspect(config: InspectConfig) -> None:
    """Raise RequestError where there is nothing to look at or no place for the report."""
    config = config.plain()
    kind = asked_kind(config)
    if config.out is not None:
        check_out(config.out, *(paths_of(config.dataset) if kind == "data" else ()))
    if kind == "data":
        check_named(config.dataset)
    elif kind == "model" and config.path is not None:
        check_init(config.path)


def asked_kind(config: InspectConfig) -> str:
    """`kind_of` the path. Raises RequestError where a setting is for another kind of thing."""
    kind = "data" if config.path is None else kind_of(config.path)
    for name in config.explicit() if kind != "data" else ():
        if name in OF_DATA:
            raise RequestError(
                f"{flag_of(name)} is for a data set, and {shown(str(config.path))} is a {kind}: leave it out"
            )
    return kind


def kind_of(path: str) -> str:
    """What is there: "run", "model" or, for all else, "data", which says itself what is wrong with it.

    Raises:
        RequestError: it cannot be looked at.
    """
    if path.startswith(PUBLIC):
        return "model"
    if path.startswith("embedded:"):
        return "data"
    try:
        place = Path(path)
        if place.is_file():
            return "model" if place.suffix.lower() in WEIGHTS else "data"
        if not place.is_dir():
            return "data"
        names = set(os.listdir(place))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise RequestError(f"cannot open {shown(path[:200])}: {why}") from None
    if "config.json" in names and names & {"metrics.jsonl", "summary.json"}:
        return "run"
    if names & {"model.safetensors", "manifest.json"}:
        return "model"
    has_weights = any(os.path.splitext(name)[1].lower() in WEIGHTS for name in names)
    return "model" if "config.json" in names and has_weights else "data"


def check_out(out: str, *protected: str) -> Path:
    """The folder to create.

    Args:
        protected: folders of a data set, into which no picture may be written.

    Raises:
        RequestError: it exists and is not empty, cannot be created, or is among the images.
    """
    path = Path(out)
    check_run_folder(path)
    try:
        if path.is_dir() and any(path.iterdir()):
            raise RequestError(f"--out {shown(out)} exists already and is not empty: choose another")
    except OSError as error:
        raise RequestError(f"--out {shown(out)} cannot be looked into: {error.strerror}") from None
    if any(Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder)) for folder in protected):
        raise RequestError(f"--out {shown(out)} lies among the images to inspect: choose another")
    return path
