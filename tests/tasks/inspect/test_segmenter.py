"""What `openmae inspect` says of a run of segmentation and of its file."""

import shlex

import pytest

import openmae
from openmae import InspectConfig, SegmentConfig, segment
from openmae.cli import run as command

from ...data.masks.made import put_pairs, write


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    """A run of two steps."""
    root = tmp_path_factory.mktemp("segmented")
    put_pairs(root / "data", *(f"train/{i}" for i in range(4)), "val/8", "val/9")
    write(root / "names.txt", b"ground\nroad\nsky\n")
    sizes = {"width": 16, "depth": 4, "num_heads": 2, "patch_size": 4, "image_size": 8, "head_width": 8}
    config = SegmentConfig(
        data=str(root / "data"),
        init="none",
        out=str(root / "run"),
        class_names=str(root / "names.txt"),
        steps=2,
        batch_size=2,
        workers=0,
        device="cpu",
        **sizes,
    )
    return root / "run", segment(config)


def test_a_run_says_what_it_is_and_how_to_use_it(segmented, capsys):
    run, summary = segmented
    found = openmae.inspect(InspectConfig(path=str(run)))
    assert (found["kind"], found["task"], found["status"]) == ("run", "semantic segmentation", "complete")
    assert found["classes"] == ["ground", "road", "sky"]
    assert found["other_figures"]["miou"] == pytest.approx(summary["miou"])
    assert found["settings"]["head_width"] == 8
    assert shlex.split(found["resume"]["command"])[:2] == ["openmae", "segment"]
    assert found["use"] == f"openmae segment IMAGES --init {run} --predict --out FOLDER"
    said = capsys.readouterr().out
    assert "classes    3: ground, road, sky" in said
    assert found["use"] in said


def test_the_printed_command_resumes_it(segmented):
    words = shlex.split(openmae.inspect(InspectConfig(path=str(segmented[0])))["resume"]["command"])
    assert words[-2:] == ["--steps", "MORE"]
    assert command([*words[1:-1], "2"]) == 0  # no more than it has: it says that it is complete


def test_its_file_says_head_classes_figures_and_use(segmented, capsys):
    run, summary = segmented
    found = openmae.inspect(InspectConfig(path=str(run / "model.safetensors")))
    assert (found["model"], found["classes"]) == ("segmenter", ["ground", "road", "sky"])
    assert found["figures"]["miou"] == pytest.approx(summary["miou"])
    said = capsys.readouterr().out
    assert "head       UperNet of 8 channels, on a pyramid of 4 maps from blocks 1, 2, 3, 4" in said
    assert "in windows of 8 x 8 px every 5 px" in said
    assert f"figures    mean IoU of the classes, % {summary['miou']:.4g}" in said
    assert f"use        openmae segment IMAGES --init {run / 'model.safetensors'} --predict --out FOLDER" in said
