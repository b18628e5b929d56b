"""Checks of `inspect`: whether PATH is a data set, a run or a model, and whether the settings suit that."""

import os
from pathlib import Path

from openmae.config import InspectConfig, flag_of, paths_of
from openmae.data.sources.named import EMBEDDED, check_named, folder_of
from openmae.errors import RequestError, shown
from openmae.interchange.incoming.named import HUB, TIMM, check_init
from openmae.run.lock import check_run_folder

CHECKPOINT_EXTENSIONS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".onnx")
DATA_ONLY_SETTINGS = (  # not for a run or a model
    *("limit", "tiles", "value_range", "axes", "max_pixels"),
    *("class_names", "palette", "ignore_index", "reduce_zero_label"),
)


def check_inspect(config: InspectConfig) -> None:
    """Raise RequestError where PATH names nothing, a setting does not suit it, or the report cannot be written."""
    config = config.plain()
    kind = requested_kind(config)
    if config.out is not None:
        check_report_folder(config.out, *(map(folder_of, paths_of(config.dataset)) if kind == "data" else ()))
    if kind == "data":
        check_named(config.dataset, takes_json=True)
    elif kind == "model" and config.path is not None:
        check_init(config.path)


def requested_kind(config: InspectConfig) -> str:
    """The kind of thing to inspect (`kind_of`). Raises RequestError where a setting suits only another kind."""
    kind = "data" if config.path is None else kind_of(config.path)
    for name in config.explicit() if kind != "data" else ():
        if name in DATA_ONLY_SETTINGS:
            raise RequestError(
                f"{flag_of(name)} is for a data set, and {shown(str(config.path))} is a {kind}: leave it out"
            )
    return kind


def kind_of(path: str) -> str:
    """What the path names: "run", "model" or, for all else, "data", also where nothing is there: opening it says so.

    Raises:
        RequestError: the folder cannot be listed.
    """
    if path.startswith((HUB, TIMM)):
        return "model"
    if path.startswith(EMBEDDED):
        return "data"
    try:
        place = Path(path)
        if place.is_file():
            return "model" if place.suffix.lower() in CHECKPOINT_EXTENSIONS else "data"
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
    has_weights = any(os.path.splitext(name)[1].lower() in CHECKPOINT_EXTENSIONS for name in names)
    return "model" if "config.json" in names and has_weights else "data"


def check_report_folder(out: str, *protected: str) -> Path:
    """The folder of the report, to be created.

    Args:
        protected: folders of a data set, into which nothing may be written.

    Raises:
        RequestError: it exists and is not empty, cannot be created, or lies in a protected folder.
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
