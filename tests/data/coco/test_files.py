"""Which JSON file is which split's, and which image a file name means."""

import json

import pytest

from openmae.config import SplitPaths
from openmae.data.coco.files import find_annotation_files, has_annotations, split_of
from openmae.data.coco.lookup import ImageLookup
from openmae.data.coco.open import open_detection
from openmae.errors import RequestError

from ...objects import write_coco
from .made import READING, annotation, listed, numbered, objects_of, opened, put_images, write_one


def part(folder, json_path, *images, image_names=None):
    """A split: images below a folder, and its JSON file with an object in each."""
    put_images(folder, *images)
    names = image_names or [image.rpartition("/")[2] for image in images]
    write_coco(folder / json_path, listed(*names), numbered(annotation(i + 1) for i in range(len(names))))


def names(source):
    return [source.name(i) for i in range(len(source))]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        (b"train.json", "train"),
        (b"annotations/instances_val2017.json", "val"),
        (b"valid/_annotations.coco.json", "val"),
        (b"train/test.json", "test"),
        (b"a/image_info_test-dev2017.json", "test"),
        (b"constraint.json", None),
        (b"all.json", None),
    ],
)
def test_split_is_a_word_of_the_name_or_the_innermost_folder(path, split):
    assert split_of(path) == split


@pytest.mark.parametrize(
    ("jsons", "folders"),
    [
        (("instances_train.json", "instances_val.json"), ("images/train", "images/val")),
        (("annotations/instances_train2017.json", "annotations/instances_val2017.json"), ("train2017", "val2017")),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), ("train", "valid")),
        (("train.json", "val.json"), ("images", "images")),
        (("train/annotations.json", "val/annotations.json"), ("train/images", "val/images")),
    ],
)
def test_layouts(tmp_path, jsons, folders):
    """Where folders of splits hold equal names, each split's own are taken."""
    same = folders[0] != folders[1]
    part(tmp_path, jsons[0], *(f"{folders[0]}/{i}.png" for i in range(3)))
    part(tmp_path, jsons[1], *(f"{folders[1]}/{i if same else i + 5}.png" for i in range(2)))
    data = opened(tmp_path)
    assert names(data.train) == [f"{folders[0]}/{i}.png" for i in range(3)]
    assert names(data.test) == [f"{folders[1]}/{i if same else i + 5}.png" for i in range(2)]
    assert data.final_split == "val"
    assert data.validation is None
    assert not data.bad


def test_masks_with_the_names_of_images_are_no_images(tmp_path):
    part(tmp_path, "train.json", "images/train/a.png", "images/train/b.png")
    put_images(tmp_path, "masks/train/a.png", "masks/train/b.png")
    assert names(opened(tmp_path, held_out=1).train)[0].startswith("images/")


def test_paths_of_each_split(tmp_path):
    part(tmp_path, "one/x.json", "one/a.png", "one/b.png")
    part(tmp_path, "annotations/instances_val2017.json", "val2017/c.png")
    paths = SplitPaths(train=str(tmp_path / "one"), val=str(tmp_path / "annotations/instances_val2017.json"))
    data = open_detection(paths, **READING)
    assert names(data.train) == ["one/a.png", "one/b.png"]
    assert [name.rpartition("/")[2] for name in names(data.test)] == ["c.png"]


def test_without_a_split_in_names_all_is_train(tmp_path):
    data = opened(write_one(tmp_path, [annotation(i) for i in (1, 2, 3, 4)], name="all.json"), held_out=2)
    assert (len(data.train), len(data.test), data.final_split) == (2, 2, "split of train")
    assert set(data.held_out_names()) | set(names(data.train)) == {f"{i}.png" for i in range(1, 5)}


def test_instances_are_taken_among_several(tmp_path):
    part(tmp_path, "annotations/instances_train2017.json", "train2017/a.png", "train2017/b.png")
    for other in ("captions_train2017.json", "person_keypoints_train2017.json"):
        (tmp_path / "annotations" / other).write_text("not read")
    assert list(find_annotation_files(str(tmp_path)).parts) == ["train"]


def test_other_json_is_left_alone_and_said(tmp_path):
    part(tmp_path, "train.json", "a.png", "b.png")
    (tmp_path / "train_labels.json").write_text(json.dumps({"a.png": 3}))
    write_coco(tmp_path / "train_captions.json", listed("a.png"), [{"id": 1, "image_id": 1, "caption": "a dog"}])
    (tmp_path / "names.json").write_text("[]")
    notes = "\n".join(find_annotation_files(str(tmp_path)).notes)
    assert "train_labels.json (has no list of images)" in notes
    assert "train_captions.json (its annotations have no bbox)" in notes
    assert "no name says which split it is: names.json" in notes


def test_two_that_could_both_be_are_named(tmp_path):
    part(tmp_path, "train.json", "a.png")
    part(tmp_path, "train_new.json", "a.png")
    with pytest.raises(RequestError, match=r"train.json and train_new.json may both be"):
        find_annotation_files(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels/a.txt", "0 .5 .5 .2 .2\n", r"labels/a.txt, which may be YOLO's text files: convert them"),
        ("Annotations/a.xml", "<annotation/>", r"a.xml, which may be Pascal VOC's XML: convert it"),
        ("train.json", "{", r"train.json \(is no JSON: line 1, column 2\)"),
        ("notes.md", "", r"1 .md; give images and a COCO JSON"),
    ],
)
def test_other_formats_are_named(tmp_path, name, content, message):
    put_images(tmp_path, "images/a.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    assert not has_annotations(str(tmp_path))
    with pytest.raises(RequestError, match=message):
        find_annotation_files(str(tmp_path))


def test_no_train_is_said(tmp_path):
    part(tmp_path, "val.json", "a.png")
    with pytest.raises(RequestError, match=r"no train part with COCO annotations in .*, which has val"):
        find_annotation_files(str(tmp_path))


@pytest.mark.parametrize("path", ["embedded:photos", "train.json", "gone"])
def test_no_folder(tmp_path, path):
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(RequestError, match=r"have no boxes|is a file|no such file"):
        find_annotation_files(path if ":" in path else str(tmp_path / path))


def test_file_names_mean_paths_then_base_names():
    images = [b"images/train/x/1.png", b"images/train/y/1.png", b"images/val/2.png", b"images/val/3.png", b"3.png"]
    lookup = ImageLookup(images, b"annotations/train.json", "train")
    assert lookup.find("x/1.png") == (b"images/train/x/1.png", "")
    assert lookup.find("./x\\1.png")[0] == b"images/train/x/1.png"
    assert lookup.find("/content/data/3.png")[0] == b"3.png"
    assert lookup.find("val/2.png")[0] == b"images/val/2.png"
    assert lookup.find("3.png")[0] == b"3.png"  # in no split's folder rather than in another's
    assert lookup.find("1.png") == (None, "images/train/x/1.png and images/train/y/1.png may both be it")
    assert lookup.find("4.png") == (None, "no such file")
    assert lookup.find("\ud800.png") == (None, "no such file")


def test_an_image_of_another_split_never_stands_in_for_a_missing_one():
    """Images are numbered alike in both, and the boxes would be another image's."""
    images = [b"train/1.png", b"val/1.png", b"val/2.png"]
    found, reason = ImageLookup(images, b"instances_train.json", "train").find("2.png")
    assert found is None
    assert "no such file in a folder of train; file_name needs its folder if val/2.png is it" in reason
    assert ImageLookup(images, b"val/_annotations.json", "train").find("2.png")[0] == b"val/2.png"  # beside its JSON
    # Where the split has no folder, its images are those of another: COCO's own "minival" is of val2014.
    assert ImageLookup(images[1:], b"instances_train.json", "train").find("2.png")[0] == b"val/2.png"


def test_images_that_no_json_lists_are_said(tmp_path):
    part(tmp_path, "train.json", "images/a.png", "images/b.png")
    put_images(tmp_path, "images/c.png")
    data = opened(tmp_path)
    assert "left alone: 1 images that no JSON lists (images/c.png)" in data.notes
    assert set(objects_of(data)) == {"images/a.png", "images/b.png"}


def test_a_split_without_annotations_beside_one_that_has_some_is_said(tmp_path):
    part(tmp_path, "a/train.json", "a/a.png")
    put_images(tmp_path, "b/b.png")
    paths = SplitPaths(train=str(tmp_path / "a"), val=str(tmp_path / "b"))
    with pytest.raises(RequestError, match=r"no COCO JSON with boxes in --val"):
        has_annotations(paths)
    assert not has_annotations(SplitPaths(train=str(tmp_path / "b"), val=str(tmp_path / "b")))


def test_a_number_of_thousands_of_digits_is_not_called_broken_json(tmp_path):
    put_images(tmp_path, "a.png")
    (tmp_path / "train.json").write_text('{"images": [{"id": 1' + "0" * 5000 + "}]}")
    with pytest.raises(RequestError, match=r"train.json \(cannot be read as JSON: .*4300 digits"):
        find_annotation_files(str(tmp_path))


def test_images_beside_named_json_may_be_linked_folders_and_are_said_where_they_are_elsewhere(tmp_path):
    part(tmp_path, "real/train.json", "real/train/a.png")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "train.json").write_bytes((tmp_path / "real" / "train.json").read_bytes())
    paths = SplitPaths(train=str(tmp_path / "linked" / "train.json"))
    found = find_annotation_files(paths)
    assert found.parts["train"].folder == tmp_path
    assert f"its images are looked for in {tmp_path}" in found.notes[0]
    (tmp_path / "linked" / "train").symlink_to(tmp_path / "real" / "train")
    (tmp_path / "linked" / "again").symlink_to(tmp_path / "linked")
    found = find_annotation_files(paths)
    assert (found.parts["train"].folder, found.notes) == (tmp_path / "linked", ())


def test_which_of_several_is_asked_where_kinds_of_data_are_told_apart(tmp_path):
    part(tmp_path, "train.json", "a.png")
    part(tmp_path, "train_new.json", "a.png")
    with pytest.raises(RequestError, match=r"may both be"):
        has_annotations(str(tmp_path))
