"""PackedSource: what a pack says is what is read, quickly, from anywhere, and nothing that lies about itself is."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from openmae import PackConfig, pack
from openmae.config import Preprocessing
from openmae.data.augment import Augmentation
from openmae.data.decoding.decode import BadImage
from openmae.data.loader import Stream, training_loader
from openmae.data.readers import iterate_batches
from openmae.data.sources import manifest
from openmae.data.sources.open import open_source
from openmae.data.sources.packed import PackedSource
from openmae.data.sources.parquet import ParquetSource
from openmae.errors import RequestError

RNG = np.random.default_rng(0)


def photograph(height, width):
    """Something smooth, as photographs are: noise would be all that a JPEG cannot keep."""
    coarse = RNG.integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two splits of two classes, one of them missing from val; a name that is no UTF-8, one with a line end."""
    root = tmp_path_factory.mktemp("data")
    sizes = [(64, 96), (96, 64), (80, 80), (40, 20), (70, 70), (100, 300)]
    for split, classes in (("train", ("cat", "dog")), ("val", ("dog",))):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i, size in enumerate(sizes):
                photograph(*size).save(folder / f"{i}.png")
    photograph(64, 64).save(os.fsencode(root / "train" / "cat") + b"/\xff.png")
    photograph(64, 64).save(root / "train" / "cat" / "line\nend.png")
    photograph(64, 64).save(root / "train" / "cat" / "\\xff.png")  # what the first one is shown as
    return root


@pytest.fixture(scope="module")
def packs(data, tmp_path_factory):
    root = tmp_path_factory.mktemp("packs")
    for form in ("jpeg", "raw"):
        pack(PackConfig(data=str(data), out=str(root / form), format=form, size=48, workers=0))
    return root


@pytest.mark.parametrize("form", ["jpeg", "raw"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_names_labels_classes_and_splits_are_kept(data, packs, form, split):
    before, after = open_source(str(data), split), open_source(str(packs / form), split)
    assert isinstance(after, PackedSource)
    assert len(after) == len(before)
    assert after.classes == before.classes == ("cat", "dog")
    assert [after.name(i) for i in range(len(after))] == [before.name(i) for i in range(len(before))]
    assert [after.label(i) for i in range(len(after))] == [before.label(i) for i in range(len(before))]
    assert len({after.name(i) for i in range(len(after))}) == len(after)
    assert open_source(str(packs / form), "test") is None


def test_a_jpeg_pack_keeps_the_aspect_and_enlarges_nothing(data, packs):
    before, after = open_source(str(data), "train"), open_source(str(packs / "jpeg"), "train")
    for i in range(len(after)):
        height, width = before.read(i).shape[:2]
        scale = min(1, 48 / min(height, width))
        assert after.read(i).shape == (round(height * scale), round(width * scale), 3)


def test_a_jpeg_pack_shows_the_same_pictures(data, packs):
    before, after = open_source(str(data), "train"), open_source(str(packs / "jpeg"), "train")
    for i in range(len(after)):
        image = after.read(i)
        wanted = Image.fromarray(before.read(i)).resize(image.shape[1::-1], Image.Resampling.BICUBIC)
        error = np.abs(image.astype(float) - np.asarray(wanted)).mean()
        assert error < 4  # measured: 1.1 to 3.2 grey levels (quality 90, colour at half the resolution)


def test_a_raw_pack_holds_the_centre(data, packs):
    before, after = open_source(str(data), "train"), open_source(str(packs / "raw"), "train")
    for i in range(len(after)):
        image, original = after.read(i), before.read(i)
        height, width = original.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        wanted = Image.fromarray(original[top : top + side, left : left + side]).resize((48, 48), Image.BICUBIC)
        assert image.shape == (48, 48, 3)
        # Two programs' bicubic resizing, each pass rounded to 8 bits; measured: at most 2, mostly 1.
        assert np.abs(image.astype(int) - np.asarray(wanted)).max() <= 3


def test_a_raw_pack_is_a_plain_file(packs):
    images = np.load(packs / "raw" / "train.npy", mmap_mode="r")
    source = open_source(str(packs / "raw"), "train")
    assert images.shape == (len(source), 48, 48, 3)
    np.testing.assert_array_equal(images[3], source.read(3))
    assert not source.read(3).flags.writeable


def test_a_jpeg_pack_is_plain_parquet(packs):
    """What other programs see: the Hugging Face layout; and the places that ours reads from are right."""
    files = sorted((packs / "jpeg").glob("train-*.parquet"))
    plain, source = ParquetSource(files), open_source(str(packs / "jpeg"), "train")
    assert plain.classes == source.classes
    for i in range(len(source)):
        np.testing.assert_array_equal(plain.read(i), source.read(i))
        assert plain.label(i) == source.label(i)


def test_nothing_of_the_images_travels_to_a_worker(packs):
    source = open_source(str(packs / "raw"), "train")
    source.read(0)
    assert len(pickle.dumps(source)) < 3000 < len(source) * 48 * 48 * 3
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(5), source.read(5))


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_training_batches_are_the_same_with_and_without_workers(packs, form):
    p = Preprocessing(channels=3, value_range=(0.0, 255.0), mean=(0.5,) * 3, std=(0.2,) * 3, image_size=(32, 32))
    stream = Stream(open_source(str(packs / form), "train"), p, Augmentation(), 3, patch_size=1, with_labels=True)

    def batches(workers):
        options = {"batch_size": 6, "share": range(6), "micro_batch_size": 6, "pin_memory": False}
        return list(iterate_batches(training_loader(stream, steps=range(5), workers=workers, **options)))

    for alone, together in zip(batches(0), batches(2), strict=True):
        assert torch.equal(alone.images, together.images)
        assert torch.equal(alone.labels, together.labels)
        assert together.images.is_shared()  # collated where the main process finds it, without another copy


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_the_fingerprint_goes_with_the_pack(packs, form, tmp_path):
    moved = shutil.copytree(packs / form, tmp_path / "moved")
    here, there = open_source(str(packs / form), "train"), open_source(str(moved), "train")
    assert here.fingerprint() == there.fingerprint()
    assert here.fingerprint() != open_source(str(packs / form), "val").fingerprint()
    manifest = json.loads((moved / "pack.json").read_text())
    manifest["files"]["train.index.npz"]["sha256"] = "0" * 64
    (moved / "pack.json").write_text(json.dumps(manifest))
    assert here.fingerprint() != open_source(str(moved), "train").fingerprint()


@pytest.mark.parametrize("form", ["jpeg", "raw"])
@pytest.mark.parametrize("spoil", ["cut", "gone", "index"])
def test_a_damaged_pack_is_refused_when_opened(packs, form, spoil, tmp_path):
    moved = shutil.copytree(packs / form, tmp_path / "moved")
    file = moved / "train.index.npz" if spoil == "index" else next(moved.glob("train[.-][n0]*"))
    if spoil == "gone":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(RequestError, match=file.name):
        open_source(str(moved), "train")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("files", "../secret"), {"bytes": 1, "sha256": ""}),
        (("splits", "train", "data"), ["/etc/passwd"]),
        (("splits", "train", "images"), -1),
        (("splits", "train", "images"), 10**9),
        (("shape",), [1, 1, 1]),
        (("shape",), [48, 48]),
        (("dtype",), "object"),
        (("format",), "pickle"),
        (("splits",), 3),
        (("openmae_pack",), 3),
    ],
)
def test_a_manifest_that_lies_is_refused(packs, path, value, tmp_path):
    moved = shutil.copytree(packs / "raw", tmp_path / "moved")
    manifest = json.loads((moved / "pack.json").read_text())
    place = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (moved / "pack.json").write_text(json.dumps(manifest))
    with pytest.raises(RequestError):
        open_source(str(moved), "train")


def test_places_beyond_the_file_are_refused(packs, tmp_path):
    moved = shutil.copytree(packs / "jpeg", tmp_path / "moved")
    with np.load(moved / "train.index.npz") as index:
        arrays = dict(index)
    arrays["places"][3, 2] = 10**9
    np.savez(moved / "train.index.npz", **arrays)
    manifest = json.loads((moved / "pack.json").read_text())
    manifest["files"]["train.index.npz"]["bytes"] = (moved / "train.index.npz").stat().st_size
    (moved / "pack.json").write_text(json.dumps(manifest))
    with pytest.raises(RequestError, match="places beyond"):
        open_source(str(moved), "train")


class Trap:
    def __reduce__(self):
        return os._exit, (77,)


def test_no_pickle_is_executed(packs, tmp_path):
    for name in ("train.index.npz", "train.npy"):
        moved = shutil.copytree(packs / "raw", tmp_path / name)
        with open(moved / name, "wb") as file:
            np.save(file, np.array([Trap()] * 9, dtype=object), allow_pickle=True)
        manifest = json.loads((moved / "pack.json").read_text())
        manifest["files"][name]["bytes"] = (moved / name).stat().st_size
        (moved / "pack.json").write_text(json.dumps(manifest))
        with pytest.raises(RequestError, match="damaged"):
            open_source(str(moved), "train")


def test_bytes_that_rot_are_a_bad_image_and_named_by_verify(packs, tmp_path):
    moved = shutil.copytree(packs / "jpeg", tmp_path / "moved")
    source = open_source(str(moved), "train")
    with np.load(moved / "train.index.npz") as index:
        _, offset, length = index["places"][2].tolist()
    with open(moved / source._files[0], "r+b") as file:
        file.seek(offset)
        file.write(b"\0" * length)
    with pytest.raises(BadImage):
        source.read(2)
    source.read(3)
    with pytest.raises(RequestError, match="its bytes have changed"):
        pack(PackConfig(data=str(moved), verify=True))
    assert pack(PackConfig(data=str(packs / "jpeg"), verify=True))["images"] == 15 + 6


def test_a_file_that_goes_away_is_a_bad_image(packs, tmp_path):
    moved = shutil.copytree(packs / "jpeg", tmp_path / "moved")
    source = open_source(str(moved), "train")
    (moved / source._files[0]).unlink()
    with pytest.raises(BadImage, match="No such file"):
        source.read(0)


def test_a_raw_pack_without_its_manifest_is_no_picture(packs, tmp_path):
    """Its .npy would be taken for one image of many channels."""
    moved = shutil.copytree(packs / "raw", tmp_path / "moved")
    (moved / "pack.json").unlink()
    with pytest.raises(RequestError, match=r"moved is a raw pack without a pack.json: copy it again, or pack again"):
        open_source(str(moved))


def test_a_folder_with_another_pack_json_is_a_folder(tmp_path):
    photograph(20, 20).save(tmp_path / "a.png")
    (tmp_path / manifest.MANIFEST).write_text('{"name": "something of npm"}')
    assert len(open_source(str(tmp_path), "train")) == 1
    (tmp_path / manifest.UNFINISHED).write_text("{}")
    with pytest.raises(RequestError, match="unfinished pack"):
        open_source(str(tmp_path), "train")


def test_one_image_is_one_read(packs, monkeypatch):
    """No row group is fetched: the bytes asked of the disk are the image's."""
    source, asked, real = open_source(str(packs / "jpeg"), "train"), [], os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: asked.append(length) or real(fd, length, offset))
    for i in (7, 1, 7):
        source.read(i)
    assert len(asked) == 3
    assert sum(asked) < 3 * 8000
