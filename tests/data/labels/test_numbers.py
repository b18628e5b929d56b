"""Labels that are numbers: told from class names, read from files, folders and parquet; refusals are one line."""

import io
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from openmae.config import TargetScale
from openmae.data.batch import stack_labels
from openmae.data.decoding.decode import MAX_PIXELS
from openmae.data.labels.labelled import open_labelled
from openmae.data.labels.number_file import read_number_file
from openmae.data.labels.numbers import kind_of_names, number_of
from openmae.data.labels.subsets import targets_of
from openmae.data.sources.open import open_source
from openmae.errors import RequestError


def png(value=0):
    buffer = io.BytesIO()
    Image.new("L", (4, 4), value % 256).save(buffer, "PNG")
    return buffer.getvalue()


def put(root, *names):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    return root


def opened(data, **changes):
    options = {"labels": None, "label_file": None, "held_out": None, "background": 1.0, "max_pixels": MAX_PIXELS}
    options |= changes
    if options["label_file"] is not None:
        options["label_file"] = str(options["label_file"])
    return open_labelled(str(data), **options)


def refused(match, call, *args, **options):
    with pytest.raises(RequestError, match=match) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)


def rows(path, header, lines):
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def parquet(path, label, kind):
    images = pa.array([{"bytes": png(i)} for i in range(len(label))], pa.struct([("bytes", pa.binary())]))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": pa.array(label, kind)}), path)
    return path


# --- what a number is ---


@pytest.mark.parametrize(
    ("text", "number"),
    [("20.5", 20.5), (" -3 ", -3.0), ("+.5", 0.5), ("1e3", 1000.0), ("1.E-2", 0.01), ("007", 7.0), ("5.", 5.0)],
)
def test_a_number(text, number):
    assert number_of(text) == number


@pytest.mark.parametrize("text", ["", " ", "nan", "NaN", "NA", "n/a", "null", "None"])
def test_a_missing_number(text):
    assert math.isnan(number_of(text))


@pytest.mark.parametrize(
    "text", ["cat", "1,5", "1_000", "0x1f", "inf", "-infinity", "20 cm", "1.2.3", "١٢", "--1", "e5", "."]
)
def test_no_number(text):
    """Of these Python's float() takes 1_000, inf and ١٢."""
    assert number_of(text) is None


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("20.5", "21", "59.5"), "fractional"),
        (("0.5", "1", "other"), "fractional"),  # a word among numbers makes them no names
        (("0.5", "left", "right"), None),
        (("1", "2", "3"), "whole"),
        (("1.0", "2.0", ""), "whole"),  # as pandas writes whole numbers where one is missing
        (("1", "2", "three"), None),
        (("nan",), None),
        ((), None),
        (("cat", "dog"), None),
    ],
)
def test_what_names_look_like(names, kind):
    assert kind_of_names(names) == kind


# --- nobody said what labels are ---

AGES = [20.5 + i for i in range(12)]
ASKED = (
    r"12 different labels of \S+ are numbers, some with a fraction \(20\.5, 21\.5, 22\.5, …\): "
    r"--task regression predicts the numbers, --task classification takes each for the name of a class"
)


def of_file(root):
    put(root / "photos", *(f"{i}.png" for i in range(12)))
    return root / "photos", {
        "label_file": rows(root / "ages.csv", "path,label", [f"{i}.png,{AGES[i]}" for i in range(12)])
    }


def of_folders(root):
    return put(root / "photos", *(f"{age}/a.png" for age in AGES), *(f"{age}/b.png" for age in AGES)), {}


def of_parquet(root):
    return parquet(root / "photos.parquet", AGES, pa.float32()), {}


@pytest.mark.parametrize("made", [of_file, of_folders, of_parquet])
def test_fractional_labels_are_asked_about(tmp_path, made):
    """Else the ages of twelve people are twelve classes."""
    data, options = made(tmp_path)
    refused(ASKED, opened, data, **options)
    if made is not of_folders:  # which have two images each
        data_options = {**options, "held_out": None}
        put_twice = opened(data, task="regression", **data_options)
        assert (put_twice.task, put_twice.num_outputs, put_twice.classes) == ("regression", 1, ())
    else:
        found = opened(data, task="classification", **options)
        assert (found.task, found.num_classes, found.scale, found.note) == ("classification", 12, None, "")


def test_fractional_numbers_of_parquet_can_be_classes(tmp_path):
    label = [20.5, 21.0, -3.25, None] * 4
    data = parquet(tmp_path / "photos.parquet", label, pa.float64())
    refused(r"are numbers, some with a fraction \(-3\.25, 20\.5, 21\)", opened, data)
    found = opened(data, task="classification", held_out=3)
    assert found.classes == ("-3.25", "20.5", "21")
    assert found.unlabelled == 4
    named = {found.train.name(i): found.classes[found.train.label(i)] for i in range(len(found.train))}
    assert all(float(name) == label[int(image.split("#")[1])] for image, name in named.items())
    assert len(named) == 9


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64()])
def test_whole_numbers_stay_classes_with_a_line(tmp_path, kind):
    data = parquet(tmp_path / "photos.parquet", [0, 1, 2, None] * 4, kind)
    found = opened(data)
    assert found.classes == ("0", "1", "2")
    assert found.note == (
        "3 whole numbers (0 to 2) are taken for the names of classes; --task regression would predict them"
    )
    assert opened(data, task="classification").note == ""
    assert found.fingerprint == opened(data, task="classification").fingerprint
    put(tmp_path / "names", *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(4)))
    assert opened(tmp_path / "names").note == ""


def test_several_negative_numbers_are_no_classes_and_one_is_what_is_hidden(tmp_path):
    data = parquet(tmp_path / "cold.parquet", [-5, 3, -2, 4, -7, 3, 4, 3], pa.int64())
    refused(r"are numbers, some below 0 \(-7, -5, -2, …\)", opened, data)
    numbers = opened(data, task="regression", held_out=2)
    targets = [*targets_of(numbers.train)[:, 0], *targets_of(numbers.final_source)[:, 0]]
    assert sorted(targets) == [-7, -5, -2, 3, 3, 3, 4, 4]
    hidden = parquet(tmp_path / "hidden.parquet", [0, 1, -1, 0, 1, 0, 1, -1], pa.int64())
    assert (opened(hidden).classes, opened(hidden).unlabelled) == (("0", "1"), 2)


def test_names_of_columns_may_be_numbers(tmp_path):
    """A 0/1 column for each class says that they are classes."""
    put(tmp_path / "photos", *(f"{i}.png" for i in range(8)))
    table = rows(tmp_path / "labels.csv", "path,0.5,1.5", [f"{i}.png,{i % 2},{1 - i % 2}" for i in range(8)])
    found = opened(tmp_path / "photos", label_file=table)
    assert (found.classes, found.is_multi_label, found.note) == (("0.5", "1.5"), True, "")
    several = rows(tmp_path / "several.csv", "path,labels", [f"{i}.png,0.5;{i}.25" for i in range(8)])
    refused("are numbers, some with a fraction", opened, tmp_path / "photos", label_file=several)


def test_columns_of_numbers_are_told_from_columns_of_classes(tmp_path):
    put(tmp_path / "photos", "0.png", "1.png")
    table = rows(tmp_path / "labels.csv", "path,age,weight", ["0.png,20.5,70", "1.png,30,80"])
    refused(
        r"line 2: column age has 20\.5; expected 0 or 1; --task regression takes columns of numbers",
        *(opened, tmp_path / "photos"),
        label_file=table,
    )
    one = rows(tmp_path / "one.csv", "path,age", ["0.png,20.5", "1.png,30"])
    refused("and no others; --task regression takes columns of numbers", opened, tmp_path / "photos", label_file=one)


# --- numbers from a file ---

NAMES = ("a/1.png", "a/2.png", "b/1.png")


def test_columns_of_a_file(tmp_path):
    lines = ["a/1.png,20.5,-1e3", "2.png,,7", r"x\b\1.png, 3 ,nan", "nothing.png,1,2"]
    table = read_number_file(str(rows(tmp_path / "n.csv", "\ufefffile, age ,weight in kg", lines)), NAMES)
    assert table.columns == ("age", "weight in kg")
    np.testing.assert_array_equal(table.targets, [[20.5, -1000], [np.nan] * 2, [np.nan] * 2])
    assert (table.unmatched, table.targets.dtype) == (1, np.float64)


def test_a_row_may_be_repeated_but_not_contradicted(tmp_path):
    lines = ["a/1.png,20.5,", "2.png,1,1", "a/1.png,20.50,NA"]
    assert read_number_file(str(rows(tmp_path / "n.csv", "path,x,y", lines)), NAMES).unmatched == 0
    refused(
        "line 4: 2.png is listed before with other numbers",
        *(read_number_file, str(rows(tmp_path / "n.csv", "path,x,y", [*lines[:2], "2.png,1,2"])), NAMES),
    )


@pytest.mark.parametrize(
    ("header", "line", "match"),
    [
        ("path,age", "a/1.png,old", r"line 2: column age has old; expected a number such as 20\.5, or nothing"),
        ("path,age", 'a/1.png,"20,5"', "column age has 20,5; expected a number"),
        ("path,age", "a/1.png,inf", "column age has inf; expected a number"),
        ("path,age", "a/1.png,1e200", "column age has 1e200; expected a number"),
        ("path,age", "a/1.png,-3.4e999", "column age has -3.4e999; expected a number"),
        ("path,age", "a/1.png,1,2", "line 2: 3 cells, the header has 2"),
        ("path,age", "1.png,1", "several images are called 1.png"),
        ("path,age", "c.png,1", "none of its 1 rows names an image of the data, such as a/1.png"),
        ("path", "a/1.png", "begins with path; with --task regression expected path"),
        ("age,path", "1,a/1.png", "begins with age,path; with --task regression expected path"),
        ("path,age,age", "a/1.png,1,2", "each column needs a name of its own"),
        ("path,age,", "a/1.png,1,2", "each column needs a name of its own"),
    ],
)
def test_other_files_are_refused(tmp_path, header, line, match):
    refused(match, read_number_file, str(rows(tmp_path / "n.csv", header, [line])), NAMES)


def test_an_empty_file_and_too_many_columns(tmp_path, monkeypatch):
    (tmp_path / "empty.csv").write_text("")
    refused("is empty: with --task regression", read_number_file, str(tmp_path / "empty.csv"), NAMES)
    monkeypatch.setattr("openmae.data.labels.number_file.MAX_TABLE_BYTES", 40)
    refused("has 2 columns for 3 images", read_number_file, str(rows(tmp_path / "n.csv", "path,x,y", [])), NAMES)


# --- numbers through the parts ---


def measured(root, count=40, **options):
    """Numbers of 40 images in two columns, some of them missing; -9, -8.5, … and 1000, 999, …"""
    put(root / "photos", *(f"{i:03}.png" for i in range(count)))
    lines = [f"{i:03}.png,{i / 2 - 9 if i % 10 else ''},{1000 - i}" for i in range(count)]
    return opened(
        root / "photos", label_file=rows(root / "n.csv", "path,depth,height", lines), task="regression", **options
    )


def test_images_without_all_numbers_are_left_out_and_negative_numbers_are_not(tmp_path):
    found = measured(tmp_path)
    assert (found.columns, found.num_outputs, found.is_multi_label) == (("depth", "height"), 2, False)
    assert found.unlabelled == 4
    assert (len(found.train), len(found.final_source), found.final_split) == (29, 7, "split of train")
    for source in (found.train, found.final_source):
        for i in range(len(source)):
            number = int(source.name(i).removesuffix(".png"))
            assert source.label(i).tolist() == [number / 2 - 9, 1000 - number]
        assert targets_of(source).tolist() == [source.label(i).tolist() for i in range(len(source))]
    labels = stack_labels([found.train.label(i) for i in range(4)])
    assert labels.shape == (4, 2)
    assert labels.dtype.is_floating_point
    assert labels.element_size() == 8, "numbers are rounded when they are on their scale, not before"


def test_the_scale_is_of_the_images_that_train(tmp_path):
    """After the split, and of the subset: nothing of the images that measure is in it."""
    whole, few = measured(tmp_path), measured(tmp_path, labels="8")
    assert len(few.train) == 8
    for found in (whole, few):
        numbers = np.array([found.train.label(i) for i in range(len(found.train))])
        np.testing.assert_allclose(found.scale.mean, numbers.mean(0), rtol=1e-14)
        np.testing.assert_allclose(found.scale.std, numbers.std(0), rtol=1e-14)
    assert few.scale != whole.scale
    assert [few.final_source.name(i) for i in range(7)] == [whole.final_source.name(i) for i in range(7)]
    assert {few.train.name(i) for i in range(8)} <= {whole.train.name(i) for i in range(29)}


# Numbers nearer than 1e-100 are refused: their deviation may be 0.
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50).filter(lambda x: max(x) - min(x) > 1e-100))
def test_a_scale_does_not_depend_on_the_order(numbers):
    """To the last bit: sums are exact before they are rounded."""
    scales = [TargetScale.from_numbers(("x",), [some]) for some in (numbers, numbers[::-1], sorted(numbers))]
    assert scales[0] == scales[1] == scales[2]
    assert scales[0].mean[0] == pytest.approx(np.mean(numbers), rel=1e-9, abs=1e-6)


def test_what_is_always_the_same_cannot_be_learnt(tmp_path):
    put(tmp_path / "photos", *(f"{i}.png" for i in range(10)))
    table = rows(tmp_path / "n.csv", "path,depth,ph", [f"{i}.png,{i},0.1" for i in range(10)])
    refused(
        r"all 8 training images have the same 'ph' \(0\.1\): there is nothing to learn, leave the column out",
        *(opened, tmp_path / "photos"),
        label_file=table,
        task="regression",
    )


def test_other_numbers_or_names_are_other_data(tmp_path):
    first = measured(tmp_path).fingerprint
    assert measured(tmp_path).fingerprint == first
    text = (tmp_path / "n.csv").read_text()
    prints = {first}
    for old, new in (("031.png,6.5", "031.png,6.25"), ("depth", "deep")):
        (tmp_path / "n.csv").write_text(text.replace(old, new, 1))
        found = opened(tmp_path / "photos", label_file=tmp_path / "n.csv", task="regression")
        prints.add(found.fingerprint)
    assert len(prints) == 3


def test_numbers_from_what_data_says_itself(tmp_path):
    folders = put(tmp_path / "folders", *(f"{age}/{i}.png" for age in ("1", "20.5", "30") for i in range(3)))
    found = opened(folders, task="regression")
    assert found.columns == ("label",)
    for i in range(len(found.train)):
        assert found.train.label(i).tolist() == [float(found.train.name(i).split("/")[0])]
    assert opened("embedded:digits", task="regression").final_source.label(3).tolist() == [
        float(open_source("embedded:digits", "val").label(3))
    ]
    data = parquet(tmp_path / "p" / "train.parquet", [7, None, -1, 3], pa.int32())
    parquet(tmp_path / "p" / "test.parquet", [1, 2, 8], pa.int32())
    found = opened(data.parent, task="regression")
    assert targets_of(found.train)[:, 0].tolist() == [7, -1, 3]
    assert (found.unlabelled, found.final_split) == (1, "test")


def test_a_part_that_hides_its_labels(tmp_path):
    """-1 throughout, as on the Hugging Face hub, is no number to measure by."""
    data = parquet(tmp_path / "p" / "train.parquet", [7, 5, 3], pa.int64())
    parquet(tmp_path / "p" / "test.parquet", [-1, -1, -1], pa.int64())
    refused("the test part of .* has no labels", opened, data.parent, task="regression")


@pytest.mark.parametrize(
    ("label", "kind", "match"),
    [
        ([1.0, float("inf"), 2.0], pa.float64(), "has a label beyond 1e[+]100"),
        (["a", "b", "c"], pa.string(), "has label: string; expected a number"),
        ([None, None, None], pa.float64(), "no training image of .* has all its numbers: give them"),
        ([2.5, None, None], pa.float64(), "has one labelled training image, so none can be held out"),
    ],
)
def test_parquet_that_cannot_be_used(tmp_path, label, kind, match):
    refused(match, opened, parquet(tmp_path / "x.parquet", label, kind), task="regression")


def test_names_are_no_numbers(tmp_path):
    data = put(tmp_path / "photos", *(f"{name}/{i}.png" for name in ("1", "old", "2") for i in range(3)))
    refused(
        "--task regression needs numbers, and .* has the class old: give --label-file with path and a column",
        *(opened, data),
        task="regression",
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"std": (0.0,)}, "a column's deviation got 0: it must be above 0"),
        ({"mean": ()}, "1 columns with 0 means and 1 deviations: one each"),
        ({"mean": (float("nan"),)}, "--mean got"),
        ({"mean": (1e200,)}, r"beyond 1e\+100"),
    ],
)
def test_a_damaged_scale_is_refused(changes, match):
    with pytest.raises(RequestError, match=match):
        TargetScale(**{"columns": ("x",), "mean": (0.0,), "std": (1.0,), **changes})
