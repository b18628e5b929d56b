"""Attention weights: those that the fused attention uses, and those that an independent program writes down."""

import pytest
import torch
from transformers import ViTConfig, ViTModel

from openmae.config import ViTShape
from openmae.errors import RequestError
from openmae.model.attention_maps import attention_weights, class_attention
from openmae.model.vit import ViT

SHAPE = ViTShape(image_size=(24, 32), patch_size=8, channels=3, width=48, depth=3, num_heads=4)


@pytest.fixture(scope="module")
def vit():
    """An encoder whose weights are all far from their initial values, so that attention is far from even."""
    encoder = ViT(SHAPE).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return encoder


@pytest.fixture(scope="module")
def images():
    return torch.randn(5, 3, 24, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layer", [1, 2, 3, None])
def test_the_weights_give_what_the_block_gives(vit, images, layer):
    weights = attention_weights(vit, images, layer)
    assert weights.shape == (5, 4, 13, 13)
    assert (weights.sum(-1) - 1).abs().max() < 1e-6
    assert weights.max() > 0.5, "as good as even: this would show nothing"
    number = (layer or 3) - 1
    block, heard = vit.blocks[number], {}
    handles = [
        block.attn.register_forward_hook(lambda module, arguments, output: heard.update(output=output)),
        block.attn.qkv.register_forward_hook(lambda module, arguments, output: heard.update(qkv=output)),
    ]
    with torch.no_grad():
        vit(images)
        values = heard["qkv"][..., 2 * 48 :].reshape(5, 13, 4, 12)
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, values).reshape(5, 13, 48)
        error = (block.attn.proj(mixed) - heard["output"]).abs().max() / heard["output"].abs().max()
    for handle in handles:
        handle.remove()
    assert error < 1e-6  # measured 2.5e-7


def test_transformers_writes_the_same_weights_down(vit, images):
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=(24, 32),
        patch_size=8,
        layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    other = ViTModel(config, add_pooling_layer=False).eval()
    load_into_transformers(other, vit)
    with torch.no_grad():
        theirs = other(images, output_attentions=True).attentions
    for layer in (1, 2, 3):
        assert (attention_weights(vit, images, layer) - theirs[layer - 1]).abs().max() < 1e-5  # measured 7e-7


def load_into_transformers(other, vit):
    """Copy by shape and order: both programs list a block's parameters in the order in which they are used."""
    source = vit.state_dict()
    named = {
        "embeddings.cls_token": source["cls_token"],
        "embeddings.position_embeddings": source["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": source["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": source["patch_embed.proj.bias"],
        "layernorm.weight": source["norm.weight"],
        "layernorm.bias": source["norm.bias"],
    }
    target = other.state_dict()
    blocks = [name for name in target if name not in named]
    prefixes = sorted({name.split(".norm")[0].split(".layernorm_before")[0] for name in blocks if "before" in name})
    assert len(prefixes) == 3, list(target)
    for number, prefix in enumerate(prefixes):
        own = {n.removeprefix(f"blocks.{number}."): v for n, v in source.items() if n.startswith(f"blocks.{number}.")}
        for kind in ("weight", "bias"):
            query, key, value = own[f"attn.qkv.{kind}"].chunk(3)
            parts = {
                ("query", "q_proj"): query,
                ("key", "k_proj"): key,
                ("value", "v_proj"): value,
                ("attention.output.dense", "o_proj"): own[f"attn.proj.{kind}"],
                ("layernorm_before",): own[f"norm1.{kind}"],
                ("layernorm_after",): own[f"norm2.{kind}"],
                ("intermediate.dense", "mlp.fc1"): own[f"mlp.fc1.{kind}"],
                ("output.dense", "mlp.fc2"): own[f"mlp.fc2.{kind}"],
            }
            left = [n for n in blocks if n.startswith(f"{prefix}.") and n.endswith(kind)]
            for endings, tensor in parts.items():
                fitting = [n for n in left if any(n.endswith(f".{ending}.{kind}") for ending in endings)]
                assert len(fitting) == 1, (endings, left)
                left.remove(fitting[0])
                named[fitting[0]] = tensor
    assert named.keys() == target.keys()
    other.load_state_dict(named)


@pytest.mark.parametrize("layer", [1, None])
@pytest.mark.parametrize("size", [(24, 32), (40, 48)])
def test_the_class_token_s_row_lies_as_the_patches_lie(vit, layer, size):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    to_patches, to_itself = class_attention(vit, images, layer)
    whole = attention_weights(vit, images, layer)
    rows, columns = size[0] // 8, size[1] // 8
    assert to_patches.shape == (2, 4, rows, columns)
    for row in range(rows):
        for column in range(columns):
            expected = whole[:, :, 0, 1 + row * columns + column]
            assert torch.allclose(to_patches[:, :, row, column], expected, atol=1e-6)
    assert torch.allclose(to_itself, whole[:, :, 0, 0], atol=1e-6)


def test_a_block_that_is_not_there(vit, images):
    for layer in (0, 4):
        with pytest.raises(RequestError, match=f"--layer got {layer}: it must be at least 1 and at most 3"):
            attention_weights(vit, images, layer)
