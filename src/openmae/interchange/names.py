"""The names of other programs' files and weights, and their translation to ours.

Each table maps names without the model's prefix. Ours are timm's; `attn.q`, `attn.k` and `attn.v` are separate only
until `join_qkv` concatenates them.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"  # what transformers puts beside weights
IMAGE_CODEBOOK, FLAVA = "flava_image_codebook", "flava"  # its `model_type`: DALL-E's encoder; a model that contains it
REGRESSION = "regression"  # transformers' name for it, in `problem_type`

Rules = tuple[tuple[str, str], ...]

# timm, the reference, MoCo v3, DINO, BEiT as released, ViTDet as released.
FLAT: Rules = (
    (r"(cls_token|pos_embed)", r"\1"),
    (r"(patch_embed\.proj\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.(?:norm[12]|attn\.(?:qkv|proj)|mlp\.fc[12])\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.ls[12]\.gamma)", r"\1"),
    (r"(blocks\.\d+\.)gamma_([12])", r"\1ls\2.gamma"),
    (r"(blocks\.\d+\.attn\.)([qkv])_bias", r"\1\2.bias"),
    (r"(blocks\.\d+\.attn\.)relative_position_bias_table", r"\1relative.table"),
    (r"(blocks\.\d+\.attn\.)(rel_pos_[hw])", r"\1relative.\2"),
    (r"rel_pos_bias\.relative_position_bias_table", "shared.table"),
    (r"(norm|fc_norm|head)\.(weight|bias)", r"\1.\2"),
)
# The reference's decoder, beside FLAT.
REFERENCE_DECODER: Rules = (
    (r"decoder_embed\.(weight|bias)", r"decoder.embed.\1"),
    (r"mask_token", "decoder.mask_token"),
    (r"decoder_pos_embed", "decoder.pos_embed"),
    (r"decoder_(blocks\.\d+\.(?:norm[12]|attn\.(?:qkv|proj)|mlp\.fc[12])\.(?:weight|bias))", r"decoder.\1"),
    (r"decoder_norm\.(weight|bias)", r"decoder.norm.\1"),
    (r"decoder_pred\.(weight|bias)", r"decoder.predict.\1"),
)


def _transformers_blocks(theirs: str, ours: str) -> Rules:
    """Rules for a stack of transformers' ViT layers, by the keys of its files and by those of its modules since 5."""
    return (
        (rf"{theirs}\.(\d+)\.layernorm_before\.(weight|bias)", rf"{ours}.\1.norm1.\2"),
        (rf"{theirs}\.(\d+)\.layernorm_after\.(weight|bias)", rf"{ours}.\1.norm2.\2"),
        (rf"{theirs}\.(\d+)\.attention\.attention\.([qkv])(?:uery|ey|alue)\.(weight|bias)", rf"{ours}.\1.attn.\2.\3"),
        (rf"{theirs}\.(\d+)\.attention\.([qkv])_proj\.(weight|bias)", rf"{ours}.\1.attn.\2.\3"),
        (rf"{theirs}\.(\d+)\.attention\.(?:output\.dense|o_proj)\.(weight|bias)", rf"{ours}.\1.attn.proj.\2"),
        (rf"{theirs}\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.(weight|bias)", rf"{ours}.\1.mlp.fc1.\2"),
        (rf"{theirs}\.(\d+)\.(?:output\.dense|mlp\.fc2)\.(weight|bias)", rf"{ours}.\1.mlp.fc2.\2"),
        (rf"{theirs}\.(\d+)\.lambda_([12])", rf"{ours}.\1.ls\2.gamma"),
        (
            rf"{theirs}\.(\d+)\.(?:attention\.attention\.)?relative_position_bias\.relative_position_bias_table",
            rf"{ours}.\1.attn.relative.table",
        ),
    )


# transformers' ViT, ViTMAE and BEiT encoders.
TRANSFORMERS: Rules = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    *_transformers_blocks(r"(?:encoder\.layer|layers)", "blocks"),
    (r"(?:encoder\.relative_position_bias|shared_position_bias)\.relative_position_bias_table", "shared.table"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
    (r"pooler\.layernorm\.(weight|bias)", r"fc_norm.\1"),
)
TRANSFORMERS_DECODER: Rules = (
    (r"decoder\.decoder_embed\.(weight|bias)", r"decoder.embed.\1"),
    (r"decoder\.mask_token", "decoder.mask_token"),
    (r"decoder\.decoder_pos_embed", "decoder.pos_embed"),
    *_transformers_blocks(r"decoder\.decoder_(?:encoder\.layer|layers)", "decoder.blocks"),
    (r"decoder\.decoder_norm\.(weight|bias)", r"decoder.norm.\1"),
    (r"decoder\.decoder_pred\.(weight|bias)", r"decoder.predict.\1"),
)
# Weights outside the encoder's prefix: a head, and the final norm of BEiT's masked-image model.
TRANSFORMERS_HEAD: Rules = ((r"classifier\.(weight|bias)", r"head.\1"), (r"layernorm\.(weight|bias)", r"norm.\1"))
TRANSFORMERS_VITDET: Rules = (
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.(norm[12]|mlp\.fc[12])\.(weight|bias)", r"blocks.\1.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.(qkv|proj)\.(weight|bias)", r"blocks.\1.attn.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.(rel_pos_[hw])", r"blocks.\1.attn.relative.\2"),
)
# Buffers that follow from the shape, not weights.
DERIVED = re.compile(r".*relative_position_index|.*\bmasked_bias|.*\bposition_ids|.*num_batches_tracked")


def rename(name: str, rules: Rules) -> str | None:
    """Our name for a weight; None where no rule matches the whole name."""
    for pattern, ours in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    return None


def join_qkv(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Concatenate separate query, key and value weights into fused ones.

    A missing bias is zero: BEiT's keys have none, which changes nothing, for it would shift all scores of a query by
    the same amount.

    Returns:
        The weights, and the names of the biases that were missing.
    """
    joined = {name: value for name, value in weights.items() if not re.search(r"\.attn\.[qkv]\.(weight|bias)$", name)}
    absent: list[str] = []
    attentions = {match[1] for name in weights if (match := re.match(r"(.*\.attn)\.(?:[qkv]|qkv)\.", name))}
    for attention in sorted(attentions):
        parts = [weights.get(f"{attention}.{part}.weight") for part in "qkv"]
        given = [part for part in parts if part is not None]
        if len(given) == 3:
            joined[f"{attention}.qkv.weight"] = torch.cat(given)
        fused = joined.get(f"{attention}.qkv.weight")
        if fused is None or f"{attention}.qkv.bias" in joined or fused.ndim != 2 or len(fused) % 3:
            names = {f"{attention}.{part}.bias" for part in "qkv"} & weights.keys()
            joined |= {name: weights[name] for name in names}
            continue
        zeros = fused.new_zeros(len(fused) // 3)
        biases = [weights.get(f"{attention}.{part}.bias") for part in "qkv"]
        absent += [f"{attention}.{part}.bias" for part, bias in zip("qkv", biases, strict=True) if bias is None]
        joined[f"{attention}.qkv.bias"] = torch.cat([zeros if bias is None else bias for bias in biases])
    return joined, absent
