"""`convert`: a model that is there, and a name to write it under."""

import os
import re
from pathlib import Path

from openmae.config import ConvertConfig
from openmae.errors import RequestError, shown
from openmae.interchange.incoming.named import check_init

DATA_ENDING = ".data"  # of the file beside an ONNX file that holds what is larger


def check_convert(config: ConvertConfig) -> None:
    """Raise RequestError where there is nothing to convert or no place for it."""
    config = config.plain()
    check_out(config)
    check_init(config.init)


def check_out(config: ConvertConfig) -> None:
    """Raise RequestError where OUT exists, is among a run's checkpoints, or can be no file."""
    out = Path(config.out)
    beside = [out, out.with_name(out.name + DATA_ENDING)] if config.to == "onnx" else [out]
    for path in beside:
        if os.path.lexists(path):
            raise RequestError(f"OUT {shown(path)} exists already: choose another name")
    there = next(place for place in out.absolute().parents if place.exists())
    if not there.is_dir():
        raise RequestError(f"OUT {shown(out)} cannot be written: {shown(there)} is no folder")
    inside = Path(os.path.realpath(out)).parents
    if any(re.fullmatch(r"step-\d{8,}", place.name) or place.name == "checkpoints" for place in inside):
        raise RequestError(f"OUT {shown(out)} lies among a run's checkpoints, which are deleted as it goes on")
