"""What a run that waits for its data is told to do."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from openmae import PackConfig, PretrainConfig, pack, pretrain
from openmae.config import SplitPaths
from openmae.data.batch import Batch
from openmae.errors import RequestError
from openmae.machine import device
from openmae.machine.parallel import Processes
from openmae.run.advice import reading_advice
from openmae.run.log import RunLog
from openmae.run.progress import Progress


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """The same images as files and as packs."""
    root = tmp_path_factory.mktemp("kinds")
    (root / "files").mkdir()
    for i in range(4):
        image = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "files" / f"{i}.png")
    for form in ("jpeg", "raw"):
        pack(PackConfig(data=str(root / "files"), out=str(root / form), format=form, workers=0))
    return root


@pytest.mark.parametrize(
    ("kind", "workers", "is_cpu", "crops", "told"),
    [
        (
            "files",
            3,
            False,
            1,
            "--workers 7 would use the idle cores; openmae pack DATA PACK: read 2 to 4 times as fast",
        ),
        ("files", 7, False, 1, "openmae pack DATA PACK: read 2 to 4 times as fast"),
        ("files", 1, True, 1, "openmae pack DATA PACK: read 2 to 4 times as fast"),
        ("jpeg", 7, False, 1, "openmae pack --format raw: read twice as fast as JPEGs"),
        ("raw", 5, False, 1, "--workers 7 would use the idle cores"),
        ("raw", 7, False, 1, "--crops-per-decode 2 in a new run halves the reading"),
        ("raw", 7, False, 2, "reading is as fast as these cores make it"),
        ("raw", 2, True, None, "reading is as fast as these cores make it"),
    ],
)
def test_advice_is_what_applies(kinds, kind, workers, is_cpu, crops, told):
    data = str(kinds / kind)
    advice = reading_advice(data, workers, is_cpu=is_cpu, cores=8, crops_per_decode=crops)
    assert advice == told.replace("DATA", data)


def test_packing_is_advised_in_words_that_can_be_typed(tmp_path):
    common = {"is_cpu": True, "cores": 2, "crops_per_decode": 1}
    assert "openmae pack 'my images' PACK" in reading_advice("my images", 1, **common)
    paths = SplitPaths(train="a b", val="c")
    assert "openmae pack --train 'a b' --val c PACK" in reading_advice(paths, 1, **common)


def test_embedded_data_is_not_to_be_packed():
    assert "pack" not in reading_advice("embedded:photos", 1, is_cpu=True, cores=2, crops_per_decode=1)


def test_a_containers_share_of_time_counts(monkeypatch):
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    for said, cores in (("150000 100000", 2), ("max 100000", 64), ("10000 100000", 1), ("9900000 100000", 64)):
        monkeypatch.setattr(Path, "read_text", lambda self, said=said: said)
        assert device.num_cores() == cores
    monkeypatch.setattr(Path, "read_text", lambda self: "1600000 100000")
    assert device.default_workers(torch.device("cpu")) == 4
    assert device.default_workers(torch.device("cuda")) == 15
    assert device.default_workers(torch.device("cuda"), processes=4) == 3


def test_several_crops_reach_the_run_and_its_accounting(kinds, tmp_path):
    settings = {"width": 16, "depth": 1, "num_heads": 1, "decoder_width": 16, "decoder_depth": 1}
    settings |= {"decoder_num_heads": 1, "image_size": 16, "patch_size": 4, "device": "cpu", "workers": 0}
    settings |= {"data": str(kinds / "raw"), "held_out": 0, "batch_size": 4, "epochs": 3.0}
    with pytest.raises(RequestError, match="--crops-per-decode got 3, which does not divide --batch-size 4"):
        pretrain(PretrainConfig(out=str(tmp_path / "odd"), crops_per_decode=3, **settings))
    summaries = [
        pretrain(PretrainConfig(out=str(tmp_path / f"{crops}"), crops_per_decode=crops, **settings)) for crops in (1, 2)
    ]
    # An epoch is as many crops as images: neither the steps nor what was seen depend on how often it was decoded.
    for summary in summaries:
        assert (summary["step"], summary["images_seen"], summary["epoch"]) == (3, 12, 3.0)
    assert summaries[0]["loss"] != summaries[1]["loss"]


def test_blank_tiles_count_when_their_step_is_taken(tmp_path):
    """A batch that was waited for comes again, after a stop or with smaller micro-batches."""
    settings = {"batch_size": 4, "num_images": 8, "num_inputs": 8, "max_bad": 0.0, "state": {}, "is_tiled": True}
    progress = Progress(RunLog(tmp_path), Processes(), **settings)
    batch = Batch(torch.zeros(4, 3, 2, 2), torch.arange(4), {}, num_blank=3)
    inputs = iter([SimpleNamespace(micro_batches=[batch])] * 3)
    progress.next_inputs(inputs)
    assert progress.to_dict()["blank"] == 0
    progress.next_inputs(inputs)
    progress.add(torch.tensor(1.0), torch.tensor(0.0))
    assert progress.to_dict()["blank"] == 3
    resumed = Progress(RunLog(tmp_path), Processes(), **{**settings, "state": progress.to_dict()})
    for one in (progress, resumed):
        one.next_inputs(iter([SimpleNamespace(micro_batches=[batch])]))
        one.add(torch.tensor(1.0), torch.tensor(0.0))
        one.line(2, 0.1, torch.tensor(1.0), 0)
        assert one.summary("complete", 2)["blank_tiles"] == 6
