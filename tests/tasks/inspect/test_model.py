"""`openmae inspect MODEL`: ours, whole or damaged, and another program's; nothing is written unasked."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import ViTConfig, ViTModel

from openmae.cli import run
from openmae.config import InspectConfig
from openmae.errors import RequestError
from openmae.tasks.inspect.inspect import inspect

from ...shared import snapshot


def test_a_model_of_ours_says_what_it_is(pixel_run, capsys):
    model = pixel_run / "model.safetensors"
    before = snapshot(pixel_run)
    found = inspect(InspectConfig(path=str(model)))
    assert (found["kind"], found["model"], found["step"]) == ("model", "mae", 12)
    assert found["parameters"] == sum(tensor.numel() for tensor in torch_weights(model).values())
    assert found["checksums"] == {str(model): hashlib.sha256(model.read_bytes()).hexdigest()}
    assert set(found["loaded"]) == set(torch_weights(model))
    said = capsys.readouterr().out
    assert "decoder    16 x 1" in said
    assert "predicts pixel; mask random 0.75" in said
    assert snapshot(pixel_run) == before


def torch_weights(path):
    from safetensors.torch import load_file

    return load_file(path)


def test_a_checkpoint_is_held_against_its_manifest(pixel_run, tmp_path):
    checkpoint = shutil.copytree(pixel_run / "checkpoints" / "step-00000012", tmp_path / "step-00000012")
    found = inspect(InspectConfig(path=str(checkpoint)))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert found["checksums"] == {name: entry["sha256"] for name, entry in manifest["files"].items()}
    (checkpoint / "state.json").write_text("{}")
    with pytest.raises(RequestError, match=r"is damaged: state.json is not what was written"):
        inspect(InspectConfig(path=str(checkpoint)))


def test_another_programs_model_and_its_report(tmp_path, capsys):
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=32, patch_size=8
    )
    ViTModel(config).save_pretrained(tmp_path / "vit")
    found = inspect(InspectConfig(path=str(tmp_path / "vit"), out=str(tmp_path / "report")))
    assert json.loads((tmp_path / "report" / "inspect.json").read_text()) == json.loads(json.dumps(found))
    assert found["model"] == "encoder"
    assert list(found["unused"]) == ["pooler.dense.bias", "pooler.dense.weight"]
    said = capsys.readouterr().out
    assert "4 heads (as it says)" in said
    assert "encoder only, reconstruction needs the decoder" in said
    assert "encoder.blocks.0-1.attn.qkv.weight (96, 32)" in said
    assert "norm_eps 1e-12" not in said  # of no matter: it is a plain ViT


def test_what_is_no_model_is_refused_in_a_line_and_writes_nothing(tmp_path, capsys):
    save_file({"classifier.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    assert run(["inspect", str(tmp_path / "other.safetensors"), "--out", str(tmp_path / "report")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "no Vision Transformer whose names are known here" in said[0]
    assert not (tmp_path / "report").exists()
