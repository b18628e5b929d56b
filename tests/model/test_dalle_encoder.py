"""The encoder of DALL-E's discrete VAE computes what transformers' `FlavaImageCodebook` computes."""

import pytest
import torch
from torch import Tensor
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from openmae.config import TokenizerShape
from openmae.errors import RequestError
from openmae.interchange.incoming.image_codebook import their_name
from openmae.model.dalle_encoder import INPUT_SCALE, INPUT_SHIFT, Block, DalleEncoder

TOLERANCE = 1e-5  # of the largest logit; measured 0.0 (torch 2, CPU): the same sums in the same order
SIZES = [  # width, depth, codebook, channels
    (16, 2, 64, 3),
    (8, 1, 32, 1),
    (12, 3, 50, 4),
    (20, 4, 16, 3),
]


def make_shape(width: int = 16, depth: int = 2, codebook: int = 64, channels: int = 3) -> TokenizerShape:
    return TokenizerShape(
        kind="dalle", patch_size=None, stride=8, channels=channels, codebook=codebook, width=width, depth=depth
    )


def make_pair(width: int, depth: int, codebook: int, channels: int) -> tuple[DalleEncoder, FlavaImageCodebook]:
    """Ours and theirs with the same weights, large enough that every residual path is seen in the logits."""
    torch.manual_seed(0)
    config = FlavaImageCodebookConfig(
        num_blocks_per_group=depth, hidden_size=width, vocab_size=codebook, input_channels=channels
    )
    theirs = FlavaImageCodebook(config).eval()
    for parameter in theirs.parameters():
        is_bias = parameter.ndim == 1
        fan_in = parameter[0].numel()
        parameter.data.normal_(std=0.1 if is_bias else (4 / fan_in) ** 0.5)
    for name, parameter in theirs.named_parameters():
        if "res_path" in name and "conv_4" in name:  # against the gain of 1 / (4 · depth)²
            parameter.data.mul_((4 * depth) ** 2 / 4)
    with torch.no_grad():  # centred, or one code would be the likeliest everywhere
        theirs.blocks.output.conv.bias -= theirs(make_images(4, channels, (3, 3))).mean(dim=(0, 2, 3))
    ours = DalleEncoder(make_shape(width, depth, codebook, channels))
    values = theirs.state_dict()
    ours.load_state_dict({name: values.pop(their_name(name)) for name in ours.state_dict()})
    assert not values
    return ours, theirs


def make_images(num_images: int, channels: int, grid: tuple[int, int]) -> Tensor:
    """Noise in places of different colours, scaled as the encoder takes it: (B, C, rows · 8, columns · 8)."""
    colours = torch.rand(num_images, channels, *grid).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    return INPUT_SCALE * (0.7 * colours + 0.3 * torch.rand(colours.shape)) + INPUT_SHIFT


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grid", [(4, 4), (2, 7), (5, 1)])
def test_logits_and_tokens_are_transformers(size, grid):
    ours, theirs = make_pair(*size)
    images = make_images(3, size[3], grid)
    with torch.no_grad():
        expected, logits = theirs(images), ours.logits(images)
        assert logits.shape == (3, grid[0] * grid[1], size[2])
        assert relative_error(logits, expected.flatten(2).transpose(1, 2)) <= TOLERANCE
        tokens = ours.tokens(images)
        assert torch.equal(tokens, theirs.get_codebook_indices(images).flatten(1))
    assert len(tokens.unique()) > 1  # equal tokens of one value would prove nothing


@pytest.mark.parametrize("size", SIZES)
def test_a_gain_or_a_path_that_is_off_would_be_seen(size):
    """The random weights show each part: without any one of the blocks' paths the logits differ."""
    ours, theirs = make_pair(*size)
    images = make_images(2, size[3], (2, 3))
    with torch.no_grad():
        expected = theirs(images).flatten(2).transpose(1, 2)
        blocks = [block for block in ours.modules() if isinstance(block, Block)]
        assert len(blocks) == 4 * size[1]
        for block in blocks:
            gain, block.gain = block.gain, 0.9 * block.gain
            assert relative_error(ours.logits(images), expected) > 100 * TOLERANCE
            block.gain = gain
        assert relative_error(ours.logits(images), expected) <= TOLERANCE


def test_the_published_size_has_the_published_parameters():
    with torch.device("meta"):
        ours = DalleEncoder(make_shape(width=256, depth=2, codebook=8192))
        theirs = FlavaImageCodebook(FlavaImageCodebookConfig())
    expected = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {their_name(name): value.shape for name, value in ours.state_dict().items()} == expected
    assert sum(value.numel() for value in ours.state_dict().values()) == 53_786_240


def test_every_parameter_has_a_finite_gradient():
    torch.manual_seed(0)
    ours, _ = make_pair(*SIZES[0])
    for parameter in ours.parameters():
        parameter.requires_grad_()
    ours.logits(torch.rand(2, 3, 16, 16)).square().mean().backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_place_is_row_by_row():
    """What changes in the image's lower right corner changes the last token's logits most."""
    ours, _ = make_pair(*SIZES[0])
    images = torch.rand(1, 3, 64, 96)
    changed = images.clone()
    changed[..., -8:, -8:] = 1 - changed[..., -8:, -8:]
    with torch.no_grad():
        difference = (ours.logits(changed) - ours.logits(images)).abs().amax(dim=-1)[0]
    assert int(difference.argmax()) == 8 * 12 - 1


def test_another_kind_of_tokenizer_is_refused():
    vae = TokenizerShape(patch_size=8, stride=8, channels=3, codebook=16, width=16, depth=1)
    with pytest.raises(RequestError, match="a vae of stride 8"):
        DalleEncoder(vae)
    with pytest.raises(RequestError, match="--width got 3"):
        DalleEncoder(make_shape(width=3))
