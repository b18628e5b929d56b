"""The plan knows the largest image, what readers take for it, and starts fewer where memory is short."""

import pytest

from openmae.config import PackConfig
from openmae.data.sources.largest import LargestImage
from openmae.machine import device
from openmae.planning import reader_memory
from openmae.planning.reader_memory import reader_lines, workers_that_fit
from openmae.tasks.pack.pack import pack
from openmae.tasks.pretrain.pretrain import pretrain

from ..shared import gradients_config

CLIP_ART = LargestImage(16_000, 10_562, 4, 16_000 * 10_562 * 4, 1000, 50_000)  # 676 MB; a reader takes 1.69 GB


@pytest.mark.parametrize(
    ("free", "processes", "wanted"), [(64e9, 1, 8), (9e9, 1, 4), (9e9, 2, 2), (1e9, 1, 1), (None, 1, 8)]
)
def test_fewer_readers_where_memory_is_short(monkeypatch, free, processes, wanted):
    monkeypatch.setattr(reader_memory, "free_memory", lambda: free)
    workers, why = workers_that_fit(8, processes, CLIP_ART)
    assert workers == wanted
    if wanted == 8:
        assert why == "from the cores"
    else:
        assert why == f"{free / 1e9:g} GB are free, and one takes up to 1.69 for the largest image"
    assert workers_that_fit(8, 1, None) == (8, "from the cores")


def test_the_plan_names_the_largest_image_and_what_readers_take(monkeypatch):
    monkeypatch.setattr(reader_memory, "free_memory", lambda: 9e9)
    (line,) = reader_lines(CLIP_ART, 4)
    assert line.endswith(
        "up to 1.69 GB each: 16000 x 10562 px in 4 channels is the largest image (headers of 1,000 of 50,000)"
    )
    assert "headers of all 7)" in reader_lines(CLIP_ART._replace(num_seen=7, num_images=7), 4)[0]
    assert "8 at a time may take 13.5 GB, and 9 GB are free: give fewer --workers" in reader_lines(CLIP_ART, 8)[1]
    assert reader_lines(LargestImage(500, 500, 3, 750_000, 7, 7), 4) == []
    assert reader_lines(None, 4) == []


def test_memory_is_free_within_the_containers_limit(monkeypatch, tmp_path):
    """Pages of files are given up when memory is asked for, and so count as free."""
    monkeypatch.setattr(device, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    assert device.free_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert device.free_memory() == 8000 * 1024
    for name, said in (("max", "5000000"), ("current", "4000000"), ("stat", "anon 1\ninactive_file 1500000\n")):
        (tmp_path / f"memory.{name}").write_text(said)
    assert device.free_memory() == 2_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert device.free_memory() == 8000 * 1024


def test_a_run_starts_as_many_readers_as_there_is_room_for(digits_config, gradients, tmp_path, monkeypatch, capsys):
    bytes_of_one = 2.5 * 16 * 16 * 3
    monkeypatch.setattr(reader_memory, "free_memory", lambda: 3 * bytes_of_one)
    monkeypatch.setattr(reader_memory, "MIN_REPORTED_BYTES", 0)
    monkeypatch.setattr("openmae.planning.decisions.default_workers", lambda device, processes: 8)
    pretrain(gradients_config(digits_config, gradients, tmp_path / "run", steps=2, workers=None))
    said = capsys.readouterr().out
    assert "2 reader processes" in said
    assert "16 x 16 px in 3 channels is the largest image (headers of all 24)" in said
    assert "--workers 2: " in said
    pretrain(gradients_config(digits_config, gradients, tmp_path / "given", steps=2, workers=3))
    said = capsys.readouterr().out
    assert "give fewer --workers" not in said
    monkeypatch.setattr(reader_memory, "free_memory", lambda: 2 * bytes_of_one)
    pretrain(gradients_config(digits_config, gradients, tmp_path / "many", steps=2, workers=3))
    said = capsys.readouterr().out
    assert "3 reader processes" in said
    assert "give fewer --workers" in said


def test_a_pack_is_read_by_as_many_as_there_is_room_for(gradients, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reader_memory, "free_memory", lambda: 4 * 2.5 * 16 * 16 * 3)
    monkeypatch.setattr("openmae.tasks.pack.job.num_cores", lambda: 8)
    pack(PackConfig(data=str(gradients), out=str(tmp_path / "pack")))
    assert "readers    3: " in capsys.readouterr().out
