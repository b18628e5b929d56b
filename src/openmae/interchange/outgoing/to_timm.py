"""To timm: a folder in its hub layout, for `timm.create_model("local-dir:FOLDER", pretrained=True)` (timm ≥ 1.0.16).

| model | global_pool | norm | head |
|---|---|---|---|
| masked autoencoder, encoder | token | norm | none: num_classes 0 |
| fine-tuned, mean | avg | fc_norm | head |
| fine-tuned, cls | token | norm | head |
| probe, mean | avg, fc_norm=False | norm | head with the BatchNorm folded in |
| probe, cls | token | norm | head with the BatchNorm folded in |
"""

from typing import Any

from openmae.config import SIZES, ClassifierShape, Preprocessing, ViTShape
from openmae.interchange.names import REGRESSION
from openmae.interchange.outgoing.format import (
    FOLDED,
    Outgoing,
    check_plain,
    eps_remarks,
    has_fc_norm,
    linear_head,
    names_left_out,
    number_remarks,
    output_names,
)
from openmae.interchange.stored import ENCODER, StoredModel


def to_timm(model: StoredModel) -> Outgoing:
    """The model by timm's names, and config.json.

    Raises:
        RequestError: the encoder is no plain ViT.
    """
    check_plain(model, "timm")
    weights, exported = dict(model.encoder_weights), {f"{ENCODER}{name}": name for name in model.encoder_weights}
    remarks = eps_remarks(model, "timm")
    if isinstance(model.shape, ClassifierShape):
        weights["head.weight"], weights["head.bias"] = linear_head(model)
        exported |= {name: name for name in ("head.weight", "head.bias")}
        if model.shape.head == "probe":
            exported |= dict.fromkeys(FOLDED, "head")
            remarks.append("the probe's BatchNorm is folded into the head: the same up to rounding")
        elif has_fc_norm(model.shape):
            weights |= {name: model.weights[name] for name in ("fc_norm.weight", "fc_norm.bias")}
            exported |= {name: name for name in ("fc_norm.weight", "fc_norm.bias")}
        remarks += number_remarks(model)
        if model.description.get("is_multi_label"):
            remarks.append("several labels an image: sigmoid, not softmax, of the logits")
    if model.preprocessing.dtype != "uint8":
        remarks.append(f"timm's transforms take 8-bit pictures: prepare {model.preprocessing.dtype} images yourself")
    return Outgoing(
        weights, names_left_out(model.weights, exported), {"config.json": timm_config(model)}, tuple(remarks)
    )


def timm_config(model: StoredModel) -> dict[str, Any]:
    """config.json: the architecture that timm builds, and `pretrained_cfg`, by which it prepares images."""
    shape, p = model.encoder_shape, model.preprocessing
    mean, std = pixel_statistics(p)
    pool, fc_norm, num_classes = "token", None, 0
    if isinstance(model.shape, ClassifierShape):
        num_classes = model.shape.num_classes
        if model.shape.pool == "mean":
            pool, fc_norm = "avg", has_fc_norm(model.shape)
    arguments: dict[str, Any] = {
        "img_size": list(shape.image_size),
        "patch_size": shape.patch_size,
        "in_chans": shape.channels,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.num_heads,
        "global_pool": pool,
    }
    if fc_norm is not None:
        arguments["fc_norm"] = fc_norm
    if not shape.final_norm:
        arguments["final_norm"] = False
    config: dict[str, Any] = {
        "architecture": architecture(shape),
        "num_classes": num_classes,
        "num_features": shape.width,
        "global_pool": pool,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "openmae",
            "custom_load": False,
            "input_size": [p.channels, *p.image_size],
            "fixed_input_size": True,
            "interpolation": p.interpolation,
            "crop_pct": p.crop_fraction,
            "crop_mode": "center",
            "mean": mean,
            "std": std,
            "num_classes": num_classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    if num_classes:
        config["label_names"] = output_names(model)
    if model.scale is not None:
        config["problem_type"] = REGRESSION  # timm ignores it; openmae reads it again
    return config


def architecture(shape: ViTShape) -> str:
    """timm's name for this size; else its Base, with all sizes overridden by `model_args`."""
    for name, sizes in SIZES.items():
        if sizes == (shape.width, shape.depth, shape.num_heads, shape.patch_size):
            return f"vit_{name}_patch{shape.patch_size}_224"
    return "vit_base_patch16_224"


def pixel_statistics(p: Preprocessing) -> tuple[list[float], list[float]]:
    """Mean and standard deviation for pixels divided by 255, whatever the value range is here."""
    low, high = p.value_range
    if p.dtype != "uint8" or (low, high) == (0, 255):
        return list(p.mean), list(p.std)
    scale = (high - low) / 255
    return [low / 255 + value * scale for value in p.mean], [value * scale for value in p.std]
