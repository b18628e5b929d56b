"""sources: what counts as a sample, in which order, under which label, in which split; refusals are one line."""

import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from openmae.data.decoding.decode import BadImage
from openmae.data.sources.open import FolderSource, ParquetSource, open_source
from openmae.errors import RequestError


def png(value=0, size=(4, 4)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def put(root, *names, data=None):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i) if data is None else data)


def names(source):
    return [source.name(i) for i in range(len(source))]


def labels(source):
    return [source.label(i) for i in range(len(source))]


def refused(data, match, split="train"):
    with pytest.raises(RequestError, match=match) as caught:
        open_source(str(data), split)
    assert "\n" not in str(caught.value)


def table(path, images, label=None, classes=None, **options):
    columns = {"image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    if label is not None:
        columns["label"] = label
    built = pa.table(columns)
    if classes:
        meta = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}}}
        built = built.replace_schema_metadata({"huggingface": json.dumps(meta)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(built, path, **options)
    return path


def rows(*values):
    return [{"bytes": png(value), "path": "/etc/passwd"} for value in values]


# --- folders ---


def test_order_is_by_bytes_and_formats_mix(tmp_path):
    put(tmp_path, "b.PNG", "a/z.jpg", "a/deep/er/y.JpEg", "a.png", "ä.webp", "Z.tiff")
    np.save(tmp_path / "n.npy", np.full((2, 3), 7, np.uint16))
    source = open_source(str(tmp_path))
    assert names(source) == ["Z.tiff", "a.png", "a/deep/er/y.JpEg", "a/z.jpg", "b.PNG", "n.npy", "ä.webp"]
    assert source.classes is None
    assert labels(source) == [None] * 7
    assert source.read(1)[0, 0].tolist() == [3, 3, 3]
    assert source.read(5).dtype == np.uint16
    with pytest.raises(IndexError):
        source.read(7)
    with pytest.raises(IndexError):
        source.name(-1)


def test_class_folders(tmp_path):
    put(tmp_path, "dog/1.png", "cat/1.png", "cat/deep/2.png", "bus/1.png")
    source = open_source(str(tmp_path))
    assert source.classes == ("bus", "cat", "dog")
    assert labels(source) == [0, 1, 1, 2]
    put(tmp_path, "stray.png")
    source = open_source(str(tmp_path))
    assert source.classes is None
    assert labels(source) == [None] * 5


def test_hidden_and_other_files(tmp_path):
    put(tmp_path, "a.png", ".hidden.png", ".cache/b.png", "notes.txt", "more.TXT", "README")
    source = open_source(str(tmp_path))
    assert names(source) == ["a.png"]
    assert source.ignored.extensions == {".txt": 2, "without extension": 1}
    assert source.ignored.count == 3
    assert str(source.ignored) == "2 .txt, 1 without extension"


def test_content_decides_not_the_name(tmp_path):
    put(tmp_path, "png-inside.jpg")
    put(tmp_path, "text.jpg", data=b"words")
    put(tmp_path, "zero.png", data=b"")
    source = open_source(str(tmp_path))
    assert source.read(0).shape == (4, 4, 3)
    for i, reason in ((1, "not an image"), (2, "empty file")):
        with pytest.raises(BadImage, match=reason):
            source.read(i)


def test_pipes_and_dangling_links_are_never_opened(tmp_path):
    put(tmp_path, "a.png", "b.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    source = open_source(str(tmp_path))
    assert names(source) == ["a.png", "b.png", "link.png"]
    assert source.ignored.unusable == {"pipe.png": "not a regular file", "gone.png": "dangling link"}
    (tmp_path / "b.png").unlink()
    os.mkfifo(tmp_path / "b.png")  # changed under our feet
    with pytest.raises(BadImage, match="not a regular file"):
        source.read(1)


def test_link_loops_end_and_each_folder_counts_once(tmp_path):
    put(tmp_path, "z/a.png", "z/deep/b.png")
    (tmp_path / "z/deep/up").symlink_to(tmp_path)
    (tmp_path / "z/deep/self").symlink_to(tmp_path / "z/deep")
    for i in range(20):  # whatever order the file system lists them in, some come before z
        (tmp_path / f"early{i}").symlink_to(tmp_path / "z")
    (tmp_path / "a").symlink_to("a")
    assert names(open_source(str(tmp_path))) == ["z/a.png", "z/deep/b.png"]
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "linked").symlink_to(tmp_path / "z")
    assert names(open_source(str(outside))) == ["linked/a.png", "linked/deep/b.png"]


def test_names_of_any_bytes(tmp_path):
    odd = [b"bad\xff\xfe.png", b"line\nend.png", b"with space.png"]
    for name in odd:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(png())
    source = pickle.loads(pickle.dumps(open_source(str(tmp_path))))
    assert [os.fsencode(name) for name in names(source)] == odd
    assert all(source.read(i).shape == (4, 4, 3) for i in range(3))
    assert len(source.fingerprint()) == 64
    os.mkdir(os.path.join(os.fsencode(tmp_path), b"em\xffpty\n"))
    refused(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"em\xffpty\n")), r"em\\xffpty\\n is empty")


def test_unreadable_folder_is_reported_and_the_rest_goes_on(tmp_path, monkeypatch):
    put(tmp_path, "a.png", "locked/b.png")
    scandir = os.scandir

    def guarded(path):
        if os.fsencode(path).endswith(b"locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)  # chmod does not stop root
    source = open_source(str(tmp_path))
    assert names(source) == ["a.png"]
    assert source.ignored.unusable == {"locked": "Permission denied"}


def test_vanished_file_is_a_bad_image_without_its_path(tmp_path):
    put(tmp_path, "a.png")
    source = open_source(str(tmp_path))
    (tmp_path / "a.png").unlink()
    with pytest.raises(BadImage) as caught:
        source.read(0)
    assert str(caught.value) == "No such file or directory"
    assert len(source.fingerprint()) == 64


def test_folder_fingerprint(tmp_path):
    put(tmp_path, "a.png", "b.png")
    first = open_source(str(tmp_path)).fingerprint()
    assert open_source(str(tmp_path)).fingerprint() == first
    (tmp_path / "b.png").write_bytes(png(size=(50, 50)))
    grown = open_source(str(tmp_path)).fingerprint()
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    renamed = open_source(str(tmp_path)).fingerprint()
    assert len({first, grown, renamed}) == 3


def test_options_reach_the_decoder(tmp_path):
    clear = io.BytesIO()
    Image.new("RGBA", (4, 4)).save(clear, "PNG")
    put(tmp_path, "a.png", data=clear.getvalue())
    assert open_source(str(tmp_path), background=0.0).read(0).max() == 0
    assert open_source(str(tmp_path)).read(0).min() == 255
    with pytest.raises(BadImage, match="limit is 15 pixels"):
        open_source(str(tmp_path), max_pixels=15).read(0)


def test_folder_source_by_hand_and_after_a_change_of_folder(tmp_path, monkeypatch):
    put(tmp_path, "d/b.png", "d/a.png")
    monkeypatch.chdir(tmp_path)
    source = FolderSource("d", ["b.png", "a.png"])
    monkeypatch.chdir("/")
    assert names(source) == ["a.png", "b.png"]
    assert source.read(0)[0, 0, 0] == 1


# --- splits ---


def split_names(root):
    found = {split: open_source(str(root), split) for split in ("train", "val", "test")}
    return {split: names(source) if source else None for split, source in found.items()}


def test_split_folders(tmp_path):
    put(tmp_path, "Train/cat/1.png", "Train/dog/2.png", "validation/dog/3.png", "TEST_2017/4.png")
    put(tmp_path, ".git/x.png", "README.md")
    assert split_names(tmp_path) == {
        "train": ["Train/cat/1.png", "Train/dog/2.png"],
        "val": ["validation/dog/3.png"],
        "test": ["TEST_2017/4.png"],
    }
    val = open_source(str(tmp_path), "val")
    assert val.classes == ("cat", "dog")  # as in train, though no cat is here
    assert labels(val) == [1]
    assert open_source(str(tmp_path), "test").classes is None


@pytest.mark.parametrize("name", ["train", "training", "train2017", "train-a", "TRAIN.v2", "Training_set"])
def test_split_spellings(tmp_path, name):
    put(tmp_path, f"{name}/1.png", "val/2.png")
    assert split_names(tmp_path) == {"train": [f"{name}/1.png"], "val": ["val/2.png"], "test": None}


@pytest.mark.parametrize("other", ["bus", "trains", "trainer", "valley", "tests", "testimony"])
def test_a_class_that_is_called_like_a_split(tmp_path, other):
    put(tmp_path, "train/1.png", f"{other}/2.png")
    assert split_names(tmp_path) == {"train": sorted([f"{other}/2.png", "train/1.png"]), "val": None, "test": None}
    assert open_source(str(tmp_path)).classes == tuple(sorted(["train", other]))


def test_two_folders_of_one_split(tmp_path):
    put(tmp_path, "train_a/x/1.png", "train_b/y/2.png", "val/y/3.png")
    source = open_source(str(tmp_path))
    assert names(source) == ["train_a/x/1.png", "train_b/y/2.png"]
    assert source.classes == ("x", "y")


def test_split_files_and_one_folder_around(tmp_path):
    put(tmp_path, "train1.png", "train2.png", "val1.png")
    assert split_names(tmp_path) == {"train": ["train1.png", "train2.png"], "val": ["val1.png"], "test": None}
    put(tmp_path, "wrapped/set/train/a/1.png", "wrapped/set/val/b/1.png")
    (tmp_path / "wrapped/annotations").mkdir()
    put(tmp_path / "wrapped", "annotations/val.json", data=b"{}")
    assert split_names(tmp_path / "wrapped")["val"] == ["set/val/b/1.png"]
    assert open_source(str(tmp_path / "wrapped")).classes == ("a", "b")


def test_images_called_test_are_no_test_set(tmp_path):
    put(tmp_path, "test_1.png", "test_2.png")
    assert split_names(tmp_path) == {"train": ["test_1.png", "test_2.png"], "val": None, "test": None}


def test_splits_without_train(tmp_path):
    put(tmp_path, "val/1.png", "test/2.png")
    refused(tmp_path, "holds val and test but no train")
    assert names(open_source(str(tmp_path), "val")) == ["val/1.png"]
    refused(tmp_path, "expected one of train, val, test", split="validation")


# --- refusals ---


def test_refusals(tmp_path):
    refused(tmp_path / "nowhere", "no such file or folder")
    refused("line\nend", r"no such file or folder: line\\nend")
    refused("null\0byte", "cannot open")
    refused(tmp_path, "is empty")
    put(tmp_path, "text/a.txt", "text/b.txt", "text/c.csv", data=b"words")
    refused(tmp_path / "text", r"no images in .*: found 2 \.txt, 1 \.csv")
    refused(tmp_path / "text/a.txt", "not a parquet file: give the folder")
    put(tmp_path, "one.png")
    refused(tmp_path / "one.png", "single file: give the folder")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "neither a folder nor a file")
    refused("embedded:photo", "did you mean embedded:photos")
    refused("embedded:zzz", "There are photos, digits")


# --- parquet ---


def test_parquet_rows(tmp_path):
    path = table(tmp_path / "t.parquet", rows(5, 6, 7), pa.array([1, None, -1]), ["a", "b"], row_group_size=2)
    source = open_source(str(path))
    assert names(source) == ["t.parquet#0", "t.parquet#1", "t.parquet#2"]
    assert source.classes == ("a", "b")
    assert labels(source) == [1, None, None]
    assert [source.read(i)[0, 0, 0] for i in (2, 0, 1)] == [7, 5, 6]
    assert open_source(str(path), "val") is None
    with pytest.raises(IndexError):
        source.read(3)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_parquet_plain_binary_column(tmp_path, kind):
    pq.write_table(pa.table({"image": pa.array([png(3), None], kind)}), tmp_path / "t.parquet")
    source = open_source(str(tmp_path))
    assert source.classes is None
    assert source.label(0) is None
    assert source.read(0)[0, 0, 0] == 3
    with pytest.raises(BadImage, match="no image bytes"):
        source.read(1)


def test_parquet_null_bytes_do_not_open_the_path(tmp_path):
    put(tmp_path, "secret.png")
    images = [{"bytes": None, "path": str(tmp_path / "secret.png")}, None, *rows(9), {"bytes": b"", "path": None}]
    source = ParquetSource([table(tmp_path / "t.parquet", images)])
    for i, reason in ((0, "no image bytes"), (1, "no image bytes"), (3, "empty file")):
        with pytest.raises(BadImage, match=reason):
            source.read(i)
    assert source.read(2)[0, 0, 0] == 9


@pytest.mark.parametrize("folder", ["", "data", "plain_text", "train"])
def test_parquet_folders_with_shards(tmp_path, folder):
    put(tmp_path, "README.md", "info.json", data=b"x")
    table(tmp_path / folder / "train-00000-of-00002.parquet", rows(0, 1), pa.array([0, 1], pa.int8()), ["a", "b"])
    table(tmp_path / folder / "train-00001-of-00002.parquet", rows(2), pa.array([1], pa.int8()), ["a", "b"])
    source = open_source(str(tmp_path))
    assert [source.read(i)[0, 0, 0] for i in range(3)] == [0, 1, 2]
    assert labels(source) == [0, 1, 1]
    assert source.name(2) == os.path.join(folder, "train-00001-of-00002.parquet#0")
    if folder != "train":
        table(tmp_path / folder / "test-00000-of-00001.parquet", rows(3), pa.array([0], pa.int8()), ["a", "b"])
        assert len(open_source(str(tmp_path))) == 3
        assert open_source(str(tmp_path), "test").read(0)[0, 0, 0] == 3
    assert open_source(str(tmp_path), "val") is None


def test_parquet_without_split_names_or_train(tmp_path):
    table(tmp_path / "a" / "part-1.parquet", rows(1))
    table(tmp_path / "a" / "test.parquet", rows(2))
    assert len(open_source(str(tmp_path / "a"))) == 2
    table(tmp_path / "b" / "test.parquet", rows(2))
    refused(tmp_path / "b", "holds test but no train")


def test_images_win_over_their_metadata(tmp_path):
    put(tmp_path, "a.png")
    table(tmp_path / "metadata.parquet", rows(1))
    source = open_source(str(tmp_path))
    assert names(source) == ["a.png"]
    assert source.ignored.extensions == {".parquet": 1}


def test_parquet_refusals(tmp_path):
    good = table(tmp_path / "good.parquet", rows(*range(50))).read_bytes()
    for fraction in (0.1, 0.5, 0.95):
        path = tmp_path / "cut.parquet"
        path.write_bytes(good[: int(len(good) * fraction)])
        refused(path, "cut.parquet is no parquet file that can be read")
    (tmp_path / "zero.parquet").write_bytes(b"")
    refused(tmp_path / "zero.parquet", "no parquet file that can be read")
    for columns in (
        {"picture": [png()]},
        {"image": ["words"]},
        {"image": [{"path": "x"}]},
        {"image": [{"bytes": "words"}]},
    ):
        pq.write_table(pa.table(columns), tmp_path / "wrong.parquet")
        refused(tmp_path / "wrong.parquet", "wrong.parquet has .*; expected image: struct")
    refused(table(tmp_path / "label.parquet", rows(0), pa.array(["cat"])), "has label: .*; expected a number")
    refused(table(tmp_path / "label.parquet", rows(0), pa.array([2]), ["a", "b"]), "label 2 but only 2 class names")
    refused(table(tmp_path / "empty.parquet", []), "has no rows")
    pair = tmp_path / "pair"
    table(pair / "a.parquet", rows(0), pa.array([0]))
    table(pair / "b.parquet", rows(0))
    refused(pair, "differ in labels or class names")


def test_parquet_cache_is_bounded_and_not_pickled(tmp_path):
    noise = [{"bytes": os.urandom(1000), "path": None} for _ in range(8)]
    path = table(tmp_path / "t.parquet", noise, row_group_size=1)
    source = ParquetSource([path], cache_bytes=3500)
    for i in (0, 1, 2, 0, 3):
        with pytest.raises(BadImage):
            source.read(i)
    assert list(source._cache) == [2, 0, 3]  # 1 was used least recently
    tiny = ParquetSource([path], cache_bytes=0)
    for i in range(8):
        with pytest.raises(BadImage, match="not an image"):
            tiny.read(i)
        assert list(tiny._cache) == [i]
    assert len(pickle.dumps(source)) < 3000


def test_parquet_damage_after_opening(tmp_path):
    path = table(tmp_path / "t.parquet", rows(1, 2), row_group_size=1)
    source = ParquetSource([path])
    source.read(0)
    table(path, rows(1, 2), row_group_size=2)
    with pytest.raises(BadImage, match="row group 1 cannot be read"):
        source.read(1)
    path.unlink()
    with pytest.raises(BadImage, match="No such file or directory"):
        source.read(1)
    assert source.read(0)[0, 0, 0] == 1  # from memory


def test_parquet_fingerprint(tmp_path):
    path = tmp_path / "t.parquet"
    prints = []
    for values, group in (((1, 2), 2), ((1, 2), 1), ((1, 3), 1), ((1, 2, 3), 1)):
        prints.append(ParquetSource([table(path, rows(*values), row_group_size=group)]).fingerprint())
        assert ParquetSource([path]).fingerprint() == prints[-1]
    assert len(set(prints)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_workers_read_what_the_parent_reads(tmp_path, method, kind):
    if kind == "folder":
        put(tmp_path, "a.png", "b.png", "c.png")
    else:
        table(tmp_path / "train.parquet", rows(0, 1, 2), row_group_size=2)
    # A process of its own: pytest's, with torch's threads in it, is no place to fork from.
    script = f"""
import multiprocessing
from openmae.data.sources.open import open_source
if __name__ == "__main__":
    source = open_source({str(tmp_path)!r})
    first = source.read(0)[0, 0, 0]
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        print([int(image[0, 0, 0]) for image in pool.map(source.read, range(3))])
"""
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[0, 1, 2]"


# --- embedded ---


def test_photos_share_no_pixel_between_splits():
    train, val = open_source("embedded:photos"), open_source("embedded:photos", "val")
    assert (len(train), len(val)) == (4096, 128)
    assert open_source("embedded:photos", "test") is None
    seen, held_out = {}, {}
    for source, covered in ((train, seen), (val, held_out)):
        for i in range(len(source)):
            region, x, y, side = source.crop(i)
            assert 96 <= side <= 224
            canvas = covered.setdefault(region.path.name, np.zeros((1500, 1500), bool))
            canvas[y : y + side, x : x + side] = True
    assert len(seen) == len(held_out) == 10
    for name in seen:
        assert not (seen[name] & held_out[name]).any()
        assert held_out[name].sum() > 10_000


def test_photos_are_determined_by_split_and_index():
    first, second = open_source("embedded:photos"), open_source("embedded:photos")
    order = np.random.default_rng(0).permutation(len(first))[:200]
    backwards = {i: second.name(i) for i in order[::-1]}
    assert {i: first.name(i) for i in order} == backwards
    assert len(set(names(first))) == len(first)
    assert len(set(names(open_source("embedded:photos", "val")))) == 128
    assert first.name(0).startswith("chelsea.png@")  # pinned: a change here is a change of the data set
    image = first.read(0)
    side = int(first.name(0).rsplit(",", 1)[1])
    assert image.shape == (side, side, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert first.classes is None
    assert first.label(0) is None
    assert first.fingerprint() == second.fingerprint() != open_source("embedded:photos", "val").fingerprint()
    with pytest.raises(IndexError):
        first.name(4096)


def test_digits():
    train, val = open_source("embedded:digits"), open_source("embedded:digits", "val")
    assert open_source("embedded:digits", "test") is None
    assert len(train) + len(val) == 1797
    assert 0.17 < len(val) / 1797 < 0.23
    assert not set(names(train)) & set(names(val))
    assert train.classes == tuple("0123456789")
    assert set(labels(train)) == set(labels(val)) == set(range(10))
    image = train.read(0)
    assert (image.shape, image.dtype, image.max()) == ((8, 8, 1), np.uint8, 239)  # 15 of 16
    assert max(train.read(i).max() for i in range(50)) == 255
    assert len({train.fingerprint(), val.fingerprint()}) == 2
