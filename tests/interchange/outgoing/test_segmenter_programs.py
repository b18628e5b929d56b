"""A segmentation model in ONNX and torch.export: whole, the same logits, and the class map of `openmae.load`.

Errors are relative to the largest value; the measured ones stand beside the tolerance.
"""

import json
import re

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

import openmae
from openmae.tasks.convert import convert

from ..outgoing_models import CLASSES, make_segmenter, out_of, relative_error, save_run

TOLERANCE = {"onnx": 1e-4, "torch-export": 1e-5}


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    """A segmentation model of square crops, as a folder that `--init` takes. Tests only read it."""
    segmenter, shape = make_segmenter()
    return save_run(tmp_path_factory.mktemp("square") / "init", segmenter, shape), segmenter


@pytest.fixture(scope="module")
def onnx_file(square):
    """Its ONNX file: an export takes some seconds."""
    return out_of(square[0], "onnx", "square.onnx")


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def logits_in_onnx(path, images):
    (logits,) = session_of(path).run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


# Measured: 7.7e-7.
@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_onnx_gives_the_same_logits_at_the_images_size(square, onnx_file, batch):
    images = torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch))
    found = logits_in_onnx(onnx_file, images)
    assert found.shape == (batch, len(CLASSES), 16, 16)
    assert relative_error(found, square[1].segment(images)) < TOLERANCE["onnx"]


# Measured: 6.7e-7. 20 x 28 px are 5 x 7 patches, whose coarsest map of 3 x 4 cells 2 and 6 do not divide.
@pytest.mark.slow
@torch.no_grad()
def test_onnx_takes_crops_that_are_not_square(tmp_path):
    segmenter, shape = make_segmenter((20, 28))
    path = out_of(save_run(tmp_path / "init", segmenter, shape), "onnx", "wide.onnx")
    for batch in (1, 2):
        images = torch.randn(batch, 3, 20, 28, generator=torch.Generator().manual_seed(batch))
        assert relative_error(logits_in_onnx(path, images), segmenter.segment(images)) < TOLERANCE["onnx"]


@pytest.mark.slow
def test_the_class_map_of_a_crop_is_that_of_openmae(square, onnx_file):
    model = openmae.load(str(square[0]), "cpu")
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    p = model.preprocessing
    values = (torch.from_numpy(picture).permute(2, 0, 1) / 255 - torch.tensor(p.mean)[:, None, None]) / torch.tensor(
        p.std
    )[:, None, None]
    logits = logits_in_onnx(onnx_file, values[None])
    (labels,) = model.segment(picture)
    assert labels.unique().numel() > 1
    assert torch.equal(logits[0].argmax(0), labels)


@pytest.mark.slow
def test_onnx_says_its_classes_and_how_whole_images_are_segmented(onnx_file):
    said = session_of(onnx_file).get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == CLASSES
    description = json.loads(said["description"])
    assert (description["kind"], description["inference"], description["stride"]) == ("segmenter", "slide", 10)
    assert "is_multi_label" not in said


# Measured: 0.
@pytest.mark.slow
@torch.no_grad()
def test_torch_export_gives_the_same_logits(square, capsys):
    init, segmenter = square
    path = out_of(init, "torch-export", "square.pt2")
    told = capsys.readouterr().out
    assert "a score for each of 5 classes at each of the 16 x 16 pixels" in told
    assert "in windows of 16 x 16 px every 10 px" in told
    assert re.search(r"left out   auxiliary: \d+ tensors", told)
    for batch in (1, 3):
        images = torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch))
        found = torch.export.load(path).module()(images)
        assert relative_error(found, segmenter.segment(images)) < TOLERANCE["torch-export"]


@pytest.mark.parametrize(("to", "name"), [("timm", "timm"), ("reference", "reference.pth")])
@torch.no_grad()
def test_other_formats_keep_the_encoder_and_say_so(square, tmp_path, capsys, to, name):
    init, segmenter = square
    path = out_of(init, to, name)
    told = capsys.readouterr().out
    assert f"its encoder only: {to} has no such segmentation model" in told
    assert "left out   head: " in told
    if to == "timm":
        weights = load_file(path / "model.safetensors")
    else:
        weights = torch.load(path, weights_only=True)["model"]
    for key, value in segmenter.encoder.state_dict().items():
        assert torch.equal(weights[key], value)


def test_the_card_says_what_it_is(square):
    out = square[0].with_name("copy")
    convert(openmae.ConvertConfig(init=str(square[0]), out=str(out), to="openmae"))
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: image-segmentation" in card
    assert "| classes | 5: a cat, dog, größe, tench, Tinca, owl |" in card
    assert "| head | UperNet, 8 channels |" in card
    assert "in windows of 16 x 16 px every 10 px, the mean of their scores |" in card
    assert "centred box" not in card  # nothing is cut out
    assert "model.segment(" in card


def test_a_smaller_image_size_keeps_windows_that_leave_nothing_out(square):
    out = square[0].with_name("small")
    convert(openmae.ConvertConfig(init=str(square[0]), out=str(out), to="openmae", image_size=8))
    assert openmae.load(str(out), "cpu").description["stride"] == 8
