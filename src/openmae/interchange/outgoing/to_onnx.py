"""Export to ONNX with a dynamic batch size (a detector: of one image), checked in onnxruntime before it is kept."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from openmae.config import DetectorShape
from openmae.errors import Fault, RequestError
from openmae.interchange.outgoing.detector_program import add_metadata, write_detector
from openmae.interchange.outgoing.exported import (
    BATCHES,
    as_tuple,
    checked_error,
    example_images,
    exportable_module,
    metadata,
)
from openmae.interchange.stored import StoredModel

OPSET = 18
INPUT = "images"
REQUIRED = ("onnx", "onnxscript", "onnxruntime")
MAX_BYTES = 1_900_000_000  # of weights in the file itself, for a protobuf cannot exceed 2 GiB


def check_extra() -> None:
    """Raise RequestError where the packages of the extra `onnx` are not installed."""
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise RequestError(f"--to onnx needs {', '.join(missing)}: pip install 'openmae[onnx]'")


@torch.no_grad()
def write_onnx(path: Path, model: StoredModel, pool: str) -> float:
    """Write the ONNX file, and NAME.onnx.data beside it where the weights are too large for one file.

    Returns:
        The largest difference from our model's outputs, relative to the largest value, at batch sizes 1, 2 and 5; of a
        detector's objects.

    Raises:
        RequestError: this torch does not export the detector.
        Fault: it differs, or cannot be exported.
    """
    if isinstance(model.shape, DetectorShape):
        with quiet():
            error, _ = write_detector(path, model, OPSET, MAX_BYTES, run_onnx)
        add_metadata(path, metadata(model, (), pool))
        return error
    module, outputs = exportable_module(model, pool)
    size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    with quiet():
        program = torch.onnx.export(
            module,
            (example_images(model, 2),),
            input_names=[INPUT],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():  # stack traces, which name folders of this machine
            node.metadata_props.clear()
        program.model.metadata_props.update(metadata(model, outputs, pool))
        program.save(path, external_data=size > MAX_BYTES)
    expected = [as_tuple(module(example_images(model, batch))) for batch in BATCHES]
    return checked_error("the ONNX file", [run_onnx(path, example_images(model, batch)) for batch in BATCHES], expected)


def run_onnx(path: Path, images: Tensor) -> tuple[Tensor, ...]:
    """The outputs of an ONNX file, run in onnxruntime on the CPU."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs = session.run(None, {INPUT: images.numpy()})
    except Exception as error:  # onnxruntime has many exception classes
        raise Fault(f"onnxruntime does not run the ONNX file: {str(error)[:300]}") from error
    return tuple(torch.from_numpy(values) for values in outputs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's progress messages and warnings, which are of no use to a user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
