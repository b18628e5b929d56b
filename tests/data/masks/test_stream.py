"""Samples with labels: bad pairs are replaced, nodata is ignored, and readers change nothing."""

import numpy as np
import pytest
import tifffile
import torch

from openmae.config import Preprocessing
from openmae.data.decoding.decode import BadImage
from openmae.data.loader import training_loader
from openmae.data.masks.augment import MaskAugmentation
from openmae.data.masks.numbering import Numbering
from openmae.data.masks.palette import IGNORED
from openmae.data.masks.source import MaskedSource
from openmae.data.masks.stream import MaskedStream, read_pair
from openmae.errors import RequestError

from .made import mask, png, put_pairs, write

SIZE = (4, 4)


def preprocessing(channels=3, dtype="uint8"):
    return Preprocessing(
        image_size=SIZE,
        channels=channels,
        dtype=dtype,
        value_range=(0.0, 255.0),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )


def opened(root, **reading):
    images, masks = (
        sorted(bytes(path.relative_to(root)) for path in (root / kind).iterdir()) for kind in ("images", "masks")
    )
    return MaskedSource(root, images, masks, numbering=Numbering(num_classes=3, ignore_index=255), **reading)


def stream_of(source, **options):
    return MaskedStream(source, preprocessing(**options), MaskAugmentation(kind="crop"), 0)


def test_bad_pairs_are_replaced_and_named(tmp_path):
    put_pairs(tmp_path, *"abcd")
    write(tmp_path / "images/a.jpg", b"x")
    write(tmp_path / "masks/b.png", png(mask(0, 7)))
    stream = stream_of(opened(tmp_path))
    samples = stream.__getitems__(range(4))
    indices, keys = stream.locate(range(4))
    assert {name for sample in samples for name in sample.bad} == {"images/a.jpg", "images/b.jpg"}
    for sample, index, key in zip(samples, indices.tolist(), keys.tolist(), strict=True):
        assert list(sample.bad) == [f"images/{name}.jpg" for name in "ab"[index:2]]
        assert sample.key == key
        assert sample.labels.dtype == np.int16
    batch = stream.collate(samples)
    assert batch.bad["images/b.jpg"] == "value 7 (12 pixels) in no class"
    assert (tuple(batch.images.shape), tuple(batch.labels.shape)) == ((4, 3, *SIZE), (4, *SIZE))


def test_all_bad_ends(tmp_path):
    put_pairs(tmp_path, *"ab", values=(9,))
    with pytest.raises(RequestError, match=r"2 images in a row cannot be used, the first 'images/.*in no class"):
        stream_of(opened(tmp_path)).__getitems__([0])


@pytest.mark.timeout(60)
def test_readers_give_equal_bytes(tmp_path):
    put_pairs(tmp_path, *"abcdefg")
    write(tmp_path / "masks/c.png", b"x")
    settings = {"steps": range(3), "batch_size": 4, "share": range(4), "micro_batch_size": 2, "pin_memory": False}
    found = []
    for workers in (0, 2):
        batches = list(training_loader(stream_of(opened(tmp_path)), **settings, workers=workers))
        assert len(batches) == 6
        found.append(batches)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.keys, other.keys)
        assert one.bad == other.bad


def test_nodata_is_ignored_in_training_and_evaluation(tmp_path):
    """Where one channel of three has a value, the label counts."""
    image = np.random.default_rng(0).uniform(1, 255, (4, 4, 3)).astype(np.float32)
    image[:2, :2] = np.nan
    image[3, 3, 0] = np.nan
    write(tmp_path / "masks/a.png", png(np.ones((4, 4), np.uint8)))
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images/a.tif", image, photometric="rgb")
    source = opened(tmp_path, nodata="marked")
    expected = np.ones((4, 4))
    expected[:2, :2] = IGNORED
    np.testing.assert_array_equal(read_pair(source, 0, preprocessing(dtype="float32"))[1], expected)
    augmentation = MaskAugmentation(kind="none")
    sample = MaskedStream(source, preprocessing(dtype="float32"), augmentation, 0).__getitems__([0])[0]
    np.testing.assert_array_equal(sample.labels, expected)


class _Torn:
    """An image that is read crop by crop, of which the crop is damaged."""

    shape = (4, 6, 3)

    def __getitem__(self, rows_and_columns):
        if rows_and_columns == (slice(None, 1), slice(None, 1)):  # what shows whether type and channels fit
            return np.zeros((1, 1, 3), np.uint8)
        raise BadImage("cut off while it was read")


@pytest.mark.parametrize("is_damaged", [False, True])
def test_whether_an_image_is_replaced_depends_on_its_file(tmp_path, monkeypatch, is_damaged):
    """A crop that fails is no reason; the file decoded whole is one or not."""
    put_pairs(tmp_path, "a", "b")
    source = opened(tmp_path)
    read = source.read

    def read_whole(index):
        if index == 0 and is_damaged:
            raise BadImage("damaged")
        return read(index)

    monkeypatch.setattr(source, "stored_image", lambda index: _Torn() if index == 0 else None)
    monkeypatch.setattr(source, "read", read_whole)
    stream = stream_of(source)
    position = int(np.flatnonzero(stream.locate(range(2))[0] == 0)[0])
    sample = stream.__getitems__([position])[0]
    assert sample.bad == ({"images/a.jpg": "damaged"} if is_damaged else {})
