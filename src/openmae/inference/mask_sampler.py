"""Drawing the masks of a batch: random numbers from the samples' keys, turned into the model's masking."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openmae.config import Grid
from openmae.data.randomness import uniforms
from openmae.errors import RequestError
from openmae.inference.mask_file import mask_file_error
from openmae.model.masking import (
    Masking,
    block_masking,
    given_masking,
    grid_masking,
    noise_per_image,
    random_masking,
)


@dataclass(frozen=True)
class MaskSampler:
    """Draws the masking of each sample as a pure function of its key.

    Attributes:
        kind: random, block, grid or given.
        ratio: share of patches to hide, for random and block.
        grid: rows and columns of patches.
        given: (rows, columns) bool, True where hidden, for the kind given.
    """

    kind: str
    ratio: float
    grid: Grid
    given: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind == "grid" and self.grid == (1, 1):
            raise RequestError("--mask grid on a single patch leaves no patch masked: give a smaller --patch-size")

    def __call__(self, keys: Tensor) -> Masking:
        """The masking of samples with these (B,) int64 keys, on the CPU."""
        if self.kind == "grid":
            return grid_masking(len(keys), self.grid)
        if self.kind == "given":
            assert self.given is not None, "the kind given comes with a mask"
            return given_masking(self.given.flatten()[None].expand(len(keys), -1))
        noise = torch.from_numpy(uniforms(keys.numpy(), noise_per_image(self.kind, self.grid), "mask")).float()
        if self.kind == "random":
            return random_masking(noise, self.ratio)
        return block_masking(noise, self.grid, self.ratio)

    def describe(self) -> dict[str, Any]:
        """The masking as a checkpoint's metadata hold it; a given mask as rows of 0 and 1."""
        if self.given is None:
            return {"kind": self.kind, "ratio": self.ratio}
        rows = ["".join(map(str, row)) for row in self.given.int().tolist()]
        return {"kind": self.kind, "ratio": float(self.given.float().mean()), "given": rows}

    @property
    def num_visible(self) -> int:
        """Patches that stay visible in an image."""
        return self(torch.zeros(1, dtype=torch.int64)).num_visible


def mask_from_description(masking: dict[str, Any], grid: Grid) -> Tensor | None:
    """The given mask that a checkpoint's metadata hold, (rows, columns) bool, where it fits the grid; else None."""
    rows = masking.get("given", [])
    fits = isinstance(rows, list) and len(rows) == grid[0] and all(len(str(row)) == grid[1] for row in rows)
    return torch.tensor([[character == "1" for character in str(row)] for row in rows]) if fits else None


def to_device(masking: Masking, device: torch.device) -> Masking:
    """The masking on the device; to a GPU copied from page-locked memory, so that the CPU does not wait."""
    ids = (masking.keep_ids, masking.masked_ids)
    if device.type == "cuda":
        ids = (ids[0].contiguous().pin_memory(), ids[1].contiguous().pin_memory())  # a slice keeps its strides
    return Masking(*(tensor.to(device, non_blocking=True) for tensor in ids))


def read_mask(path: str, grid: Grid) -> Tensor:
    """A mask from a .npy file (`--mask-file`): (rows, columns) bool, True where hidden.

    Raises:
        RequestError: no such file, not booleans (0/1), another grid, or it hides all or nothing.
    """
    try:
        with Path(path).open("rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)  # np.load would take archives too
    except Exception as error:  # a header is parsed as Python and may fail in many ways
        raise mask_file_error(path, error) from None
    if values.shape != grid:
        raise RequestError(f"--mask-file {path} has shape {values.shape}, the grid of patches is {grid}")
    if values.dtype.kind not in "biu" or not np.isin(values, (0, 1)).all():
        raise RequestError(f"--mask-file {path} holds {values.dtype} values: it must hold booleans, true where hidden")
    mask = torch.from_numpy(values.astype(bool))
    if not 0 < int(mask.sum()) < mask.numel():
        raise RequestError(f"--mask-file {path} hides {int(mask.sum())} of {mask.numel()} patches: hide some, not all")
    return mask
