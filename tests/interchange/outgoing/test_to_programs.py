"""ONNX and torch.export: onnxruntime and the reloaded program compute what ours compute, at any batch size.

Errors are relative to the largest value; the measured ones stand beside the tolerance.
"""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

import openmae
from openmae.config import ConvertConfig
from openmae.errors import Fault, RequestError
from openmae.interchange.outgoing import to_onnx
from openmae.model.block import Attention
from openmae.tasks.convert import convert

from ..outgoing_models import (
    CLASSES,
    make_classifier,
    make_encoder,
    make_mae,
    out_of,
    photo_images,
    relative_error,
    save_run,
)

TOLERANCE = {"onnx": 1e-4, "torch-export": 1e-5}
ENDINGS = {"onnx": "out.onnx", "torch-export": "out.pt2"}


def outputs_of(path, images):
    if path.suffix == ".pt2":
        found = torch.export.load(path).module()(images)
        return [found] if isinstance(found, torch.Tensor) else list(found)
    session = onnxruntime.InferenceSession(path)
    return [torch.from_numpy(value) for value in session.run(None, {"images": images.numpy()})]


@pytest.fixture(scope="module")
def classifier_file(tmp_path_factory):
    """An ONNX file, its classifier and its shape: an export takes some seconds. Tests only read it."""
    classifier, shape = make_classifier("mean")
    init = save_run(tmp_path_factory.mktemp("classifier") / "init", classifier, shape)
    return out_of(init, "onnx", "out.onnx"), classifier, shape


# Measured: onnx 6e-7, torch-export 0.
@pytest.mark.slow
@pytest.mark.parametrize(("to", "pool"), [("onnx", "mean"), ("torch-export", "mean"), ("torch-export", "cls")])
@torch.no_grad()
def test_an_encoder_gives_the_same_tokens_and_features(tmp_path, to, pool):
    mae, shape = make_mae(make_encoder(image_size=(32, 64)))
    path = out_of(save_run(tmp_path / "init", mae, shape), to, ENDINGS[to], pool=pool)
    for batch in (1, 2, 5):
        images = photo_images(shape.encoder, batch)
        tokens, features = outputs_of(path, images)
        expected = mae.encoder(images)
        assert relative_error(tokens, expected) < TOLERANCE[to]
        pooled = expected[:, 0] if pool == "cls" else expected[:, 1:].mean(1)
        assert relative_error(features, pooled) < TOLERANCE[to]


# Measured: 1e-6.
@pytest.mark.slow
@torch.no_grad()
def test_a_classifier_gives_the_same_logits_in_onnx(classifier_file):
    path, classifier, shape = classifier_file
    for batch in (1, 2, 5):
        images = photo_images(shape.encoder, batch)
        (logits,) = outputs_of(path, images)
        assert relative_error(logits, classifier(images)) < TOLERANCE["onnx"]


# Measured: 0.
@pytest.mark.slow
@pytest.mark.parametrize(("pool", "head"), [("mean", "fine-tune"), ("cls", "probe")])
@torch.no_grad()
def test_a_classifier_gives_the_same_logits_in_torch_export(tmp_path, pool, head):
    classifier, shape = make_classifier(pool, head)
    path = out_of(save_run(tmp_path / "init", classifier, shape), "torch-export", "out.pt2")
    for batch in (1, 3):
        images = photo_images(shape.encoder, batch)
        (logits,) = outputs_of(path, images)
        assert relative_error(logits, classifier(images)) < TOLERANCE["torch-export"]


# Measured, of the logits: GELU by tanh 4e-4, the eps 6e-3, the rest 6e-2 and more: all beyond the tolerance of 1e-4.
@pytest.mark.parametrize("mistake", ["queries and keys swapped", "heads", "tanh", "eps"])
@torch.no_grad()
def test_a_mistake_shows(classifier_file, mistake, monkeypatch):
    path, _, _ = classifier_file
    wrong, shape = make_classifier("mean")
    for module in wrong.modules():
        if isinstance(module, Attention) and mistake == "heads":
            module.num_heads *= 2
        if isinstance(module, Attention) and mistake == "queries and keys swapped":
            for values in (module.qkv.weight, module.qkv.bias):
                values.copy_(torch.cat([values.chunk(3)[i] for i in (1, 0, 2)]))
        if isinstance(module, torch.nn.LayerNorm) and mistake == "eps":
            module.eps = 1e-5
    if mistake == "tanh":
        gelu = torch.nn.functional.gelu
        monkeypatch.setattr("openmae.model.block.F.gelu", lambda x: gelu(x, approximate="tanh"))
    images = photo_images(shape.encoder)
    assert relative_error(outputs_of(path, images)[0], wrong(images)) > TOLERANCE["onnx"]


def test_onnx_says_what_it_is(classifier_file):
    path, _, _ = classifier_file
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [18]
    said = {entry.key: json.loads(entry.value) for entry in model.metadata_props if entry.key in KEYS}
    assert said.keys() == KEYS
    assert said["classes"] == CLASSES
    assert said["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert said["description"]["seed"] == 3
    (images,) = model.graph.input
    sizes = images.type.tensor_type.shape.dim
    assert images.name == "images"
    assert sizes[0].dim_param
    assert [size.dim_value for size in sizes[1:]] == [3, 32, 32]


KEYS = {"preprocessing", "classes", "is_multi_label", "description"}


def test_torch_export_says_what_it_is(tmp_path):
    mae, shape = make_mae()
    path = out_of(save_run(tmp_path / "init", mae, shape), "torch-export", "out.pt2")
    files = {"openmae.json": ""}
    torch.export.load(path, extra_files=files)
    said = json.loads(files["openmae.json"])
    assert said["pool"] == "mean"
    assert said["description"]["shape"]["encoder"]["width"] == 48


def test_programs_name_no_folder_of_this_machine(tmp_path, classifier_file):
    """torch writes a stack trace beside each operation, with the paths of our files and its own."""
    mae, shape = make_mae()
    exported = out_of(save_run(tmp_path / "init", mae, shape), "torch-export", "out.pt2")
    for path in (classifier_file[0], exported):
        content = path.read_bytes()
        assert b".py" not in content
        assert os.fsencode(Path(openmae.__file__).parent) not in content


def test_the_largest_difference_is_said(tmp_path, capsys):
    mae, shape = make_mae()
    out = tmp_path / "out.pt2"
    result = convert(ConvertConfig(init=str(save_run(tmp_path / "init", mae, shape)), out=str(out), to="torch-export"))
    assert 0 <= result["error"] < 1e-5
    assert f"differs by {result['error']:.1e} of the largest value" in capsys.readouterr().out
    assert result["left_out"] == sorted(name for name in mae.state_dict() if name.startswith("decoder."))


class OtherProgram:
    """An exporter that writes the file of another model."""

    def __init__(self, path):
        self.path, self.model, self.graph = path, self, self
        self.metadata_props: dict[str, str] = {}

    def all_nodes(self):
        return []

    def save(self, path, external_data):
        shutil.copy(self.path, path)


@pytest.mark.parametrize(
    "classifier", [lambda: make_classifier("mean", seed=1), lambda: make_classifier("mean", seed=0)]
)
def test_a_program_that_computes_something_else_is_not_kept(tmp_path, classifier_file, monkeypatch, classifier):
    """And of the same model it is: so it is the difference that is refused."""
    monkeypatch.setattr(torch.onnx, "export", lambda *given, **settings: OtherProgram(classifier_file[0]))
    model, shape = classifier()
    init = save_run(tmp_path / "init", model, shape)
    if torch.equal(model.head.weight, classifier_file[1].head.weight):
        assert out_of(init, "onnx", "out.onnx").is_file()
        return
    with pytest.raises(Fault, match="differs from this model"):
        out_of(init, "onnx", "out.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["init"]


@pytest.mark.slow
def test_weights_beyond_two_gigabytes_lie_beside_it(tmp_path, monkeypatch):
    mae, shape = make_mae()
    init = save_run(tmp_path / "init", mae, shape)
    monkeypatch.setattr(to_onnx, "MAX_BYTES", 1)
    path = out_of(init, "onnx", "out.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["init", "out.onnx", "out.onnx.data"]
    images = photo_images(shape.encoder)
    with torch.no_grad():
        assert relative_error(outputs_of(path, images)[0], mae.encoder(images)) < TOLERANCE["onnx"]
    path.unlink()
    with pytest.raises(RequestError, match=r"out\.onnx\.data exists already"):
        out_of(init, "onnx", "out.onnx")


def test_without_the_extra_it_is_named(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(RequestError, match=r"needs onnxscript: pip install 'openmae\[onnx\]'"):
        convert(ConvertConfig(init=str(tmp_path), out=str(tmp_path / "out.onnx"), to="onnx"))
