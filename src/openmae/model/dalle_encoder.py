"""The encoder of DALL-E's discrete VAE (Ramesh et al., 2021), whose tokens the paper's table 1d predicts, as BEiT does.

Only others' weights make it useful: nothing here trains it, and of its decoder nothing is published with them.
"""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openmae.config import TokenizerShape
from openmae.errors import RequestError

NUM_GROUPS = 4  # of blocks, each of twice the width of the one before; between them the sides are halved
STRIDE = 2 ** (NUM_GROUPS - 1)
BOTTLENECK = 4  # a block's width over that of its inner convolutions
INPUT_KERNEL = 7  # side of the first convolution
INPUT_SCALE, INPUT_SHIFT = 0.8, 0.1  # its input is pixels of 0 to 1, times the first and plus the second


class DalleEncoder(nn.Module):
    """An encoder to the logits of the codes, one place for each 8 × 8 pixels.

    Images are RGB of 0 to 1, scaled by `INPUT_SCALE` and `INPUT_SHIFT`, (B, C, rows · 8, columns · 8), of any grid.

    Raises:
        RequestError: the shape is of another kind of tokenizer, of another stride, or too narrow.
    """

    def __init__(self, shape: TokenizerShape) -> None:
        super().__init__()
        if shape.kind != "dalle" or shape.stride != STRIDE:
            raise RequestError(f"a {shape.kind} of stride {shape.stride} is no encoder of DALL-E's: its stride is 8")
        if shape.width < BOTTLENECK:
            raise RequestError(f"--width got {shape.width}: DALL-E's encoder needs at least {BOTTLENECK}")
        self.shape = shape
        gain = 1 / (NUM_GROUPS * shape.depth) ** 2
        self.input = nn.Conv2d(shape.channels, shape.width, INPUT_KERNEL, padding=INPUT_KERNEL // 2)
        groups: list[nn.Module] = []
        inputs = shape.width
        for i in range(NUM_GROUPS):
            outputs = shape.width * 2**i
            widths = [inputs] + [outputs] * shape.depth
            blocks = (Block(a, b, gain) for a, b in pairwise(widths))
            groups.append(nn.Sequential(*blocks))
            inputs = outputs
        self.groups = nn.ModuleList(groups)
        self.output = nn.Conv2d(inputs, shape.codebook, 1)

    def logits(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n k"]:
        """The logits of each place's codes, row by row."""
        x = self.input(images)  # (B, width, H, W)
        for i, group in enumerate(self.groups):
            x = group(F.max_pool2d(x, 2) if i else x)
        return self.output(F.relu(x)).flatten(2).transpose(1, 2)

    def tokens(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b n"]:
        """The most likely code of each place, row by row."""
        return self.logits(images).argmax(dim=-1)


class Block(nn.Module):
    """Four convolutions, each after ReLU, three narrow ones and one back to the width, times `gain`, beside the input.

    Where the width changes, the input passes through a 1 × 1 convolution, `identity`.
    """

    def __init__(self, inputs: int, outputs: int, gain: float) -> None:
        super().__init__()
        self.gain = gain
        hidden = outputs // BOTTLENECK
        self.identity = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.convolution_1 = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.convolution_2 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.convolution_3 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.convolution_4 = nn.Conv2d(hidden, outputs, 1)

    def forward(self, x: Float[Tensor, "b d rows columns"]) -> Float[Tensor, "b e rows columns"]:
        """(B, outputs, rows, columns)."""
        hidden = x
        for convolution in (self.convolution_1, self.convolution_2, self.convolution_3, self.convolution_4):
            hidden = convolution(F.relu(hidden))
        return self.identity(x) + self.gain * hidden
