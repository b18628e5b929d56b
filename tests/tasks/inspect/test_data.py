"""What `openmae inspect DATA` claims, against counts that are known and programs that compare everything."""

import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import openmae
from openmae import InspectConfig, RequestError
from openmae.cli import run
from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.formats import format_of, has_exif_rotation
from openmae.data.sources.open import open_source
from openmae.data.survey.census import RECORD, examine, image_sums
from openmae.data.survey.duplicates import find_near_duplicates, near_pairs
from openmae.data.survey.perceptual import perceptual_hashes, shrink
from openmae.preflight.inspect import kind_of
from openmae.tasks.inspect.screen import WIDTH

from ...hostile import encoded, hostile_images, npy, table
from ...shared import snapshot


def photograph(seed, height=48, width=64):
    """Smooth, colourful and like no other seed's."""
    chance = np.random.default_rng(seed)
    coarse = Image.fromarray(chance.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def inspected(path, **settings):
    return openmae.inspect(InspectConfig(path=str(path), **{"workers": 0, **settings}))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Two splits with known copies. Tests only read it."""
    root = tmp_path_factory.mktemp("data") / "zoo"
    for split, kinds in {
        "train": {"cat": range(6), "dog": range(6, 16), "emu": [16]},
        "val": {"cat": [20], "dog": [21]},
    }.items():
        for kind, seeds in kinds.items():
            (root / split / kind).mkdir(parents=True)
            for seed in seeds:
                photograph(seed).save(root / split / kind / f"{seed:02d}.png")
    train, val = root / "train", root / "val"
    shutil.copy(train / "cat/00.png", train / "dog/a copy\nwith another label.png")  # equal
    shutil.copy(train / "cat/01.png", val / "cat/leaked.png")  # equal, across
    photograph(2).resize((32, 24), Image.Resampling.BICUBIC).save(val / "cat/smaller.png")  # the same, across
    photograph(3).save(train / "cat/compressed.jpg", quality=40)  # the same, within
    photograph(4).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(train / "cat/flipped.png")  # another image
    for number, colour in enumerate([(0, 0, 0), (0, 0, 0), (9, 99, 199)]):
        Image.new("RGB", (64, 48), colour).save(train / f"cat/blank{number}.png")
    photograph(30).convert("L").save(train / "dog/grey.png")
    exif = Image.Exif()
    exif[274] = 6
    photograph(31).save(train / "dog/turned.jpg", exif=exif)
    (train / "dog/really-png.jpg").write_bytes(encoded(photograph(32)))
    (train / "dog/clear.png").write_bytes(encoded(photograph(33).convert("RGBA")))
    (train / "dog/deep.png").write_bytes(encoded(np.asarray(photograph(34).convert("L")).astype(np.uint16) * 257))
    (train / "dog/five.npy").write_bytes(npy(np.random.default_rng(0).integers(0, 256, (20, 30, 5), dtype=np.uint8)))
    (train / "dog/empty.jpg").write_bytes(b"")
    (train / "dog/cut.jpg").write_bytes(encoded(photograph(35), "JPEG")[:700])
    (train / "dog/page.jpg").write_text("<!DOCTYPE html>")
    (train / "dog/notes.txt").write_text("words")
    return root


@pytest.fixture(scope="module")
def report(zoo):
    return inspected(zoo)


def test_counts_sizes_formats_and_kinds(report):
    train, val = report["splits"]["train"], report["splits"]["val"]
    assert (train["images"], val["images"], report["images"]) == (32, 4, 36)
    assert train["formats"] == {"PNG": 26, "JPEG": 3, "NPY": 1, "HTML": 1, "empty": 1}
    assert train["channels"] == {"3": 26, "1": 2, "5": 1}
    assert train["number_types"] == {"uint8": 28, "uint16": 1}
    assert (train["turned_by_exif"], train["transparent"], train["wrong_extensions"]) == (1, 1, 1)
    assert train["short_side"] == {"least": 20, "median": 48, "most": 48}
    assert train["common_sizes"][0] == {"width": 64, "height": 48, "images": 27}
    assert {"width": 48, "height": 64, "images": 1} in train["common_sizes"]  # turned upright
    assert train["smaller_than"] == {"224": 1.0, "96": 1.0, "32": round(1 / 29, 4)}
    assert train["ignored"]["extensions"] == {".txt": 1}
    assert report["misfits"] == {"5 channels where the data has 3": 1}


def test_file_sizes_are_those_on_disk(report, zoo):
    sizes = [path.stat().st_size for path in (zoo / "train").rglob("*") if path.suffix != ".txt" and path.is_file()]
    found = report["splits"]["train"]["file_bytes"]
    assert found == {"least": 0, "median": int(np.median(sizes)), "most": max(sizes), "total": sum(sizes)}


def test_classes_are_counted_and_missing_ones_named(report):
    classes = report["classes"]
    assert classes["images"]["val"] == {"cat": 3, "dog": 1, "emu": 0}
    assert classes["images"]["train"] == {"cat": 11, "dog": 20, "emu": 1}
    assert classes["smallest"] == {"class": "emu", "images": 1}
    assert classes["imbalance"] == 20.0
    assert classes["missing"] == {"train": [], "val": ["emu"]}
    assert any("val lacks 1 of the classes, such as emu" in line for line in report["to_mend"])


def test_unreadable_files_are_counted_by_reason_and_all_named(report):
    assert report["unreadable"] == 3
    assert {entry["name"] for entry in report["bad"]} == {f"train/dog/{n}.jpg" for n in ("empty", "cut", "page")}
    assert sum(report["unreadable_reasons"].values()) == 3
    assert report["unreadable_reasons"]["empty file"] == 1


def test_copies_near_copies_and_leaks(report):
    assert (report["exact_duplicates"], report["exact_groups"]) == (2, 2)
    assert (report["near_duplicates"], report["near_groups"]) == (2, 2)
    assert report["leaks"] == {"val in train": 2}
    leaks = {leak["name"]: (leak["looks_like"], leak["is_equal"]) for leak in report["listed_leaks"]}
    assert leaks == {
        "val/cat/leaked.png": ("train/cat/01.png", True),
        "val/cat/smaller.png": ("train/cat/02.png", False),
    }
    near = [{member["name"] for member in group} for group in report["listed_near"]]
    assert {"train/cat/03.png", "train/cat/compressed.jpg"} in near
    assert not any("train/cat/flipped.png" in group for group in near)
    assert report["copies_with_other_labels"] == 2


def test_blank_images_are_counted_as_blank_and_never_as_copies(report):
    assert report["blank"] == 3
    named = json.dumps([report["listed_exact"], report["listed_near"]])
    assert "blank" not in named


def test_equal_copies_leak_even_where_they_are_too_plain_for_a_look(tmp_path):
    slope = np.linspace(100, 104, 64).round().astype(np.uint8)
    for split, offset in (("train", 0), ("val", 0), ("val", 1)):
        (tmp_path / split).mkdir(exist_ok=True)
        Image.fromarray(np.tile(slope + offset, (48, 1))).save(tmp_path / split / f"{offset}.png")
    found = inspected(tmp_path)
    assert found["nearly_blank"] == 3
    assert (found["exact_duplicates"], found["near_duplicates"], found["leaks"]) == (1, 0, {"val in train": 1})
    assert found["listed_leaks"][0]["looks_like"] == "train/0.png"


def test_statistics_are_those_of_every_pixel_each_image_counting_alike(report, zoo):
    source = open_source(str(zoo), "train")
    means, squares = [], []
    for index in range(len(source)):
        try:
            image = source.read(index)
        except BadImage:
            continue
        if image.dtype == np.uint8 and image.shape[2] in (1, 3):
            values = np.broadcast_to(image, (*image.shape[:2], 3)).reshape(-1, 3) / 255
            means.append(values.mean(0))
            squares.append((values**2).mean(0))
    mean = np.mean(means, 0)
    found = report["statistics"]
    assert found["images"] == len(means) == 27
    np.testing.assert_allclose(found["mean"], mean, atol=5.1e-5)  # rounded to four places
    np.testing.assert_allclose(found["deviation"], np.sqrt(np.mean(squares, 0) - mean**2), atol=5.1e-5)
    assert found["imagenet_mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, "uint8"), (3, "uint8"), (5, "uint8"), (1, "uint16"), (3, "float32")]
)
def test_sums_of_one_image_equal_numpys(channels, dtype):
    image = (np.random.default_rng(1).random((37, 23, channels)) * 250).astype(dtype)
    sums = image_sums(image)
    wide = image.astype(np.float64)
    mean, deviation = sums.statistics()
    np.testing.assert_allclose(mean, wide.mean((0, 1)), rtol=1e-12)  # measured: 4e-16
    np.testing.assert_allclose(deviation, wide.std((0, 1)), rtol=1e-9)
    assert (sums.low.tolist(), sums.high.tolist()) == (wide.min((0, 1)).tolist(), wide.max((0, 1)).tolist())


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.lists(st.integers(0, 63), max_size=7)), max_size=30),
    st.integers(0, 6),
)
def test_banding_finds_every_near_pair_and_no_other(seeds, changes, distance):
    hashes = list(seeds)
    for place, bits in changes:
        value = seeds[place % len(seeds)]
        for bit in bits:
            value ^= 1 << bit
        hashes.append(value)
    found = set()
    for one, other in near_pairs(np.array(hashes, np.uint64), distance):
        found |= {tuple(sorted(pair)) for pair in zip(one.tolist(), other.tolist(), strict=True)}
    wanted = {
        (i, j)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (hashes[i] ^ hashes[j]).bit_count() <= distance
    }
    assert found == wanted


def test_groups_are_linked_and_colours_tell_shapes_apart():
    hashes = np.array([0, 0b1111, 0b11111111, 0, 1 << 63], np.uint64)
    thumbs = np.full((5, 48), 100, np.uint8)
    thumbs[3] = 200  # the shape of the first in another colour
    thumbs[4] = 200
    found = find_near_duplicates(hashes, thumbs, np.array([0, 0, 2, 0, 1], np.uint8))
    assert found.groups[0] == found.groups[1] == found.groups[2] != found.groups[3]
    assert found.groups[3] == found.groups[4]
    assert found.match_in_other_split.tolist() == [-1, 2, 1, 4, 3]  # 0 and 2 are linked, but differ in eight bits
    assert found.split_bits.tolist() == [0b001, 0b101, 0b101, 0b011, 0b011]
    assert found.is_complete


def test_too_many_that_look_alike_are_said_to_be_incomplete(monkeypatch):
    monkeypatch.setattr("openmae.data.survey.duplicates.MAX_IN_BAND", 3)
    thumbs, parts = np.zeros((16, 48), np.uint8), np.zeros(16, np.uint8)
    assert not find_near_duplicates(np.arange(16, dtype=np.uint64), thumbs, parts).is_complete


def test_the_hash_outlives_size_compression_and_brightness_but_not_a_flip():
    kept, flipped, strangers = [], [], []
    for seed in range(20):
        image = photograph(seed, 120, 160)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=30)
        others = [
            image.resize((80, 60), Image.Resampling.BICUBIC),
            image.resize((100, 100), Image.Resampling.BILINEAR),
            Image.open(buffer).convert("RGB"),
            image.point(lambda value: int(value * 0.9)),
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            photograph(seed + 100, 120, 160),
        ]
        hashes = perceptual_hashes(np.stack([shrink(np.asarray(each)) for each in (image, *others)]))[0]
        apart = np.bitwise_count(hashes[1:] ^ hashes[0])
        kept += apart[:4].tolist()
        flipped.append(apart[4])
        strangers.append(apart[5])
    assert max(kept) <= 4  # measured: 2
    assert min(flipped) > 8
    assert min(strangers) > 8


def test_readers_change_nothing_and_records_are_small(zoo):
    source = open_source(str(zoo), "train")
    alone, shared = (examine(source, np.arange(len(source)), workers=workers) for workers in (0, 2))
    assert (alone.records == shared.records).all()
    assert alone.bad == shared.bad
    assert RECORD.itemsize < 128


def test_a_limit_looks_at_so_many_and_says_so(zoo, capsys):
    found = inspected(zoo, limit=3)
    assert (found["looked_at"], found["images"], found["is_limited"]) == (6, 36, True)
    assert "of which 6 were looked at (--limit)" in " ".join(capsys.readouterr().out.split())
    assert inspected(zoo, limit=3)["splits"] == found["splits"]


def test_the_folder_holds_everything_and_the_screen_fits(zoo, tmp_path, capsys):
    before = snapshot(zoo)
    out = tmp_path / "look"
    found = inspected(zoo, out=str(out))
    assert sorted(path.name for path in out.iterdir()) == [
        "bad.jsonl",
        "contact-sheet.png",
        "inspect.json",
        "near-duplicates.png",
    ]
    assert json.loads((out / "inspect.json").read_text()) == json.loads(json.dumps(found))
    assert [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()] == found["bad"]
    for name in ("contact-sheet.png", "near-duplicates.png"):
        assert len(np.unique(np.asarray(Image.open(out / name).convert("L")))) > 50  # something is drawn
    printed = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in printed if "wrote" not in line) <= WIDTH
    assert snapshot(zoo) == before
    assert os.listdir(tmp_path) == ["look"]


def test_unlabelled_parquet_embedded_and_empty_findings(tmp_path, capsys):
    images = [{"bytes": encoded(photograph(seed)), "path": None} for seed in (0, 1, 0)] + [
        {"bytes": None, "path": None}
    ]
    found = inspected(table(tmp_path / "a.parquet", images))
    assert (found["images"], found["unreadable"], found["exact_duplicates"], found["classes"]) == (4, 1, 1, None)
    digits = inspected("embedded:digits")
    assert digits["splits"]["train"]["channels"] == {"1": 1434}
    assert digits["splits"]["train"]["file_bytes"] is None
    assert "images below 16 px look alike easily" in capsys.readouterr().out


def test_hostile_files_are_survived(tmp_path):
    folder = tmp_path / "hostile"
    folder.mkdir()
    hostile_images(folder)
    found = inspected(folder, out=str(tmp_path / "out"))
    assert found["looked_at"] == found["images"] > 60
    assert found["unreadable"] > 30
    assert (tmp_path / "out" / "contact-sheet.png").stat().st_size > 1000


def test_nothing_readable_is_a_report_and_no_failure(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "data" / name).write_text("words")
    found = inspected(tmp_path / "data", out=str(tmp_path / "out"))
    assert found["to_mend"] == ["No image can be read: nothing can be trained on this."]
    assert (tmp_path / "out" / "contact-sheet.png").exists()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("nowhere", "no such file or folder: nowhere"),
        ("hollow", "hollow is empty"),
        ("embedded:photo", "did you mean embedded:photos"),
        ("data/a.png", "is a single file"),
        ("data --out full", "--out full exists already and is not empty"),
        ("data --out data/look", "lies among the images"),
        ("data --out data/a.png", "cannot be a folder"),
        ("data --limit 0", "--limit got 0"),
        ("data --workers -1", "--workers got -1"),
        ("", "path"),
    ],
)
def test_wrong_requests_end_with_one_line_and_write_nothing(tmp_path, monkeypatch, capsys, arguments, wanted):
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "full", "hollow"):
        os.mkdir(folder)
    photograph(0).save("data/a.png")
    (tmp_path / "full" / "file").write_text("mine")
    before = snapshot(tmp_path)
    assert run(["inspect", *arguments.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert wanted.lower() in lines[0].lower()
    assert snapshot(tmp_path) == before


def test_a_fault_while_writing_leaves_nothing(zoo, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("openmae.tasks.inspect.data.contact_sheet", full)
    with pytest.raises(openmae.Fault, match="the disk is full"):
        inspected(zoo, out=str(tmp_path / "look"))
    assert os.listdir(tmp_path) == []


def test_an_interruption_ends_the_readers_and_leaves_nothing(zoo, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, on_progress, **options):
        return examine(*arguments, on_progress=lambda done: os.kill(os.getpid(), signal.SIGINT), **options)

    monkeypatch.setattr("openmae.tasks.inspect.data.examine", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        assert run(["inspect", str(zoo), "--out", str(tmp_path / "look"), "--workers", "1"]) == 3
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.count("\n") == 1
    assert multiprocessing.active_children() == []
    assert os.listdir(tmp_path) == []


def test_what_a_path_is(tmp_path):
    def made(name, *files):
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            (folder / file).write_text("{}")
        return str(folder)

    assert kind_of(made("run", "config.json", "metrics.jsonl", "model.safetensors")) == "run"
    assert kind_of(made("begun", "config.json", "summary.json")) == "run"
    assert kind_of(made("checkpoint", "manifest.json", "model.safetensors")) == "model"
    assert kind_of(made("hub", "config.json", "pytorch_model.bin")) == "model"
    assert kind_of(made("images", "config.json", "a.png")) == "data"
    assert kind_of("timm:vit_base_patch16_224") == kind_of("hf:facebook/vit-mae-base") == "model"
    (tmp_path / "weights.pth").write_bytes(b"")
    assert kind_of(str(tmp_path / "weights.pth")) == "model"
    assert kind_of("embedded:photos") == "data"
    with pytest.raises(RequestError, match="cannot open"):
        inspected("x\0y")


def test_a_model_is_handed_on(tmp_path, monkeypatch):
    stand_in = types.ModuleType("openmae.tasks.inspect.model")
    stand_in.inspect_model = lambda config: {"kind": "model", "path": config.path}
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    for path in (str(tmp_path), str(tmp_path / "model.safetensors"), "timm:vit_tiny_patch16_224"):
        assert inspected(path) == {"kind": "model", "path": path}


def test_formats_are_told_by_content():
    picture = photograph(0)
    for form in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF"):
        assert format_of(encoded(picture, form)) == form
    assert format_of(encoded(picture, "PPM")) == "PNM"
    assert format_of(b"version https://git-lfs.github.com/spec/v1\n") == "LFS"
    assert (format_of(b""), format_of(b"words")) == ("empty", "unknown")
    exif = Image.Exif()
    exif[274] = 3
    for form in ("JPEG", "PNG", "WEBP", "TIFF"):
        assert has_exif_rotation(encoded(picture, form, exif=exif), form)
        assert not has_exif_rotation(encoded(picture, form), form)
