"""A detector in ONNX: whole, the same objects; what other formats keep of it, and what is refused.

The file is run on images that `convert` did not check; the measured differences stand beside the tolerance.
"""

import json

import jaxtyping
import numpy as np
import onnxruntime
import pytest
import torch

import openmae
from openmae.cli import run as openmae_run
from openmae.errors import Fault
from openmae.interchange.outgoing import detector_program
from openmae.interchange.outgoing.detector_program import compared
from openmae.tasks.convert import convert

from ..outgoing_models import CLASSES, WINDOWS, make_detector, out_of, photo_images, relative_error, save_run

SIDE = 64


@pytest.fixture(autouse=True)
def _sizes_are_tensors(monkeypatch):
    """While torch traces, they are, and the tests' shape checks take none."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A detector on a plain ViT, as a folder that `--init` takes. Tests only read it."""
    detector, shape = make_detector()
    return save_run(tmp_path_factory.mktemp("plain") / "init", detector, shape), detector


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """One with windows, shared biases and no class token."""
    detector, shape = make_detector(**WINDOWS, shares_relative_positions=True)
    return save_run(tmp_path_factory.mktemp("windowed") / "init", detector, shape), detector


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


# Measured: 3.8e-6 px in boxes, 3.3e-7 in scores, 6.0e-8 in masks.
@pytest.mark.slow
@pytest.mark.timeout(300)
@torch.no_grad()
def test_onnx_finds_the_same_objects_and_says_how_it_is_used(windowed, capsys):
    init, detector = windowed
    path = out_of(init, "onnx", "windowed.onnx")
    told = capsys.readouterr().out
    assert "checked    against openmae on 4 images: its objects differ by" in told
    assert "input images: float32, normalised, one of 64 x 64 px at a time" in told
    assert "outputs boxes, labels, scores, masks: of each object found" in told
    session = session_of(path)
    assert [output.name for output in session.get_outputs()] == ["boxes", "labels", "scores", "masks"]
    counts = []
    for images in photo_images(detector.shape.encoder, 3).split(1):
        found = [torch.from_numpy(values) for values in session.run(None, {"images": images.numpy()})]
        (expected,) = detector.detect(images, torch.tensor([[SIDE, SIDE]]))
        counts.append(len(expected.boxes))
        for values, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(values, wanted, rtol=1e-4, atol=1e-4)
    assert min(counts) > 0
    assert len(set(counts)) > 1
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == CLASSES
    assert json.loads(said["description"])["category_ids"] == [3, 7, 9, "x", 90]
    assert json.loads(said["preprocessing"])["image_size"] == [SIDE, SIDE]
    assert str(init.parent).encode() not in path.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(300)
@torch.no_grad()
def test_large_weights_lie_beside_it_and_what_finds_little_is_checked_without_a_least_score(tmp_path, monkeypatch):
    monkeypatch.setattr("openmae.interchange.outgoing.to_onnx.MAX_BYTES", 1000)
    detector, shape = make_detector("simple", has_masks=False)
    detector.head.regions.box_predictor.cls_score.bias[0] = 12  # nearly all is background
    path = out_of(save_run(tmp_path / "init", detector, shape), "onnx", "boxes.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["boxes.onnx", "boxes.onnx.data", "init"]
    session = session_of(path)
    boxes, labels, scores = session.run(None, {"images": np.zeros((1, 3, SIDE, SIDE), np.float32)})
    assert (boxes.shape, labels.shape, scores.shape) == ((0, 4), (0,), (0,))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_program_that_finds_something_else_is_not_kept(plain, monkeypatch, capsys):
    real = detector_program.compared

    def spoilt(outputs, expected, side):
        return real([(boxes + 1, *others) for boxes, *others in outputs], expected, side)

    monkeypatch.setattr(detector_program, "compared", spoilt)
    out = plain[0].with_name("spoilt.onnx")
    assert openmae_run(["convert", str(plain[0]), str(out), "--to", "onnx"]) == 1
    assert "0 of " in capsys.readouterr().err
    assert list(out.parent.glob("*spoilt*")) == []


def objects(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=generator) * SIDE
    labels = torch.arange(count) % 3
    return boxes, labels, torch.rand(count, generator=generator), torch.rand(count, 28, 28, generator=generator)


def test_objects_are_compared_in_pairs():
    boxes, labels, scores, masks = ours = objects()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = tuple(values[order] for values in ours)
    assert compared([shuffled], [ours], SIDE) == (0, 40)
    assert compared([tuple(values[:-2] for values in ours)], [ours], SIDE) == (0, 38)
    error, count = compared([(boxes, labels, scores + 5e-5, masks)], [ours], SIDE)
    assert count == 40
    assert error == pytest.approx(5e-5, rel=0.01)
    wrong = {
        "boxes": (boxes + 0.1, labels, scores, masks),
        "labels": (boxes, (labels + 1) % 3, scores, masks),
        "scores": (boxes, labels, scores + 1e-3, masks),
        "masks": (boxes, labels, scores, masks + 1e-3),
        "not finite": (boxes * torch.nan, labels, scores, masks),
        "fewer": tuple(values[:30] for values in ours),
        "none": tuple(values[:0] for values in ours),
        "the same again": tuple(values[:1].expand(40, *values.shape[1:]) for values in ours),
    }
    for theirs in wrong.values():
        with pytest.raises(Fault, match="does not find what this model finds"):
            compared([theirs], [ours], SIDE)
    nothing = tuple(values[:0] for values in ours)
    assert compared([nothing], [nothing], SIDE) == (0, 0)


@pytest.mark.parametrize(("to", "name"), [("timm", "timm"), ("reference", "reference.pth")])
def test_other_formats_keep_a_plain_encoder_and_say_so(plain, capsys, to, name):
    init, detector = plain
    path = out_of(init, to, name)
    told = capsys.readouterr().out
    assert f"its encoder only: {to} has no such detector; --to openmae and onnx hold it whole" in told
    assert "left out   head: " in told
    weights = torch.load(path, weights_only=True)["model"] if to == "reference" else None
    if weights is None:
        from safetensors.torch import load_file

        weights = load_file(path / "model.safetensors")
    for key, value in detector.encoder.state_dict().items():
        assert torch.equal(weights[key], value)


@pytest.mark.parametrize(
    ("which", "to", "name", "message"),
    [
        (
            "plain",
            "torch-export",
            "no.pt2",
            "--to torch-export does not hold a detector, for torchvision's non-maximum",
        ),
        ("plain", "transformers", "no", "ViTModel ends with a norm"),
        ("windowed", "timm", "no", "holds a plain ViT only, this encoder has class_token False"),
        ("windowed", "reference", "no.pth", "holds a plain ViT only, this encoder has class_token False"),
        ("windowed", "transformers", "no", "holds a plain ViT only, this encoder has class_token False"),
    ],
)
def test_what_a_format_does_not_hold_is_refused_in_a_line(request, capsys, which, to, name, message):
    init, _ = request.getfixturevalue(which)
    out = init.with_name(name)
    assert openmae_run(["convert", str(init), str(out), "--to", to]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


# Measured: 0.
@pytest.mark.slow
@torch.no_grad()
def test_an_encoder_with_windows_is_exported_alone(windowed):
    init, _ = windowed
    path = out_of(init, "torch-export", "encoder.pt2", part="encoder", pool="mean")
    encoder, images = openmae.load(str(init), "cpu").encoder, torch.randn(3, 3, SIDE, SIDE)
    tokens, features = torch.export.load(path).module()(images)
    assert relative_error(tokens, encoder(images)) < 1e-5
    assert relative_error(features, encoder(images).mean(1)) < 1e-5


def test_the_card_says_what_it_is(windowed):
    init, _ = windowed
    (init / "summary.json").write_text(json.dumps({"status": "complete", "box_ap": 41.25, "mask_ap": 37.5}))
    out = init.with_name("copy")
    convert(openmae.ConvertConfig(init=str(init), out=str(out), to="openmae"))
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "# A detector of 5 classes: Mask R-CNN on a Vision Transformer" in card
    assert "pipeline_tag: object-detection" in card
    assert "| box AP, % | 41.25 |" in card
    assert "| mask AP, % | 37.5 |" in card
    assert "| head | Mask R-CNN, 16 channels, boxes and masks |" in card
    assert "| attention | in windows of 3 patches, whole in blocks 2, 4 |" in card
    assert "| classes | 5: a cat, dog, größe, tench, Tinca, owl |" in card
    assert "model.detect(" in card
    assert "centred box" not in card  # nothing is cut out


def test_another_image_size_stays_a_square(plain, capsys):
    init, _ = plain
    out = init.with_name("wide")
    assert openmae_run(["convert", str(init), str(out), "--to", "openmae", "--image-size", "64", "96"]) == 2
    assert "padded to a square: give one number" in capsys.readouterr().err
    convert(openmae.ConvertConfig(init=str(init), out=str(out), to="openmae", image_size=96))
    model = openmae.load(str(out), "cpu")
    assert model.detector.shape.encoder.image_size == model.preprocessing.image_size == (96, 96)
