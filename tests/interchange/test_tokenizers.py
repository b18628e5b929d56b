"""A tokenizer is read from a run, from a folder of transformers or from the Hub, and computes what it did there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.interchange.tokenizer_files import METADATA, PREPROCESSING, SHAPE, make_vae, save_codebook, save_run
from transformers import FlavaConfig, FlavaForPreTraining

from openmae.config import TokenizerShape
from openmae.errors import RequestError
from openmae.interchange.tokenizers import StoredTokenizer, build_tokenizer, read_tokenizer
from openmae.model.tokenizer import DiscreteVAE
from openmae.training.checkpoint import METADATA_KEY


@pytest.fixture
def vae() -> DiscreteVAE:
    return make_vae()


@pytest.fixture
def run(tmp_path, vae) -> Path:
    return save_run(tmp_path / "run", vae)


@pytest.fixture
def codebook(tmp_path) -> Path:
    save_codebook(tmp_path / "codebook")
    return tmp_path / "codebook"


def assert_computes(stored: StoredTokenizer, expected: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """What was read, put into a tokenizer of its shape, gives the same tokens, and not all alike."""
    model = build_tokenizer(stored.shape).eval()
    model.load_state_dict(stored.weights)
    images = torch.rand(2, stored.shape.channels, 6 * stored.shape.stride, 5 * stored.shape.stride)
    with torch.no_grad():
        tokens = model.tokens(images)
        assert torch.equal(tokens, expected(images))
    assert tokens.shape == (2, 30)
    assert len(tokens.unique()) > 1


def test_a_run_a_checkpoint_and_a_file_are_the_same_tokenizer(run, vae):
    for path in (run, run / "checkpoints" / "step-00000003", run / "model.safetensors"):
        stored = read_tokenizer(str(path))
        assert (stored.name, stored.shape, stored.preprocessing) == (str(path), SHAPE, PREPROCESSING)
        assert stored.weights.keys() == vae.state_dict().keys()
        for name, value in vae.state_dict().items():
            assert torch.equal(stored.weights[name], value), name
        assert stored.sha256 == read_tokenizer(str(run)).sha256
        assert_computes(stored, vae.tokens)


def test_the_hash_is_of_the_weights_alone(tmp_path, run, vae):
    hashes = {read_tokenizer(str(run)).sha256}
    again = save_run(tmp_path / "again", vae, step=9, seed=5, recipe="another")
    assert read_tokenizer(str(again)).sha256 in hashes
    with torch.no_grad():
        vae.codebook[3, 2] += 1e-6
    hashes.add(read_tokenizer(str(save_run(tmp_path / "changed", vae))).sha256)
    weights = load_file(run / "model.safetensors")
    pair = ["encoder.4.convolution_1.bias", "encoder.4.convolution_2.bias"]  # zeros of one shape: equal bytes
    weights[pair[0]] = torch.ones_like(weights[pair[0]])
    for first, second in (pair, pair[::-1]):
        swapped = {**weights, first: weights[pair[0]], second: weights[pair[1]]}
        (tmp_path / first).mkdir()
        save_file(
            swapped,
            tmp_path / first / "model.safetensors",
            metadata={METADATA_KEY: json.dumps({"format_version": 1, **METADATA})},
        )
        hashes.add(read_tokenizer(str(tmp_path / first)).sha256)
    assert len(hashes) == 4
    assert all(len(digest) == 64 for digest in hashes)


@pytest.mark.parametrize("settings", [{}, {"hidden_size": 12, "num_blocks_per_group": 2, "input_channels": 1}])
@pytest.mark.parametrize("container", ["safetensors", "pickle", "half"])
def test_a_codebook_of_transformers(tmp_path, settings, container):
    folder = tmp_path / "codebook"
    theirs = save_codebook(folder, **settings)
    if container == "pickle":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif container == "half":
        theirs.half().save_pretrained(folder)
        theirs.float()
    stored = read_tokenizer(str(folder))
    assert stored.shape == TokenizerShape(
        kind="dalle",
        patch_size=None,
        stride=8,
        channels=settings.get("input_channels", 3),
        codebook=32,
        width=settings.get("hidden_size", 8),
        depth=settings.get("num_blocks_per_group", 1),
    )
    assert stored.preprocessing is None
    assert all(value.dtype == torch.float32 for value in stored.weights.values())
    assert_computes(stored, lambda images: theirs.get_codebook_indices(images).flatten(1))


def test_settings_that_a_config_leaves_out_are_transformers_own(tmp_path):
    theirs = save_codebook(tmp_path, num_blocks_per_group=2)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("num_groups", "num_blocks_per_group", "input_channels"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_computes(read_tokenizer(str(tmp_path)), lambda images: theirs.get_codebook_indices(images).flatten(1))


def test_a_codebook_has_one_hash_in_any_container(tmp_path, codebook):
    first = read_tokenizer(str(codebook)).sha256
    assert read_tokenizer(str(codebook / "model.safetensors")).sha256 == first
    torch.save(load_file(codebook / "model.safetensors"), tmp_path / "pytorch_model.bin")
    shutil.copy(codebook / "config.json", tmp_path)
    assert read_tokenizer(str(tmp_path / "pytorch_model.bin")).sha256 == first


def test_the_codebook_of_a_whole_flava_model(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = FlavaConfig(
        image_config={**small, "image_size": 16, "patch_size": 8, "vocab_size": 32},
        text_config={**small, "vocab_size": 40},
        multimodal_config=small,
        image_codebook_config={"hidden_size": 8, "vocab_size": 32, "num_blocks_per_group": 1},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = FlavaForPreTraining(config)
    for parameter in model.image_codebook.parameters():
        parameter.data.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    stored = read_tokenizer(str(tmp_path))
    assert (stored.shape.kind, stored.shape.width, stored.shape.depth) == ("dalle", 8, 1)
    assert_computes(stored, lambda images: model.image_codebook.get_codebook_indices(images).flatten(1))
    weights = load_file(tmp_path / "model.safetensors")
    rest = {name: value for name, value in weights.items() if not name.startswith("image_codebook.")}
    assert len(rest) < len(weights)
    save_file(rest, tmp_path / "model.safetensors")
    with pytest.raises(RequestError, match="is a flava model without its image codebook"):
        read_tokenizer(str(tmp_path))


def test_a_tokenizer_of_the_hub(tmp_path, monkeypatch, codebook, run, vae):
    asked = []

    def download(name: str, revision: str | None, **_: Any) -> str:
        asked.append((name, revision))
        return str(codebook if name == "facebook/flava-image-codebook" else run)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    stored = read_tokenizer("hf:facebook/flava-image-codebook")
    assert (stored.name, stored.shape.kind) == ("hf:facebook/flava-image-codebook", "dalle")
    assert stored.sha256 == read_tokenizer(str(codebook)).sha256
    assert read_tokenizer("hf:someone/mine@v2").sha256 == read_tokenizer(str(run)).sha256
    assert asked == [("facebook/flava-image-codebook", None), ("someone/mine", "v2")]
