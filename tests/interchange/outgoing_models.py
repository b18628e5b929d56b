"""Small models in which no mistake of a conversion can hide, as files that openmae reads."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openmae.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClassifierShape,
    Conventions,
    ConvertConfig,
    DecoderShape,
    DetectorShape,
    MAEShape,
    Preprocessing,
    SegmenterShape,
    ViTShape,
)
from openmae.data.decoding.decode import decode
from openmae.data.sources.embedded import EmbeddedPhotos
from openmae.model.heads import Classifier
from openmae.model.mae import MAE
from openmae.tasks.convert import convert
from openmae.training.checkpoint import save_weights
from openmae.transfer.detection.detector import Detector
from openmae.transfer.segmentation.segmenter import Segmenter

CLASSES = ["a cat", "dog", "größe", "tench, Tinca", "owl"]


def make_encoder(**changes: Any) -> ViTShape:
    settings = {"image_size": (32, 32), "patch_size": 8, "channels": 3, "width": 48, "depth": 2, "num_heads": 3}
    return ViTShape(**{**settings, **changes})


def make_preprocessing(encoder: ViTShape, **changes: Any) -> Preprocessing:
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if encoder.channels == 3 else ((0.4,), (0.2,))
    mean, std = (values * (encoder.channels // len(values)) for values in (mean, std))
    settings = {"channels": encoder.channels, "value_range": (0.0, 255.0), "mean": mean, "std": std}
    return Preprocessing(**{**settings, "image_size": encoder.image_size, **changes})


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int = 0) -> None:
    """No zero bias, no LayerNorm at its start, attention that is not soft, and a residual stream that is faint at
    first: only there does an eps of 1e-5 instead of 1e-6 show in float32 (its variance is about 1e-3)."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if "norm" in name:
            value.copy_(noise * 0.1 + (1 if name.endswith("weight") else 0))
        elif "patch_embed" in name:
            value.copy_(noise * 0.002)
        elif name.endswith(("pos_embed", "cls_token", "mask_token")):
            value.copy_(noise * 0.02)
        else:
            value.copy_(noise * (0.1 if name.endswith("bias") else 0.08))
    for name, value in model.named_buffers():
        if name.endswith("running_mean"):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
        elif name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.1)


def make_mae(
    encoder: ViTShape | None = None, target: str = "norm-pixel", mask_tokens_in_encoder: bool = False
) -> tuple[MAE, MAEShape]:
    decoder = DecoderShape(width=32, depth=2, num_heads=4)
    shape = MAEShape(
        encoder=encoder or make_encoder(),
        decoder=decoder,
        target=target,
        mask_tokens_in_encoder=mask_tokens_in_encoder,
    )
    mae = MAE.from_shape(shape)
    draw_weights(mae)
    return mae.eval(), shape


def make_classifier(
    pool: str, head: str = "fine-tune", encoder: ViTShape | None = None, seed: int = 0
) -> tuple[Classifier, ClassifierShape]:
    shape = ClassifierShape(encoder=encoder or make_encoder(), num_classes=len(CLASSES), pool=pool, head=head)
    classifier = Classifier.from_shape(shape)
    draw_weights(classifier, seed)
    return classifier.eval(), shape


def save_run(
    folder: Path,
    model: nn.Module,
    shape: MAEShape | ClassifierShape | SegmenterShape | DetectorShape,
    preprocessing: Preprocessing | None = None,
    **more: Any,
) -> Path:
    """A folder as `--init` takes it."""
    folder.mkdir(parents=True)
    preprocessing = preprocessing or make_preprocessing(shape.encoder)
    kind: dict[str, Any] = {"kind": "mae", "masking": {"kind": "random", "ratio": 0.6}}
    if isinstance(shape, ClassifierShape):
        kind = {"kind": "classifier", "classes": CLASSES, "is_multi_label": False}
    if isinstance(shape, SegmenterShape):
        kind = {"kind": "segmenter", "classes": CLASSES, "ignore_index": 255, "reduce_zero_label": False}
        kind |= {"inference": "slide", "stride": 10}
    if isinstance(shape, DetectorShape):
        kind = {"kind": "detector", "classes": CLASSES, "category_ids": [3, 7, 9, "x", 90]}
    description = {
        "shape": shape.to_dict(),
        "preprocessing": asdict(preprocessing),
        "recipe": None,
        "seed": 3,
        "step": 7,
    }
    save_weights(folder / "model.safetensors", model.state_dict(), {**kind, **description, **more})
    return folder


def out_of(init: Path, to: str, name: str = "out", **settings: Any) -> Path:
    """Convert, and where it went: beside INIT."""
    out = init.with_name(name)
    convert(ConvertConfig(init=str(init), out=str(out), to=to, **settings))
    return out


def photograph() -> np.ndarray:
    """A whole photograph, H x W x 3 uint8 (the coffee cup, 400 x 600)."""
    region = next(r for r in EmbeddedPhotos("train").regions if r.path.name == "coffee.png")
    return decode(region.path.read_bytes())


def photo_images(shape: ViTShape, batch: int = 2) -> Tensor:
    """Crops of a photograph, normalised by themselves."""
    height, width = shape.image_size
    pixels = torch.from_numpy(photograph().copy()).permute(2, 0, 1).float()
    pixels = (pixels - pixels.mean()) / pixels.std()
    pixels = pixels.repeat(-(-shape.channels // 3), 1, 1)[: shape.channels]
    step = 40
    return torch.stack([pixels[:, step * i : step * i + height, step * i : step * i + width] for i in range(batch)])


def relative_error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())


def make_segmenter(image_size: tuple[int, int] = (16, 16)) -> tuple[Segmenter, SegmenterShape]:
    encoder = make_encoder(image_size=image_size, patch_size=4, width=16, depth=4, num_heads=2)
    shape = SegmenterShape(
        encoder=encoder, num_classes=len(CLASSES), pyramid_blocks=(0, 1, 2, 3), head_width=8, auxiliary_width=8
    )
    segmenter = Segmenter.from_shape(shape)
    draw_weights(segmenter)
    return segmenter.eval(), shape


WINDOWS = {"class_token": False, "window_size": 3, "global_blocks": (1, 3), "relative_positions": "bias"}


def make_detector(
    pyramid: str = "table-4", *, has_masks: bool = True, **encoder: Any
) -> tuple[Detector, DetectorShape]:
    """A detector of squares of 64 px whose encoder is a plain ViT, unless it is told otherwise (`WINDOWS`).

    It finds some objects in noise. Its weights are those of a start: `draw_weights` makes all its scores alike.
    """
    settings = {"image_size": (64, 64), "patch_size": 8, "width": 16, "depth": 4, "num_heads": 2, **encoder}
    shape = DetectorShape(
        encoder=make_encoder(**settings),
        num_classes=len(CLASSES),
        has_masks=has_masks,
        pyramid=pyramid,
        pyramid_blocks=(3,) if pyramid == "simple" else (0, 1, 2, 3),
        head_width=16,
        box_width=24,
        conventions=Conventions(head_norm="layer" if pyramid == "simple" else "batch", test_proposals=100),
    )
    torch.manual_seed(0)
    detector = Detector.from_shape(shape)
    with torch.no_grad():
        detector.head.regions.box_predictor.cls_score.weight.normal_(std=0.3)
        for name, value in detector.encoder.named_parameters():
            if "relative" in name:
                value.normal_(std=0.3)
    return detector.eval(), shape
