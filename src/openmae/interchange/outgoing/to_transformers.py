"""To transformers: a folder for `from_pretrained`, readable by 4.57 and 5.

The class follows from the content: a masked autoencoder is a `ViTMAEForPreTraining`, a classifier of the class token a
`ViTForImageClassification`, an encoder a `ViTModel` (load it with `add_pooling_layer=False`).

Keys are those of 4.57's modules (`encoder.layer.0.attention.attention.query.weight`), which 5 renames while loading and
writes itself; but for the decoder, where 4.57 does not know what 5.23 writes (`decoder.decoder_encoder.layer.0`), and
`decoder.decoder_layers.0` loads in both.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from openmae.config import ClassifierShape, MAEShape, Preprocessing, ViTShape
from openmae.errors import RequestError
from openmae.interchange.names import CONFIG, PROCESSOR, REGRESSION
from openmae.interchange.outgoing.format import (
    FOLDED,
    Outgoing,
    check_mask_tokens,
    check_pixels,
    check_plain,
    has_fc_norm,
    linear_head,
    names_left_out,
    number_remarks,
    output_names,
)
from openmae.interchange.stored import ENCODER, StoredModel
from openmae.model.block import MLP_RATIO

BICUBIC = 3  # PIL.Image.Resampling.BICUBIC
MODULES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
STEM = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
DECODER = {
    "mask_token": "decoder.mask_token",
    "pos_embed": "decoder.decoder_pos_embed",
    "embed.weight": "decoder.decoder_embed.weight",
    "embed.bias": "decoder.decoder_embed.bias",
    "norm.weight": "decoder.decoder_norm.weight",
    "norm.bias": "decoder.decoder_norm.bias",
    "predict.weight": "decoder.decoder_pred.weight",
    "predict.bias": "decoder.decoder_pred.bias",
}


def to_transformers(model: StoredModel) -> Outgoing:
    """The model by transformers' names, config.json and preprocessor_config.json.

    Raises:
        RequestError: none of the three classes computes what this model computes.
    """
    check_supported(model)
    prefix = "" if isinstance(model.shape, ViTShape) else "vit."
    weights = {
        f"{prefix}{name}": value for name, value in rename_weights(model.encoder_weights, STEM, "encoder.layer").items()
    }
    exported = {f"{ENCODER}{name}": name for name in model.encoder_weights}
    remarks = list(processor_remarks(model.preprocessing))
    if isinstance(model.shape, MAEShape):
        decoder = {
            k.removeprefix("decoder."): v
            for k, v in model.weights.items()
            if k not in exported and k.startswith("decoder.")
        }
        weights |= rename_weights(decoder, DECODER, "decoder.decoder_layers")
        exported |= {f"decoder.{name}": name for name in decoder}
        if (kind := (model.description.get("masking") or {}).get("kind", "random")) != "random":
            remarks.append(f"trained with {kind} masks: ViTMAE draws random ones")
    if isinstance(model.shape, ClassifierShape):
        weights["classifier.weight"], weights["classifier.bias"] = linear_head(model)
        exported |= dict.fromkeys(("head.weight", "head.bias", *FOLDED), "classifier")
        if model.shape.head == "probe":
            remarks.append("the probe's BatchNorm is folded into the head: the same up to rounding")
        remarks += number_remarks(model)
    configs = {CONFIG: transformers_config(model), PROCESSOR: processor_config(model.preprocessing)}
    return Outgoing(weights, names_left_out(model.weights, exported), configs, tuple(remarks))


def check_supported(model: StoredModel) -> None:
    """Raise RequestError for a model that transformers' ViT and ViTMAE cannot hold."""
    check_plain(model, "transformers")
    check_mask_tokens(model, "transformers")
    check_pixels(model, "transformers")
    height, width = model.encoder_shape.image_size
    if isinstance(model.shape, MAEShape) and height != width:
        raise RequestError(
            f"transformers' ViTMAE takes square images, this model's are {height}x{width}: --part encoder makes a "
            "ViTModel, which takes them"
        )
    if isinstance(model.shape, ClassifierShape) and model.shape.pool == "mean":
        instead = "--to timm or onnx hold it" + ("" if has_fc_norm(model.shape) else ", --part encoder its encoder")
        raise RequestError(
            "transformers' ViTForImageClassification classifies by the class token, this model by the mean of the "
            f"patch tokens: {instead}"
        )
    if not model.encoder_shape.final_norm:
        raise RequestError(
            "transformers' ViTModel ends with a norm, this encoder (of a classifier that norms the mean, of "
            "segmentation or detection) has none: --to timm and onnx hold it"
        )


def rename_weights(weights: Mapping[str, Tensor], names: Mapping[str, str], layers: str) -> dict[str, Tensor]:
    """The weights of one stack by transformers' names; the fused qkv is split into its three parts."""
    result: dict[str, Tensor] = {}
    for name, value in weights.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if block is None:
            result[names[name]] = value
            continue
        number, module, kind = block.groups()
        if module == "attn.qkv":
            for part, values in zip(("query", "key", "value"), value.chunk(3), strict=True):
                result[f"{layers}.{number}.attention.attention.{part}.{kind}"] = values
        else:
            result[f"{layers}.{number}.{MODULES[module]}.{kind}"] = value
    return result


def transformers_config(model: StoredModel) -> dict[str, Any]:
    """config.json. The norm's eps and the patch's size are written out: transformers' defaults are others."""
    shape = model.encoder_shape
    height, width = shape.image_size
    config: dict[str, Any] = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": MLP_RATIO * shape.width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": shape.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": shape.patch_size,
        "num_channels": shape.channels,
        "qkv_bias": True,
        "dtype": "float32",
    }
    if isinstance(model.shape, MAEShape):
        decoder = model.shape.decoder
        config |= {
            "architectures": ["ViTMAEForPreTraining"],
            "model_type": "vit_mae",
            "decoder_hidden_size": decoder.width,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.num_heads,
            "decoder_intermediate_size": MLP_RATIO * decoder.width,
            "mask_ratio": (model.description.get("masking") or {}).get("ratio", 0.75),
            "norm_pix_loss": model.shape.target == "norm-pixel",
        }
    if isinstance(model.shape, ClassifierShape):
        names = output_names(model)
        labels = "multi_label" if model.description.get("is_multi_label") else "single_label"
        config |= {
            "architectures": ["ViTForImageClassification"],
            "id2label": {str(number): name for number, name in enumerate(names)},
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": f"{labels}_classification" if model.scale is None else REGRESSION,
        }
    return config


def processor_config(p: Preprocessing) -> dict[str, Any]:
    """preprocessor_config.json: resize the short side, cut the centre out, scale, normalise.

    `BitImageProcessor` does that in both 4.57 and 5; ViT's own cannot cut the centre out in 4.57. Values of
    `value_range` become 0..1 by a factor only, so its lower end goes into the mean.
    """
    (low, high), (height, width) = p.value_range, p.image_size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": p.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": round(max(height, width) / p.crop_fraction)},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / (high - low),
        "do_normalize": True,
        "image_mean": [mean + low / (high - low) for mean in p.mean],
        "image_std": list(p.std),
    }


def processor_remarks(p: Preprocessing) -> list[str]:
    """Remarks where the image processor differs from `EncoderModel.prepare`."""
    remarks = []
    if p.image_size[0] != p.image_size[1]:
        remarks.append("images of another aspect than the model's: its processor keeps less of them than openmae does")
    if p.channels == 1:
        remarks.append("the processor makes no grey images: give it picture.convert('L')")
    if p.channels not in (1, 3):
        remarks.append(f"{p.channels} channels: give the processor arrays and input_data_format")
    if p.dtype != "uint8":
        remarks.append(f"{p.dtype} values: give the processor float32 arrays")
    return remarks
