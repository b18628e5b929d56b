"""transformers' ViTMAE as the peer, with our weights and its fastest settings; a check that losses are equal."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openmae.config import MAEShape
from openmae.errors import Fault, RequestError
from openmae.machine.device import autocast
from openmae.model.mae import MAE
from openmae.training.optim import adamw_from_groups, weight_decay_groups

# Largest relative difference of loss and of gradient norm. Measured on a CPU in fp32: 3e-7 and 2e-6 (ViT-B/16). bf16
# rounds to 3 digits, and kernels round differently.
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}


def find_transformers() -> Any | None:
    """The module, or None where it is not installed."""
    try:
        import transformers
    except ImportError:
        return None
    transformers.logging.set_verbosity_error()
    return transformers


def peer_names(shape: MAEShape) -> dict[str, list[str]]:
    """Our parameter's name → theirs (transformers 5); three of theirs are one qkv of ours."""
    names = {
        "encoder.cls_token": ["vit.embeddings.cls_token"],
        "encoder.pos_embed": ["vit.embeddings.position_embeddings"],
        "decoder.mask_token": ["decoder.mask_token"],
        "decoder.pos_embed": ["decoder.decoder_pos_embed"],
    }
    modules = {
        "encoder.patch_embed.proj": ["vit.embeddings.patch_embeddings.projection"],
        "encoder.norm": ["vit.layernorm"],
        "decoder.embed": ["decoder.decoder_embed"],
        "decoder.norm": ["decoder.decoder_norm"],
        "decoder.predict": ["decoder.decoder_pred"],
    }
    stacks = (
        ("encoder", "vit.layers", shape.encoder.depth),
        ("decoder", "decoder.decoder_layers", shape.decoder.depth),
    )
    for part, layers, depth in stacks:
        for number in range(depth):
            ours, theirs = f"{part}.blocks.{number}", f"{layers}.{number}"
            modules[f"{ours}.norm1"] = [f"{theirs}.layernorm_before"]
            modules[f"{ours}.norm2"] = [f"{theirs}.layernorm_after"]
            modules[f"{ours}.attn.qkv"] = [f"{theirs}.attention.{x}_proj" for x in "qkv"]
            modules[f"{ours}.attn.proj"] = [f"{theirs}.attention.o_proj"]
            modules[f"{ours}.mlp.fc1"] = [f"{theirs}.mlp.fc1"]
            modules[f"{ours}.mlp.fc2"] = [f"{theirs}.mlp.fc2"]
    for kind in ("weight", "bias"):
        names |= {f"{ours}.{kind}": [f"{name}.{kind}" for name in theirs] for ours, theirs in modules.items()}
    return names


def vit_mae_config(transformers: Any, shape: MAEShape, attention: str) -> Any:
    """The configuration of transformers' ViTMAE that describes the same model, with its attention implementation."""
    encoder, decoder = shape.encoder, shape.decoder
    return transformers.ViTMAEConfig(
        image_size=encoder.image_size[0],
        patch_size=encoder.patch_size,
        num_channels=encoder.channels,
        hidden_size=encoder.width,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.num_heads,
        intermediate_size=4 * encoder.width,
        decoder_hidden_size=decoder.width,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.num_heads,
        decoder_intermediate_size=4 * decoder.width,
        mask_ratio=0.75,
        norm_pix_loss=shape.target == "norm-pixel",
        layer_norm_eps=1e-6,
        attn_implementation=attention,
    )


def peer_with_our_weights(transformers: Any, ours: MAE, shape: MAEShape, attention: str = "sdpa") -> nn.Module:
    """Their model with our weights.

    Raises:
        RequestError: this version of transformers has other parameter names.
    """
    theirs: nn.Module = transformers.ViTMAEForPreTraining(vit_mae_config(transformers, shape, attention))
    parameters, names = dict(theirs.named_parameters()), peer_names(shape)
    if set(parameters) != {name for group in names.values() for name in group}:
        raise RequestError(
            f"transformers {transformers.__version__} has other names for ViTMAE's parameters: "
            "pip install 'transformers>=5'"
        )
    with torch.no_grad():
        for name, group in names.items():
            for their_name, value in zip(group, ours.get_parameter(name).chunk(len(group)), strict=True):
                parameters[their_name].copy_(value)
    return theirs.train()


@dataclass
class Peer:
    """Their model and optimiser on a batch.

    Images are already normalised and noise is already drawn; our step does both itself, and computes the gradient norm
    besides: what is compared is a program's whole step, not only the model.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    images: Tensor
    noise: Tensor
    device: torch.device
    precision: str
    forward: Callable[..., Any]

    def loss(self, count: int | None = None) -> Tensor:
        """The loss of the first `count` images, or of the whole batch."""
        with autocast(self.device, self.precision):
            return self.forward(self.images[:count], noise=self.noise[:count]).loss

    def step(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def make_peer(
    model: nn.Module,
    images: Tensor,
    noise: Tensor,
    rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    device: torch.device,
    precision: str,
    is_compiled: bool = False,
) -> Peer:
    """The peer with the same optimiser as ours: fused AdamW over the same two groups."""
    model = model.to(device)
    optimizer = adamw_from_groups(weight_decay_groups(model, weight_decay), betas)
    for group in optimizer.param_groups:
        group["lr"] = rate
    forward = torch.compile(model, dynamic=False) if is_compiled else model
    return Peer(model, optimizer, images, noise, device, precision, forward)


def loss_and_norm(model: nn.Module, loss: Tensor) -> tuple[float, float]:
    """The loss and the norm of all gradients, which are cleared afterwards."""
    loss.backward()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return float(loss.detach()), float(norm)


def check_equal(ours: tuple[float, float], theirs: tuple[float, float], precision: str) -> str:
    """Check that both programs compute the same; return a line to print above the table.

    Args:
        ours, theirs: loss and gradient norm.

    Raises:
        Fault: they do not, so their times cannot be compared.
    """
    tolerance = TOLERANCE[precision]
    differences = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, theirs, strict=True)]
    line = (
        f"loss {ours[0]:.6f} ours, {theirs[0]:.6f} theirs (differ by {differences[0]:.1e}); "
        f"gradient norm {ours[1]:.6f}, {theirs[1]:.6f} ({differences[1]:.1e})"
    )
    if not all(math.isfinite(difference) and difference <= tolerance for difference in differences):
        raise Fault(f"the two programs do not compute the same, so their speed is not compared: {line}")
    return f"equal     {line}; at most {tolerance:g} is let through"
