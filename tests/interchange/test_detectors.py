"""Detectors as files: read, inspected, and taken as encoders."""

import json

import pytest
import torch

import openmae
from openmae.cli import run as openmae_run
from openmae.errors import RequestError
from openmae.inference.load import load_mae
from openmae.interchange.init import read_init
from openmae.interchange.load_weights import load_encoder
from openmae.model.vit import ViT

from ..objects import write_objects
from ..scenes import write_scenes
from .outgoing_models import WINDOWS, make_detector, save_run


@pytest.fixture(scope="module", params=["plain", "windowed"])
def stored(request, tmp_path_factory):
    windows = {**WINDOWS, "shares_relative_positions": True} if request.param == "windowed" else {}
    detector, shape = make_detector(**windows)
    return str(save_run(tmp_path_factory.mktemp(request.param) / "init", detector, shape)), detector


def test_it_is_read_with_its_kind_and_loads_its_encoder(stored):
    init, detector = stored
    read = read_init(init, verbose=False)
    assert (read.shape, read.kind_name) == (detector.shape, "a detector")
    assert not read.encoder_shape.final_norm
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(openmae.load(init, "cpu").encoder(images), detector.encoder.tokens(images))
    encoder = ViT(read.encoder_shape)
    assert load_encoder(encoder, read) == []
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, detector.encoder.state_dict()[name])


def test_where_a_decoder_is_needed_the_message_names_its_kind(stored):
    with pytest.raises(RequestError, match="is a detector: reconstruction needs"):
        load_mae(stored[0], "cpu")


def test_inspect_reports_it(tmp_path, capsys):
    detector, shape = make_detector()
    init = save_run(tmp_path / "init", detector, shape)
    (init / "summary.json").write_text(json.dumps({"status": "complete", "box_ap": 41.25, "mask_ap50": 60.5}))
    assert openmae_run(["inspect", str(init / "model.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "openmae detector" in printed
    assert "classes    5: a cat, dog, größe, tench, Tinca, owl; one for each object" in printed
    assert "head       Mask R-CNN, 16 channels, boxes and masks, on the pyramid table-4: 5 maps" in printed
    assert "from blocks 1, 2, 3, 4" in printed
    assert "padded at the bottom and on the right with the mean" in printed
    assert "figures    box AP, % 41.25; mask AP50, % 60.5" in printed
    assert "good for   detect, " in printed
    assert "--predict --out FOLDER" in printed


COMMON = "--device cpu --workers 0 --precision fp32 --steps 1 --batch-size 2 --out"
SMALL = "--head-width 8 --roi-samples 8"


def started(stored, tmp_path, command):
    """The exit code of a command of one step that starts from the detector; `RUN` is its folder."""
    write_objects(tmp_path / "objects", train=4, val=2, side=64)
    for split, count in (("train", 4), ("val", 2)):
        write_scenes(tmp_path / "scenes", split, count, seed=0, side=64)
    name, data, *flags = command.split()
    arguments = [name, str(tmp_path / data), "--init", stored[0], *flags, *COMMON.split(), str(tmp_path / "out")]
    return openmae_run(arguments)


# Where no setting says anything else, windows and relative positions are those of the detector.
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "command", ["segment scenes", f"detect objects {SMALL}", f"detect objects {SMALL} --image-size 80"]
)
def test_segment_and_detect_start_from_its_encoder(stored, tmp_path, command):
    assert started(stored, tmp_path, command) == 0
    found = read_init(str(tmp_path / "out"), verbose=False).encoder_shape
    own = stored[1].shape.encoder
    for name in ("class_token", "window_size", "global_blocks", "relative_positions", "shares_relative_positions"):
        assert getattr(found, name) == getattr(own, name)


def test_pretrain_refuses_its_encoder_in_a_line(stored, tmp_path, capsys):
    assert started(stored, tmp_path, "pretrain scenes/images") == 2
    error = capsys.readouterr().err
    assert "masked pre-training takes an encoder with a class token, a final norm and absolute positions only" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("size", [0, 4])
def test_windows_of_another_size_are_refused_in_a_line(tmp_path, size, capsys):
    detector, shape = make_detector(**WINDOWS)
    init = str(save_run(tmp_path / "init", detector, shape))
    assert started((init, detector), tmp_path, f"detect objects {SMALL} --window-size {size}") == 2
    assert f"has windows of 3 patches, {size} are requested" in capsys.readouterr().err
