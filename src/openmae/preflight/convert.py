"""Checks of `convert`: the output path, the model."""

import os
from pathlib import Path

from openmae.config import ConvertConfig
from openmae.errors import RequestError, shown
from openmae.interchange.incoming.named import check_init
from openmae.run.lock import check_file_path
from openmae.training.checkpoint_name import CHECKPOINT_NAME

ONNX_DATA_SUFFIX = ".data"  # of the file that holds the weights of an ONNX model above 2 GB


def check_convert(config: ConvertConfig) -> None:
    """Raise RequestError where the model cannot be found or OUT cannot be written."""
    config = config.plain()
    check_output_path(config)
    check_init(config.init)


def check_output_path(config: ConvertConfig) -> None:
    """Raise RequestError where OUT exists, cannot be created, or lies in a run's folder of checkpoints."""
    out = Path(config.out)
    written = [out, out.with_name(out.name + ONNX_DATA_SUFFIX)] if config.to == "onnx" else [out]
    for path in written:
        if os.path.lexists(path):
            raise RequestError(f"OUT {shown(path)} exists already: choose another name")
    check_file_path(out, "OUT")
    parents = Path(os.path.realpath(out)).parents
    if any(CHECKPOINT_NAME.fullmatch(parent.name) or parent.name == "checkpoints" for parent in parents):
        raise RequestError(f"OUT {shown(out)} lies among a run's checkpoints, which are deleted as it goes on")
