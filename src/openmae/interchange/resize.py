"""Resampling an encoder's weights for another image or patch size."""

from dataclasses import replace

from torch import Tensor

from openmae.config import DetectorShape, MAEShape, ViTShape
from openmae.errors import RequestError
from openmae.interchange.report import Shape
from openmae.interchange.stored import ENCODER, ModelShape, StoredModel
from openmae.model.positions import resample_positions
from openmae.model.relative_positions import CLASS_OFFSETS, resample_bias_table, resample_vectors

KERNEL = "patch_embed.proj.weight"


def fit_encoder(
    weights: dict[str, Tensor], old: ViTShape, new: ViTShape, where: str
) -> tuple[dict[str, Tensor], dict[str, tuple[Shape, Shape]]]:
    """Resample the weights that depend on the image and patch size.

    Position tables and relative position biases are resampled bicubically, relative position vectors linearly, and the
    patch projection so that a resized patch gives the same embedding (FlexiViT's pseudo-inverse, timm's
    `resample_patch_embed`). A class token that the new encoder has no place for (windows, decomposed relative
    positions) is left out, with its position.

    Args:
        weights: by their names inside the encoder.
        where: the file they come from, for messages.

    Returns:
        The weights for `new`, and the shapes of the changed ones before and after.

    Raises:
        RequestError: the weights were trained with windows of another size, or with relative positions and without
            the requested windows.
    """
    if old.window_size not in (0, new.window_size):
        raise RequestError(f"{where} has windows of {old.window_size} patches, {new.window_size} are requested")
    if old.window_size != new.window_size and old.relative_positions != "none":
        raise RequestError(
            f"{where} has relative positions between the patches of whole images, and windows of {new.window_size} are "
            "requested: give --window-size 0"
        )
    if old.class_token and not new.class_token:
        weights, old = without_class_token(weights), replace(old, class_token=False)
    if old.patch_size != new.patch_size and KERNEL in weights:
        from timm.layers.patch_embed import resample_patch_embed

        size = [new.patch_size, new.patch_size]
        weights = {**weights, KERNEL: resample_patch_embed(weights[KERNEL], size)}
    fitted: dict[str, Tensor] = {}
    changed: dict[str, tuple[Shape, Shape]] = {}
    for name, value in weights.items():
        fitted[name] = _fitted(name, value, old, new)
        if fitted[name].shape != value.shape:
            changed[name] = (tuple(value.shape), tuple(fitted[name].shape))
    if old.patch_size != new.patch_size:
        width_and_channels = (new.width, new.channels)
        before, after = ((shape.patch_size, shape.patch_size) for shape in (old, new))
        changed[KERNEL] = (width_and_channels + before, width_and_channels + after)
    return fitted, changed


def without_class_token(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's weights without its class token and that one's position."""
    kept = {name: value for name, value in weights.items() if name != "cls_token"}
    if "pos_embed" in kept:
        kept["pos_embed"] = kept["pos_embed"][:, 1:]
    return kept


def resized_model(
    model: StoredModel, image_size: tuple[int, int] | None, patch_size: int | None
) -> tuple[StoredModel, list[str]]:
    """The model, its decoder included, for another image or patch size, and a line about each resampled weight.

    Raises:
        RequestError: the patch does not divide the image, a decoder would have to predict patches of another size, or a
            detector's images would not be square.
    """
    old = model.encoder_shape
    new = old.resized(image_size or old.image_size, patch_size or old.patch_size)
    if new == old:
        return model, []
    if isinstance(model.shape, MAEShape) and new.patch_size != old.patch_size:
        raise RequestError(
            f"--patch-size got {new.patch_size}: the decoder of {model.path} predicts patches of {old.patch_size} px; "
            "--part encoder leaves it out"
        )
    if isinstance(model.shape, DetectorShape) and len(set(new.image_size)) > 1:
        raise RequestError(
            f"--image-size got {new.image_size[0]} {new.image_size[1]}, but a detector's images are padded to a "
            "square: give one number"
        )
    fitted, changed = fit_encoder(model.encoder_weights, old, new, str(model.path))
    weights = {**model.weights, **{ENCODER + name: value for name, value in fitted.items()}}
    lines = [f"resized    {ENCODER}{name}: {was} -> {now}" for name, (was, now) in changed.items()]
    shape: ModelShape = new
    if not isinstance(model.shape, ViTShape):
        shape = replace(model.shape, encoder=new)
    if isinstance(model.shape, MAEShape):
        before = weights["decoder.pos_embed"]
        after = weights["decoder.pos_embed"] = resample_positions(before, old.grid, new.grid, num_prefix_tokens=1)
        lines.append(f"resized    decoder.pos_embed: {tuple(before.shape)} -> {tuple(after.shape)}")
    preprocessing = replace(model.preprocessing, image_size=new.image_size)
    description = {**model.description, "shape": shape.to_dict(), "preprocessing": preprocessing.to_dict()}
    if "stride" in description:  # of a segmentation model's windows, which leave no pixel out
        description["stride"] = min(description["stride"], *new.image_size)
    resized = replace(model, weights=weights, shape=shape, preprocessing=preprocessing, description=description)
    return resized, lines


def _fitted(name: str, value: Tensor, old: ViTShape, new: ViTShape) -> Tensor:
    if name == "pos_embed":
        return resample_positions(value, old.grid, new.grid, new.num_prefix_tokens)
    if name == "windowed_relative.table":
        return value
    if name == "global_relative.table":
        return _resampled_biases(value, old, new)
    if name.endswith(("relative.table", "rel_pos_h", "rel_pos_w")):
        number = int(name.split(".")[1])
        if new.window_size and number not in new.global_blocks:
            return value
        if name.endswith("relative.table"):
            return _resampled_biases(value, old, new)
        return resample_vectors(value, new.grid[0] if name.endswith("h") else new.grid[1])
    return value


def _resampled_biases(table: Tensor, old: ViTShape, new: ViTShape) -> Tensor:
    return resample_bias_table(table, old.grid, new.grid, CLASS_OFFSETS if new.class_token else 0)
