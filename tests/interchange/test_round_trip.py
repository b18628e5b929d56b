"""Out and in again, and in and out again: every weight bit-equal, and what the format can hold beside them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from openmae import ConvertConfig, RequestError, convert
from openmae.interchange.init import read_init
from openmae.interchange.stored import StoredModel

from .foreign import beit_classifier, photograph, relative_error, saved, timm_vit, vit_classifier, vit_mae, vit_model


def foreign(kind: str, folder: Path) -> Path:
    """A model of another program on disk."""
    if kind == "timm":
        return saved(dict(timm_vit(global_pool="avg").state_dict()), folder / "timm.safetensors")
    makers: dict[str, Any] = {"mae": vit_mae, "classifier": vit_classifier, "encoder": vit_model}
    # The class token's norm and an eps of 1e-6: what every two-way format can hold.
    model = makers[kind](layer_norm_eps=1e-6, **({"norm_pix_loss": True} if kind == "mae" else {}))
    model.save_pretrained(folder / kind)
    return folder / kind


def converted(init: str, out: Path, to: str, **options: Any) -> StoredModel:
    convert(ConvertConfig(init=init, out=str(out), to=to, **options))
    return read_init(str(out), verbose=False)


def assert_equal(one: StoredModel, other: StoredModel) -> None:
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    assert one.shape == other.shape


@pytest.mark.parametrize(
    ("kind", "to", "ending"),
    [
        ("mae", "reference", ".pth"),
        ("mae", "transformers", ""),
        ("mae", "openmae", ""),
        ("classifier", "timm", ""),
        ("classifier", "transformers", ""),
        ("classifier", "reference", ".pth"),
        ("encoder", "timm", ""),
        ("encoder", "transformers", ""),
        ("encoder", "reference", ".pth"),
        ("timm", "timm", ""),
        ("timm", "reference", ".pth"),
        ("timm", "openmae", ""),
    ],
)
def test_bit_equal_both_ways(kind: str, to: str, ending: str, tmp_path: Path) -> None:
    """In, out, in again: weights, shape, target, classes, and the preparation of images where the format holds it."""
    before = read_init(str(foreign(kind, tmp_path)), verbose=False)
    after = converted(str(before.path), tmp_path / f"out{ending}", to)
    assert_equal(before, after)
    if to != "reference":
        assert after.description.get("classes") == before.description.get("classes")
        p, q = before.preprocessing, after.preprocessing
        assert (p.image_size, p.value_range) == (q.image_size, q.value_range)
        assert torch.allclose(torch.tensor(p.mean + p.std), torch.tensor(q.mean + q.std), atol=1e-6)
        assert (
            abs(p.crop_fraction - q.crop_fraction) < 0.02
        )  # timm's and transformers' are whole pixels of a short side


def test_transformers_own_files_come_out_as_they_went_in(tmp_path: Path) -> None:
    """transformers → openmae → transformers: the same tensors under the same names (its pooler has no place here)."""
    path = foreign("encoder", tmp_path)
    convert(ConvertConfig(init=str(path), out=str(tmp_path / "ours"), to="openmae"))
    convert(ConvertConfig(init=str(tmp_path / "ours"), out=str(tmp_path / "again"), to="transformers"))
    before, after = load_file(path / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() - after.keys() == {"pooler.dense.weight", "pooler.dense.bias"}
    assert all(torch.equal(before[name], after[name]) for name in after)


def test_beit_stays_itself_as_ours_and_goes_nowhere_else(tmp_path: Path) -> None:
    beit_classifier().save_pretrained(tmp_path / "beit")
    before = read_init(str(tmp_path / "beit"), verbose=False)
    assert_equal(before, converted(str(tmp_path / "beit"), tmp_path / "ours", "openmae"))
    for to in ("timm", "transformers"):
        with pytest.raises(RequestError, match="holds a plain ViT only, this encoder has layer_scale True"):
            convert(ConvertConfig(init=str(tmp_path / "beit"), out=str(tmp_path / to), to=to))
        assert not (tmp_path / to).exists()


def test_sizes_and_what_a_file_does_not_say_are_given(tmp_path: Path, capsys: Any) -> None:
    path = saved(dict(timm_vit(num_heads=4, num_classes=0).state_dict()), tmp_path / "vit.safetensors")
    found = converted(
        str(path),
        tmp_path / "out",
        "openmae",
        num_heads=4,
        image_size=(28, 56),
        patch_size=14,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    said = capsys.readouterr().out
    assert "4 heads (as requested)" in said
    assert "resized    encoder.pos_embed: (1, 17, 128) -> (1, 9, 128)" in said
    assert "resized    encoder.patch_embed.proj.weight: (128, 3, 16, 16) -> (128, 3, 14, 14)" in said
    assert found.encoder_shape.grid == (2, 4)
    assert found.preprocessing.image_size == (28, 56)
    assert found.preprocessing.mean == (0.5, 0.5, 0.5)


def test_a_larger_decoder_predicts_and_another_patch_is_refused(tmp_path: Path) -> None:
    import openmae

    path = foreign("mae", tmp_path)
    convert(ConvertConfig(init=str(path), out=str(tmp_path / "large"), to="openmae", image_size=96))
    large, small = openmae.load(str(tmp_path / "large"), "cpu"), openmae.load(str(path), "cpu")
    assert isinstance(large, openmae.MAEModel)
    assert isinstance(small, openmae.MAEModel)
    images = photograph((96, 96), batch=1)
    assert relative_error(large.encode(images), small.encode(images)) < 1e-6
    pictures = [large.reconstruct(images, seed=1).prediction, small.reconstruct(images, seed=1).prediction]
    assert relative_error(*pictures) < 1e-5
    with pytest.raises(RequestError, match="predicts patches of 16 px; --part encoder leaves it out"):
        convert(ConvertConfig(init=str(path), out=str(tmp_path / "p14"), to="openmae", image_size=56, patch_size=14))
    assert not (tmp_path / "p14").exists()
