"""openmae pack: whatever happens to it, it goes on to the same bytes, and nothing of anybody's is lost."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from PIL import Image

from openmae import PackConfig, cli, pack
from openmae.data.sources.open import open_source
from openmae.errors import Fault, RequestError
from openmae.tasks.pack import files as pack_files
from openmae.tasks.pack import job as task

RNG = np.random.default_rng(1)
BOTH = pytest.mark.parametrize("form", ["jpeg", "raw"])
# Files of about 6 JPEGs of the data below.
SMALL = {"size": 32, "shard_mb": 0.006, "workers": 0}


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def noise(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """20 images to train on, 5 to measure on, in two classes; one of each split is no image."""
    root = tmp_path_factory.mktemp("data")
    for i in range(25):
        save(root / ("train" if i < 20 else "val") / "ab"[i % 2] / f"{i:02d}.png", noise(40, 50, 3))
    (root / "train" / "a" / "05.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "val" / "a" / "99.png").write_bytes(b"")
    return root


def config(data, out, form="jpeg", **settings):
    return PackConfig(**{"data": str(data), "out": str(out), "format": form, "max_bad": 0.2, **SMALL, **settings})


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The bytes of an uninterrupted pack of each format, each made by one process."""
    root = tmp_path_factory.mktemp("whole")
    for form in ("jpeg", "raw"):
        pack(config(data, root / form, form))
    return {form: contents(root / form) for form in ("jpeg", "raw")}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what it makes ---


def test_the_files_of_a_jpeg_pack(whole):
    names = set(whole["jpeg"])
    assert names >= {"pack.json", "quarantine.jsonl", "train.index.npz", "val.index.npz"}
    assert len([name for name in names if name.startswith("train-0000")]) >= 3
    assert not [name for name in names if name.startswith(".")]


def test_the_files_of_a_raw_pack(whole):
    assert set(whole["raw"]) == {
        *("pack.json", "quarantine.jsonl", "train.npy", "train.index.npz", "val.npy", "val.index.npz")
    }


@BOTH
def test_unreadable_inputs_are_left_out_and_named(whole, form):
    lines = [json.loads(line) for line in whole[form]["quarantine.jsonl"].splitlines()]
    assert [(line["name"], line["part"]) for line in lines] == [("train/a/05.jpg", "train"), ("val/a/99.png", "val")]
    assert all(line["reason"] for line in lines)
    splits = json.loads(whole[form]["pack.json"])["splits"]
    assert {name: (split["inputs"], split["images"]) for name, split in splits.items()} == {
        "train": (21, 20),
        "val": (6, 5),
    }


@BOTH
def test_workers_change_no_byte(data, whole, tmp_path, form):
    pack(config(data, tmp_path / "pack", form, workers=2))
    assert contents(tmp_path / "pack") == whole[form]


def test_other_programs_find_the_hugging_face_layout(data, tmp_path):
    pack(config(data, tmp_path / "pack"))
    table = pq.read_table(sorted((tmp_path / "pack").glob("val-*.parquet")))
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    rows = table.to_pylist()
    assert rows[0]["image"]["path"] == "val/a/20.png"
    assert rows[0]["image"]["bytes"][:2] == b"\xff\xd8"
    assert [row["label"] for row in rows] == [0, 0, 0, 1, 1]


def test_row_groups_are_small_and_nothing_is_compressed(tmp_path):
    for i in range(150):
        save(tmp_path / "data" / f"{i}.png", noise(8, 8, 3))
    pack(PackConfig(data=str(tmp_path / "data"), out=str(tmp_path / "pack"), workers=0))
    about = pq.ParquetFile(next((tmp_path / "pack").glob("*.parquet"))).metadata
    assert [about.row_group(g).num_rows for g in range(about.num_row_groups)] == [128, 22]
    assert about.row_group(0).column(0).compression == "UNCOMPRESSED"
    assert not about.row_group(0).column(0).is_stats_set  # of images these would be images


def test_colour_may_be_kept_whole(data, tmp_path):
    sizes = {}
    for subsampling in ("420", "444"):
        result = pack(config(data, tmp_path / subsampling, subsampling=subsampling))
        sizes[subsampling] = result["bytes"]
    assert sizes["444"] > 1.2 * sizes["420"]


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_raw_keeps_other_number_types_and_channels(tmp_path, dtype):
    images = [(RNG.random((5, 24, 24)) * 60000).astype(dtype) for _ in range(4)]
    (tmp_path / "data").mkdir()
    for i, image in enumerate(images):
        tifffile.imwrite(tmp_path / "data" / f"{i}.tif", image, photometric="minisblack")
    pack(PackConfig(data=str(tmp_path / "data"), out=str(tmp_path / "raw"), format="raw", workers=0))
    source = open_source(str(tmp_path / "raw"), "train")
    for i, image in enumerate(images):  # their own short side is 24: nothing was resized
        assert source.read(i).dtype == dtype
        np.testing.assert_array_equal(source.read(i), image.transpose(1, 2, 0))
    with pytest.raises(RequestError, match="--format raw keeps it"):
        pack(PackConfig(data=str(tmp_path / "data"), out=str(tmp_path / "jpeg"), workers=0))
    assert not (tmp_path / "jpeg").exists()


def test_uint16_does_not_wrap_where_bicubic_overshoots(tmp_path):
    (tmp_path / "data").mkdir()
    edges = np.zeros((64, 64), np.uint16)
    edges[:, 32:] = 65535
    tifffile.imwrite(tmp_path / "data" / "edge.tif", edges)
    pack(PackConfig(data=str(tmp_path / "data"), out=str(tmp_path / "raw"), format="raw", size=24, workers=0))
    row = open_source(str(tmp_path / "raw"), "train").read(0)[12, :, 0].astype(int)
    assert (row[:10] < 5000).all()
    assert (row[14:] > 60000).all()


def test_height_and_width_of_a_raw_pack(data, tmp_path):
    pack(config(data, tmp_path / "raw", "raw", size=(24, 30)))
    assert open_source(str(tmp_path / "raw"), "train").read(0).shape == (24, 30, 3)


@BOTH
def test_odd_shapes(tmp_path, form):
    shapes = [(1, 1), (20000, 1), (1, 20000), (3, 70000), (40, 40), (41, 40)]
    for i, shape in enumerate(shapes):
        save(tmp_path / "data" / f"{i}.png", noise(*shape))
    settings = {"size": 32, "workers": 0, "max_bad": 0.2}
    pack(PackConfig(data=str(tmp_path / "data"), out=str(tmp_path / "pack"), format=form, **settings))
    source = open_source(str(tmp_path / "pack"), "train")
    found = {source.name(i): source.read(i).shape for i in range(len(source))}
    if form == "raw":
        assert set(found.values()) == {(32, 32, 1)}
        assert len(found) == 6
    else:  # 70,000 pixels are more than a JPEG's side can have
        assert found == {
            **{"0.png": (1, 1, 1), "1.png": (20000, 1, 1), "2.png": (1, 20000, 1)},
            **{"4.png": (32, 32, 1), "5.png": (33, 32, 1)},
        }
        assert "3.png" in (tmp_path / "pack" / "quarantine.jsonl").read_text()


def test_a_pack_of_a_pack(data, whole, tmp_path):
    pack(config(data, tmp_path / "jpeg"))
    pack(config(tmp_path / "jpeg", tmp_path / "raw", "raw"))
    first, second = (open_source(str(tmp_path / form), "train") for form in ("jpeg", "raw"))
    assert [first.name(i) for i in range(len(first))] == [second.name(i) for i in range(len(second))]
    assert [first.label(i) for i in range(len(first))] == [second.label(i) for i in range(len(second))]


def test_embedded_digits_at_their_own_size(tmp_path):
    pack(PackConfig(data="embedded:digits", out=str(tmp_path / "raw"), format="raw", workers=0))
    before, after = open_source("embedded:digits"), open_source(str(tmp_path / "raw"))
    assert len(before) == len(after)
    for i in range(0, len(before), 100):  # --size is decided by the images: not one byte is changed
        np.testing.assert_array_equal(before.read(i), after.read(i))
        assert before.label(i) == after.label(i)


# --- what ends it early ---


def killed_at(number, settings):
    """In a process of its own: pack, and die at the system call with this number that makes something last."""
    torch.set_num_threads(1)  # or the forked child waits for its parent's threads
    calls = 0

    def counted(real):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    os.fsync = counted(lambda descriptor: None)  # a killed process's pages stay, and disks are slow
    Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)
    pack(PackConfig(**settings))
    os._exit(0)


@pytest.mark.slow
@BOTH
def test_killed_anywhere_it_goes_on_to_the_same_bytes(tmp_path, monkeypatch, form):
    for i in range(6):
        save(tmp_path / "data" / ("train" if i < 5 else "val") / f"{i}.png", noise(32, 40, 3))
    (tmp_path / "data" / "train" / "1.jpg").write_bytes(b"")
    monkeypatch.setattr(task, "RAW_PART_BYTES", 2 * 32 * 32 * 3)
    monkeypatch.setattr(task, "BATCH_IMAGES", 2)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    pack(config(tmp_path / "data", tmp_path / "whole", form, shard_mb=0.004))
    context, out, died = multiprocessing.get_context("fork"), tmp_path / "pack", 0
    while True:
        settings = config(tmp_path / "data", out, form, shard_mb=0.004, resume="auto")
        child = context.Process(target=killed_at, args=(died + 1, settings.to_dict()))
        child.start()
        child.join(60)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        died += 1
        if out.exists() and any(out.iterdir()) and not (out / "pack.json").exists():
            with pytest.raises(RequestError):  # never taken for a whole one
                open_source(str(out), "train")
        pack(settings)
        assert contents(out) == contents(tmp_path / "whole"), f"killed at call {died}"
        shutil.rmtree(out)
    assert died >= 20  # measured: 41 (jpeg), 30 (raw)


def run_command(arguments, told):
    """In a process of its own: the command, and what it says on stderr into a file."""
    torch.set_num_threads(1)
    os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (pytest's is its own)
    code = cli.run(["pack", *map(str, arguments)])
    sys.stderr.flush()
    os._exit(code)


@BOTH
def test_ctrl_c_saves_and_exits_with_3(tmp_path, form):
    """A process with a reader, interrupted when a part of it is on the disk."""
    for i in range(60):
        save(tmp_path / "data" / f"{i:03d}.bmp", noise(400, 400, 3))
    flags = [tmp_path / "data", tmp_path / "pack", "--format", form, "--size", "300", "--shard-mb", "0.3"]
    arguments = ([*flags, "--workers", "1"], tmp_path / "told")
    process = multiprocessing.get_context("fork").Process(target=run_command, args=arguments)
    process.start()
    journal, partial = tmp_path / "pack" / pack_files.JOURNAL, tmp_path / "pack" / ".partial-train.npy"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.is_alive():
        if (journal.exists() and journal.stat().st_size) or (partial.exists() and partial.stat().st_size > 300_000):
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    told = (tmp_path / "told").read_text()
    assert process.exitcode == 3, told
    # What the signal's handler says, and what the command does: no traceback, nothing that a library says.
    assert [line.split(":")[0] for line in told.splitlines()] == ["openmae", "openmae"]
    assert "--resume auto goes on" in told
    assert 0 < sum(line["inputs"] for line in map(json.loads, journal.read_text().splitlines())) < 60
    settings = {"size": 300, "shard_mb": 0.3}
    result = pack(config(tmp_path / "data", tmp_path / "pack", form, resume="auto", **settings))
    assert result["images"] == 60
    pack(config(tmp_path / "data", tmp_path / "other", form, **settings))
    assert contents(tmp_path / "pack") == contents(tmp_path / "other")


@BOTH
def test_a_full_disk_is_one_clear_line_and_resumable(data, whole, tmp_path, monkeypatch, form):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    owner, name = (pack_files.ShardWriter, "close") if form == "jpeg" else (pack_files.RawFile, "sync")
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, full)
        with pytest.raises(Fault, match="the disk is full"):
            pack(config(data, tmp_path / "pack", form))
    pack(config(data, tmp_path / "pack", form, resume="auto"))
    assert contents(tmp_path / "pack") == whole[form]


def test_what_will_not_fit_is_refused_before(data, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(Fault, match="1 kB are free"):
        pack(config(data, tmp_path / "pack", "raw"))
    assert not list((tmp_path / "pack").glob("*.npy"))


def test_too_many_unreadable_files(data, whole, tmp_path):
    with pytest.raises(RequestError, match=r"1 of 27 .*05\.jpg.*--max-bad 0\.01.*quarantine"):
        pack(config(data, tmp_path / "pack", max_bad=0.01))
    assert "05.jpg" in (tmp_path / "pack" / "quarantine.jsonl").read_text()
    pack(config(data, tmp_path / "pack", max_bad=0.2, resume="auto"))
    assert contents(tmp_path / "pack") == whole["jpeg"]


@BOTH
def test_resume_refuses_other_settings_and_other_data(data, whole, tmp_path, form):
    pack(config(data, tmp_path / "pack", form, resume="auto"))
    before = contents(tmp_path / "pack")
    pack(config(data, tmp_path / "pack", form, resume="auto", workers=1))  # finished: nothing to do
    with pytest.raises(RequestError, match="begun with --size 32, not 31: give --size 32, or choose another OUT"):
        pack(config(data, tmp_path / "pack", form, resume="auto", size=31))
    with pytest.raises(RequestError, match="begun with no --value-range, not 0 100: leave --value-range out"):
        pack(config(data, tmp_path / "pack", form, resume="auto", value_range=(0.0, 100.0)))
    with pytest.raises(RequestError, match="exists already: --resume auto"):
        pack(config(data, tmp_path / "pack", form))
    other = shutil.copytree(data, tmp_path / "other")
    save(other / "train" / "a" / "more.png", noise(9, 9, 3))
    with pytest.raises(RequestError, match="DATA is not what"):
        pack(config(other, tmp_path / "pack", form, resume="auto"))
    assert contents(tmp_path / "pack") == before == whole[form]


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_what_lies_there_is_not_touched(data, tmp_path, resume):
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("years")
    with pytest.raises(RequestError, match="holds something else"):
        pack(config(data, out, resume=resume))
    assert contents(out) == {"thesis.txt": b"years"}
    with pytest.raises(RequestError, match="is none"):
        pack(config(data, out / "thesis.txt", resume=resume))


def test_a_pack_lies_beside_its_data(data, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(data)
    before = contents(data)
    for out in (data, data / "pack", link / "pack", data.parent):
        with pytest.raises(RequestError, match=r"inside each other"):
            pack(config(data, out))
    pack(config(data, tmp_path / "pack"))
    with pytest.raises(RequestError, match="inside each other"):
        pack(config(tmp_path / "pack", tmp_path / "pack", resume="auto"))
    assert contents(data) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_place(data, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(Fault, match="cannot be written"):
        pack(config(data, tmp_path / "pack"))


def test_an_unwritable_place_for_root_too(data, tmp_path, monkeypatch):
    def refused(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(Fault, match="cannot be written"):
        pack(config(data, tmp_path / "pack"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"size": (3, 4)}, "give the short side"),
        ({"out": None}, "no OUT given"),
        ({"verify": True}, "writes no OUT"),
        ({"quality": 0}, "--quality got 0"),
        ({"format": "jpg"}, "did you mean 'jpeg'"),
        ({"shard_mb": 0.0}, "--shard-mb"),
        ({"resume": "always"}, "--resume"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings, told):
    with pytest.raises(RequestError, match=told):
        PackConfig(**{"data": "data", "out": "out", **settings})


def test_verify_needs_a_pack(data):
    with pytest.raises(RequestError, match="is no pack"):
        pack(PackConfig(data=str(data), verify=True))
