"""labels: what trains and what is held out, from class folders, parquet and label files; refusals are one line."""

import io
import json
import os
import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from openmae.data.decoding.decode import MAX_PIXELS
from openmae.data.labels.label_file import LabelledSource, read_label_file
from openmae.data.labels.labelled import open_labelled
from openmae.data.labels.named_file import MAX_BYTES
from openmae.data.labels.subsets import (
    Oversampled,
    class_weights,
    labels_of,
    parse_labels,
    split_stratified,
    stratified,
    targets_of,
)
from openmae.data.sources.open import Splits, open_source
from openmae.data.sources.views import IndexedSubset
from openmae.errors import RequestError


def png(value=0):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def put(root, *names):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))


def put_classes(root, **counts):
    """`put_classes(root, train_cat=3)`: three images in root/train/cat; without a split, `cat=3`."""
    for where, count in counts.items():
        put(root, *(f"{where.replace('_', '/')}/{i:03}.png" for i in range(count)))


def table(path, label, classes=None):
    images = pa.array([{"bytes": png(i % 200)} for i in range(len(label))], pa.struct([("bytes", pa.binary())]))
    built = pa.table({"image": images, "label": pa.array(label, pa.int64())})
    if classes:
        meta = {"info": {"features": {"label": {"names": classes}}}}
        built = built.replace_schema_metadata({"huggingface": json.dumps(meta)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(built, path)


def opened(data, **changes):
    options = {"labels": None, "label_file": None, "held_out": None, "background": 1.0, "max_pixels": MAX_PIXELS}
    options |= changes
    if options["label_file"] is not None:
        options["label_file"] = str(options["label_file"])
    return open_labelled(str(data), **options)


def names(source):
    return [source.name(i) for i in range(len(source))]


def refused(match, call, *args, **options):
    with pytest.raises(RequestError, match=match) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)


def classes_in(source):
    return Counter(labels_of(source).tolist())


label_arrays = st.lists(st.integers(0, 60), min_size=1, max_size=8).flatmap(
    lambda sizes: st.permutations([i for i, size in enumerate(sizes) for _ in range(size)])
)


def as_labels(values):
    return np.array(values, np.int64)


# --- the choice of a subset ---


@given(label_arrays, st.data(), st.integers(0, 3))
def test_a_subset_has_every_class_in_proportion(values, data, seed):
    labels = as_labels(values)
    sizes = Counter(values)
    assume(values)
    count = data.draw(st.integers(len(sizes), len(values)))
    chosen = stratified(labels, count, seed)
    assert len(chosen) == count == len(set(chosen.tolist()))
    assert (np.diff(chosen) > 0).all()
    found = Counter(labels[chosen].tolist())
    assert set(found) == set(sizes)
    # Where every class's share is at least 1, the guaranteed seat moves nothing: proportions hold to within one.
    if min(sizes.values()) * count >= len(values):
        assert all(abs(found[c] - count * sizes[c] / len(values)) < 1 for c in sizes)
    # Everywhere: a larger class never has fewer.
    ordered = sorted(sizes, key=lambda c: sizes[c])
    assert all(found[a] <= found[b] for a, b in pairwise(ordered) if sizes[a] < sizes[b])


@given(label_arrays, st.data(), st.integers(0, 3))
def test_a_subset_lies_inside_one_of_twice_its_size(values, data, seed):
    sizes = Counter(values)
    assume(values and 2 * len(sizes) <= len(values))
    small = data.draw(st.integers(len(sizes), len(values) // 2))
    large = data.draw(st.integers(2 * small, len(values)))
    labels = as_labels(values)
    assert set(stratified(labels, small, seed)) <= set(stratified(labels, large, seed))


def test_a_subset_is_fixed_and_random():
    labels = np.arange(2000) % 10
    first = stratified(labels, 100)
    assert (first == stratified(labels, 100)).all()
    assert len(set(first) & set(stratified(labels, 100, seed=1))) < 30  # 5 by chance
    assert first.std() > 400  # spread over the data: a uniform choice has 577
    assert set(stratified(labels, 20)) <= set(stratified(labels, 200)) <= set(stratified(labels, 2000))
    assert hash(first.tobytes()) != hash(split_stratified(labels, 100)[1].tobytes())


def test_unlabelled_images_are_never_chosen():
    labels = np.array([-1, 0, -1, 1, 1, -1, 0, 0])
    assert stratified(labels, 5).tolist() == [1, 3, 4, 6, 7]
    rest, held = split_stratified(labels, 2)
    assert sorted([*rest, *held]) == [1, 3, 4, 6, 7]
    refused("--labels 6: there are 5 labelled images", stratified, labels, 6)
    refused("--labels: 1 images for 2 classes; ask for at least 2", stratified, labels, 1)


def test_largest_remainder_by_hand():
    # 10 of 7 + 11 + 12: shares 2.33, 3.67, 4.0 -> 2, 4, 4. 4 of 1 + 1 + 98: one each, and what is left.
    labels = np.repeat([0, 1, 2], [7, 11, 12])
    assert np.bincount(labels[stratified(labels, 10)]).tolist() == [2, 4, 4]
    labels = np.repeat([0, 1, 2], [1, 1, 98])
    assert np.bincount(labels[stratified(labels, 4)]).tolist() == [1, 1, 2]
    assert np.bincount(labels[stratified(labels, 3)]).tolist() == [1, 1, 1]


@given(label_arrays, st.data(), st.integers(0, 3))
def test_a_split_is_disjoint_and_keeps_a_member_of_each_class(values, data, seed):
    sizes = Counter(values)
    assume(values)
    most = len(values) - len(sizes)
    count = data.draw(st.integers(0, most))
    labels = as_labels(values)
    rest, held = split_stratified(labels, count, seed)
    assert len(held) == count
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(len(values)))
    assert set(labels[rest].tolist()) == set(sizes)
    found = Counter(labels[held].tolist())
    shares = {c: count * sizes[c] / len(values) for c in sizes}
    if all(shares[c] <= sizes[c] - 1 for c in sizes):  # no class has to be spared
        assert all(abs(found[c] - shares[c]) < 1 for c in sizes)
    refused("--held-out .*hold out fewer", split_stratified, labels, most + 1, seed)


def test_a_split_spares_the_last_of_a_class():
    labels = np.repeat([0, 1, 2, 3], [1, 1, 2, 8])  # shares of 7: 0.58, 0.58, 1.17, 4.67
    assert np.bincount(labels[split_stratified(labels, 7)[1]]).tolist() == [0, 0, 1, 6]
    assert np.bincount(labels[split_stratified(labels, 8)[1]]).tolist() == [0, 0, 1, 7]


def test_a_multi_label_split_is_plain():
    labels = np.zeros((50, 3), np.float32)
    labels[:5] = -1
    rest, held = split_stratified(labels, 10)
    assert len(held) == 10
    assert sorted([*rest, *held]) == list(range(5, 50))
    assert held.max() - held.min() > 10
    small, large = stratified(labels, 2), stratified(labels, 3)
    assert set(small) < set(large)
    assert min(large) >= 5


@pytest.mark.parametrize(
    ("text", "count"),
    [("500", 500), ("1%", 10), ("0.5%", 5), ("0.25 %", 3), ("0.01%", 1), ("100%", 1000), ("1000", 1000), (" 7 ", 7)],
)
def test_labels_are_a_count_or_a_share(text, count):
    assert parse_labels(text, 1000) == count  # 2.5 is rounded up


@pytest.mark.parametrize(
    ("text", "match"),
    [
        *((text, "expected a number of images") for text in ("", "few", "-1", "1e3", "1.5", "%", "5%%", "nan%", "५")),
        *((text, "expected a number of images") for text in ("9" * 5000, "1\n2", "0x10", "1_000")),
        *((text, "nothing to train on") for text in ("0", "0%", "0.0%", "00")),
        *((text, "there are 1000 labelled images") for text in ("1001", "101%", "100.01%", "9" * 15)),
    ],
)
def test_other_labels_are_refused(text, match):
    refused(f"--labels .*{match}", parse_labels, text, 1000)


# --- balance ---


def test_oversampling_shows_classes_equally_often(tmp_path):
    put_classes(tmp_path, a=2, b=7, c=3)
    source = open_source(str(tmp_path))
    balanced = Oversampled(source, labels_of(source))
    assert classes_in(balanced) == {0: 7, 1: 7, 2: 7}
    shown = Counter(names(balanced))
    assert set(shown) == set(names(source))
    assert sorted(shown[name] for name in names(source) if name.startswith("a/")) == [3, 4]
    assert all(shown[name] == 1 for name in names(source) if name.startswith("b/"))
    assert all(balanced.name(i).startswith("abc"[balanced.label(i)]) for i in range(len(balanced)))
    assert balanced.fingerprint() != source.fingerprint()
    unlabelled = Oversampled(source, np.where(np.arange(12) == 0, -1, labels_of(source)))
    assert "a/000.png" not in names(unlabelled)
    assert len(unlabelled) == 21
    with pytest.raises(IndexError):
        balanced.read(21)
    refused("--balance sampling needs one label", Oversampled, source, np.zeros((12, 2), np.float32))


def test_class_weights_make_classes_weigh_the_same():
    labels = np.random.default_rng(0).permutation(np.repeat(range(5), [1, 7, 40, 80, 72]))
    weights = class_weights(labels, 5)
    assert weights.dtype == np.float32
    totals = [weights[labels[labels == c]].sum(dtype=np.float64) for c in range(5)]
    np.testing.assert_allclose(totals, 40, rtol=1e-7)  # measured: 4.8e-8, float32's rounding
    assert class_weights(np.array([0, 0, 2, -1]), 3).tolist() == [0.5, 0, 1]
    refused("--balance weights needs one label", class_weights, np.zeros((2, 2), np.float32), 2)


# --- sources ---


def test_a_part_is_its_images(tmp_path):
    put_classes(tmp_path, a=3, b=3)
    source = open_source(str(tmp_path))
    indices = np.array([5, 0, 3])
    part = IndexedSubset(source, indices)
    assert part.ignored is source.ignored
    part = pickle.loads(pickle.dumps(part))
    assert names(part) == ["b/002.png", "a/000.png", "b/000.png"]
    assert labels_of(part).tolist() == [1, 0, 1]
    assert labels_of(part).dtype == np.int64
    assert part.read(0)[0, 0, 0] == 2
    assert part.classes == ("a", "b")
    assert part.fingerprint() == IndexedSubset(source, [5, 0, 3]).fingerprint()
    assert (
        len({source.fingerprint(), *(IndexedSubset(source, i).fingerprint() for i in ([5, 0, 3], [0, 5, 3], [5, 0]))})
        == 4
    )
    for index in (3, -1):
        with pytest.raises(IndexError):
            part.name(index)
    part = IndexedSubset(source, indices)
    indices[0] = 1
    assert part.name(0) == "b/002.png"  # the part has a copy


def test_labels_of_parquet_and_of_none(tmp_path):
    table(tmp_path / "a.parquet", [3, None, 0, -1])
    assert labels_of(open_source(str(tmp_path))).tolist() == [3, -1, 0, -1]
    put(tmp_path / "flat", "1.png", "2.png")
    assert labels_of(open_source(str(tmp_path / "flat"))).tolist() == [-1, -1]


# --- label files ---

NAMES = ["cat/1.png", "cat/2.png", "dog/1.png", "ä b.png"]


def csv_of(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return str(path)


def test_one_label_an_image(tmp_path):
    text = 'path,label\r\ncat/1.png,tabby\r\n\r\n./dog/1.png," hound, old "\r\nother.png,ghost\r\nä b.png,tabby\r\n'
    found = read_label_file(csv_of(tmp_path, text, "utf-8-sig"), NAMES)
    assert found.classes == ("hound, old", "tabby")  # by name, not by appearance; a ghost is no class
    assert found.targets.tolist() == [1, -1, 0, 1]
    assert found.targets.dtype == np.int64
    assert (found.is_multi_label, found.unlisted, found.unmatched) == (False, 1, 1)


def test_several_labels_an_image(tmp_path):
    text = "filename,labels\ncat/1.png,indoor;cat\ncat/2.png,cat | indoor|cat\ndog/1.png,\n"
    found = read_label_file(csv_of(tmp_path, text), NAMES)
    assert found.classes == ("cat", "indoor")
    assert found.targets.tolist() == [[1, 1], [1, 1], [0, 0], [-1, -1]]
    assert found.targets.dtype == np.float32
    assert (found.is_multi_label, found.unlisted) == (True, 1)


def test_a_column_a_class(tmp_path):
    found = read_label_file(csv_of(tmp_path, "Image,wet,Dry\ncat/1.png,0,1\ndog/1.png, 1 ,0\n"), NAMES)
    assert found.classes == ("Dry", "wet")
    assert found.targets.tolist() == [[1, 0], [-1, -1], [0, 1], [-1, -1]]


@pytest.mark.parametrize(
    ("given_path", "index"),
    [("cat/1.png", 0), ("cat\\1.png", 0), ("2.png", 1), ("/home/me/data/dog/1.png", 2), ("x/../cat//2.png", 1)],
)
def test_paths_may_have_more_or_fewer_folders(tmp_path, given_path, index):
    found = read_label_file(csv_of(tmp_path, f"path,label\n{given_path},a\n"), NAMES)
    assert np.flatnonzero(found.targets >= 0).tolist() == [index]


def test_another_folders_image_is_not_taken_for_it(tmp_path):
    refused("none of its 1 rows", read_label_file, csv_of(tmp_path, "path,label\ncow/2.png,a\n"), NAMES)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "is empty: expected columns path,label"),
        (b"\n\n , \n", "is empty"),
        (b"path,label\n", "none of its 0 rows names an image of the data, such as cat/1.png"),
        (b"path,label\nnope.png,a\nno.png,b\n", "none of its 2 rows"),
        (b"path;label\ncat/1.png;a\n", "begins with path;label; expected columns path,label"),
        (b"label,path\na,cat/1.png\n", "begins with label,path; expected"),
        (b"path\ncat/1.png\n", "has columns path; expected"),
        (b"path,kind\ncat/1.png,a\n", "has columns path,kind; expected"),
        (b"path,label,split\ncat/1.png,a,train\n", "has columns path,label,split; expected .* and no others"),
        (b"path,a,a\ncat/1.png,0,1\n", "each class column needs a name of its own"),
        (b"path,a,\ncat/1.png,0,1\n", "each class column needs a name of its own"),
        (b"path,a,b\ncat/1.png,0,2\n", "line 2: column b has 2; expected 0 or 1"),
        (b"path,a,b\ncat/1.png,0,\n", "line 2: column b has nothing; expected 0 or 1"),
        (b"path,a,b\ncat/1.png,0,nan\n", "line 2: column b has nan"),
        (b"path,label\ncat/1.png,a,b\n", "line 2: 3 cells, the header has 2"),
        (b"path,label\ncat/1.png\n", "line 2: 1 cells, the header has 2"),
        (b"path,label\ncat/1.png,a\n\ncat/1.png,b\n", "line 4: cat/1.png is listed before with another label"),
        (b"path,labels\ncat/1.png,a;b\ncat/1.png,b\n", "line 3: cat/1.png is listed before with another label"),
        (b"path,labels\ncat/1.png,;\n", "every label is empty"),
        (b"path,label\n1.png,a\n", "line 2: several images are called 1.png: give the path within the data"),
        (b"path,label\ncat/1.png,caf\xe9\n", "is not UTF-8"),
        ("path,label\ncat/1.png,a\n".encode("utf-16"), "is not UTF-8"),
        (b'path,label\ncat/1.png,"a\n', "not CSV that can be read"),
        (b'path,label\ncat/1.png,"' + b"x" * 200_000, "not CSV that can be read"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not UTF-8"),
        (b"path,label\n" + b"a/" * 60_000 + b"x.png,a\n", "none of its 1 rows"),
        (b"path,label\n\x1b[31m\nx,a\n", "line 2: 1 cells"),
    ],
)
def test_hostile_label_files(tmp_path, text, match):
    refused(match, read_label_file, csv_of(tmp_path, text), NAMES)


def test_a_row_may_be_repeated(tmp_path):
    found = read_label_file(csv_of(tmp_path, "name,labels\ncat/1.png,a;b\ncat/1.png,b;a\n"), NAMES)
    assert found.targets[0].tolist() == [1, 1]


def test_label_files_that_are_no_files(tmp_path):
    refused("is no file: --label-file takes a CSV", read_label_file, str(tmp_path), NAMES)
    refused("cannot be read: No such file", read_label_file, str(tmp_path / "none.csv"), NAMES)
    refused("cannot be read: embedded null", read_label_file, "a\0b", NAMES)
    os.mkfifo(tmp_path / "pipe.csv")
    refused("is no file", read_label_file, str(tmp_path / "pipe.csv"), NAMES)
    with open(tmp_path / "huge.csv", "wb") as file:
        file.truncate(MAX_BYTES + 1)  # takes no room
    refused("1073741825 bytes, a label file at most 1073741824", read_label_file, str(tmp_path / "huge.csv"), NAMES)


def test_too_many_classes_for_memory(tmp_path):
    path = csv_of(tmp_path, "path,labels\ncat/1.png," + ";".join(f"{i}" for i in range(12_000)) + "\n")
    many = [*NAMES, *(f"{i}.jpg" for i in range(100_000))]
    refused("names 12000 classes for 100004 images", read_label_file, path, many)


# --- open_labelled ---


def test_folders_without_a_held_out_part(tmp_path):
    put_classes(tmp_path, cat=30, dog=20)
    data = opened(tmp_path)
    assert (data.test, data.final_split, data.num_classes, data.classes) == (None, "split of train", 2, ("cat", "dog"))
    assert data.final_source is data.validation
    assert classes_in(data.train) == {0: 24, 1: 16}  # a fifth is held out
    assert classes_in(data.validation) == {0: 6, 1: 4}
    assert set(data.held_out_names()) == set(names(data.validation))
    assert not set(names(data.train)) & set(names(data.validation))
    assert (data.is_multi_label, data.unlabelled, data.unmatched) == (False, 0, 0)


def test_subsets_share_the_split(tmp_path):
    put_classes(tmp_path, cat=30, dog=20)
    whole = opened(tmp_path)
    few, some = opened(tmp_path, labels="4"), opened(tmp_path, labels="25%")
    assert names(few.validation) == names(some.validation) == names(whole.validation)
    assert [len(few.train), len(some.train)] == [4, 10]
    assert set(names(few.train)) < set(names(some.train)) < set(names(whole.train))
    assert len({data.fingerprint for data in (whole, few, some)}) == 3
    other = opened(tmp_path, labels="4", seed_of_split=1)
    assert names(other.validation) != names(few.validation)
    assert opened(tmp_path, labels="4").fingerprint == few.fingerprint
    assert len(opened(tmp_path, held_out=7).validation) == 7
    refused("--labels 41: there are 40 labelled images", opened, tmp_path, labels="41")
    refused("--labels: 1 images for 2 classes", opened, tmp_path, labels="1")
    refused("--held-out 49: of 50 labelled images 48", opened, tmp_path, held_out=49)
    refused("--held-out 0 leaves nothing to measure on", opened, tmp_path, held_out=0)


@pytest.mark.parametrize("part", ["val", "test"])
def test_one_held_out_part_gives_the_figure(tmp_path, part):
    put_classes(tmp_path, train_cat=10, train_dog=10, **{f"{part}_cat": 2, f"{part}_dog": 3})
    data = opened(tmp_path)
    assert (data.validation, data.final_split, data.held_out_names()) == (None, part, [])
    assert classes_in(data.final_source) == {0: 2, 1: 3}
    assert len(data.train) == 20
    data = opened(tmp_path, needs_validation=True)  # never chosen by what the figure is of
    assert names(data.final_source) == [
        f"{part}/cat/000.png", f"{part}/cat/001.png", *(f"{part}/dog/00{i}.png" for i in range(3))
    ]  # fmt: skip
    assert classes_in(data.validation) == {0: 2, 1: 2}
    assert classes_in(data.train) == {0: 8, 1: 8}
    assert data.held_out_names() == names(data.validation)
    assert all(name.startswith("train/") for name in data.held_out_names())
    assert len(opened(tmp_path, held_out=6).validation) == 6
    assert opened(tmp_path, held_out=0).validation is None
    refused("--held-out 0 leaves nothing", opened, tmp_path, held_out=0, needs_validation=True)


def test_val_and_test_take_nothing_from_train(tmp_path):
    put_classes(tmp_path, train_cat=10, train_dog=10, val_cat=1, val_dog=1, test_cat=2, test_dog=3)
    data = opened(tmp_path, needs_validation=True)
    assert [len(data.train), len(data.validation), len(data.test)] == [20, 2, 5]
    assert (data.final_split, data.held_out_names()) == ("test", [])
    assert data.final_source is data.test
    refused("--held-out 5 splits train, but .* has a val part", opened, tmp_path, held_out=5)


def test_a_class_that_train_lacks(tmp_path):
    put_classes(tmp_path, train_cat=3, train_dog=3, test_cat=2, test_fish=4)
    refused(r"test part of .* has 4 images of class fish, but train has none of it: add", opened, tmp_path)
    put_classes(tmp_path, test_newt=1, test_owl=2)
    refused("class fish, but train has none of it, nor of 2 other classes in test", opened, tmp_path)


def test_labels_missing(tmp_path):
    put(tmp_path / "flat", "a.png", "b.png")
    refused("no training image of .* put every image into a class folder, add a `label`", opened, tmp_path / "flat")
    refused("has a label: put every image", opened, "embedded:photos")
    put_classes(tmp_path / "one", cat=5)
    refused(r"all 5 labelled training images .* have one label \(cat\): at least two", opened, tmp_path / "one")
    put_classes(tmp_path / "half", train_cat=2, train_dog=2)
    put(tmp_path / "half", "test/1.png")
    refused("the test part of .* has no labels: give them in --label-file", opened, tmp_path / "half")
    put_classes(tmp_path / "each", cat=1, dog=1)
    refused("one labelled training image of each class, so none can be held out", opened, tmp_path / "each")


def test_a_default_split_spares_rare_classes(tmp_path):
    put_classes(tmp_path, cat=2, dog=1, emu=1, fox=1, gnu=1, hen=1, ibex=1, jay=1, kea=1, lynx=1)
    data = opened(tmp_path)  # a fifth would be 2, but 1 can be spared
    assert len(data.validation) == 1
    assert data.validation.name(0).startswith("cat/")
    assert set(classes_in(data.train)) == set(range(10))


@pytest.mark.parametrize(("count", "held_out"), [(2499, 499), (2500, 250), (60_000, 5000)])
def test_the_default_size_of_the_split(tmp_path, monkeypatch, count, held_out):
    class Numbers:
        classes, ignored = None, None

        def __len__(self):
            return count

        def label(self, index):
            return index % 3

    splits = Splits(sources={"train": Numbers()}, origins={})
    monkeypatch.setattr("openmae.data.labels.labelled.open_splits", lambda _, **__: splits)
    data = opened("anything")
    assert (len(data.validation), len(data.train)) == (held_out, count - held_out)
    assert data.classes == ("0", "1", "2")


def test_parquet_with_gaps(tmp_path):
    table(tmp_path / "train.parquet", [0, 1, 2, None, -1] * 10, ["a", "b", "c", "never"])
    table(tmp_path / "test.parquet", [2, 1, None], ["a", "b", "c", "never"])
    data = opened(tmp_path, labels="3")
    assert data.classes == ("a", "b", "c", "never")
    assert classes_in(data.train) == {0: 1, 1: 1, 2: 1}
    assert (labels_of(data.test).tolist(), data.unlabelled) == ([2, 1], 21)
    assert names(data.test) == ["test.parquet#0", "test.parquet#1"]


def test_parquet_parts_that_disagree(tmp_path):
    table(tmp_path / "a/train.parquet", [0, 1], ["cat", "dog"])
    table(tmp_path / "a/test.parquet", [0, 1], ["dog", "cat"])
    refused(r"parts of .* \(train, test\) differ in their class names", opened, tmp_path / "a")
    table(tmp_path / "b/train.parquet", [0, 1], ["cat", "dog"])
    table(tmp_path / "b/test.parquet", [0, 2])
    refused("test part of .* has label 2, beyond the class names", opened, tmp_path / "b")
    table(tmp_path / "c/train.parquet", [0, 1 << 40])
    refused(f"has label {1 << 40} but fewer images than that: number the classes from 0", opened, tmp_path / "c")
    table(tmp_path / "d/train.parquet", [0, 5] * 5)
    assert opened(tmp_path / "d").classes == tuple("012345")
    table(tmp_path / "e/train.parquet", [0, 1] * 5)
    table(tmp_path / "e/test.parquet", [None, -1])
    refused("the test part of .* has no labels", opened, tmp_path / "e")


def test_digits():
    data = opened("embedded:digits", labels="10%")
    assert (data.num_classes, data.final_split, data.classes[9]) == (10, "val", "9")
    whole = open_source("embedded:digits")
    assert len(data.train) == round(len(whole) / 10)
    expected = np.bincount(labels_of(whole)) / 10
    assert np.abs(np.bincount(labels_of(data.train)) - expected).max() < 1
    assert data.train.read(0).shape == (8, 8, 1)


def test_a_label_file_covers_all_parts(tmp_path):
    put(tmp_path / "data", *(f"train/{i}.png" for i in range(10)), "test/a.png", "test/b.png", "test/c.png")
    rows = [
        *(f"train/{i}.png,{'even' if i % 2 == 0 else 'odd'}" for i in range(9)),
        "a.png,odd",
        "data/test/b.png,even",
    ]
    path = csv_of(tmp_path, "path,label\n" + "\n".join([*rows, "gone.png,even"]))
    data = opened(tmp_path / "data", label_file=path)
    assert (data.classes, data.unlabelled, data.unmatched) == (("even", "odd"), 2, 1)
    assert labels_of(data.train).tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert dict(zip(names(data.test), labels_of(data.test).tolist(), strict=True)) == {"test/a.png": 1, "test/b.png": 0}
    other = csv_of(tmp_path, "path,label\n" + "\n".join([*rows, "train/9.png,odd"]))
    assert opened(tmp_path / "data", label_file=other).fingerprint != data.fingerprint
    only_test = csv_of(tmp_path, "path,label\ntest/a.png,odd\ntest/b.png,even\n")
    refused("no training image of .* has a label", opened, tmp_path / "data", label_file=only_test)


def test_a_label_file_goes_before_class_folders(tmp_path):
    put_classes(tmp_path / "data", a=4, b=4)
    rows = "\n".join(f"{c}/00{i}.png,{'even' if i % 2 == 0 else 'odd'}" for c in "ab" for i in range(4))
    data = opened(tmp_path / "data", label_file=csv_of(tmp_path, "path,label\n" + rows))
    assert data.classes == data.train.classes == ("even", "odd")
    assert all(int(name[4]) % 2 == labels_of(data.train)[i] for i, name in enumerate(names(data.train)))


def test_several_labels_through_the_parts(tmp_path):
    put(tmp_path / "data", *(f"train/{i}.png" for i in range(40)), "test/a.png", "test/b.png")
    rows = [f"train/{i}.png,{int(i % 2 == 0)},{int(i % 3 == 0)}" for i in range(40)]
    path = csv_of(tmp_path, "path,two,three\n" + "\n".join([*rows, "test/a.png,1,1"]))
    data = opened(tmp_path / "data", label_file=path, needs_validation=True, labels="20")
    assert (data.classes, data.is_multi_label, data.unlabelled) == (("three", "two"), True, 1)
    assert [len(data.train), len(data.validation), len(data.test)] == [20, 8, 1]
    for source in (data.train, data.validation):
        numbers = np.array([int(name.removeprefix("train/").removesuffix(".png")) for name in names(source)])
        expected = np.stack([numbers % 3 == 0, numbers % 2 == 0], axis=1)
        assert (targets_of(source) == expected).all()
        assert targets_of(source).dtype == np.float32
    assert (data.train.label(0) == targets_of(data.train)[0]).all()
    path = csv_of(tmp_path, "path,two,three\n" + "\n".join([*(row[:-1] + "0" for row in rows), "test/a.png,1,1"]))
    refused("has 1 images of class three, but train has none", opened, tmp_path / "data", label_file=path)
    path = csv_of(tmp_path, "path,two,three\ntrain/1.png,0,0\ntrain/2.png,0,0\n")
    refused(r"have one label \(none\)", opened, tmp_path / "data", label_file=path)


def test_a_relabelled_source_is_a_source(tmp_path):
    put(tmp_path, "a.png", "b.png")
    source = open_source(str(tmp_path))
    labelled = pickle.loads(pickle.dumps(LabelledSource(source, np.array([1, -1]), ("x", "y"))))
    assert [labelled.label(0), labelled.label(1)] == [1, None]
    assert names(labelled) == ["a.png", "b.png"]
    assert labelled.read(1)[0, 0, 0] == 1
    same, other = (LabelledSource(source, np.array(t), ("x", "y")).fingerprint() for t in ([1, -1], [1, 0]))
    assert labelled.fingerprint() == same != other
