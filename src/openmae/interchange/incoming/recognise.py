"""Recognising a checkpoint of another library: which of its state dicts, which prefix, which program's names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from openmae.errors import RequestError, shown
from openmae.interchange.incoming.files import RawCheckpoint
from openmae.interchange.names import (
    DERIVED,
    FLAT,
    IMAGE_CODEBOOK,
    REFERENCE_DECODER,
    TRANSFORMERS,
    TRANSFORMERS_DECODER,
    TRANSFORMERS_HEAD,
    TRANSFORMERS_VITDET,
    Rules,
    rename,
)

# Every ViT has a patch projection; whatever precedes its name is the model's prefix.
ANCHORS: dict[str, Rules] = {
    "patch_embed.proj.weight": FLAT,
    "embeddings.patch_embeddings.projection.weight": TRANSFORMERS,
    "embeddings.projection.weight": TRANSFORMERS_VITDET,
}
# Of several models in a file the one that its authors evaluate is taken: MoCo v3's base encoder, DINO's teacher.
PREFERRED_GROUPS = ("", "model", "state_dict", "teacher", "module", "model_ema")
PREFERRED_PREFIXES = ("base_encoder.", "teacher.")
# Parts of an encoder that openmae does not support; without them it would compute something else.
FOREIGN_PARTS = re.compile(
    r"(blocks|layers|encoder\.layer)\..*|(embeddings\.)?(reg_token|register_tokens|storage_tokens|dist_token"
    r"|distillation_token)|norm_pre\..*|pre_layrnorm\..*|rope\..*|pos_embed.+|level_embed.*|patch_embed\..*"
    r"|embeddings\.(?!mask_token$).*|encoder\.mid_position_embeddings",
    re.DOTALL,
)
MAX_NAMED = 3  # names in a message


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """The weights of one model in a checkpoint.

    Attributes:
        family: mae, vit, moco-v3, dino, beit or vitdet.
        program: whose names it has: reference (and all who use timm's) or transformers.
        weights: by our names, but with separate queries, keys and values, and a shared bias table as `shared.table`.
        unused: by the file's names: weights that match no rule and are no part of the encoder.
        remarks: which group and prefix were taken, and which groups were left out.
    """

    family: str
    program: str
    weights: dict[str, Tensor]
    unused: dict[str, Tensor]
    remarks: tuple[str, ...]


def recognise(raw: RawCheckpoint) -> Recognised:
    """Find the Vision Transformer in a checkpoint.

    Raises:
        RequestError: there is none, there are several, or it has parts that openmae does not support.
    """
    if raw.config.get("model_type") == IMAGE_CODEBOOK:
        raise RequestError(
            f"{shown(raw.path)} is a tokenizer and no model with features: give it as --tokenizer to pretrain"
        )
    tensors, remarks = _choose_group(raw)
    prefix, rules = _choose_prefix(raw, tensors)
    if prefix:
        remarks.append(f"prefix {prefix!r} taken off")
    inside = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    is_flat = rules is FLAT
    decoder_rules = REFERENCE_DECODER if is_flat and "decoder_embed.weight" in inside else ()
    weights: dict[str, Tensor] = {}
    unused: dict[str, Tensor] = {}
    unsupported: list[str] = []
    for name, full in inside.items():
        if DERIVED.fullmatch(name):
            continue
        ours = rename(name, rules) or rename(name, decoder_rules)
        if ours is None and not is_flat:  # with an empty prefix the head is among them
            ours = rename(name, (*TRANSFORMERS_DECODER, *TRANSFORMERS_HEAD))
        if ours is not None:
            weights[ours] = tensors[full]
        elif FOREIGN_PARTS.fullmatch(name):
            unsupported.append(full)
        else:
            unused[full] = tensors[full]
    if unsupported:
        named = ", ".join(map(shown, unsupported[:MAX_NAMED])) + (
            f" and {len(unsupported) - MAX_NAMED} more" if len(unsupported) > MAX_NAMED else ""
        )
        raise RequestError(f"{raw.path} has {named}: parts that openmae's ViT has no place for, so it cannot be read")
    for full, tensor in tensors.items():
        if full.startswith(prefix) or DERIVED.fullmatch(full):
            continue
        ours = None if is_flat else rename(full, (*TRANSFORMERS_DECODER, *TRANSFORMERS_HEAD))
        if ours is not None and ours not in weights:
            weights[ours] = tensor
        else:
            unused[full] = tensor
    recognised = Recognised(
        family=_family(weights, unused, prefix, is_vitdet=rules is TRANSFORMERS_VITDET),
        program="reference" if is_flat else "transformers",
        weights=weights,
        unused=unused,
        remarks=tuple(remarks),
    )
    return _without_foreign_head(recognised)


def _choose_group(raw: RawCheckpoint) -> tuple[Mapping[str, Tensor], list[str]]:
    candidates = [
        name for name, tensors in raw.groups.items() if any(name.endswith(tuple(ANCHORS)) for name in tensors)
    ]
    if not candidates:
        names = [name for tensors in raw.groups.values() for name in tensors]
        content = f"{len(names)} weights such as {', '.join(map(shown, names[:MAX_NAMED]))}" if names else "no weights"
        raise RequestError(f"{raw.path} holds {content}: no Vision Transformer whose names are known here")
    group = next((name for name in PREFERRED_GROUPS if name in candidates), candidates[0])
    others = [name for name in raw.groups if name != group]
    remarks = []
    if group:
        remarks.append(f"taken from {group!r}" + (f"; {', '.join(map(repr, others))} left out" if others else ""))
    return raw.groups[group], remarks


def _choose_prefix(raw: RawCheckpoint, tensors: Mapping[str, Tensor]) -> tuple[str, Rules]:
    found = [
        (name.removesuffix(anchor), rules)
        for name in tensors
        for anchor, rules in ANCHORS.items()
        if name == anchor or name.endswith("." + anchor)
    ]
    if len(found) > 1:
        preferred = [pair for pair in found if pair[0].endswith(PREFERRED_PREFIXES) or "teacher" in pair[0].split(".")]
        if len(preferred) != 1:
            prefixes = ", ".join(repr(prefix) for prefix, _ in found)
            raise RequestError(f"{raw.path} holds several encoders ({prefixes}): save the one you want by itself")
        found = preferred
    return found[0]


def _family(weights: Mapping[str, Tensor], unused: Mapping[str, Tensor], prefix: str, is_vitdet: bool) -> str:
    if "decoder.embed.weight" in weights:
        return "mae"
    if is_vitdet or prefix.endswith("backbone.net.") or any(name.endswith("rel_pos_h") for name in weights):
        return "vitdet"
    if "shared.table" in weights or any(name.endswith("relative.table") for name in weights):
        return "beit"
    if prefix.endswith(("base_encoder.", "momentum_encoder.")):
        return "moco-v3"
    if any("head.last_layer." in name for name in unused):
        return "dino"
    return "vit"


def _without_foreign_head(recognised: Recognised) -> Recognised:
    """Leave out a head that needs a further layer before it (`pre_logits`), which openmae does not have."""
    head = recognised.weights.get("head.weight")
    behind_another = any("pre_logits." in name for name in recognised.unused)
    if head is None or (head.ndim == 2 and not behind_another):
        return recognised
    heads = {name: value for name, value in recognised.weights.items() if name.startswith("head.")}
    rest = {name: value for name, value in recognised.weights.items() if name not in heads}
    return replace(recognised, weights=rest, unused={**recognised.unused, **heads})
