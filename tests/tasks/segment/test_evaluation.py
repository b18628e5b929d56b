"""Evaluations while a segmenter trains: their figures are named after their images, and bad ones are recorded."""

import json
import shutil

import pytest

from openmae import segment
from openmae.data.annotated.whole_images import WholeImage, _WholeImages
from openmae.tasks.segment.segment import open_with_test

from ...scenes import config_of, write_scenes
from ...shared import metrics


@pytest.fixture
def broken_later(monkeypatch):
    """Images of these numbers are usable when DATA is opened, and unreadable when they are measured."""
    numbers, read = set(), _WholeImages.__getitem__

    def read_or_not(self, index):
        name = self.source.name(index)
        return WholeImage(index, name, "gone") if name.rpartition("/")[2][:2] in numbers else read(self, index)

    monkeypatch.setattr(_WholeImages, "__getitem__", read_or_not)
    return numbers


def bad_by_part(out):
    parts: dict = {}
    for line in map(json.loads, (out / "quarantine.jsonl").read_text().splitlines()):
        parts.setdefault(line.get("part"), set()).add((line["name"].rpartition("/")[2], line["reason"]))
    return parts


SHORT = {"steps": 2, "evaluate_every": 1, "save_every": 2, "max_bad": 0.5}


def test_bad_images_held_out_of_train_are_recorded(scenes, tmp_path, broken_later):
    data = tmp_path / "scenes"
    shutil.copytree(scenes / "images" / "train", data / "images" / "train")
    shutil.copytree(scenes / "masks" / "train", data / "masks" / "train")
    shutil.copy(scenes / "names.txt", data)
    config = config_of(data, tmp_path / "run", held_out=4, **SHORT)
    name = open_with_test(config, None).held_out_names()[1].rpartition("/")[2]
    broken_later.add(name[:2])
    summary = segment(config)
    assert summary["unreadable"] == 1
    assert bad_by_part(tmp_path / "run") == {"split of train": {(name, "gone")}}


def test_bad_images_of_a_split_that_only_chooses_are_recorded(scenes, tmp_path, broken_later):
    data = tmp_path / "scenes"
    shutil.copytree(scenes, data)
    write_scenes(data, "test", 7, 2)
    (data / "images" / "val" / "05.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    broken_later.add("03")
    summary = segment(config_of(data, tmp_path / "run", **SHORT))
    parts = bad_by_part(tmp_path / "run")
    assert parts.keys() == {"val", "test"}
    assert {name for name, _ in parts["val"]} == {"03.png", "05.png"}
    assert parts["test"] == {("03.png", "gone")}
    assert summary["report"] == "test"
    assert any("val_miou" in line for line in metrics(tmp_path / "run"))


def test_what_is_held_out_beside_val_is_not_called_val(scenes, tmp_path):
    summary = segment(config_of(scenes, tmp_path / "run", held_out=5, **SHORT))
    names = {name for line in metrics(tmp_path / "run") for name in line}
    assert "held_out_miou" in names
    assert not any(name.startswith("val_") for name in names)
    assert (summary["report"], summary["images"]) == ("val", 7)
