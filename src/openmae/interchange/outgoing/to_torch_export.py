"""Export to torch.export's .pt2 with a dynamic batch size, read back and checked before it is kept."""

import io
from pathlib import Path

import torch

from openmae.config import DetectorShape
from openmae.errors import RequestError
from openmae.interchange.outgoing.exported import (
    BATCHES,
    as_tuple,
    checked_error,
    example_images,
    exportable_module,
    metadata,
)
from openmae.interchange.stored import StoredModel

METADATA_FILE = "openmae.json"  # in the archive: `torch.export.load(path, extra_files={"openmae.json": ""})`


@torch.no_grad()
def write_torch_export(path: Path, model: StoredModel, pool: str) -> float:
    """Write the .pt2 file.

    Returns:
        The largest difference from our model's outputs, relative to the largest value, at batch sizes 1, 2 and 5.

    Raises:
        RequestError: it is a detector.
        Fault: it differs.
    """
    if isinstance(model.shape, DetectorShape):
        raise RequestError(
            "--to torch-export does not hold a detector, for torchvision's non-maximum suppression asks how many boxes "
            "there are while it is exported: --to onnx holds it whole, --part encoder its encoder"
        )
    module, outputs = exportable_module(model, pool)
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (example_images(model, 2),), dynamic_shapes=({0: batch},))
    for graph_module in program.graph_module.modules():
        for node in graph_module.graph.nodes:
            node.meta.pop("stack_trace", None)  # it names folders of this machine
    values = metadata(model, outputs, pool)
    lines = ",\n".join(f' "{name}": {value}' for name, value in values.items())
    buffer = io.BytesIO()  # writing to a file, torch aborts the process where the disk is full
    torch.export.save(program, buffer, extra_files={METADATA_FILE: f"{{\n{lines}\n}}\n"})
    path.write_bytes(buffer.getbuffer())
    loaded = torch.export.load(path).module()
    expected = [as_tuple(module(example_images(model, batch))) for batch in BATCHES]
    outputs_read = [as_tuple(loaded(example_images(model, batch))) for batch in BATCHES]
    return checked_error("the exported program", outputs_read, expected)
