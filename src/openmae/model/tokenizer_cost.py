"""The cost of a tokenizer, computed from its shape: parameters, FLOPs and memory to give an image its tokens."""

from dataclasses import dataclass

from openmae.config import Grid, TokenizerShape
from openmae.model.dalle_encoder import BOTTLENECK, INPUT_KERNEL, NUM_GROUPS
from openmae.model.tokenizer import stride_factors

# Feature maps of the largest layer that are there at once. In DALL-E's first group: the group's input, the second
# block's input, what its convolutions make of that, this times the gain, and the sum.
LIVE_MAPS = 5


@dataclass(frozen=True)
class Convolution:
    """A convolution of an encoder, at the resolution of its output: `side` places along a side for each token."""

    kernel: int
    inputs: int
    outputs: int
    side: int

    @property
    def parameters(self) -> int:
        return self.kernel**2 * self.inputs * self.outputs + self.outputs

    @property
    def multiply_adds(self) -> int:
        """For each token."""
        return self.side**2 * self.kernel**2 * self.inputs * self.outputs


def encoder_convolutions(shape: TokenizerShape) -> list[Convolution]:
    """The convolutions of an encoder, from pixels to the logits of the codes."""
    return _of_vae(shape) if shape.is_ours else _of_dalle(shape)


def _of_vae(shape: TokenizerShape) -> list[Convolution]:
    side, inputs, layers = shape.stride, shape.channels, list[Convolution]()
    for factor in stride_factors(shape.stride):
        side //= factor
        layers.append(Convolution(factor + 2, inputs, shape.width, side))
        inputs = shape.width
    layers += [Convolution(3, shape.width, shape.width, 1)] * (2 * shape.depth)
    return [*layers, Convolution(1, shape.width, shape.codebook, 1)]


def _of_dalle(shape: TokenizerShape) -> list[Convolution]:
    """Groups of blocks of doubling width, with pooling between them (Ramesh et al., 2021)."""
    side, inputs = shape.stride, shape.width
    layers = [Convolution(INPUT_KERNEL, shape.channels, shape.width, side)]
    for group in range(NUM_GROUPS):
        outputs = shape.width * 2**group
        hidden = outputs // BOTTLENECK
        for _ in range(shape.depth):
            layers.append(Convolution(3, inputs, hidden, side))
            layers += [Convolution(3, hidden, hidden, side)] * 2
            layers.append(Convolution(1, hidden, outputs, side))
            if inputs != outputs:
                layers.append(Convolution(1, inputs, outputs, side))
            inputs = outputs
        side = side if group == NUM_GROUPS - 1 else side // 2
    return [*layers, Convolution(1, inputs, shape.codebook, side)]


def encoder_parameters(shape: TokenizerShape) -> int:
    """Parameters of what gives tokens; the norms' are left out, which are less than a thousandth."""
    return sum(layer.parameters for layer in encoder_convolutions(shape))


def stored_parameters(shape: TokenizerShape | None) -> int:
    """Values that lie in a checkpoint of a model that predicts the tokens: a discrete VAE's, with its decoder."""
    if shape is None or not shape.is_ours:
        return 0
    return 2 * encoder_parameters(shape)  # the codebook is as large as the logits' layer


def tokens_flops(shape: TokenizerShape, grid: Grid) -> int:
    """FLOPs to give an image of this grid its tokens, 2 × multiply-adds."""
    return 2 * grid[0] * grid[1] * sum(layer.multiply_adds for layer in encoder_convolutions(shape))


def tokens_bytes(shape: TokenizerShape, grid: Grid) -> int:
    """Approximate bytes that one image takes while it gets its tokens, in float32; nothing is kept of them."""
    *hidden, _ = encoder_convolutions(shape)
    largest = max(layer.side**2 * layer.outputs for layer in hidden)
    return 4 * grid[0] * grid[1] * max(LIVE_MAPS * largest, 2 * shape.codebook)  # the logits once, and to spare
