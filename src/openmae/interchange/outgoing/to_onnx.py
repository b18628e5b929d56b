"""To ONNX, with a free batch size, checked in onnxruntime before it is kept."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from openmae.errors import Fault, RequestError
from openmae.interchange.outgoing.exported import BATCHES, as_tuple, checked_error, exportable, metadata, some_images
from openmae.interchange.stored import StoredModel

OPSET = 18
INPUT = "images"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
MAX_BYTES = 1_900_000_000  # of weights within the file: a protobuf ends at 2 GiB
DATA_ENDING = ".data"  # of the file beside it that holds what is larger


def check_extra() -> None:
    """Raise RequestError where the extra is not installed."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise RequestError(f"--to onnx needs {', '.join(absent)}: pip install 'openmae[onnx]'")


@torch.no_grad()
def write_onnx(path: Path, model: StoredModel, pool: str) -> float:
    """Write the file, and beside it NAME.onnx.data where the weights are too large for one.

    Returns:
        The largest difference to our model's outputs, relative to the largest value, at batches of 1, 2 and 5.

    Raises:
        Fault: it differs, or cannot be exported.
    """
    module, outputs = exportable(model, pool)
    size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    with quiet():
        program = torch.onnx.export(
            module,
            (some_images(model, 2),),
            input_names=[INPUT],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props.update(metadata(model, outputs, pool))
        program.save(path, external_data=size > MAX_BYTES)
    expected = [as_tuple(module(some_images(model, batch))) for batch in BATCHES]
    return checked_error("the ONNX file", [run_onnx(path, some_images(model, batch)) for batch in BATCHES], expected)


def run_onnx(path: Path, images: Tensor) -> tuple[Tensor, ...]:
    """The file's outputs in onnxruntime, on the CPU."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = session.run(None, {INPUT: images.numpy()})
    except Exception as error:  # onnxruntime has a class of its own for every ending
        raise Fault(f"onnxruntime does not run the ONNX file: {str(error)[:300]}") from error
    return tuple(torch.from_numpy(values) for values in found)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter's progress and warnings are about its own workings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
