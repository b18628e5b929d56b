"""Samples with objects, and whole images with objects: bad images, readers, sizes."""

import numpy as np
import pytest
import torch

from openmae.data.annotated.whole_images import read_whole, whole_images
from openmae.data.coco.augment import DetectionAugmentation, fitted_size
from openmae.data.coco.stream import AnnotatedStream
from openmae.data.decoding.decode import BadImage
from openmae.data.loader import training_loader
from openmae.errors import RequestError

from .made import annotation, opened, preprocessing, write_one

POLYGON = [[2, 3, 12, 3, 12, 11, 2, 11]]


def stream_of(source, side=32, seed=0, with_masks=True, **options):
    augmentation = DetectionAugmentation(kind=options.pop("kind", "jitter"), resize_range=(0.5, 2.0))
    return AnnotatedStream(source, preprocessing(side, **options), augmentation, seed, with_masks)


def same(one, other):
    tensors = zip(one.instances.tensors(), other.instances.tensors(), strict=True)
    return torch.equal(one.images, other.images) and all(torch.equal(*pair) for pair in tensors)


def test_a_batch_holds_the_objects_of_its_images(objects):
    data = opened(objects)
    stream = stream_of(data.train, kind="none", side=48)
    batch = stream.collate(stream.__getitems__(range(24)))
    indices = stream.locate(range(24))[0].tolist()
    found = batch.instances
    assert batch.images.shape == (24, 3, 48, 48)
    assert found.counts.tolist() == [len(data.train.annotations(i)) for i in indices]
    assert 0 in found.counts.tolist()
    assert found.masks.shape == (len(found.labels), 48, 48)
    assert found.masks.dtype == torch.uint8
    assert (found.boxes.dtype, found.labels.dtype) == (torch.float32, torch.int64)
    assert {tuple(size) for size in found.sizes.tolist()} == {(48, 48), (48, 36)}
    boxes = torch.from_numpy(np.concatenate([data.train.annotations(i).boxes / 2 for i in indices]))
    assert (found.boxes - boxes).abs().max() <= 0.5  # drawn at half size
    colours = torch.tensor([(230, 40, 30), (40, 210, 60), (30, 70, 240)])
    images = torch.arange(24).repeat_interleave(found.counts)
    for image, mask, label in zip(images.tolist(), found.masks, found.labels.tolist(), strict=True):
        seen = batch.images[image][:, mask.bool()].float()
        assert (seen.median(dim=1).values - colours[label]).abs().max() < 3


def test_equal_keys_give_equal_samples(objects):
    data = opened(objects)
    one, other = (stream_of(data.train) for _ in range(2))
    batches = [s.collate(s.__getitems__(range(6))) for s in (one, other)]
    assert same(*batches)
    single = one.collate([one[3]])
    assert torch.equal(single.images[0], batches[0].images[3])
    different = stream_of(data.train, seed=1)
    assert not torch.equal(different.collate(different.__getitems__(range(6))).images, batches[0].images)
    second = one.collate(one.__getitems__(range(24, 48)))  # the next epoch
    assert sorted(one.locate(range(24, 48))[0].tolist()) == list(range(24))
    assert not torch.equal(second.images[:6], batches[0].images)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("with_masks", [True, False])
def test_readers_give_equal_bytes(objects, with_masks):
    settings = {"steps": range(2), "batch_size": 6, "share": range(6), "micro_batch_size": 3, "pin_memory": False}
    found = []
    for workers in (0, 2):
        stream = stream_of(opened(objects).train, with_masks=with_masks)
        found.append(list(training_loader(stream, **settings, workers=workers)))
    assert len(found[0]) == len(found[1]) == 4
    for one, other in zip(*found, strict=True):
        assert same(one, other)
        assert torch.equal(one.keys, other.keys)
        assert (one.instances.masks is None) is not with_masks


def test_bad_images_are_replaced_and_named(tmp_path, monkeypatch):
    data = opened(write_one(tmp_path, [annotation(i, segmentation=POLYGON) for i in (1, 2, 3, 4)]), held_out=1)
    read, names = data.train.source.images.read, {data.train.name(0), data.train.name(1)}

    def read_or_not(index):
        if data.train.source.name(index) in names:
            raise BadImage("damaged")
        return read(index)

    monkeypatch.setattr(data.train.source.images, "read", read_or_not)
    stream = stream_of(data.train)
    batch = stream.collate(stream.__getitems__(range(3)))
    assert batch.bad == dict.fromkeys(names, "damaged")
    assert len(batch.images) == 3
    names.add(data.train.name(2))
    with pytest.raises(RequestError, match=r"3 images in a row cannot be used, the first '.*': damaged"):
        stream.__getitems__([0])


def test_the_bytes_of_a_sample(objects):
    data = opened(objects)
    stream = stream_of(data.train, side=64)
    samples = stream.__getitems__(range(24))
    held = [s.image.numel() + s.objects.masks.size for s in samples]
    assert np.mean(held) <= stream.bytes_per_sample <= max(held)
    assert stream_of(data.train, side=64, with_masks=False).bytes_per_sample == 3 * 64 * 64
    assert stream_of(data.train, side=64, with_masks=False, dtype="float32").bytes_per_sample == 12 * 64 * 64


def test_whole_images_with_objects(objects):
    source, p = opened(objects).test, preprocessing(48)
    wanted = {"scaling": fitted_size, "with_annotations": True, "with_pictures": True}
    found = list(whole_images(source, p, range(8), workers=0, **wanted))
    assert [one.index for one in found] == list(range(8))
    assert {(tuple(one.image.shape), one.size) for one in found} == {
        ((3, 48, 48), (96, 96)),
        ((3, 48, 36), (96, 72)),
    }
    for one in found:
        assert one.name == source.name(one.index)
        assert one.picture.shape == (*one.size, 3)
        np.testing.assert_array_equal(one.annotations.boxes, source.annotations(one.index).boxes)
    plain = read_whole(source, p, 2, scaling=fitted_size)
    assert plain.annotations is None
    assert plain.picture is None
    assert torch.equal(plain.image, found[2].image)


@pytest.mark.timeout(60)
def test_readers_give_whole_images_in_order(objects):
    source, p = opened(objects).test, preprocessing(48)
    indices = np.array([1, 3, 4, 7])
    one, other = (
        list(whole_images(source, p, indices, workers=workers, scaling=fitted_size, with_annotations=True))
        for workers in (0, 2)
    )
    assert [image.index for image in other] == indices.tolist()
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.image, b.image)
        assert a.annotations.segmentations == b.annotations.segmentations
