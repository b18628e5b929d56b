"""Which folders are train, val and test: by name, or as a user says; what is unclear is asked."""

import os

import pytest

from openmae.config import PretrainConfig, SplitPaths
from openmae.data.labels.label_file import read_label_file
from openmae.data.labels.labelled import open_labelled
from openmae.data.labels.subsets import labels_of
from openmae.data.sources.open import open_source, open_splits
from openmae.errors import RequestError

from .test_open import labels, names, put, rows, split_names, table


def refused(match, data, *wanted):
    with pytest.raises(RequestError, match=match) as caught:
        open_splits(data if isinstance(data, SplitPaths) else str(data), *wanted)
    assert "\n" not in str(caught.value)


def taken(root, **options):
    """By part, the folders that it was taken from."""
    return open_splits(str(root), **options).origins


# --- by name ---


@pytest.mark.parametrize(
    "name", ["dev", "Development", "eval", "EVALUATION", "valid", "dev_clean", "eval2017", "dev-other"]
)
def test_what_else_is_called_val(tmp_path, name):
    put(tmp_path, "train/cat/1.png", "train/dog/2.png", f"{name}/cat/3.png")
    assert split_names(tmp_path)["val"] == [f"{name}/cat/3.png"]
    assert taken(tmp_path) == {"train": "train", "val": name}
    assert open_source(str(tmp_path)).classes == ("cat", "dog")


@pytest.mark.parametrize("name", ["holdout", "hold-out", "Hold_Out", "hold out", "holdout2"])
def test_what_else_is_called_test(tmp_path, name):
    put(tmp_path, "train/1.png", f"{name}/2.png")
    assert split_names(tmp_path) == {"train": ["train/1.png"], "val": None, "test": [f"{name}/2.png"]}


@pytest.mark.parametrize("name", ["devices", "evals", "evaluate", "validity", "holdouts", "held", "deviation"])
def test_what_only_begins_so_is_a_class(tmp_path, name):
    put(tmp_path, "train/1.png", f"{name}/2.png")
    assert taken(tmp_path) == {"train": f"all of {tmp_path}"}
    assert open_source(str(tmp_path)).classes == tuple(sorted(["train", name]))


@pytest.mark.parametrize(
    ("beside_train", "wanted"),
    [
        ("dev test", {"val": "dev", "test": "test"}),
        ("dev eval", {"val": "dev", "test": "eval"}),
        ("val eval", {"val": "val", "test": "eval"}),
        ("eval test", {"val": "eval", "test": "test"}),
        ("eval holdout", {"val": "eval", "test": "holdout"}),
        ("valid holdout", {"val": "valid", "test": "holdout"}),
        ("holdout test", {"val": "holdout", "test": "test"}),
        ("val validation", {"val": "val, validation"}),  # as ever
        ("val_a val_b test", {"val": "val_a, val_b", "test": "test"}),
    ],
)
def test_what_a_part_is_depends_on_what_lies_beside_it(tmp_path, beside_train, wanted):
    for name in ["train", *beside_train.split()]:
        put(tmp_path, f"{name}/x/1.png")
    assert taken(tmp_path) == {"train": "train", **wanted}


@pytest.mark.parametrize("beside_train", ["val dev", "val test eval", "val test holdout", "dev eval holdout"])
def test_two_names_that_may_be_one_part_are_asked_about(tmp_path, beside_train):
    for name in ["train", *beside_train.split()]:
        put(tmp_path, f"{name}/x/1.png")
    refused(r"of which two may be the same part: say what each is with --train PATH --val PATH --test PATH", tmp_path)


@pytest.mark.parametrize("folders", [("test_neg", "test_pos"), ("val_1", "test_2"), ("dev-a", "eval-b")])
def test_suffixed_names_without_a_train_are_classes(tmp_path, folders):
    put(tmp_path, *(f"{name}/{i}.png" for name in folders for i in range(2)))
    splits = open_splits(str(tmp_path))
    assert list(splits.sources) == ["train"]
    assert splits.sources["train"].classes == tuple(sorted(folders))
    assert len(splits.sources["train"]) == 2 * len(folders)
    assert f"; {', '.join(sorted(folders))} are no parts but classes, for no train is among them" in splits.line
    put(tmp_path, "train_1/1.png")
    assert len(open_splits(str(tmp_path)).sources["train"]) == 1


def test_names_alone_without_a_train_are_refused_with_a_way_on(tmp_path):
    """The advice was to give the folder of the split: the one that had been given."""
    put(tmp_path, "dev/1.png", "test/2.png")
    refused(
        r"holds val and test but no train: say what each part is, with --train PATH --val PATH --test PATH", tmp_path
    )
    put(tmp_path, "other/test/a/1.png", "other/test/b/2.png")
    refused("other holds test but no train", tmp_path / "other")
    source = open_source(SplitPaths(train=str(tmp_path / "other")))
    assert source.classes == ("a", "b")
    table(tmp_path / "tables" / "test-00000-of-00001.parquet", rows(1, 2))
    refused("tables holds test but no train", tmp_path / "tables")
    assert len(open_source(SplitPaths(train=str(tmp_path / "tables")))) == 2


@pytest.mark.parametrize("name", ["dev", "eval", "holdout", "test_1"])
def test_one_folder_around_all_is_none(tmp_path, name):
    put(tmp_path, f"{name}/cat/1.png", f"{name}/dog/2.png")
    assert taken(tmp_path) == {"train": f"all of {tmp_path}"}
    put(tmp_path, f"wrapped/{name}/train/1.png", f"wrapped/{name}/eval/2.png")
    assert taken(tmp_path / "wrapped") == {"train": f"{name}/train", "val": f"{name}/eval"}


def test_what_is_no_part_is_asked_about(tmp_path):
    put(tmp_path, "train/1.png", "eval/2.png", "extra/3.png")
    refused("beside eval and train lie extra: move what is no split elsewhere, or say which part", tmp_path)


def test_files_and_tables_too(tmp_path):
    put(tmp_path / "files", "train1.png", "train2.png", "dev1.png")
    assert taken(tmp_path / "files") == {"train": "train1.png, train2.png", "val": "dev1.png"}
    put(tmp_path / "classes", "test_1.png", "val_2.png")
    assert names(open_source(str(tmp_path / "classes"))) == ["test_1.png", "val_2.png"]
    for name in ("train-00000-of-00001", "dev-00000-of-00001"):
        table(tmp_path / "tables" / "data" / f"{name}.parquet", rows(1))
    assert taken(tmp_path / "tables")["val"] == "data/dev-00000-of-00001.parquet"


def test_the_line_says_what_was_taken_for_what(tmp_path):
    put(tmp_path, *(f"train/{i}.png" for i in range(3)), "eval/1.png")
    assert open_splits(str(tmp_path)).line == "train from train (3 images), val from eval (1 image)"
    assert open_splits(str(tmp_path), ["train"]).line == "train from train (3 images), val from eval"
    put(tmp_path, *(f"more/{i}.png" for i in range(2)))
    assert open_splits(str(tmp_path / "more")).line == f"train from all of {tmp_path / 'more'} (2 images)"
    assert open_splits("embedded:digits").line.startswith("train from embedded:digits (1,434 images), val from")
    put(tmp_path, *(f"shards/train_{i}/1.png" for i in range(5)), "shards/val/1.png")
    assert taken(tmp_path / "shards")["train"] == "train_0, train_1, train_2 and 2 more"


def test_older_runs_find_the_parts_that_they_found(tmp_path):
    put(tmp_path / "a", "train/1.png", "eval/2.png")
    assert open_source(str(tmp_path / "a"), split_rules=1).classes == ("eval", "train")
    assert open_source(str(tmp_path / "a"), "val", split_rules=1) is None
    put(tmp_path / "b", "test_neg/1.png", "test_pos/2.png")
    with pytest.raises(RequestError, match="holds test but no train"):
        open_source(str(tmp_path / "b"), split_rules=1)
    put(tmp_path / "c", "train/1.png", "valid/2.png")
    assert open_splits(str(tmp_path / "c"), split_rules=1).line == open_splits(str(tmp_path / "c")).line


# --- as a user says ---


def test_parts_that_are_named_are_wholly_that(tmp_path):
    put(tmp_path, "test_neg/1.png", "test_pos/2.png", "elsewhere/b/1.png", "elsewhere/c/1.png")
    splits = open_splits(SplitPaths(train=str(tmp_path / "elsewhere"), test=str(tmp_path / "test_pos")))
    assert {split: names(source) for split, source in splits.sources.items()} == {
        "train": ["elsewhere/b/1.png", "elsewhere/c/1.png"],
        "test": ["test_pos/2.png"],
    }
    assert splits.sources["train"].read(0).shape == (4, 4, 3)
    assert splits.line == f"train from {tmp_path / 'elsewhere'} (2 images), test from {tmp_path / 'test_pos'} (1 image)"
    whole = open_source(SplitPaths(train=str(tmp_path), test=str(tmp_path)), "test")
    assert len(whole) == 4


def test_named_parts_share_one_list_of_classes(tmp_path):
    """So that a class absent from one of them shifts no label; of a table its own, whose order its labels follow."""
    put(tmp_path, "a/dog/1.png", "a/cat/2.png", "b/dog/3.png", "c/ant/4.png")
    parts = SplitPaths(train=str(tmp_path / "a"), val=str(tmp_path / "b"), test=str(tmp_path / "c"))
    sources = open_splits(parts).sources
    assert {source.classes for source in sources.values()} == {("ant", "cat", "dog")}
    assert [labels(source) for source in sources.values()] == [[1, 2], [2], [0]]
    import pyarrow as pa

    path = table(tmp_path / "t.parquet", rows(1, 2), pa.array([0, 1]), ["dog", "cat"])
    sources = open_splits(SplitPaths(train=str(tmp_path / "a"), test=str(path))).sources
    assert [source.classes for source in sources.values()] == [("dog", "cat")] * 2
    assert [labels(source) for source in sources.values()] == [[1, 0], [0, 1]]


def test_a_named_folder_with_parts_in_it_is_asked_about(tmp_path):
    put(tmp_path, "data/train/cat/1.png", "data/eval/cat/2.png", "data/eval/dog/2.png")
    data = tmp_path / "data"
    refused(
        rf"--train {data} holds train and val: give .* --train {data}/train --val {data}/eval",
        SplitPaths(train=str(data)),
    )
    source = open_source(SplitPaths(train="x", val=str(data / "eval")), "val")
    assert (names(source), source.classes) == (["eval/cat/2.png", "eval/dog/2.png"], ("cat", "dog"))
    # Folders of several shards are no class each of the part that holds them; a user who names one says it is one.
    put(tmp_path, "shards/train_a/1.png", "shards/train_b/2.png")
    assert open_source(SplitPaths(train=str(tmp_path / "shards"))).classes == ("train_a", "train_b")


def test_any_kind_of_data_can_be_a_part(tmp_path):
    from openmae import PackConfig, pack

    put(tmp_path, "photos/train/1.png", "photos/test/2.png", "single/1.png")
    for name in ("photos", "single"):
        pack(PackConfig(data=str(tmp_path / name), out=str(tmp_path / f"{name}-pack"), workers=0))
    whole, single = str(tmp_path / "photos-pack"), str(tmp_path / "single-pack")
    splits = open_splits(SplitPaths(train=whole, val="embedded:digits", test=single))
    assert [names(splits.sources[split])[:1] for split in ("train", "test")] == [["train/1.png"], ["1.png"]]
    assert len(splits.sources["val"]) == 363
    refused("the pack holds train and test but no val", SplitPaths(train=whole, val=whole))
    refused("embedded:digits: it has no test part", SplitPaths(train=whole, test="embedded:digits"))
    refused("no such file or folder: nowhere", SplitPaths(train=whole, test="nowhere"))


def test_a_moved_part_is_the_same_data(tmp_path):
    put(tmp_path, "here/images/a/1.png")
    before = open_source(SplitPaths(train=str(tmp_path / "here/images"))).fingerprint()
    os.rename(tmp_path / "here", tmp_path / "there")
    assert open_source(SplitPaths(train=str(tmp_path / "there/images"))).fingerprint() == before


def test_labels_of_parts_from_different_places(tmp_path):
    """A row says the path with the part's folder, or as much of it as is needed; what fits two images is refused."""
    put(tmp_path, "a/first/1.png", "a/first/2.png", "b/second/1.png", "c/first/1.png")
    file = tmp_path / "labels.csv"
    file.write_text("path,label\nfirst/1.png,x\n2.png,y\nsecond/1.png,x\n")
    parts = SplitPaths(train=str(tmp_path / "a/first"), test=str(tmp_path / "b/second"))
    options = {"labels": None, "label_file": str(file), "held_out": None, "background": 1.0, "max_pixels": 100}
    data = open_labelled(parts, **options)
    assert (labels_of(data.train).tolist(), labels_of(data.final_source).tolist()) == ([0, 1], [0])
    assert data.source_lines[0].startswith("parts      train from ")
    with pytest.raises(RequestError, match=r"line 2: several images are called first/1\.png"):
        open_labelled(SplitPaths(train=str(tmp_path / "a/first"), test=str(tmp_path / "c/first")), **options)
    file.write_text("path,label\n1.png,x\n")
    with pytest.raises(RequestError, match=r"several images are called 1\.png"):
        read_label_file(str(file), ["first/1.png", "second/1.png"])


def test_data_or_its_parts_and_not_both():
    with pytest.raises(RequestError, match="got both DATA photos and --val x: give DATA, or its parts in place of it"):
        PretrainConfig(data="photos", val="x", out="run")
    with pytest.raises(RequestError, match="no DATA given: name it, or --train PATH, --val PATH and --test PATH"):
        PretrainConfig(out="run")
    with pytest.raises(RequestError, match="got --val x --test y without --train"):
        PretrainConfig(val="x", test="y", out="run")
    assert str(PretrainConfig(train="a b", test="y", out="run").dataset) == "--train a b --test y"
