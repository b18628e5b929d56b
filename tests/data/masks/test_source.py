"""Labels of a source: what is ignored, what is no class, sizes; and the pass over all masks."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openmae.data.decoding.decode import BadImage
from openmae.data.masks.numbering import Numbering
from openmae.data.masks.palette import IGNORED
from openmae.data.masks.source import Masked, MaskedSource, MaskedSubset
from openmae.data.masks.survey import survey_masks

from .made import mask, picture, png, put_images, put_masks, write

VALUES = np.array([[0, 1, 2], [3, 255, 1]], np.uint8)


def put(root, **values):
    """A pair for each name."""
    for name, of_mask in values.items():
        array = np.asarray(of_mask)
        put_images(root, f"images/{name}.png", size=array.shape)
        write(root / f"masks/{name}.png", png(array))


def opened(root, **rule):
    images, masks = (
        sorted(bytes(path.relative_to(root)) for path in (root / kind).iterdir()) for kind in ("images", "masks")
    )
    return MaskedSource(root, images, masks, numbering=Numbering(**rule), classes=("a", "b"))


@pytest.mark.parametrize(
    ("rule", "labels"),
    [
        ({"ignore_index": 255}, [[0, 1, 2], [3, -1, 1]]),
        ({"ignore_index": 255, "num_classes": 4}, [[0, 1, 2], [3, -1, 1]]),
        ({"ignore_index": 255, "reduce_zero_label": True}, [[-1, 0, 1], [2, -1, 0]]),
        ({"ignore_index": 1, "reduce_zero_label": True}, [[-1, -1, 1], [2, 254, -1]]),  # as stored, not as reduced
        ({"ignore_index": 0}, [[-1, 1, 2], [3, 255, 1]]),
        ({}, [[0, 1, 2], [3, 255, 1]]),
    ],
)
def test_what_values_mean(tmp_path, rule, labels):
    put(tmp_path, x=VALUES)
    found = opened(tmp_path, **rule).labels(0)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, labels)
    assert IGNORED == -1


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"num_classes": 4}, r"value 255 \(1 pixels\) in no class"),
        ({"num_classes": 2, "ignore_index": 255}, r"value 2 \(1 pixels\) and 1 other values in no class"),
        ({"num_classes": 1, "ignore_index": 255}, r"value 1 \(2 pixels\) and 2 other values in no class"),
        ({"ignore_index": 255, "unused": (1,)}, r"value 1 \(2 pixels\) in no class"),
        ({"ignore_index": 255, "unused": (1,), "reduce_zero_label": True}, r"value 2 \(1 pixels\) in no class"),
    ],
)
def test_values_of_no_class(tmp_path, rule, reason):
    put(tmp_path, x=VALUES)
    with pytest.raises(BadImage, match=reason):
        opened(tmp_path, **rule).labels(0)


def test_sizes_must_agree_as_the_image_is_read(tmp_path):
    put(tmp_path, x=mask(0, 1, size=(4, 6)))
    write(tmp_path / "masks/x.png", png(mask(0, 1, size=(4, 5))))
    with pytest.raises(BadImage, match=r"a mask of 4 x 5 pixels for an image of 4 x 6$"):
        opened(tmp_path).labels(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # read, it is 6 x 4
    buffer = io.BytesIO()
    Image.fromarray(picture(size=(4, 6))).save(buffer, "JPEG", exif=exif)
    write(tmp_path / "images/x.png", buffer.getvalue())
    write(tmp_path / "masks/x.png", png(mask(0, 1, size=(4, 6))))
    with pytest.raises(BadImage, match="a mask of 4 x 6 pixels for an image of 6 x 4, which EXIF turns"):
        opened(tmp_path).labels(0)
    write(tmp_path / "masks/x.png", png(mask(0, 1, size=(6, 4))))
    source = opened(tmp_path)
    assert source.labels(0).shape == source.read(0).shape[:2] == (6, 4)


def test_a_source_is_a_source(tmp_path):
    """Masks are found by their image although the two sort differently."""
    put_images(tmp_path, "train/1.png", "train_2/1.png")
    for name, value in (("trainannot/1.png", 3), ("train_2annot/1.png", 4)):
        put_masks(tmp_path, name, values=(value,))
    images, masks = [b"train/1.png", b"train_2/1.png"], [b"trainannot/1.png", b"train_2annot/1.png"]
    source = MaskedSource(tmp_path, images, masks, numbering=Numbering(), classes=("a", "b"))
    assert isinstance(source, Masked)
    assert [source.name(i) for i in range(2)] == ["train/1.png", "train_2/1.png"]
    assert [source.mask_name(i) for i in range(2)] == ["trainannot/1.png", "train_2annot/1.png"]
    assert [int(source.labels(i).max()) for i in range(len(source))] == [3, 4]
    assert source.label(0) is None
    assert source.classes == ("a", "b")
    subset = MaskedSubset(source, [1])
    assert subset.name(0) == "train_2/1.png"
    assert subset.label(0) is None
    for copy in (pickle.loads(pickle.dumps(source)), pickle.loads(pickle.dumps(subset))):
        np.testing.assert_array_equal(copy.labels(len(copy) - 1), source.labels(1))
        np.testing.assert_array_equal(copy.read(len(copy) - 1), source.read(1))
    with pytest.raises(IndexError):
        subset.labels(1)


def test_a_fingerprint_changes_with_masks_and_their_meaning(tmp_path):
    put(tmp_path, x=VALUES)
    before = opened(tmp_path, ignore_index=255).fingerprint()
    assert opened(tmp_path, ignore_index=255).fingerprint() == before
    assert opened(tmp_path, ignore_index=254).fingerprint() != before
    assert opened(tmp_path, ignore_index=255, reduce_zero_label=True).fingerprint() != before
    write(tmp_path / "masks/x.png", png(np.zeros((90, 3), np.uint8)))
    assert opened(tmp_path, ignore_index=255).fingerprint() != before


def test_files_that_vanish(tmp_path):
    put(tmp_path, x=VALUES, y=VALUES)
    source = opened(tmp_path)
    (tmp_path / "masks/x.png").unlink()
    (tmp_path / "images/y.png").unlink()
    for i, reason in enumerate(["mask: No such file", "No such file"]):
        with pytest.raises(BadImage, match=reason):
            source.labels(i)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_survey_counts_every_mask_once(tmp_path, threads):
    rng = np.random.default_rng(0)
    masks = {f"{i:03}": rng.integers(0, 5 + i % 3, (3, 4 + i % 2)).astype(np.uint8) for i in range(100)}
    put(tmp_path, **masks)
    write(tmp_path / "masks/007.png", b"broken")
    write(tmp_path / "masks/008.png", png(np.zeros((2, 2), np.uint8)))
    survey = survey_masks(opened(tmp_path, num_classes=2), threads)
    good = [of_mask for name, of_mask in masks.items() if name not in ("007", "008")]
    everything = np.concatenate([of_mask.ravel() for of_mask in good])
    assert survey.pixels_by_value == {v: int((everything == v).sum()) for v in range(7)}
    assert survey.images_by_value == {v: sum((of_mask == v).any() for of_mask in good) for v in range(7)}
    assert survey.bad == {
        "images/007.png": "mask: not an image where a PNG is expected",
        "images/008.png": "a mask of 2 x 2 pixels for an image of 3 x 4",
    }
    assert [i for i, is_readable in enumerate(survey.is_readable) if not is_readable] == [7, 8]
    assert survey.sizes[:2].tolist() == [[3, 4], [3, 5]]
    np.testing.assert_array_equal(survey.values[survey.images == 9], np.unique(masks["009"]))


def test_a_survey_keeps_no_file_open(tmp_path):
    put(tmp_path, x=VALUES)
    before = len(list(Path("/proc/self/fd").iterdir()))
    survey_masks(opened(tmp_path), 2)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
