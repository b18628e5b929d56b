"""timm's models: by name (`timm:vit_base_patch16_224.mae`), and settings that its architecture names imply."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openmae.errors import RequestError, shown
from openmae.interchange.incoming.files import RawCheckpoint
from openmae.interchange.incoming.kinds import one_line
from openmae.interchange.incoming.named import timm_name

MODULES = ("vision_transformer", "beit", "deit")  # of timm's, which define what can be read here
KINDS, BLOCKS = ("VisionTransformer", "Beit"), ("Block",)
# Arguments that change shapes or names, which are checked. Any other could change what the same weights compute.
KNOWN_ARGUMENTS = frozenset(
    "img_size patch_size in_chans num_classes global_pool embed_dim depth num_heads mlp_ratio qkv_bias proj_bias "
    "qk_norm init_values class_token no_embed_class reg_tokens pre_norm final_norm fc_norm pool_include_prefix "
    "dynamic_img_size dynamic_img_pad strict_img_size drop_rate pos_drop_rate patch_drop_rate proj_drop_rate "
    "attn_drop_rate drop_path_rate weight_init use_abs_pos_emb use_rel_pos_bias use_shared_rel_pos_bias".split()
)
DEFAULTS = {"act_layer": (None, "gelu"), "pos_embed": ("learn",), "attn_layer": (None, "", "attn")}


def read_timm(name: str) -> RawCheckpoint:
    """Have timm download a model, or find it in its cache, and read its weights and settings.

    Raises:
        RequestError: timm knows no such model, cannot get its weights, or computes something else with them.
    """
    source = f"timm:{name}"
    timm_name(source)
    import timm

    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # from no such name to no such network, each of another library
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"{source} cannot be had from timm ({type(error).__name__}: {reason})") from None
    found = settings_of_model(model, source)
    settings = dict(getattr(model, "pretrained_cfg", None) or {})
    size = getattr(model.patch_embed, "img_size", None)
    return RawCheckpoint(
        path=Path(source),
        container=f"{timm.__name__} {timm.__version__}",
        groups={"": dict(model.state_dict())},
        metadata={},
        config={
            "architecture": settings.get("architecture", name),
            "global_pool": getattr(model, "global_pool", "token"),
            "model_args": {"pool_include_prefix": getattr(model, "pool_include_prefix", False)},
            "image_size": list(size) if size is not None else None,
            "label_names": list(settings.get("label_names") or []),
            "pretrained_cfg": settings,
            **found,
        },
        processor={},
        extras={},
    )


def settings_of_model(model: Any, source: str) -> dict[str, Any]:
    """Settings of one of timm's models that its weights do not show: its heads and the eps of its norms.

    Raises:
        RequestError: it is no Vision Transformer, or computes something else with weights of the same names.
    """
    blocks: Any = getattr(model, "blocks", None)
    kind = type(model).__name__
    if kind not in KINDS or not isinstance(blocks, nn.Sequential | nn.ModuleList) or not len(blocks):
        raise RequestError(f"{source} is a {kind}: a plain Vision Transformer (vit_…, beit_…) is needed")
    for block in blocks:
        if type(block).__name__ not in BLOCKS:
            raise RequestError(f"{source} has blocks of another kind ({type(block).__name__}): their features differ")
        act: Any = getattr(block.mlp, "act", None)
        if type(act).__name__ != "GELU" or getattr(act, "approximate", "none") != "none":
            raise RequestError(f"{source} computes {act}: openmae has the exact GELU, whose features differ")
    norms = {module.eps for module in blocks.modules() if isinstance(module, nn.LayerNorm)}
    if len(norms) != 1:
        raise RequestError(f"{source} has norms with an eps of {sorted(norms)}: one is needed")
    first: Any = blocks[0]
    return {"num_attention_heads": first.attn.num_heads, "layer_norm_eps": norms.pop()}


def with_timm_defaults(raw: RawCheckpoint, source: str) -> RawCheckpoint:
    """Add the heads and the eps of the norms that follow from the architecture's name in timm's config.json.

    The name is looked up in timm's own registry and built without memory; nothing is downloaded or imported by it.

    Raises:
        RequestError: the architecture, or an argument beside it, computes something else with the same weights.
    """
    architecture, arguments = raw.config.get("architecture"), raw.config.get("model_args") or {}
    if not isinstance(architecture, str) or "num_attention_heads" in raw.config:
        return raw
    if not isinstance(arguments, Mapping):
        raise RequestError(f"{source}: model_args of its config.json are no names with values")
    for name, value in arguments.items():
        if name not in KNOWN_ARGUMENTS and not any(
            value is usual or value == usual for usual in DEFAULTS.get(name, ())
        ):
            raise RequestError(
                f"{source} was built with {shown(name[:50])} {shown(str(value)[:50])}: openmae's ViT has no such thing"
            )
    import timm

    if not re.fullmatch(r"\w+", architecture) or not timm.is_model(architecture):
        return raw
    if not timm.models.is_model_in_modules(architecture, MODULES):
        raise RequestError(f"{source} is timm's {architecture}: a plain Vision Transformer (vit_…, beit_…) is needed")
    try:
        with torch.device("meta"):
            model = timm.create_model(architecture, pretrained=False)
    except Exception as error:
        raise RequestError(f"{source}: timm cannot build {architecture} ({one_line(error)})") from None
    found = settings_of_model(model, source)
    if arguments.get("embed_dim", model.embed_dim) != model.embed_dim or "num_heads" in arguments:
        del found["num_attention_heads"]
    return replace(raw, config={**raw.config, **found})
