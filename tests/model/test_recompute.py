"""What the backward pass computes again is the same to the bit and takes less memory; bf16 between blocks is bf16."""

import weakref

import pytest
import torch
from torch import Tensor

from openmae.benchmarks.memory import kept_bytes
from openmae.model.block import Block
from openmae.model.mae import MAE
from openmae.model.masking import Masking, noise_per_image, random_masking


def some_batch(batch: int, size: tuple[int, int], patch_size: int) -> tuple[Tensor, Masking]:
    generator = torch.Generator().manual_seed(3)
    grid = (size[0] // patch_size, size[1] // patch_size)
    noise = torch.rand(batch, noise_per_image("random", grid), generator=generator)
    return torch.randn(batch, 3, *size, generator=generator), random_masking(noise, 0.75)


def gradients(mae: MAE, images: Tensor, masking: Masking, is_bf16: bool) -> tuple[Tensor, dict[str, Tensor]]:
    mae.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        loss = mae(images, masking).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in mae.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("is_bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"mask_tokens_in_encoder": True}, {"decoder_depth": 1, "target": "pixel"}, {"image_size": (12, 20)}],
    ids=str,
)
def test_recomputing_changes_no_bit(tiny_shape, changes, is_bf16):
    torch.manual_seed(0)
    mae = MAE.from_shape(tiny_shape(**changes))
    images, masking = some_batch(3, mae.encoder.shape.image_size, 4)
    loss, plain = gradients(mae, images, masking, is_bf16)
    mae.set_recompute()
    assert all(module.recomputes for module in mae.modules() if isinstance(module, Block))
    again, recomputed = gradients(mae, images, masking, is_bf16)
    assert torch.equal(loss, again)
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, recomputed[name]), name
    mae.set_recompute(False)
    assert not any(module.recomputes for module in mae.modules() if isinstance(module, Block))


def test_recomputing_keeps_less(tiny_shape):
    """10 of 16 values: measured 0.64 with norms' statistics and what lies outside of blocks."""
    mae = MAE.from_shape(tiny_shape(image_size=(64, 64), width=48, depth=6, decoder_width=32, decoder_depth=4))
    images, masking = some_batch(2, (64, 64), 4)
    plain = kept_bytes(lambda: mae(images, masking).loss, mae)
    mae.set_recompute()
    less = kept_bytes(lambda: mae(images, masking).loss, mae)
    assert less < 0.66 * plain


def test_counting_what_is_kept_lets_go_of_it(tiny_shape):
    """Results that an operation keeps of its own (attention's) would hold the whole graph in memory."""
    mae = MAE.from_shape(tiny_shape())
    images, masking = some_batch(2, (16, 16), 4)
    outputs = []
    mae.encoder.blocks[0].attn.register_forward_hook(lambda module, inputs, output: outputs.append(weakref.ref(output)))
    assert kept_bytes(lambda: mae(images, masking).loss, mae) > 0
    assert outputs[0]() is None


def test_only_cheap_parts_run_again(tiny_shape, monkeypatch):
    """A backward pass runs no matrix product of the forward pass a second time, but one: the last decoder block's
    queries stand before its keys and values."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            self.count += function.overloadpacket.__name__ in ("addmm", "mm", "bmm")
            return function(*arguments, **(options or {}))

    mae = MAE.from_shape(tiny_shape())
    images, masking = some_batch(2, (16, 16), 4)
    counts = []
    for is_on in (False, True):
        mae.set_recompute(is_on)
        with Products() as products:
            mae(images, masking).loss.backward()
        counts.append(products.count)
    assert counts[1] - counts[0] == 1


@pytest.mark.parametrize("with_scales", [False, True])
def test_a_block_recomputes_under_drop_path(with_scales):
    torch.manual_seed(0)
    block = Block(24, 3)
    x = torch.randn(4, 5, 24, requires_grad=True)
    scales = torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 1.0, 1.0, 2.0]]) if with_scales else None
    results = []
    for block.recomputes in (False, True):
        block.zero_grad()
        x.grad = None
        block(x, branch_scales=scales).square().sum().backward()
        results.append([x.grad.clone(), *(p.grad.clone() for p in block.parameters())])
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)


def test_the_residual_is_bf16_only_under_autocast(tiny_shape):
    torch.manual_seed(0)
    mae = MAE.from_shape(tiny_shape())
    images, masking = some_batch(2, (16, 16), 4)
    seen: list[torch.dtype] = []
    for module in (*mae.encoder.blocks, *mae.decoder.blocks):
        module.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))

    def dtypes(is_bf16: bool) -> set[torch.dtype]:
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            loss = mae(images, masking).loss
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(p.grad.dtype == torch.float32 for p in mae.parameters() if p.grad is not None)
        return set(seen)

    assert dtypes(is_bf16=True) == {torch.float32}
    mae.set_bf16_residual()
    assert dtypes(is_bf16=True) == {torch.bfloat16}
    assert dtypes(is_bf16=False) == {torch.float32}
