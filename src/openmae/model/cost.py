"""What a model costs, counted from its shape: parameters, tokens, matrix-product work, memory."""

from openmae.config import DecoderShape, MAEShape, ViTShape


def _blocks_flops(shape: ViTShape | DecoderShape, tokens: int) -> int:
    return shape.depth * (24 * tokens * shape.width**2 + 4 * tokens**2 * shape.width)


def _blocks_parameters(shape: ViTShape | DecoderShape) -> int:
    return shape.depth * (12 * shape.width**2 + 13 * shape.width) + 2 * shape.width


def num_parameters(shape: MAEShape) -> int:
    """Trainable parameters; the fixed positions are not counted."""
    encoder, decoder = shape.encoder, shape.decoder
    embed = encoder.patch_values * encoder.width + encoder.width + encoder.width  # projection, class token
    bridge = encoder.width * decoder.width + decoder.width
    mask_token = encoder.width if shape.mask_tokens_in_encoder else decoder.width
    predict = decoder.width * encoder.patch_values + encoder.patch_values
    return _blocks_parameters(encoder) + _blocks_parameters(decoder) + embed + bridge + mask_token + predict


def num_positions(shape: MAEShape) -> int:
    """Values in the two fixed position tables."""
    return (1 + shape.encoder.num_patches) * (shape.encoder.width + shape.decoder.width)


def training_flops(shape: MAEShape, visible: int) -> int:
    """Matrix-product FLOPs to train on one image of which `visible` patches are seen.

    2 × multiply-adds, backward = 2 × forward. The class token is counted, the patch projection's unneeded
    input gradient is not; what the last decoder block saves is not deducted, so that rates compare with
    those of other programs.
    """
    encoder, decoder = shape.encoder, shape.decoder
    count = encoder.num_patches
    encoded = 1 + (count if shape.mask_tokens_in_encoder else visible)
    forward = _blocks_flops(encoder, encoded) + _blocks_flops(decoder, 1 + count)
    forward += 2 * encoded * encoder.width * decoder.width
    forward += 2 * (count - visible) * decoder.width * encoder.patch_values
    projection = 2 * visible * encoder.patch_values * encoder.width
    return 3 * forward + 2 * projection


def activation_bytes(shape: MAEShape, visible: int, bytes_per_value: int) -> int:
    """Rough memory that the activations of one image take until the backward pass.

    A block keeps about 18 values for each token and unit of width: the two norms' inputs and outputs, qkv,
    the attention's output, the residuals and the MLP's hidden layer before and after GELU.
    """
    encoder, decoder, count = shape.encoder, shape.decoder, shape.encoder.num_patches
    encoded = 1 + (count if shape.mask_tokens_in_encoder else visible)
    values = 18 * encoder.depth * encoded * encoder.width
    values += 18 * decoder.depth * (1 + count) * decoder.width
    values += 6 * count * encoder.patch_values
    return values * bytes_per_value
