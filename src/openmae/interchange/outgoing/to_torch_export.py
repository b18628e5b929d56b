"""To torch.export's .pt2, with a free batch size, read back and checked before it is kept."""

import io
from pathlib import Path

import torch

from openmae.interchange.outgoing.exported import BATCHES, as_tuple, checked_error, exportable, metadata, some_images
from openmae.interchange.stored import StoredModel

METADATA_FILE = "openmae.json"  # in the archive: `torch.export.load(path, extra_files={"openmae.json": ""})`


@torch.no_grad()
def write_torch_export(path: Path, model: StoredModel, pool: str) -> float:
    """Write the file.

    Returns:
        The largest difference to our model's outputs, relative to the largest value, at batches of 1, 2 and 5.

    Raises:
        Fault: it differs.
    """
    module, outputs = exportable(model, pool)
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (some_images(model, 2),), dynamic_shapes=({0: batch},))
    values = metadata(model, outputs, pool)
    lines = ",\n".join(f' "{name}": {value}' for name, value in values.items())
    whole = io.BytesIO()  # given a file, torch's own writer ends the process where the disk is full
    torch.export.save(program, whole, extra_files={METADATA_FILE: f"{{\n{lines}\n}}\n"})
    path.write_bytes(whole.getbuffer())
    read = torch.export.load(path).module()
    expected = [as_tuple(module(some_images(model, batch))) for batch in BATCHES]
    found = [as_tuple(read(some_images(model, batch))) for batch in BATCHES]
    return checked_error("the exported program", found, expected)
