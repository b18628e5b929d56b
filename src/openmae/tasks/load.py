"""From `--init` to a model that encodes and reconstructs: what `openmae.load` returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openmae.config import MASKS, Grid, MAEShape, Preprocessing, check_name, check_range
from openmae.data.augment import centre_box, resized_crop
from openmae.data.chance import sample_keys
from openmae.data.decode import MAX_PIXELS, BadImage, decode, from_picture
from openmae.data.preprocess import conform, normalise
from openmae.errors import RequestError, shown
from openmae.model import cost
from openmae.model.mae import MAE
from openmae.tasks.masks import MaskSampler, described_mask, read_mask, to_device
from openmae.tasks.reconstruction import Reconstruction, reconstruct_patches
from openmae.training.checkpoint import MODEL, newest_checkpoint, read_model
from openmae.training.device import pick_device

# A path, a picture, or an array H × W × C (or H × W) of uint8, uint16 or float32.
ImageLike = str | Path | Image.Image | np.ndarray


def find_model(init: str) -> Path:
    """The model.safetensors that an `--init` names: of a run folder, of a checkpoint, or the file itself.

    Raises:
        RequestError: there is none.
    """
    path = Path(init)
    if path.is_file():
        return path
    if (path / MODEL).is_file():
        return path / MODEL
    if path.is_dir():
        checkpoint, damaged = newest_checkpoint(path)
        if checkpoint is not None:
            return checkpoint.folder / MODEL
        told = "; ".join(damaged) or "it has neither model.safetensors nor checkpoints/"
        raise RequestError(f"--init {init} holds no model: {told}")
    raise RequestError(f"--init {init} does not exist: give a run folder, a checkpoint or a model.safetensors")


def read_description(path: Path) -> tuple[dict[str, Tensor], MAEShape, Preprocessing, dict[str, Any]]:
    """Weights, shape, preprocessing and the whole description of a model.safetensors of ours.

    Raises:
        RequestError: it cannot be read or describes no masked autoencoder.
    """
    weights, description = read_model(path)
    try:
        shape = MAEShape.from_dict(description["shape"])
        preprocessing = Preprocessing.from_dict(description["preprocessing"])
        masking = description.get("masking") or {}
        check_name("masking", masking.get("kind"), MASKS)
        check_range("masking ratio", masking.get("ratio"), 0, 1)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise RequestError(f"{path} has a description that does not make a model: {error!r}") from None
    described = cost.num_parameters(shape) + cost.num_positions(shape)
    held = sum(tensor.numel() for tensor in weights.values())
    if described > 2 * held + 1_000_000:  # a hostile description must not allocate a model of any size
        raise RequestError(f"{path} describes a model of {described:,} values and holds {held:,}: it is damaged")
    return weights, shape, preprocessing, description


def load_weights(mae: MAE, weights: dict[str, Tensor], where: str, grid: Grid | None = None) -> None:
    """Put weights into a model of the same shape.

    Args:
        grid: of the image size that the weights were trained at; where it is not the model's own, the model
            keeps its fixed sin-cos positions.

    Raises:
        RequestError: a weight is missing, unknown or of another shape; the message names the first.
    """
    own = mae.state_dict()
    is_same_grid = grid is None or grid == mae.encoder.shape.grid
    positions = {name for name in own if name.endswith("pos_embed")}
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights:
            raise RequestError(f"{where} lacks {name} {tuple(own[name].shape)}: it is a checkpoint of another model")
        if name not in own:
            raise RequestError(f"{where} has {name}, which this model does not: it is a checkpoint of another model")
        if weights[name].shape != own[name].shape and (is_same_grid or name not in positions):
            raise RequestError(
                f"{where} is a checkpoint of another shape: {name} is {tuple(weights[name].shape)} there and "
                f"{tuple(own[name].shape)} here; leave the model's flags out to take its shape"
            )
    fitting = {name: value for name, value in weights.items() if is_same_grid or name not in positions}
    mae.load_state_dict(fitting, strict=is_same_grid)


def len_of(images: object) -> int:
    return len(images) if isinstance(images, (list, tuple)) else 1


@dataclass(frozen=True)
class Model:
    """A trained masked autoencoder with its preprocessing.

    Attributes:
        mae: in evaluation mode.
        description: what the checkpoint says of itself: shape, preprocessing, masking, recipe, seed, step.
    """

    mae: MAE
    preprocessing: Preprocessing
    description: dict[str, Any]
    device: torch.device

    def prepare(
        self,
        images: ImageLike | Sequence[ImageLike],
        size: tuple[int, int] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> Tensor:
        """Centre-crop, resize and normalise pictures: (B, C, H, W) float32 on the device.

        Raises:
            RequestError: a picture cannot be read or does not fit the model.
        """
        if not isinstance(images, (str, Path, Image.Image, np.ndarray, list, tuple)) or len_of(images) == 0:
            raise RequestError(f"images got {type(images).__name__}: give paths, PIL images or arrays, one or several")
        items = [images] if isinstance(images, (str, Path, Image.Image, np.ndarray)) else list(images)
        size = size or self.preprocessing.image_size
        stack = torch.stack([self._prepare(item, size, max_pixels) for item in items]).to(self.device)
        return normalise(stack, self.preprocessing)

    def _prepare(self, item: ImageLike, size: tuple[int, int], max_pixels: int) -> Tensor:
        p, side = self.preprocessing, self.mae.encoder.shape.patch_size
        try:
            if isinstance(item, (str, Path)):
                array = decode(Path(item).read_bytes(), p.background, max_pixels)
            elif isinstance(item, Image.Image):
                array = from_picture(item, p.background)
            elif not isinstance(item, np.ndarray):
                raise BadImage("not a path, a PIL image or an array")
            else:
                array = np.ascontiguousarray(item[..., None] if item.ndim == 2 else item)
                if array.ndim != 3 or array.dtype not in (np.uint8, np.uint16, np.float32):
                    raise BadImage(f"{item.shape} of {item.dtype}, not H x W x C of uint8, uint16 or float32")
            array = conform(array, p.channels, p.dtype, side)
        except (BadImage, OSError) as error:
            what = shown(item) if isinstance(item, (str, Path)) else type(item).__name__
            raise RequestError(f"{what} cannot be used: {error}") from None
        return resized_crop(array, centre_box(array, size), size)

    @torch.no_grad()
    def encode(self, images: ImageLike | Sequence[ImageLike] | Tensor) -> Tensor:
        """Features of whole images, nothing masked: (B, 1 + N, width), the class token first.

        A tensor (B, C, H, W) is taken as normalised already.
        """
        prepared = images.to(self.device) if isinstance(images, Tensor) else self.prepare(images)
        return self.mae.encoder(prepared)

    @torch.no_grad()
    def reconstruct(
        self,
        images: ImageLike | Sequence[ImageLike] | Tensor,
        *,
        mask: str | None = None,
        mask_ratio: float | None = None,
        mask_file: str | None = None,
        seed: int = 0,
        undo: str = "neighbours",
        paste: bool = True,
        size: tuple[int, int] | None = None,
    ) -> Reconstruction:
        """Hide patches and fill them in; settings not given are those of the training.

        Args:
            mask, mask_ratio, mask_file: which patches are hidden (see ReconstructConfig).
            undo: for norm-pixel models, "neighbours" or "true" (leaks the answer).
            paste: show visible patches as they are.
            size: (height, width) other than the model's own.

        Raises:
            RequestError: a picture cannot be read, or the mask or size does not fit.
        """
        check_name("undo", undo, ("neighbours", "true"))
        check_name("mask", mask, MASKS)
        check_range("mask_ratio", mask_ratio, 0, 1, open_low=True, open_high=True)
        check_range("seed", seed, 0, 2**63 - 1)
        if mask_file is not None:
            mask = "given"
        prepared = images.to(self.device) if isinstance(images, Tensor) else self.prepare(images, size)
        grid = self.mae.grid(prepared)
        trained_with = self.description.get("masking", {})
        kind = mask or trained_with.get("kind", "random")
        given = read_mask(mask_file, grid) if mask_file is not None else described_mask(trained_with, grid)
        if kind == "given" and given is None:
            raise RequestError(
                f"the training's mask does not fit a grid of {grid}: give --mask random or a --mask-file"
            )
        ratio = mask_ratio if mask_ratio is not None else trained_with.get("ratio", 0.75)
        keys = torch.from_numpy(sample_keys(seed, 0, np.arange(len(prepared))))
        masking = to_device(MaskSampler(kind, ratio, grid, given)(keys), self.device)
        return reconstruct_patches(self.mae, prepared, masking, self.preprocessing, undo=undo, paste=paste)


def load(init: str, device: str | None = None) -> Model:
    """Load a run folder, a checkpoint or a model.safetensors, ready to encode and to reconstruct.

    Raises:
        RequestError: it does not exist, is damaged, or is not a masked autoencoder of ours.
    """
    path = find_model(init)
    weights, shape, preprocessing, description = read_description(path)
    mae = MAE.from_shape(shape)
    load_weights(mae, weights, str(path))
    chosen = pick_device(device)
    return Model(mae.eval().to(chosen), preprocessing, description, chosen)
