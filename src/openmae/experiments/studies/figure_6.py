"""Figure 6: what random, block and grid sampling hide of a person's images, and what a model trained with each draws.

Three of table 1f's rows: random and grid hide 75 %, blocks 50 %. The sheet has a line for each image, as the paper's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openmae.experiments.setup import Setup
from openmae.experiments.studies.study import DEFAULT, RowResult, Section, Study
from openmae.experiments.studies.table_1 import mask_rows
from openmae.experiments.trials.unseen import RECONSTRUCTED
from openmae.machine.files import atomic_write, disk_faults
from openmae.pictures.sheet import sheet

SAMPLINGS = {DEFAULT: "random, 75 %", "block 50": "block, 50 %", "grid 75": "grid, 75 %"}


def figure_6(name: str, setup: Setup) -> Study:
    """Figure 6: the three samplings, each drawn by a model that was trained with it."""
    rows = tuple(row for row in mask_rows() if row.name in SAMPLINGS)
    return Study(
        name=name,
        title="Figure 6: the samplings of masks",
        sections=(Section("sampling", rows),),
        protocols=("psnr",),
        baseline="",
        findings=held_out_losses,
        draw=draw_samplings,
        remarks=(
            "figure-6.png shows images that were not trained on, as the models of seed 0 draw them; the PSNR is of the "
            "masked pixels of these images together. Visible patches are pasted; the paper shows what the model makes "
            "of them, too.",
            "The PSNRs are of tasks of different difficulty: blocks hide half of an image, the others three quarters, "
            "and what lies among visible patches is easier to guess than what lies inside a block. The paper gives no "
            "numbers; it finds blocks harder, with a higher loss and blurred drawings, the grid easier, with sharper "
            "ones, and random sampling best for what is learned (table 1f): a higher PSNR is no better sampling.",
        ),
    )


def held_out_losses(rows: Sequence[RowResult]) -> list[str]:
    """A sentence with the held-out loss of each sampling, where it is known."""
    found = [
        f"{SAMPLINGS[row.row.name]} {np.mean(measured.details['held_out_loss']):.4f}"
        for row in rows
        if (measured := row.protocols.get("psnr")) is not None and "held_out_loss" in measured.details
    ]
    return [f"Held-out loss, on masked patches of normalised images: {'; '.join(found)}."] if found else []


def draw_samplings(path: Path, rows: Sequence[RowResult], folders: Mapping[str, Path]) -> None:
    """Draw the sheet of the trials that are done; nothing where none is.

    Args:
        folders: of these trials, by their rows.
    """
    parts = {name: _read(folders[name] / RECONSTRUCTED) for name in SAMPLINGS if name in folders}
    if not parts:
        return
    headers, columns = ["image"], [next(iter(parts.values()))["truth"]]
    for name, part in parts.items():
        headers += [f"{SAMPLINGS[name]}: masked", f"{SAMPLINGS[name]}: reconstruction"]
        columns += [part["masked"], part["prediction"]]
    lines = [list(images) for images in zip(*columns, strict=True)]
    with disk_faults(path), atomic_write(path) as partial:
        sheet(lines, headers).save(partial, format="PNG")


def _read(path: Path) -> dict[str, Tensor]:
    with disk_faults(path), np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]).float() / 255 for name in arrays.files}
