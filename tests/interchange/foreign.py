"""Foreign models with weights that leave no mistake unseen, and a photograph to show them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    ViTConfig,
    VitDetConfig,
    VitDetModel,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from openmae.data.augment import centre_box, resized_crop
from openmae.data.sources.embedded import embedded_source

TOLERANCE = 1e-5  # of the largest value
SMALL = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512}
SIZES = {"image_size": 64, "patch_size": 16}


def visible_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """LayerNorm weights N(1, .1), everything else N(0, .08); a swap of any two parts then shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            is_norm_weight = "norm" in name and name.endswith("weight")
            is_scale = "gamma" in name or "lambda" in name
            value.copy_(1 + 0.1 * noise if is_norm_weight else 0.3 + 0.1 * noise if is_scale else 0.08 * noise)
    return model.eval()


def photograph(size: tuple[int, int], batch: int = 2) -> Tensor:
    """Photographs from the wheel, normalised by ImageNet's statistics: (B, 3, *size)."""
    source = embedded_source("photos", "train")
    images = []
    for index in range(batch):
        array: np.ndarray = source.read(index)
        images.append(resized_crop(array, centre_box(array, size), size).float() / 255)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    return (torch.stack(images) - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def relative_error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())


def vit_mae(**changes: Any) -> ViTMAEForPreTraining:
    decoder = {
        "decoder_hidden_size": 64,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 256,
    }
    return visible_weights(ViTMAEForPreTraining(ViTMAEConfig(**{**SMALL, **SIZES, **decoder, **changes})))  # type: ignore[return-value]


def vit_model(**changes: Any) -> ViTModel:
    return visible_weights(ViTModel(ViTConfig(**{**SMALL, **SIZES, **changes})))  # type: ignore[return-value]


def vit_classifier(**changes: Any) -> ViTForImageClassification:
    config = ViTConfig(**{**SMALL, **SIZES, "num_labels": 5, **changes})
    config.id2label = {i: f"class {i}" for i in range(5)}
    return visible_weights(ViTForImageClassification(config))  # type: ignore[return-value]


def beit_classifier(**changes: Any) -> BeitForImageClassification:
    options = {"use_relative_position_bias": True, "layer_scale_init_value": 0.1, "num_labels": 5}
    return visible_weights(BeitForImageClassification(BeitConfig(**{**SMALL, **SIZES, **options, **changes})))  # type: ignore[return-value]


def beit_pretrained(**changes: Any) -> BeitForMaskedImageModeling:
    options = {"use_shared_relative_position_bias": True, "use_mask_token": True, "vocab_size": 32}
    return visible_weights(BeitForMaskedImageModeling(BeitConfig(**{**SMALL, **SIZES, **options, **changes})))  # type: ignore[return-value]


def vitdet(**changes: Any) -> VitDetModel:
    options: dict[str, Any] = {
        "image_size": 96,
        "pretrain_image_size": 64,
        "window_size": 4,
        "window_block_indices": [0, 2],
        "use_relative_position_embeddings": True,
    }
    return visible_weights(VitDetModel(VitDetConfig(**{**SMALL, **SIZES, **options, **changes})))  # type: ignore[return-value]


def timm_vit(name: str = "vit_tiny_patch16_224", **changes: Any) -> nn.Module:
    options = {"img_size": 64, "embed_dim": 128, "depth": 3, "num_heads": 2, "num_classes": 5}
    return visible_weights(timm.create_model(name, **{**options, **changes}))


def saved(state: dict[str, Tensor], path: Path) -> Path:
    """A state dict as a bare safetensors file: no config, no metadata."""
    save_file({name: value.contiguous().clone() for name, value in state.items()}, path)
    return path


def renamed(state: dict[str, Tensor], change: Callable[[str], str]) -> dict[str, Tensor]:
    return {change(name): value for name, value in state.items()}
