"""What is no tokenizer, or a damaged one, is refused in one line; and a tokenizer is no `--init`."""

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.interchange.tokenizer_files import METADATA, PREPROCESSING, SHAPE, make_vae, save_codebook, save_run
from torch import nn

import openmae
from openmae.errors import RequestError
from openmae.interchange.incoming.files import read_raw_checkpoint
from openmae.interchange.incoming.recognise import recognise
from openmae.interchange.init import read_init, read_stored_model
from openmae.interchange.tokenizers import read_tokenizer
from openmae.model.mae import MAE
from openmae.training.checkpoint import METADATA_KEY

ADVICE = "give a run of openmae tokenizer DATA --out RUN, hf:facebook/flava-image-codebook, or a folder of that kind"


@pytest.fixture
def run(tmp_path) -> Path:
    return save_run(tmp_path / "run", make_vae())


@pytest.fixture
def codebook(tmp_path) -> Path:
    save_codebook(tmp_path / "codebook")
    return tmp_path / "codebook"


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def change_weights(file: Path, change: Callable[[dict[str, torch.Tensor]], Any], **metadata: Any) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={METADATA_KEY: json.dumps({"format_version": 1, **METADATA, **metadata})})


def refusal(spec: str | Path, read: Callable[[str], Any] = read_tokenizer) -> str:
    with pytest.raises(RequestError) as caught:
        read(str(spec))
    message = str(caught.value)
    assert message.isprintable()  # one line
    assert len(message) < 500
    return message


def test_what_the_hub_does_not_give_is_one_line(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "is not whole in the local cache" in refusal("hf:nobody/has-this")
    assert "names no model: write hf:ORG/NAME" in refusal("hf:nobody")
    assert f"timm has no tokenizers: {ADVICE}" in refusal("timm:vit_base_patch16_224")


class Encoder(nn.Module):
    """Stands for DALL-E's, which was pickled with its class."""


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("name", ["encoder.pkl", "decoder.pkl", "renamed.pt"])
def test_a_pickle_of_dalle_is_not_opened(tmp_path, monkeypatch, is_new, name):
    module = ModuleType("dall_e.encoder")
    monkeypatch.setitem(sys.modules, "dall_e", ModuleType("dall_e"))
    monkeypatch.setitem(sys.modules, "dall_e.encoder", module)
    monkeypatch.setattr(module, "Encoder", Encoder, raising=False)
    monkeypatch.setattr(Encoder, "__module__", "dall_e.encoder")
    torch.save(Encoder(), tmp_path / name, _use_new_zipfile_serialization=is_new)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpickled"))
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("it was unpickled"))
    for path in (tmp_path / name, tmp_path)[: 1 if name == "renamed.pt" else 2]:
        message = refusal(path)
        assert f"{tmp_path / name} is DALL-E's pickle of a whole module" in message
        assert "give hf:facebook/flava-image-codebook" in message
        assert "openmae tokenizer DATA --out RUN" in message


def test_another_pickled_module_is_not_opened(tmp_path):
    torch.save(Encoder(), tmp_path / "a.pt")
    assert "which is code and no weight: the file is not opened" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mae", "is a masked autoencoder and no tokenizer"),
        ("classifier", "is a classifier and no tokenizer"),
        ("regressor", "is a regression model and no tokenizer"),
        ("encoder", "is an encoder alone and no tokenizer"),
        (["mae"], "is something else and no tokenizer"),
        ("some\nthing", "is a 'some\\nthing' and no tokenizer"),
    ],
)
def test_a_run_of_another_command_says_what_it_is(tmp_path, tiny_shape, kind, expected):
    message = refusal(save_run(tmp_path, MAE.from_shape(tiny_shape()), kind=kind))
    assert expected in message
    assert ADVICE in message


def test_a_run_without_a_kind_is_a_masked_autoencoder(run):
    metadata = {"format_version": 1, **METADATA}
    del metadata["kind"]  # as the first versions wrote it
    file = run / "model.safetensors"
    save_file(load_file(file), file, metadata={METADATA_KEY: json.dumps(metadata)})
    assert "is a masked autoencoder and no tokenizer" in refusal(run)


def test_what_is_not_there_or_nothing_of_the_kind(tmp_path):
    assert refusal(tmp_path / "nowhere") == f"--tokenizer {tmp_path / 'nowhere'} does not exist: {ADVICE}"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert f"link does not exist: {ADVICE}" in refusal(tmp_path / "link")
    assert refusal(tmp_path) == f"--tokenizer {tmp_path} holds no tokenizer: {ADVICE}"
    (tmp_path / "notes.txt").write_text("hello")
    assert "notes.txt is text: give safetensors" in refusal(tmp_path / "notes.txt")
    (tmp_path / "a\nb").write_text("")
    assert "is empty" in refusal(tmp_path / "a\nb")
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in refusal(tmp_path / "pipe")
    (tmp_path / "checkpoints").mkdir()
    assert refusal(tmp_path).startswith(f"--tokenizer {tmp_path} holds no model: ")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text('{"model_type": "flava_image_codebook"}')
    assert "holds no model: neither model.safetensors nor" in refusal(tmp_path / "config")


def test_a_model_of_another_program(codebook):
    change_config(codebook, model_type="vit_mae")
    assert f"is a model of type 'vit_mae', and no tokenizer that is known here: {ADVICE}" in refusal(codebook)
    change_config(codebook, model_type="\x1b[31m" + "x" * 10_000)
    assert "is a model of type" in refusal(codebook)
    (codebook / "config.json").unlink()
    assert "has no config.json that says what it is" in refusal(codebook)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_groups": 3}, "says num_groups 3: DALL-E's encoder has 4"),
        ({"num_groups": "four"}, "says num_groups 'four'"),
        ({"vocab_size": 10**9}, "does not make a tokenizer: --codebook got 1e+09"),
        ({"hidden_size": 8.5}, "does not make a tokenizer: --width got 8.5"),
        ({"hidden_size": "\n" * 10_000}, "does not make a tokenizer: --width got"),
        ({"num_blocks_per_group": True}, "does not make a tokenizer: --depth got True"),
        ({"num_blocks_per_group": 2}, "lacks blocks.group_1.group.block_2.res_path.path.conv_1.bias"),
        ({"vocab_size": 33}, "blocks.output.conv.bias is (32,) there and (33,) here"),
        ({"hidden_size": 4096, "num_blocks_per_group": 64}, "is damaged or of another shape: blocks"),
    ],
)
def test_a_config_that_is_not_its_codebooks(codebook, changes, expected):
    change_config(codebook, **changes)
    assert expected in refusal(codebook)


def infinite(weights: dict[str, torch.Tensor], name: str) -> None:
    weights[name].view(-1)[-1] = float("inf")


DAMAGE: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "missing": (lambda weights: weights.pop("codebook"), "lacks codebook (32, 16)"),
    "surplus": (lambda weights: weights.update({"more\n": torch.ones(2)}), "has more\\n, which this model does not"),
    "shape": (lambda weights: weights.update(codebook=torch.ones(32, 8)), "codebook is (32, 8) there and (32, 16) her"),
    "infinite": (lambda weights: infinite(weights, "to_logits.weight"), "to_logits.weight has values that are no fini"),
    "whole": (
        lambda weights: weights.update(codebook=torch.ones(32, 16, dtype=torch.int32)),
        "codebook has values that are no finite numbers",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_weights_of_a_run(run, name):
    change, expected = DAMAGE[name]
    change_weights(run / "model.safetensors", change)
    assert expected in refusal(run)


def test_damaged_weights_of_a_codebook(codebook):
    file = codebook / "model.safetensors"
    weights = load_file(file)
    name = "blocks.group_3.group.block_1.id_path.weight"
    more = {"input.weight": weights["blocks.input.weight"].clone()}  # the name that it has here
    for changed, expected in (
        ({key: value for key, value in weights.items() if key != name}, f"lacks {name}"),
        ({**weights, **more}, "has input.weight, which this model does not"),
        ({**weights, name: weights[name][:2]}, f"{name} is (2, 16, 1, 1) there and (32, 16, 1, 1) here"),
        ({**weights, name: weights[name] / 0}, "groups.2.0.identity.weight has values that are no finite numbers"),
    ):
        save_file({key: value.contiguous() for key, value in changed.items()}, file)
        assert expected in refusal(codebook)


def test_a_file_that_is_cut_off(run, codebook):
    for folder in (run, codebook):
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").unlink()  # linked to the checkpoint's
        (folder / "model.safetensors").write_bytes(content[:-100])
        message = refusal(folder)
        assert "cannot be read as safetensors" in message
        assert "damaged" in message


@pytest.mark.parametrize(
    "description",
    [
        {"shape": None},
        {"shape": {**SHAPE.to_dict(), "kind": "dalle"}},
        {"shape": {**SHAPE.to_dict(), "kind": "another"}},
        {"shape": {**SHAPE.to_dict(), "patch_size": None}},
        {"shape": {**SHAPE.to_dict(), "codebook": 1}},
        {"shape": {**SHAPE.to_dict(), "more": 1}},
        {"preprocessing": None},
        {"preprocessing": {**PREPROCESSING.to_dict(), "channels": 1, "mean": [0.5], "std": [0.2]}},
    ],
)
def test_a_description_that_makes_no_tokenizer(run, description):
    change_weights(run / "model.safetensors", lambda _: None, **description)
    assert "has a description that does not make a tokenizer" in refusal(run)


def test_a_shape_that_no_tokenizer_has(run):
    change_weights(run / "model.safetensors", lambda _: None, shape={**SHAPE.to_dict(), "width": 12})
    assert "width" in refusal(run)
    huge = {**SHAPE.to_dict(), "width": 4096, "stride": 4093, "depth": 64, "codebook": 65536}
    change_weights(run / "model.safetensors", lambda _: None, shape=huge)
    assert "is damaged or of another shape" in refusal(run)  # and no memory is taken for it


def test_a_tokenizer_is_no_init(run, codebook):
    readers: tuple[Callable[[str], Any], ...] = (
        read_init,
        openmae.load,
        lambda init: read_stored_model(Path(init) / "model.safetensors"),
    )
    for read in readers:
        assert "is a tokenizer and no model with features: give it as --tokenizer" in refusal(run, read)
    for read in (read_init, openmae.load, lambda init: recognise(read_raw_checkpoint(Path(init)))):
        assert "is a tokenizer and no model with features: give it as --tokenizer" in refusal(codebook, read)
