"""Pre-trained models by timm's name: `timm:vit_base_patch16_224.mae`."""

from pathlib import Path
from typing import Any

from torch import nn

from openmae.errors import RequestError
from openmae.interchange.files import Stored


def read_timm(name: str) -> Stored:
    """Let timm fetch a model (or find it in its cache) and take its weights and settings.

    Raises:
        RequestError: timm knows no such model, or cannot get its weights.
    """
    import timm

    source = f"timm:{name}"
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # from no such name to no such network, each of another library
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"{source} cannot be had from timm ({type(error).__name__}: {reason})") from None
    blocks: Any = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not hasattr(blocks[0], "attn"):
        raise RequestError(f"{source} is a {type(model).__name__}: a Vision Transformer (vit_…, beit_…) is needed")
    first: Any = blocks[0]
    settings = dict(getattr(model, "pretrained_cfg", None) or {})
    size = getattr(model.patch_embed, "img_size", None)
    return Stored(
        path=Path(source),
        container=f"{timm.__name__} {timm.__version__}",
        groups={"": dict(model.state_dict())},
        metadata={},
        config={
            "architecture": settings.get("architecture", name),
            "global_pool": getattr(model, "global_pool", "token"),
            "num_attention_heads": first.attn.num_heads,
            "layer_norm_eps": first.norm1.eps,
            "image_size": list(size) if size is not None else None,
            "label_names": list(settings.get("label_names") or []),
            "pretrained_cfg": settings,
        },
        processor={},
        extras={},
    )
