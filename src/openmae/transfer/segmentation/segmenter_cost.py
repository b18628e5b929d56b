"""The cost of a segmentation model, from its shape: parameters, and the memory of activations in training."""

import torch

from openmae.config import SegmenterShape
from openmae.transfer.segmentation.segmenter import Segmenter
from openmae.transfer.segmentation.upernet import POOL_SIZES


def segmenter_parameters(shape: SegmenterShape) -> int:
    """Parameters of the model, positions too; none is allocated (torch's meta device)."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Segmenter.from_shape(shape).parameters())


def segmenter_activation_bytes(shape: SegmenterShape, bytes_per_value: int, *, frozen: bool = False) -> int:
    """Approximate bytes of the activations that one training image keeps for the backward pass.

    | part | values kept |
    |---|---|
    | blocks | 18 for each token and channel (see `model.cost.activation_bytes`); with a bias, the scores of each head |
    | convolution, norm, ReLU | a map after each of the three, the norm's in float32 as several processes keep it |
    | loss, of both heads | the logits for each pixel, and their softmax in float32 |

    Args:
        shape: for images of its encoder's size.
        bytes_per_value: 4, or 2 where most of the computation is in 16 bits.
        frozen: the encoder is not trained and keeps nothing.
    """
    encoder = 0 if frozen else _encoder_bytes(shape, bytes_per_value)
    return encoder + _heads_bytes(shape, bytes_per_value) + _loss_bytes(shape, bytes_per_value)


def _encoder_bytes(shape: SegmenterShape, bytes_per_value: int) -> int:
    encoder, blocks = shape.encoder, shape.pyramid_blocks[-1] + 1
    tokens = encoder.num_prefix_tokens + encoder.num_patches
    values = 18 * blocks * tokens * encoder.width + 3 * encoder.num_patches * encoder.patch_dim
    if encoder.relative_positions != "none":
        # The gradient of a bias needs the softmax of all scores, unless a kernel computes it again.
        values += blocks * encoder.num_heads * tokens**2
    return values * bytes_per_value


def _heads_bytes(shape: SegmenterShape, bytes_per_value: int) -> int:
    width, inner, patches = shape.encoder.width, shape.head_width, shape.encoder.num_patches
    rows, columns = shape.encoder.grid
    coarse = -(-rows // 2) * -(-columns // 2)
    maps = 16 * patches, 4 * patches, patches, coarse
    normed = 4 * patches * width  # of the pyramid
    values = (2 * maps[1] + sum(maps) + patches) * width  # norm's and GELU's outputs; the maps; what they are made from
    # Laterals and outputs of three maps: the norm's input; ReLU's output, and the sum that is the convolution's input.
    normed += 2 * inner * sum(maps[:3])
    values += 3 * inner * sum(maps[:3])
    pooled = sum(size * size for size in POOL_SIZES)
    normed += (pooled + coarse) * inner
    values += (pooled + coarse) * inner + pooled * width + coarse * (width + len(POOL_SIZES) * inner)
    # The fusion's input of four maps, its ReLU's output, the same with dropped channels.
    normed += maps[0] * inner
    values += 6 * maps[0] * inner
    normed += patches * shape.auxiliary_width
    values += 2 * patches * shape.auxiliary_width
    return values * bytes_per_value + normed * 4


def _loss_bytes(shape: SegmenterShape, bytes_per_value: int) -> int:
    height, width = shape.encoder.image_size
    return 2 * shape.num_classes * height * width * (bytes_per_value + 4)
