"""Opening annotated images: what is dropped, clipped, filled in, refused."""

import pickle

import numpy as np
import pytest
from PIL import Image

from openmae.errors import RequestError

from ...objects import write_coco, write_objects
from .made import SIZE, annotation, listed, numbered, objects_of, opened, put_images, write_one

POLYGON = [[2, 3, 12, 3, 12, 11, 2, 11]]
REST = [annotation(i) for i in (2, 3, 4)]  # an object for each of the other images


def first(folder):
    """The objects of the first image, and the notes."""
    data = opened(folder)
    return objects_of(data)["1.png"], "\n".join(data.notes)


def test_the_fixture(objects):
    data = opened(objects)
    assert data.classes == ("red", "green", "blue")
    assert data.category_ids == (3, 7, 11)
    assert data.has_masks
    assert (len(data.train), len(data.test), data.final_split) == (24, 8, "val")
    assert data.notes == ()
    assert len(data.train.annotations(23)) == 0  # an image without objects is one, too
    assert data.train.image_id(23) == 235
    found = [data.train.annotations(i) for i in range(24)]
    np.testing.assert_array_equal(data.objects, np.bincount(np.concatenate([one.labels for one in found]), minlength=3))
    for one in found:
        sides = one.boxes[:, 2:] - one.boxes[:, :2]
        np.testing.assert_array_equal(one.areas, sides.prod(axis=1))
        assert all(len(polygons[0]) == 8 for polygons in one.segmentations)
    assert "images/train" in data.train.name(0)


def test_boxes_only(objects, tmp_path):
    data = opened(objects, boxes_only=True)
    assert not data.has_masks
    assert data.notes == ()
    assert data.train.annotations(0).segmentations == []
    without = opened(write_objects(tmp_path, 6, 3, with_masks=False))
    assert not without.has_masks
    assert without.notes == ("no object has a segmentation: boxes only",)


def test_wrong_masks_do_not_matter_for_boxes_alone(tmp_path):
    some = [
        annotation(1, segmentation=[[1, 2, 3]]),
        annotation(1, bbox=None, segmentation=POLYGON),
        annotation(2, segmentation={"size": [1, 1], "counts": [1]}),
    ]
    folder = write_one(tmp_path, some + REST)
    data = opened(folder, boxes_only=True)
    assert len(objects_of(data)["1.png"]) == 2
    assert len(objects_of(data)["2.png"]) == 2
    assert data.notes == ()
    assert len(objects_of(opened(folder))["1.png"]) == 1


def test_some_without_masks_are_counted_and_named(tmp_path):
    some = [
        annotation(1, segmentation=POLYGON),
        annotation(1),
        *(annotation(i, segmentation=POLYGON) for i in (2, 3, 4)),
    ]
    data = opened(write_one(tmp_path, some))
    assert not data.has_masks
    assert "1 of 5 objects of train (annotation 2 of 1.png) have no segmentation: boxes only" in data.notes
    assert data.train.annotations(0).segmentations == []


def test_a_crowd_needs_no_mask_and_stays_one(tmp_path):
    some = [annotation(1, segmentation=POLYGON), annotation(1, iscrowd=1)]
    data = opened(write_one(tmp_path, [*some, *(annotation(i, segmentation=POLYGON) for i in (2, 3, 4))]))
    assert data.has_masks
    assert objects_of(data)["1.png"].is_crowd.tolist() == [False, True]


@pytest.mark.parametrize(
    ("one", "kind"),
    [
        (annotation(1, (2, 3, 0, 8)), "boxes without width or height, dropped"),
        (annotation(1, (2, 3, 5, -8)), "boxes without width or height, dropped"),
        (annotation(1, (2, 3, float("nan"), 8)), "objects without a box of four numbers, dropped"),
        (annotation(1, (2, 3, 8)), "objects without a box of four numbers, dropped"),
        (annotation(1, (2, 3, 10**400, 8)), "objects without a box of four numbers, dropped"),
        (annotation(1, None), "objects without a box of four numbers, dropped"),
        (annotation(1, (31, 3, 5, 8)), "boxes wholly outside of their images, dropped"),
        (annotation(1, (-9, 3, 9, 8)), "boxes wholly outside of their images, dropped"),
        (annotation(99), "annotations of images that the file does not list, dropped"),
        (annotation(1, category_id=5), "annotations of categories that the file does not list, dropped"),
        (annotation(1, segmentation=[[1, 2, 3, 4]]), "dropped with their objects"),
        (annotation(1, segmentation={"size": [20, 30], "counts": [1, 2, 3]}), "do not make up their image, dropped"),
        (annotation(1, segmentation={"size": [30, 20], "counts": [600]}), "do not make up their image, dropped"),
        (annotation(1, segmentation={"size": [20, 30], "counts": "~"}), "do not make up their image, dropped"),
        (annotation(1, segmentation={"counts": 3}), "run lengths that cannot be read"),
    ],
)
def test_objects_that_cannot_be_used_are_dropped_counted_and_named(tmp_path, one, kind):
    found, notes = first(write_one(tmp_path, [one, annotation(1, (1, 1, 4, 4)), *REST]))
    assert found.boxes.tolist() == [[1, 1, 5, 5]]
    assert "train: 1 " in notes
    assert kind in notes
    assert "annotation 1" in notes


def test_boxes_are_clipped_and_counted_beyond_a_pixel(tmp_path):
    some = [annotation(1, (-3, 2, 10, 5)), annotation(1, (20, 10, 10.5, 10.5))]
    found, notes = first(write_one(tmp_path, [*some, *REST]))
    assert found.boxes.tolist() == [[0, 2, 7, 7], [20, 10, 30, 20]]
    assert "train: 1 boxes that reach beyond their images, clipped (annotation 1 of 1.png)" in notes


def test_what_is_missing_is_filled_in(tmp_path):
    counts = [60 + 5, 4, 16, 4, 600 - 89]  # two columns of four pixels, the fourth and fifth, from row 5 on
    some = [
        annotation(1, None, segmentation=POLYGON),
        annotation(1, None, segmentation={"size": [20, 30], "counts": counts}),
        annotation(1, (2, 3, 10, 8)),
        annotation(1, (2, 3, 10, 8), area=3.5, segmentation=POLYGON),
        annotation(1, (2, 3, 10, 8), segmentation=[2, 3, 12, 3, 12, 11]),  # a polygon without its list
    ]
    found, _ = first(write_one(tmp_path, [*some, *REST]))
    assert found.boxes.tolist()[:2] == [[2, 3, 12, 11], [3, 5, 5, 9]]
    assert found.areas.tolist()[:4] == [80, 8, 80, 3.5]
    assert 30 < found.areas[4] < 50  # half of the box
    assert not found.is_crowd.any()


def test_wrong_polygons_of_several_are_left_out(tmp_path):
    found, notes = first(write_one(tmp_path, [annotation(1, segmentation=[*POLYGON, [1, 2, 3], [1, 2, 3, 4]]), *REST]))
    assert len(found) == 1
    assert "left out (annotation 1 of 1.png)" in notes


def test_ids_may_be_anything(tmp_path):
    put_images(tmp_path, "b.png", "a.png")
    images = [{"id": "x", "file_name": "b.png"}, {"id": 7.0, "file_name": "a.png", "height": None, "width": 0}]
    some = [annotation("x", (1, 2, 3, 4), "dog"), annotation(7, (5, 6, 7, 8), "cat")]
    write_coco(tmp_path / "train.json", images, numbered(some), {"dog": "Dog", "cat": "Cat"})
    data = opened(tmp_path)
    assert data.category_ids == ("cat", "dog")
    found = objects_of(data)
    assert (found["b.png"].boxes.tolist(), found["b.png"].labels.tolist()) == ([[1, 2, 4, 6]], [1])
    assert (found["a.png"].boxes.tolist(), found["a.png"].labels.tolist()) == ([[5, 6, 12, 14]], [0])
    ids = {s.name(i): s.image_id(i) for s in data.parts for i in range(len(s))}
    assert ids == {"a.png": 7, "b.png": "x"}


def test_repeated_annotations_and_images_count_once(tmp_path):
    put_images(tmp_path, "a.png", "b.png")
    one, two = {"id": 1, **annotation(1)}, {"id": 2, **annotation(2)}
    write_coco(tmp_path / "train.json", [*listed("a.png", "b.png"), listed("a.png")[0]], [one, one, two])
    data = opened(tmp_path)
    assert [len(found) for found in objects_of(data).values()] == [1, 1]
    assert "train: 1 annotations that stand there twice, taken once (annotation 1 of a.png)" in data.notes
    assert "train: 1 images that are listed twice, taken once (a.png)" in data.notes
    # The same id for another object is harmless.
    write_coco(tmp_path / "train.json", listed("a.png", "b.png"), [one, {**one, "bbox": [1, 1, 2, 2]}, two])
    assert len(objects_of(opened(tmp_path))["a.png"]) == 2


def test_images_that_cannot_be_used_are_bad(tmp_path):
    folder = write_one(tmp_path, [annotation(i) for i in (1, 2, 3, 4)])
    (folder / "2.png").unlink()
    put_images(folder, "3.png", size=(10, 30))
    (folder / "4.png").write_bytes(b"x")
    put_images(folder, "5.png", "6.png")
    write_coco(
        folder / "train.json",
        listed(*(f"{i}.png" for i in range(1, 7))),
        numbered(annotation(i) for i in range(1, 7)),
    )
    data = opened(folder, max_bad=0.5)
    bad = data.bad["train"]
    assert bad["2.png"] == "no such file"
    assert bad["3.png"] == "annotated at 20 x 30 pixels, but the file has 10 x 30"
    assert bad.keys() == {"2.png", "3.png", "4.png"}
    assert len(objects_of(data)) == 3
    with pytest.raises(RequestError, match=r"3 of 6 images of train in .* cannot be used, the first .*--max-bad 0.01"):
        opened(folder)


def test_turned_images_are_bad_where_the_annotations_are_not(tmp_path):
    """The pixels as they are read count: EXIF's orientation is applied."""
    folder = write_one(tmp_path, [annotation(i) for i in (1, 2, 3, 4)])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(folder / "1.png", exif=exif)
    assert opened(folder, max_bad=0.3).bad["train"] == {
        "1.png": "annotated at 20 x 30 pixels, but the file has 30 x 20, which EXIF turns"
    }
    images = listed(*(f"{i}.png" for i in range(1, 5)))
    images[0] |= {"height": 30, "width": 20}
    write_coco(folder / "train.json", images, numbered(annotation(i) for i in (1, 2, 3, 4)))
    assert not opened(folder).bad


def corners():
    chance = np.random.default_rng(0)
    lows = chance.integers(0, (20, 12), (40, 2))
    highs = lows + chance.integers(2, (10, 8), (40, 2))
    return [annotation(1 + i % 4, (*lows[i].tolist(), *highs[i].tolist())) for i in range(40)]


@pytest.mark.parametrize(
    ("some", "options", "message"),
    [
        ([], {}, "train of .* has no annotated objects"),
        ([annotation(1, (1, 1, 0, 0))] * 4, {}, "train of .* has no annotated objects"),
        ([annotation(99)], {}, "no annotation's image_id is the id of one of its images: the first is 99, .*first 1"),
        ([annotation(1, category_id=99)], {}, "no annotation's category_id .* the categories' first 3"),
        (corners(), {}, r"as left, top, right, bottom: COCO's bbox is \[left, top, width, height\], so subtract"),
        ([annotation(1, (0.1, 0.2, 0.5, 0.5))] * 12, {}, "seem to be shares of the images' sides"),
        (REST, {"categories": {}}, "has 0 categories"),
    ],
)
def test_data_that_is_refused(tmp_path, some, options, message):
    with pytest.raises(RequestError, match=message):
        opened(write_one(tmp_path, some, **options))


def test_large_boxes_are_not_taken_for_corners(tmp_path):
    some = [annotation(1 + i % 4, (i % 3, i % 2, 25, 17)) for i in range(40)]
    assert opened(write_one(tmp_path, some)).objects.sum() > 0


def test_two_images_of_one_id_are_refused(tmp_path):
    put_images(tmp_path, "a.png", "b.png")
    write_coco(tmp_path / "train.json", [listed("a.png")[0], listed("b.png")[0]], numbered([annotation(1)]))
    with pytest.raises(RequestError, match=r"a.png and b.png have one id, 1"):
        opened(tmp_path)


def test_categories_of_splits_must_agree(objects, tmp_path):
    for split in ("train", "val"):
        put_images(tmp_path, f"{split}/a.png", f"{split}/b.png")
        some = numbered([annotation(1), annotation(2)])
        names = {3: "dog" if split == "train" else "cat"}
        write_coco(tmp_path / f"{split}.json", listed("a.png", "b.png"), some, names)
    with pytest.raises(RequestError, match="category 3 is cat and dog"):
        opened(tmp_path)
    with pytest.raises(RequestError, match=r"has 3 classes \(red, green, blue\), and the run was begun with 1 \(dog\)"):
        opened(objects, known_classes=("dog",))


@pytest.mark.parametrize("wrong", ["train", "val"])
def test_a_category_is_no_number_here_and_text_there(tmp_path, wrong):
    for split in ("train", "val", "test"):
        category = "-3" if split == wrong else -3
        put_images(tmp_path, f"{split}/a.png", f"{split}/b.png")
        some = numbered(annotation(i, category_id=category) for i in (1, 2))
        write_coco(tmp_path / f"{split}.json", listed("a.png", "b.png"), some, {category: "dog"})
    with pytest.raises(RequestError, match=r"val.json: category -3 is a number in one place and text in another"):
        opened(tmp_path)


def test_a_class_has_the_same_id_in_all_files(tmp_path):
    for split, category in (("train", 3), ("val", 4)):
        put_images(tmp_path, f"{split}/a.png", f"{split}/b.png")
        some = numbered(annotation(i, category_id=category) for i in (1, 2))
        write_coco(tmp_path / f"{split}.json", listed("a.png", "b.png"), some, {category: "dog"})
    with pytest.raises(
        RequestError, match=r"category dog is 3 in .*train.json and 4 in .*val.json: give it the same id"
    ):
        opened(tmp_path)


def test_classes_that_train_lacks_are_said(tmp_path):
    for split, category in (("train", 3), ("val", 7)):
        put_images(tmp_path, f"{split}/a.png", f"{split}/b.png")
        some = numbered(annotation(i, category_id=category) for i in (1, 2))
        write_coco(tmp_path / f"{split}.json", listed("a.png", "b.png"), some)
    assert "val has 1 class that no training object has: green" in opened(tmp_path).notes


def test_held_out_is_the_same_and_resumed_the_same(objects):
    one, other = (opened(objects, held_out=5, needs_validation=True) for _ in range(2))
    assert one.held_out_names() == other.held_out_names()
    assert len(one.held_out_names()) == 5
    assert one.validation is not None
    assert one.without_test().final_split == "split of train"
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != opened(objects).fingerprint
    assert opened(objects, boxes_only=True).fingerprint != opened(objects).fingerprint


def test_a_source_can_be_pickled(objects):
    source = opened(objects).train
    other = pickle.loads(pickle.dumps(source))
    assert other.fingerprint() == source.fingerprint()
    assert other.annotations(2).segmentations == source.annotations(2).segmentations
