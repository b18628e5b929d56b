"""An encoder whose new model has no place for its class token: it is left out, the patches' positions stay."""

from dataclasses import asdict

import pytest
import torch

from openmae.config import ViTShape
from openmae.errors import RequestError
from openmae.interchange.init import read_init
from openmae.interchange.load_weights import load_encoder
from openmae.interchange.resize import fit_encoder
from openmae.model.positions import resample_positions
from openmae.model.vit import ViT
from openmae.training.checkpoint import save_weights

from .outgoing_models import draw_weights, make_preprocessing

SIZES = {"image_size": (24, 32), "patch_size": 4, "channels": 3, "width": 16, "depth": 4, "num_heads": 2}
WINDOWED = {"class_token": False, "window_size": 3, "global_blocks": (1, 3)}
LEFT_OUT = "class token: left out, for windows and decomposed positions have no place for it"


def stored(folder, **changes):
    """An encoder as `--init` gives it, with weights that all differ."""
    shape = ViTShape(**{**SIZES, **changes})
    encoder = ViT(shape)
    draw_weights(encoder)
    weights = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    description = {"kind": "encoder", "shape": shape.to_dict(), "preprocessing": asdict(make_preprocessing(shape))}
    folder.mkdir()
    save_weights(folder / "model.safetensors", weights, description)
    return read_init(str(folder), verbose=False)


def test_the_patches_positions_and_all_other_weights_stay(tmp_path):
    init = stored(tmp_path / "init")
    encoder = ViT(ViTShape(**SIZES, **WINDOWED))
    (line,) = load_encoder(encoder, init)
    assert line.strip() == LEFT_OUT
    weights, old = encoder.state_dict(), init.encoder_weights
    assert "cls_token" not in weights
    assert old.keys() - weights.keys() == {"cls_token"}
    assert torch.equal(weights["pos_embed"], old["pos_embed"][:, 1:])
    for name in weights.keys() - {"pos_embed"}:
        assert torch.equal(weights[name], old[name])


def test_another_size_resamples_them_as_with_a_class_token(tmp_path):
    init, larger = stored(tmp_path / "init"), {**SIZES, "image_size": (40, 36)}
    encoder, beside = ViT(ViTShape(**larger, **WINDOWED)), ViT(ViTShape(**larger))
    resized, said = load_encoder(encoder, init)
    assert "resized encoder.pos_embed: (1, 48, 16) -> (1, 90, 16)" in resized
    assert said.strip() == LEFT_OUT
    load_encoder(beside, init)
    assert torch.equal(encoder.pos_embed, beside.pos_embed[:, 1:])
    assert torch.equal(
        encoder.pos_embed, resample_positions(init.encoder_weights["pos_embed"][:, 1:], (6, 8), (10, 9), 0)
    )


def test_biases_of_the_class_token_are_not_asked_for(tmp_path):
    init = stored(tmp_path / "init")
    encoder = ViT(ViTShape(**SIZES, **WINDOWED, relative_positions="bias", shares_relative_positions=True))
    lines = [line.strip() for line in load_encoder(encoder, init)]
    assert lines == [LEFT_OUT, "relative positions, 2 tables: fresh, zero at first"]
    assert not encoder.windowed_relative.table.any()
    assert not encoder.global_relative.table.any()


def test_an_encoder_that_has_none_keeps_all_its_positions(tmp_path):
    init = stored(tmp_path / "init", class_token=False)
    encoder = ViT(ViTShape(**SIZES, **WINDOWED))
    assert load_encoder(encoder, init) == []
    assert torch.equal(encoder.pos_embed, init.encoder_weights["pos_embed"])


def test_a_class_token_is_not_made_up(tmp_path):
    init = stored(tmp_path / "init", class_token=False)
    with pytest.raises(RequestError, match="lacks the encoder's cls_token"):
        load_encoder(ViT(ViTShape(**SIZES)), init)


@pytest.mark.parametrize("size", [0, 4])
def test_windows_of_another_size_are_refused(tmp_path, size):
    init = stored(tmp_path / "init", **WINDOWED)
    other = ViTShape(**SIZES, **{**WINDOWED, "window_size": size, "global_blocks": (1, 3) if size else ()})
    with pytest.raises(RequestError, match=f"windows of 3 patches, {size} are requested"):
        fit_encoder(init.encoder_weights, init.encoder_shape, other, "init")
