"""The cost of a model, computed from its shape: parameters, matrix-product FLOPs, activation memory."""

from openmae.config import ClassifierShape, DecoderShape, MAEShape, ViTShape
from openmae.model.relative_positions import CLASS_OFFSETS


def _blocks_flops(shape: ViTShape | DecoderShape, tokens: int) -> int:
    return shape.depth * (24 * tokens * shape.width**2 + 4 * tokens**2 * shape.width)


def _blocks_parameters(shape: ViTShape | DecoderShape) -> int:
    return shape.depth * (12 * shape.width**2 + 13 * shape.width) + 2 * shape.width


def num_parameters(shape: MAEShape) -> int:
    """Trainable parameters; the fixed positions are not counted."""
    encoder, decoder = shape.encoder, shape.decoder
    embed = encoder.patch_dim * encoder.width + encoder.width + encoder.width  # projection, class token
    bridge = encoder.width * decoder.width + decoder.width
    mask_token = encoder.width if shape.mask_tokens_in_encoder else decoder.width
    predict = decoder.width * shape.outputs + shape.outputs
    return _blocks_parameters(encoder) + _blocks_parameters(decoder) + embed + bridge + mask_token + predict


def encoder_parameters(encoder: ViTShape) -> int:
    """Parameters of an encoder, including positions."""
    embed = encoder.patch_dim * encoder.width + encoder.width + encoder.num_prefix_tokens * encoder.width
    positions = (
        (encoder.num_prefix_tokens + encoder.num_patches) * encoder.width if encoder.positions == "absolute" else 0
    )
    scales = 2 * encoder.depth * encoder.width if encoder.layer_scale else 0
    norm = 0 if encoder.final_norm else -2 * encoder.width
    return _blocks_parameters(encoder) + embed + positions + scales + norm + _relative_parameters(encoder)


def _relative_parameters(encoder: ViTShape) -> int:
    rows, columns = encoder.grid
    windowed, everywhere = encoder.num_windowed, encoder.depth - encoder.num_windowed
    if encoder.relative_positions == "bias":
        if encoder.shares_relative_positions:
            windowed, everywhere = min(windowed, 1), min(everywhere, 1)
        of_class = CLASS_OFFSETS if encoder.class_token else 0
        offsets = windowed * ((2 * encoder.window_size - 1) ** 2 + of_class)
        offsets += everywhere * ((2 * rows - 1) * (2 * columns - 1) + of_class)
        return offsets * encoder.num_heads
    if encoder.relative_positions == "decomposed":
        offsets = windowed * 2 * (2 * encoder.window_size - 1)
        offsets += everywhere * (2 * rows - 1 + 2 * columns - 1)
        return offsets * (encoder.width // encoder.num_heads)
    return 0


def classifier_parameters(shape: ClassifierShape) -> int:
    """Parameters of a classifier, including positions, which fine-tuning trains too."""
    return encoder_parameters(shape.encoder) + shape.encoder.width * shape.num_classes + shape.num_classes


def classifier_flops(shape: ClassifierShape, num_trained: float | None) -> int:
    """Matrix-product FLOPs to train on one image; frozen blocks have no backward pass.

    Args:
        num_trained: the number of blocks that are trained; None: all, and the patch projection.
    """
    encoder = shape.encoder
    tokens = 1 + encoder.num_patches
    block = _blocks_flops(encoder, tokens) / encoder.depth
    trained = encoder.depth if num_trained is None else num_trained
    projection = 2 * encoder.num_patches * encoder.patch_dim * encoder.width
    head = 2 * encoder.width * shape.num_classes
    forward = block * encoder.depth + projection + head
    return int(forward + 2 * (block * trained + head) + (projection if num_trained is None else 0))


def classifier_activation_bytes(shape: ClassifierShape, num_trained: float | None, bytes_per_value: int) -> int:
    """Approximate bytes of the activations that one image keeps for the backward pass (see `activation_bytes`)."""
    encoder = shape.encoder
    trained = encoder.depth if num_trained is None else max(1.0, num_trained)
    tokens = 1 + encoder.num_patches
    return int((18 * trained * tokens * encoder.width + 3 * encoder.num_patches * encoder.patch_dim) * bytes_per_value)


def num_positions(shape: MAEShape) -> int:
    """Values in the two fixed position tables."""
    return (1 + shape.encoder.num_patches) * (shape.encoder.width + shape.decoder.width)


def training_flops(shape: MAEShape, visible: int) -> int:
    """Matrix-product FLOPs to train on one image of which `visible` patches are not masked.

    2 × multiply-adds, backward = 2 × forward. The class token is counted, the patch projection's unneeded input
    gradient is not. The savings in the last decoder block are not subtracted, so that FLOP/s can be compared with
    other programs.
    """
    encoder, decoder = shape.encoder, shape.decoder
    count = encoder.num_patches
    encoded = 1 + (count if shape.mask_tokens_in_encoder else visible)
    forward = _blocks_flops(encoder, encoded) + _blocks_flops(decoder, 1 + count)
    forward += 2 * encoded * encoder.width * decoder.width
    forward += 2 * (count - visible) * decoder.width * shape.outputs
    projection = 2 * visible * encoder.patch_dim * encoder.width
    return 3 * forward + 2 * projection


def activation_bytes(
    shape: MAEShape, visible: int, bytes_per_value: int, *, masked: int | None = None, recompute: bool = False
) -> int:
    """Approximate bytes of the activations that one image keeps for the backward pass.

    A block keeps 16 values for each token and channel: the two norms' inputs and outputs, qkv, the attention's output
    and the MLP's hidden layer before and after GELU. 18 are counted, for with bf16 the norms' inputs are float32.

    The loss is computed in float32 at any precision: an output is kept as it was predicted and three times in float32,
    as a copy, as its error (or softmax) and as a gradient.

    Args:
        masked: the patches that are predicted; all that are not visible unless given.
        recompute: outputs of norms and GELU are not kept: 6 values fewer.
    """
    encoder, decoder, count = shape.encoder, shape.decoder, shape.encoder.num_patches
    encoded = 1 + (count if shape.mask_tokens_in_encoder else visible)
    values_per_token = 12 if recompute else 18
    values = values_per_token * (encoder.depth * encoded * encoder.width + decoder.depth * (1 + count) * decoder.width)
    images = 3 * 4 * count * encoder.patch_dim  # in float32: the images, their patches and the true values
    outputs = (count - visible if masked is None else masked) * shape.outputs
    return values * bytes_per_value + images + outputs * (bytes_per_value + 3 * 4)
