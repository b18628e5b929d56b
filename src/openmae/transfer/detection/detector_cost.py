"""The cost of a detector, from its shape: parameters, and the memory of activations in training."""

import torch

from openmae.config import DetectorShape
from openmae.config.detector_shape import ASPECT_RATIOS, BOX_CELLS, MASK_CELLS, POSITIVE_SHARE
from openmae.transfer.detection.detections import MASK_SIDE
from openmae.transfer.detection.detector import Detector


def detector_parameters(shape: DetectorShape) -> int:
    """Parameters of the model, positions too; none is allocated (torch's meta device)."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Detector.from_shape(shape).parameters())


def detector_activation_bytes(shape: DetectorShape, bytes_per_value: int, *, frozen: bool = False) -> int:
    """Approximate bytes of the activations that one training image keeps for the backward pass.

    | part | values kept |
    |---|---|
    | blocks | 18 for each token, padding too, and channel (see `activation_bytes`); with a bias, the heads' scores |
    | convolution, norm, ReLU | a map before and after the norm, which several processes keep in float32 |
    | anchors | logits and moves in 32 bits, twice |
    | regions | as many as are sampled, a quarter of them with masks |

    The images' own masks, a byte for each pixel and object, are not counted.

    Args:
        shape: for images of its encoder's size.
        bytes_per_value: 4, or 2 where most of the computation is in 16 bits.
        frozen: the encoder is not trained and keeps nothing.
    """
    encoder = 0 if frozen else _encoder_bytes(shape, bytes_per_value)
    return encoder + _pyramid_bytes(shape, bytes_per_value) + _regions_bytes(shape, bytes_per_value)


def _encoder_bytes(shape: DetectorShape, bytes_per_value: int) -> int:
    encoder = shape.encoder
    values = 3 * encoder.num_patches * encoder.patch_dim
    for number in range(shape.pyramid_blocks[-1] + 1):
        size = 0 if number in encoder.global_blocks else encoder.window_size
        rows, columns = (-(-side // size) * size if size else side for side in encoder.grid)
        tokens = rows * columns + encoder.num_prefix_tokens
        values += 18 * tokens * encoder.width
        if encoder.relative_positions != "none":
            # The gradient of a bias needs the softmax of all scores, unless a kernel computes it again.
            values += encoder.num_heads * tokens * (size * size or tokens)
    return values * bytes_per_value


def _pyramid_bytes(shape: DetectorShape, bytes_per_value: int) -> int:
    width, inner, patches, c = shape.encoder.width, shape.head_width, shape.encoder.num_patches, shape.conventions
    rows, columns = shape.encoder.grid
    maps = 16 * patches, 4 * patches, patches, -(-rows // 2) * -(-columns // 2)
    coarsest = -(-rows // 4) * -(-columns // 4)
    values = (2 * maps[1] + sum(maps) + patches) * width  # as the segmenter's
    normed = 4 * patches * width
    # Of the two convolutions of a map: what the norms take (none: the first's output is added and gone), and give.
    values += 2 * sum(maps) * inner
    normed += (0 if c.head_norm == "none" else 2 * sum(maps)) * inner
    values += c.rpn_convolutions * (sum(maps) + coarsest) * inner
    anchors = len(ASPECT_RATIOS) * (sum(maps) + coarsest)
    return values * bytes_per_value + normed * 4 + 2 * 5 * anchors * 4


def _regions_bytes(shape: DetectorShape, bytes_per_value: int) -> int:
    inner, classes, c = shape.head_width, shape.num_classes + 1, shape.conventions
    is_normed = c.head_norm != "none"
    cells = shape.roi_samples * BOX_CELLS**2
    values = (1 + c.box_convolutions) * cells * inner + c.box_linears * shape.roi_samples * shape.box_width
    normed = is_normed * c.box_convolutions * cells * inner
    in_32_bits = 2 * 5 * classes * shape.roi_samples
    if shape.has_masks:
        objects = int(POSITIVE_SHARE * shape.roi_samples)
        cells = objects * MASK_CELLS**2
        values += (1 + c.mask_convolutions) * cells * inner + objects * MASK_SIDE**2 * inner
        normed += is_normed * c.mask_convolutions * cells * inner
        in_32_bits += objects * MASK_SIDE**2 * (classes + 2)
    return values * bytes_per_value + (normed + in_32_bits) * 4
