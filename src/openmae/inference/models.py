"""The models that `openmae.load` returns: they give features, classes, numbers or reconstructions of images."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from openmae.config import DEFAULT_POOL, MASKS, POOLS, Preprocessing, TargetScale, check_name, check_range, grid_of
from openmae.data.augment import evaluation_box, resized_crop
from openmae.data.conformed import conform_to_model
from openmae.data.decoding.decode import MAX_PIXELS, BadImage, decode, from_pil_image, masked_array
from openmae.data.decoding.nodata import contiguous, resolve_nodata
from openmae.data.empty_patches import empty_patches_of, stack_empty_patches
from openmae.data.preprocess import normalise
from openmae.data.randomness import sample_keys
from openmae.data.resize import Pixels
from openmae.data.value_scale import scale_warning
from openmae.errors import RequestError, shown
from openmae.inference.mask_sampler import MaskSampler, mask_from_description, read_mask, to_device
from openmae.inference.reconstruction import Reconstruction, check_draws, reconstruct_patches
from openmae.inference.regression import in_own_units
from openmae.interchange.report import LoadReport
from openmae.model.heads import Classifier
from openmae.model.heads import pool as pool_tokens
from openmae.model.mae import MAE
from openmae.model.vit import ViT

# A path, a picture, or an array H × W × C (or H × W) of uint8, uint16 or float32.
ImageLike = str | Path | Image.Image | np.ndarray


def num_images(images: object) -> int:
    """How many images a list or tuple holds; anything else is one image."""
    return len(images) if isinstance(images, (list, tuple)) else 1


def check_images(images: Any) -> Any:
    """Return the images. Raises RequestError where they are of a type that cannot be images, or none are given."""
    if not isinstance(images, (str, Path, Image.Image, np.ndarray, list, tuple)) or num_images(images) == 0:
        raise RequestError(f"images got {type(images).__name__}: give paths, PIL images or arrays, one or several")
    return images


@dataclass(frozen=True)
class EncoderModel:
    """A trained encoder with its preprocessing: features of whole images, nothing masked, deterministic.

    Attributes:
        encoder: in evaluation mode; its norm is an `Identity` where a classifier's norm follows the pooling instead.
        description: the checkpoint's metadata: kind, shape, preprocessing, recipe, seed, step.
        report: what became of each weight of the file.
    """

    encoder: ViT
    preprocessing: Preprocessing
    description: dict[str, Any]
    device: torch.device
    report: LoadReport | None

    def prepare(
        self,
        images: ImageLike | Sequence[ImageLike],
        size: tuple[int, int] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> Tensor:
        """Centre-crop, resize and normalise images: (B, C, H, W) float32 on the device.

        Args:
            size: (height, width) in pixels; the model's own unless given.
            max_pixels: image files of more pixels are refused.

        Raises:
            RequestError: an image cannot be read or does not fit the model.
        """
        check_images(images)
        return self._prepared(images, size, max_pixels)[0]

    def _prepared(
        self, images: ImageLike | Sequence[ImageLike], size: tuple[int, int] | None, max_pixels: int = MAX_PIXELS
    ) -> tuple[Tensor, Tensor | None]:
        """`prepare`, and which patches are empty (nodata): (B, N) bool, None where none is."""
        items = [images] if isinstance(images, (str, Path, Image.Image, np.ndarray)) else list(images)
        size = size or self.preprocessing.image_size
        doubts: list[str] = []
        pairs = [self._prepare(item, size, max_pixels, doubts) for item in items]
        if doubts:
            warnings.warn(f"{len(doubts)} of {len(items)} images, the first: {doubts[0]}", stacklevel=4)
        stack = torch.stack([pixels for pixels, _ in pairs]).to(self.device)
        return normalise(stack, self.preprocessing), stack_empty_patches([empty for _, empty in pairs])

    def _prepare(
        self, item: ImageLike, size: tuple[int, int], max_pixels: int, doubts: list[str]
    ) -> tuple[Tensor, Tensor | None]:
        p, side = self.preprocessing, self.encoder.shape.patch_size
        array, pixels = self._decoded(item, max_pixels, doubts, side)
        box = evaluation_box(pixels, size, p.crop_fraction)
        empty = empty_patches_of(array, p.channels, box, size, side)
        return resized_crop(pixels, box, size), empty

    def _decoded(
        self, item: ImageLike, max_pixels: int, doubts: list[str], min_side: int = 1
    ) -> tuple[NDArray, Pixels]:
        """An image as it is stored, H x W x C, and in the model's channels and number type.

        Args:
            doubts: a line is added where the values look like those of another scale.

        Raises:
            RequestError: it cannot be read or does not fit the model.
        """
        p = self.preprocessing
        try:
            if isinstance(item, (str, Path)):
                array = decode(Path(item).read_bytes(), p.background, max_pixels, p.axes, resolve_nodata(None, p))
            elif isinstance(item, Image.Image):
                array = from_pil_image(item, p.background, resolve_nodata(None, p))
            elif not isinstance(item, np.ndarray):
                raise BadImage("not a path, a PIL image or an array")
            else:
                array = contiguous(item[..., None] if item.ndim == 2 else item)
                if array.ndim != 3 or array.dtype not in (np.uint8, np.uint16, np.float32):
                    raise BadImage(f"{item.shape} of {item.dtype}, not H x W x C of uint8, uint16 or float32")
                array = masked_array(array, resolve_nodata(None, p))
            if (doubt := scale_warning(array, p)) is not None:
                doubts.append(f"{doubt}; openmae.load(…, value_range=(LOW, HIGH)) says otherwise")
            return array, conform_to_model(array, p, min_side)
        except (BadImage, OSError) as error:
            what = shown(item) if isinstance(item, (str, Path)) else type(item).__name__
            raise RequestError(f"{what} cannot be used: {error}") from None

    @torch.no_grad()
    def encode(self, images: ImageLike | Sequence[ImageLike] | Tensor) -> Tensor:
        """Tokens of whole images, nothing masked: (B, 1 + N, width), the class token first (ViTDet has none).

        A tensor (B, C, H, W) is taken to be normalised already.
        """
        prepared = images.to(self.device) if isinstance(images, Tensor) else self.prepare(images)
        return self.encoder(prepared)

    @torch.no_grad()
    def features(
        self, images: ImageLike | Sequence[ImageLike] | Tensor, *, pool: str = DEFAULT_POOL, layer: int | None = None
    ) -> Tensor:
        """Features of whole images.

        Args:
            pool: "cls" or "mean", (B, width); or "grid", the patch tokens as (B, rows, columns, width).
            layer: after which block, counted from 1, without a norm; None: after the last block and its norm.

        Raises:
            RequestError: there is no such layer or pool, or an image cannot be read.
        """
        check_name("--pool", pool, (*POOLS, "grid"))
        check_range("--layer", layer, 1, self.encoder.shape.depth)
        prepared = images.to(self.device) if isinstance(images, Tensor) else self.prepare(images)
        features = encoder_features(self.encoder, prepared, pool, layer)
        return self._norm_pooled(features) if pool != "grid" and layer is None else features

    def _norm_pooled(self, pooled: Tensor) -> Tensor:
        return pooled


@dataclass(frozen=True)
class ClassifierModel(EncoderModel):
    """A fine-tuned or probed classifier with its preprocessing and class names."""

    classifier: Classifier

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.description["classes"])

    @torch.no_grad()
    def classify(self, images: ImageLike | Sequence[ImageLike] | Tensor) -> Tensor:
        """The probability of each class: (B, classes); softmax, or sigmoid where an image may have several labels."""
        prepared = images.to(self.device) if isinstance(images, Tensor) else self.prepare(images)
        logits = self.classifier(prepared)
        return logits.sigmoid() if self.description.get("is_multi_label") else logits.softmax(dim=1)

    def _norm_pooled(self, pooled: Tensor) -> Tensor:
        return _normed_as_by_head(self.classifier, pooled)


@dataclass(frozen=True)
class RegressionModel(EncoderModel):
    """A fine-tuned or probed regression model with its preprocessing and what it predicts.

    Attributes:
        regressor: its outputs are standardised; `scale` brings them back to the numbers' own units.
    """

    regressor: Classifier

    @property
    def scale(self) -> TargetScale:
        return TargetScale.from_description(self.description)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the numbers, in the order of `predict`."""
        return self.scale.columns

    @torch.no_grad()
    def predict(self, images: ImageLike | Sequence[ImageLike] | Tensor) -> Tensor:
        """The numbers of whole images, in their own units: (B, columns) float64, on the CPU."""
        prepared = images.to(self.device) if isinstance(images, Tensor) else self.prepare(images)
        return in_own_units(self.regressor(prepared), self.scale)

    def _norm_pooled(self, pooled: Tensor) -> Tensor:
        return _normed_as_by_head(self.regressor, pooled)


def encoder_features(encoder: ViT, images: Tensor, pool: str, layer: int | None = None) -> Tensor:
    """Features of normalised images, nothing masked, with the arguments of `EncoderModel.features`."""
    tokens = encoder(images) if layer is None else encoder.tokens(images, num_blocks=layer)
    if pool == "grid":
        height, width = images.shape[-2:]
        grid = grid_of(height, width, encoder.shape.patch_size)
        return tokens[:, encoder.shape.num_prefix_tokens :].unflatten(1, grid)
    return pool_tokens(tokens, pool, encoder.shape.num_prefix_tokens)


def _normed_as_by_head(classifier: Classifier, pooled: Tensor) -> Tensor:
    """Pooled tokens as the linear head takes them: a fine-tuned classifier norms the pooled token, not the tokens."""
    return classifier.fc_norm(pooled) if classifier.shape.head == "fine-tune" else pooled


@dataclass(frozen=True)
class MAEModel(EncoderModel):
    """A trained masked autoencoder with its preprocessing.

    Attributes:
        mae: in evaluation mode.
    """

    mae: MAE

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
        """Mask patches and predict them; masking settings that are not given are those of the training.

        Args:
            mask, mask_ratio, mask_file: which patches are masked (see ReconstructConfig).
            seed: other seeds mask other patches.
            undo: where the patch statistics that a norm-pixel prediction lacks are taken from: "neighbours", or "true"
                (which leaks part of the answer).
            paste: show visible patches as they are.
            size: (height, width) in pixels; the model's own unless given.

        Raises:
            RequestError: an image cannot be read, the mask or size does not fit, or the model predicts tokens that
                nothing turns back into pixels.
        """
        check_name("undo", undo, ("neighbours", "true"))
        check_name("mask", mask, MASKS)
        check_range("mask_ratio", mask_ratio, 0, 1, open_low=True, open_high=True)
        check_range("seed", seed, 0, 2**63 - 1)
        check_draws(self.mae)
        if mask_file is not None:
            mask = "given"
        empty = None
        if isinstance(images, Tensor):
            prepared = images.to(self.device)
        else:
            prepared, empty = self._prepared(check_images(images), size)
        grid = self.mae.grid(prepared)
        trained_with = self.description.get("masking", {})
        kind = mask or trained_with.get("kind", "random")
        given = read_mask(mask_file, grid) if mask_file is not None else mask_from_description(trained_with, grid)
        if kind == "given" and given is None:
            raise RequestError(
                f"the training's mask does not fit a grid of {grid}: give --mask random or a --mask-file"
            )
        ratio = mask_ratio if mask_ratio is not None else trained_with.get("ratio", 0.75)
        keys = torch.from_numpy(sample_keys(seed, 0, np.arange(len(prepared))))
        masking = to_device(MaskSampler(kind, ratio, grid, given)(keys), self.device)
        p = self.preprocessing
        return reconstruct_patches(self.mae, prepared, masking, p, undo=undo, paste=paste, is_empty=empty)
