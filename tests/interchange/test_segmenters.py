"""Segmentation models as files: read, loaded, taken as encoders, refused where they do not fit."""

from dataclasses import asdict

import pytest
import torch

import openmae
from openmae.cli import run as openmae_run
from openmae.config import ClassifierShape, SegmenterShape, ViTShape
from openmae.errors import RequestError
from openmae.inference.load import load_mae
from openmae.interchange.init import read_init
from openmae.interchange.load_weights import load_encoder
from openmae.model.heads import Classifier
from openmae.model.vit import ViT
from openmae.training.checkpoint import save_weights
from openmae.transfer.segmentation.segmenter import Segmenter

from .outgoing_models import make_preprocessing

ENCODER = ViTShape(image_size=(32, 32), patch_size=8, channels=3, width=24, depth=2, num_heads=3)
SHAPE = SegmenterShape(encoder=ENCODER, num_classes=2, pyramid_blocks=(0, 0, 1, 1), head_width=8, auxiliary_width=4)


def saved(folder, **changes):
    torch.manual_seed(0)
    model = Segmenter.from_shape(SHAPE).eval()
    folder.mkdir()
    description = {
        "kind": "segmenter",
        "shape": SHAPE.to_dict(),
        "preprocessing": asdict(make_preprocessing(ENCODER)),
        "classes": ["sky", "ground"],
        "ignore_index": 255,
        "reduce_zero_label": False,
        "recipe": None,
        "seed": 3,
        **changes,
    }
    save_weights(folder / "model.safetensors", model.state_dict(), description)
    return str(folder), model


def test_it_is_read_with_its_kind_and_loads_its_encoder(tmp_path):
    init, model = saved(tmp_path / "init")
    stored = read_init(init, verbose=False)
    assert stored.shape == SHAPE
    assert stored.kind_name == "a segmentation model"
    assert not stored.encoder_shape.final_norm
    encoder = openmae.load(init, "cpu").encoder
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(encoder(images), model.encoder.tokens(images))


def test_its_encoder_is_a_classifiers(tmp_path):
    init, model = saved(tmp_path / "init")
    stored = read_init(init, verbose=False)
    for head, pool in (("fine-tune", "mean"), ("fine-tune", "cls"), ("probe", "mean")):
        shape = ClassifierShape(encoder=stored.encoder_shape, num_classes=3, pool=pool, head=head)
        classifier = Classifier.from_shape(shape)
        assert load_encoder(classifier.encoder, stored) == []
        for name, value in classifier.encoder.state_dict().items():
            assert torch.equal(value, model.encoder.state_dict()[name])


def test_biases_that_the_init_lacks_stay_zero(tmp_path):
    init, _ = saved(tmp_path / "init")
    stored = read_init(init, verbose=False)
    biased = ViT(ViTShape.from_dict({**stored.encoder_shape.to_dict(), "relative_positions": "bias"}))
    (line,) = load_encoder(biased, stored)
    assert line.split() == "relative positions, 2 tables: fresh, zero at first".split()
    assert not biased.blocks[0].attn.relative.table.any()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"classes": ["sky"]}, "1 names for 2 classes"),
        ({"ignore_index": "none"}, "ignore_index"),
        ({"reduce_zero_label": 1}, "reduce_zero_label"),
        ({"shape": {**SHAPE.to_dict(), "pyramid_blocks": [0, 1, 2, 3]}}, "ascending order from 0 to 1"),
        ({"shape": {**SHAPE.to_dict(), "num_classes": 2, "head_width": 9}}, "of another shape"),
        ({"kind": "tracker"}, "a segmentation model"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path, changes, named):
    init, _ = saved(tmp_path / "init", **changes)
    with pytest.raises(RequestError, match=named):
        read_init(init, verbose=False)


def test_where_a_decoder_or_another_head_is_needed_the_message_names_its_kind(tmp_path):
    init, _ = saved(tmp_path / "init")
    with pytest.raises(RequestError, match="is a segmentation model: reconstruction needs"):
        load_mae(init, "cpu")


def test_convert_keeps_it_whole_or_takes_its_encoder(tmp_path, capsys):
    init, model = saved(tmp_path / "init")
    assert openmae_run(["convert", init, "--to", "openmae", str(tmp_path / "copy")]) == 0
    assert read_init(str(tmp_path / "copy"), verbose=False).shape == SHAPE
    assert "A segmentation model of 2 classes" in (tmp_path / "copy" / "README.md").read_text(encoding="utf-8")
    assert openmae_run(["convert", init, "--to", "transformers", str(tmp_path / "no")]) == 2
    assert "ViTModel ends with a norm" in capsys.readouterr().err
    assert openmae_run(["convert", init, "--to", "timm", str(tmp_path / "timm")]) == 0
    assert "its encoder only: timm has no such segmentation model" in capsys.readouterr().out
    part = ["--part", "encoder", "--to", "openmae", str(tmp_path / "encoder")]
    assert openmae_run(["convert", init, *part]) == 0
    assert read_init(str(tmp_path / "encoder"), verbose=False).kind_name == "an encoder alone"
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        found = openmae.load(str(tmp_path / "encoder"), "cpu").encoder(images)
        assert torch.equal(found, model.encoder.tokens(images))


def test_inspect_reports_it(tmp_path, capsys):
    init, _ = saved(tmp_path / "init")
    assert openmae_run(["inspect", init]) == 0
    printed = capsys.readouterr().out
    assert "openmae segmentation model" in printed
    assert "classes    2: sky, ground; one for each pixel" in printed
    assert "good for   segment" in printed
