"""Folders that are linked into each other: each part has all that is reached from it, once; nothing vanishes unsaid."""

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmae.config import SplitPaths
from openmae.data.sources.open import open_source, open_splits
from openmae.errors import RequestError

from .test_open import names, put, rows, split_names, table

READ = "the same folder as {}, which is read"
LOOP = "a link to a folder that it lies in"


def link(root, name, target):
    """`name` becomes a link to `target`, both below root."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(root / target, path.parent))


def passed_over(root, **options):
    return open_source(str(root), **options).ignored.unusable


def warnings(data):
    return open_splits(data if isinstance(data, SplitPaths) else str(data)).warnings


@pytest.mark.parametrize(("real", "linked"), [("train", "val"), ("val", "train"), ("train", "test"), ("dev", "train")])
def test_a_part_that_is_a_link_to_another_one_is_not_lost(tmp_path, real, linked):
    put(tmp_path, f"{real}/cat/1.png", f"{real}/dog/2.png")
    link(tmp_path, linked, real)
    splits = open_splits(str(tmp_path))
    evaluated = next(split for split in splits.sources if split != "train")
    for source in splits.sources.values():
        assert [name.partition("/")[2] for name in names(source)] == ["cat/1.png", "dog/2.png"]
        assert source.classes == ("cat", "dog")
    assert splits.warnings == (
        f"2 of 2 images of {evaluated} are in train too, through a link or as they were named: a figure on {evaluated} "
        "is on training images",
    )
    assert passed_over(tmp_path) == {}


def test_parts_that_are_links_to_one_place_elsewhere(tmp_path):
    """Before, the name that sorts first had it: test."""
    put(tmp_path, "pool/1.png", "pool/deep/2.png")
    for split in ("train", "test"):
        link(tmp_path, f"data/{split}", "pool")
    assert split_names(tmp_path / "data") == {
        "train": ["train/1.png", "train/deep/2.png"],
        "val": None,
        "test": ["test/1.png", "test/deep/2.png"],
    }
    assert "2 of 2 images of test are in train too" in warnings(tmp_path / "data")[0]


def test_parts_that_point_into_each_other(tmp_path):
    put(tmp_path, "train/a/1.png", "val/a/2.png", "val/a/3.png")
    link(tmp_path, "train/more", "val/a")
    link(tmp_path, "val/back", "train")
    assert split_names(tmp_path) == {
        "train": ["train/a/1.png", "train/more/2.png", "train/more/3.png"],
        "val": ["val/a/2.png", "val/a/3.png", "val/back/a/1.png"],
        "test": None,
    }
    assert "3 of 3 images of val are in train too" in warnings(tmp_path)[0]
    assert passed_over(tmp_path) == {"val/back/more": READ.format("val/a")}


def test_a_loop_takes_nothing_along(tmp_path):
    """val/up -> .. would make train a part of val."""
    put(tmp_path, "train/1.png", "val/2.png")
    link(tmp_path, "val/up", ".")
    link(tmp_path, "val/self", "val")
    assert split_names(tmp_path) == {"train": ["train/1.png"], "val": ["val/2.png"], "test": None}
    assert passed_over(tmp_path) == {"val/up": LOOP, "val/self": LOOP}
    assert warnings(tmp_path) == ()


def test_within_a_part_a_folder_is_read_once_and_that_is_said(tmp_path):
    put(tmp_path, "a/1.png", "z/deep/2.png")
    link(tmp_path, "b", "a")
    link(tmp_path, "c/d", "z")
    source = open_source(str(tmp_path))
    assert names(source) == ["a/1.png", "z/deep/2.png"]
    assert source.ignored.unusable == {"b": READ.format("a"), "c/d": READ.format("z")}
    assert str(source.ignored) == "b (the same folder as a, which is read), c/d (the same folder as z, which is read)"
    assert open_splits(str(tmp_path)).lines[1].startswith("ignored    b (the same folder as a")


@pytest.mark.parametrize("rules", [1, 2])
def test_two_folders_of_one_part(tmp_path, rules):
    put(tmp_path, "train_1/x/1.png", "val/x/2.png")
    link(tmp_path, "train_2", "train_1")
    assert len(open_source(str(tmp_path), split_rules=rules)) == 1
    assert passed_over(tmp_path, split_rules=rules) == {"train_2": READ.format("train_1")}


@pytest.mark.parametrize(("real", "linked"), [("test_neg", "val_pos"), ("val_pos", "test_neg")])
def test_classes_that_only_look_like_parts_are_one_part(tmp_path, real, linked):
    put(tmp_path, f"{real}/1.png", f"{real}/deep/2.png")
    link(tmp_path, linked, real)
    source = open_source(str(tmp_path))
    assert names(source) == [f"{real}/1.png", f"{real}/deep/2.png"]
    assert source.ignored.unusable == {linked: READ.format(real)}


def test_a_folder_around_them_that_is_called_like_a_part(tmp_path):
    put(tmp_path, "dev/train/1.png")
    link(tmp_path, "dev/val", "dev/train")
    assert split_names(tmp_path)["val"] == ["dev/val/1.png"]


def test_linked_images_are_told_apart_from_copies(tmp_path):
    put(tmp_path, "pool/1.png", "pool/2.png", "pool/3.png", "pool/4.png", "train/0.png", "val/0.png")
    for name, number in (("train/a", 1), ("train/b", 2), ("val/c", 2), ("val/d", 3), ("test/e", 4)):
        link(tmp_path, f"{name}.png", f"pool/{number}.png")
    for folder in ("train", "val", "test"):
        link(tmp_path, f"data/{folder}", folder)
    found = warnings(tmp_path / "data")
    assert len(found) == 1
    assert found[0].startswith("1 of 3 images of val are in train too")


def test_older_runs_enter_a_folder_once(tmp_path):
    """What they passed over is named now."""
    put(tmp_path, "train/1.png")
    link(tmp_path, "val", "train")
    splits = open_splits(str(tmp_path), split_rules=1)
    assert list(splits.sources) == ["train"]
    assert splits.lines[1] == f"ignored    val ({READ.format('train')})"


# --- as a user says ---


def test_named_parts_that_overlap(tmp_path):
    put(tmp_path, "photos/a/1.png", "photos/b/2.png", "photos/b/3.png")
    link(tmp_path, "alias", "photos/b")
    photos = str(tmp_path / "photos")
    for val, count in ((f"{photos}/b", 2), (str(tmp_path / "alias"), 2), (photos, 3)):
        (line,) = warnings(SplitPaths(train=photos, val=val))
        assert line.startswith(f"{count} of {count} images of val are in train too")
    assert warnings(SplitPaths(train=f"{photos}/a", val=f"{photos}/b")) == ()


def test_named_tables_and_packs_that_overlap(tmp_path):
    from openmae import PackConfig, pack

    path = str(table(tmp_path / "t" / "a.parquet", rows(1, 2)))
    table(tmp_path / "t" / "b.parquet", rows(3))
    (line,) = warnings(SplitPaths(train=str(tmp_path / "t"), test=path))
    assert line.startswith("1 of 1 tables of test are in train too")
    pack(PackConfig(data=path, out=str(tmp_path / "pack"), workers=0))
    (line,) = warnings(SplitPaths(train=str(tmp_path / "pack"), test=str(tmp_path / "pack")))
    assert line.startswith("all images of test are in train too")


def test_what_each_named_part_left_out(tmp_path):
    put(tmp_path, "a/1.png", "a/notes.txt", "a/.cache/x.png", "b/1.png", "b/2.png")
    link(tmp_path, "b/self", "b")
    lines = open_splits(SplitPaths(train=str(tmp_path / "a"), val=str(tmp_path / "b"))).lines
    assert lines[1:] == [
        "ignored    of train: 1 .txt, 1 hidden (their names start with a dot)",
        f"ignored    of val: self ({LOOP})",
    ]


# --- counting ---


def test_everything_that_is_passed_over_is_counted(tmp_path):
    put(tmp_path, "a.png", ".hidden.png", ".git/x.png")
    for number in range(150):
        (tmp_path / f"gone{number:03d}.png").symlink_to("nowhere")
    ignored = open_source(str(tmp_path)).ignored
    assert (ignored.count, len(ignored.unusable), ignored.unnamed, ignored.hidden) == (150, 100, 50, 2)
    assert str(ignored).count("dangling link") == 3
    assert ignored.line.endswith(", and 147 more that cannot be used, 2 hidden (their names start with a dot)")
    for number in range(7):
        put(tmp_path, f"x.{number}", data=b"words")
    assert "2 others" in str(open_source(str(tmp_path)).ignored)


def test_tables_have_neighbours_too(tmp_path):
    table(tmp_path / "train.parquet", rows(1))
    put(tmp_path, "README.md", data=b"words")
    assert open_splits(str(tmp_path)).ignored == ("1 .md",)
    assert open_source(str(tmp_path)).ignored.count == 1


def test_only_hidden_files_are_no_empty_folder(tmp_path):
    put(tmp_path, ".a.png")
    with pytest.raises(RequestError, match=r"found 1 hidden \(their names start with a dot\); .jpg"):
        open_source(str(tmp_path))


# --- all ways ---

FOLDERS = ("train", "train/a", "train/b", "val", "val/a", "val/dev_x", "holdout", "holdout/a")
LINKS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=10, unique=True)


@settings(max_examples=150)
@given(links=LINKS)
def test_each_part_has_what_is_reached_from_it_once(tmp_path_factory, links):
    root = tmp_path_factory.mktemp("tree")
    inside = {folder: {other for other in FOLDERS if other.startswith(folder)} for folder in FOLDERS}
    put(root, *(f"{folder}/1.png" for folder in FOLDERS))
    for number, (place, target) in enumerate(links):
        link(root, f"{FOLDERS[place]}/link{number}", FOLDERS[target])
    for split, head in (("train", "train"), ("val", "val"), ("test", "holdout")):
        reached = set(inside[head])
        while True:
            more = {FOLDERS[target] for place, target in links if FOLDERS[place] in reached}
            more = set().union(*(inside[folder] for folder in more)) - reached
            if not more:
                break
            reached |= more
        found = [os.path.realpath(root / name) for name in names(open_source(str(root), split))]
        assert sorted(found) == sorted(os.path.realpath(root / folder / "1.png") for folder in reached)


def test_many_folders_linked_into_each_other_end_soon(tmp_path):
    """Each is entered once for each set of parts that it may belong to, at most: a second on a busy machine, where each
    way through twelve folders that are linked to all others would be one of half a billion."""
    spellings = ("train", "val", "test", "dev", "eval", "holdout")
    folders = [f"{spellings[number % 6]}_{number}" for number in range(12)]
    put(tmp_path, *(f"classes/{folder}/1.png" for folder in folders), "classes/other/1.png")
    for folder in folders:
        for other in folders:
            if folder != other:
                link(tmp_path, f"classes/{folder}/{other}", f"classes/{other}")
    before = time.monotonic()
    (tmp_path / "classes/train_0").rename(tmp_path / "classes/plain")
    with pytest.raises(RequestError, match=r"beside .* lie"):
        open_source(str(tmp_path / "classes"))
    assert time.monotonic() - before < 30
