"""Crops made on the device: the pixels of `F.interpolate`, the boxes and flips that a reader would have taken."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openmae import PackConfig, pack
from openmae.config import Preprocessing
from openmae.data import device_crop
from openmae.data.augment import Augmentation, resized_crop
from openmae.data.batch import Batch, Crops
from openmae.data.decoding.decode import BadImage
from openmae.data.device_crop import crop_and_normalise, model_input, resize_weights
from openmae.data.loader import Stream, collate, training_loader
from openmae.data.preprocess import normalise, survey
from openmae.data.readers import iterate_batches
from openmae.data.sources.folder import Ignored
from openmae.data.sources.open import open_source
from openmae.data.sources.views import raw_shape, split_held_out

CPU = torch.device("cpu")
# Of a grey level. Measured: 2.8e-4 at most in 64 noise images of 256 px, 1.5e-4 in photographs. Against float64 both
# this and torch's float32 are off by 6e-3: what differs is the last bit of where a pixel lies.
TOLERANCE = 1e-3


def as_raw(size, channels=3):
    """A preprocessing that changes no value."""
    return Preprocessing(
        channels=channels, value_range=(0.0, 1.0), mean=(0.0,) * channels, std=(1.0,) * channels, image_size=size
    )


def crops_of(boxes, is_flipped=None):
    return Crops(torch.tensor(boxes), torch.tensor(is_flipped or [False] * len(boxes)))


def noise(count, height, width, channels=3, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    return torch.from_numpy(values)


def interpolated(images, crops, size):
    """Each box by itself, in float32, by torch; 8-bit images are clipped to their range."""
    results = []
    for image, (top, left, height, width), is_flipped in zip(
        images, crops.boxes.tolist(), crops.is_flipped.tolist(), strict=True
    ):
        box = image[top : top + height, left : left + width].permute(2, 0, 1)[None].float()
        result = F.interpolate(box, size=size, mode="bicubic", antialias=True)[0]
        result = result.clamp(0, 255) if images.dtype == torch.uint8 else result
        results.append(result.flip(-1) if is_flipped else result)
    return torch.stack(results)


def cropped(images, crops, size):
    return crop_and_normalise(images, crops, as_raw(size, images.shape[3]))


# --- pixels ---


@pytest.mark.parametrize("channels", [1, 3, 13])
@pytest.mark.parametrize("size", [(24, 24), (16, 40), (7, 5), (1, 1), (90, 64)])
def test_it_is_torchs_interpolation(size, channels):
    """Boxes that shrink and grow, in corners, along a side, of one pixel, of all."""
    boxes = [
        (0, 0, 48, 64),
        (0, 0, 20, 30),
        (18, 34, 30, 30),
        (47, 63, 1, 1),
        (0, 63, 48, 1),
        (47, 0, 1, 64),
        (5, 9, 7, 5),
    ]
    images, crops = noise(7, 48, 64, channels), crops_of(boxes, [False, True, True, False, True, True, True])
    result = cropped(images, crops, size)
    assert (result.shape, result.dtype) == ((7, channels, *size), torch.float32)
    assert result.is_contiguous()
    torch.testing.assert_close(result, interpolated(images, crops, size), rtol=0, atol=TOLERANCE)


@st.composite
def problems(draw):
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    boxes = []
    for _ in range(draw(st.integers(1, 3))):
        box_height, box_width = draw(st.integers(1, height)), draw(st.integers(1, width))
        top, left = draw(st.integers(0, height - box_height)), draw(st.integers(0, width - box_width))
        boxes.append((top, left, box_height, box_width))
    is_flipped = draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes)))
    size = draw(st.integers(1, 40)), draw(st.integers(2, 40))  # of one column torch (2.15) repeats the first float
    images = noise(len(boxes), height, width, draw(st.integers(1, 4)), draw(st.integers(0, 100)))
    return images.float() if draw(st.booleans()) else images, crops_of(boxes, is_flipped), size


@settings(max_examples=200, deadline=None)
@given(problems())
def test_any_box_of_any_image_is_torchs_interpolation(problem):
    images, crops, size = problem
    torch.testing.assert_close(cropped(images, crops, size), interpolated(images, crops, size), rtol=0, atol=TOLERANCE)


def test_a_box_of_the_results_size_is_its_pixels():
    images = noise(4, 40, 50)
    boxes = [(0, 0, 24, 32), (16, 18, 24, 32), (3, 7, 24, 32), (11, 1, 24, 32)]
    result = cropped(images, crops_of(boxes, [False, False, True, True]), (24, 32))
    for image, (top, left, _, _), is_flipped, pixels in zip(images, boxes, [0, 0, 1, 1], result, strict=True):
        wanted = image[top : top + 24, left : left + 32].permute(2, 0, 1).float()
        assert torch.equal(pixels, wanted.flip(-1) if is_flipped else wanted)


def test_what_lies_outside_the_box_is_not_seen():
    """Measured: 2.4e-7, of 1 within the box and a million around it."""
    images = torch.zeros(1, 40, 40, 1)
    images[:, 10:30, 5:20] = 1.0
    around = torch.where(images > 0, images, float(1 << 20))
    for size in ((9, 9), (50, 60)):
        result = cropped(around, crops_of([(10, 5, 20, 15)]), size)
        torch.testing.assert_close(result, torch.ones(1, 1, *size), rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [1, 17, 224, 300])
def test_weights_add_up_to_one(side):
    """So a surface of one colour keeps it. Measured: 1.8e-7, and of a surface of 201 7.6e-5."""
    weights = resize_weights(torch.tensor([0, 3, 100]), torch.tensor([256, 77, 1]), 256, side)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, side), rtol=0, atol=1e-6)
    result = cropped(torch.full((1, 256, 256, 3), 201, dtype=torch.uint8), crops_of([(3, 5, 199, 210)]), (side, side))
    torch.testing.assert_close(result, torch.full_like(result, 201.0), rtol=0, atol=2e-4)


def test_values_are_normalised_as_ever():
    """Measured: 3.1e-6, of values up to 10."""
    images, crops = noise(3, 40, 40), crops_of([(0, 0, 30, 30), (5, 5, 20, 20), (9, 1, 16, 12)])
    p = Preprocessing(
        channels=3, value_range=(3.0, 250.0), mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.1), image_size=(16, 12)
    )
    wanted = normalise(interpolated(images, crops, (16, 12)), p)
    torch.testing.assert_close(crop_and_normalise(images, crops, p), wanted, rtol=0, atol=2e-5)
    exact = normalise(images[2:, 9:25, 1:13].permute(0, 3, 1, 2), p)
    assert torch.equal(crop_and_normalise(images, crops, p)[2:], exact)


@pytest.mark.parametrize("kind", ["crop", "crop-fixed", "none"])
def test_the_difference_to_a_readers_crop_is_round_off(kind):
    """A reader's crop is rounded and clipped to 8 bits after each direction.

    Measured in grey levels, mean and largest, 96 px: photographs 0.27 and 3.0 (224 px: 0.25 and 4.1), noise 0.29 and 17
    (224 px: 0.36 and 24): at its edges bicubic weights overshoot, and what is clipped in between is lost.
    """
    size, augmentation = (96, 96), Augmentation(kind=kind)
    photos = open_source("embedded:photos")
    for name, largest in (("photographs", 6), ("noise", 40)):
        images = noise(8, 160, 160) if name == "noise" else torch.stack([photograph(photos, i) for i in range(8)])
        chance = np.random.default_rng(1).uniform(size=(8, 64))
        pairs = list(zip(images.numpy(), chance, strict=True))
        crops = crops_of(*zip(*[augmentation.crop(image, size, numbers) for image, numbers in pairs], strict=True))
        readers = torch.stack([augmentation(image, size, numbers, 0, (0, 255)) for image, numbers in pairs])
        difference = (cropped(images, crops, size) - readers).abs()
        assert difference.mean() < 0.5, name
        assert difference.max() < largest, name


def photograph(source, index):
    image = source.read(index)
    return resized_crop(image, (0, 0, *image.shape[:2]), (160, 160)).permute(1, 2, 0)


# --- a wrong box or flip must show in the tests above ---


@pytest.mark.parametrize(
    "wrong",
    [
        lambda boxes, is_flipped: (boxes + torch.tensor([1, 0, 0, 0]), is_flipped),
        lambda boxes, is_flipped: (boxes + torch.tensor([0, 1, 0, 0]), is_flipped),
        lambda boxes, is_flipped: (boxes + torch.tensor([0, 0, 1, 0]), is_flipped),
        lambda boxes, is_flipped: (boxes - torch.tensor([0, 0, 0, 1]), is_flipped),
        lambda boxes, is_flipped: (boxes[:, [1, 0, 3, 2]], is_flipped),
        lambda boxes, is_flipped: (boxes.flip(0), is_flipped),
        lambda boxes, is_flipped: (boxes, ~is_flipped),
    ],
    ids=["lower", "righter", "higher", "narrower", "transposed", "of another image", "flipped"],
)
def test_a_wrong_box_or_flip_shows(wrong):
    images, crops = noise(2, 40, 40), crops_of([(2, 9, 21, 17), (8, 4, 13, 30)], [True, False])
    other = Crops(*wrong(crops.boxes, crops.is_flipped))
    for size in ((12, 12), (30, 30)):
        wanted = interpolated(images, crops, size)
        assert ((cropped(images, other, size) - wanted).abs().flatten(1).mean(1) > 1000 * TOLERANCE).all()


# --- how it is computed ---


def test_many_images_are_taken_in_parts(monkeypatch):
    """Measured: the same bits, with one and two threads; a library may add in another order, by the size of a batch."""
    images, crops = noise(7, 20, 24), crops_of([(i, i, 10 + i, 9) for i in range(7)], [i % 2 == 0 for i in range(7)])
    whole = cropped(images, crops, (8, 8))
    for count in (1, 3):
        monkeypatch.setattr(device_crop, "VALUES_AT_ONCE", count * 20 * 24 * 3 + 5)
        torch.testing.assert_close(cropped(images, crops, (8, 8)), whole, rtol=0, atol=TOLERANCE / 10)
    monkeypatch.setattr(device_crop, "VALUES_AT_ONCE", 1)  # an image larger than that
    torch.testing.assert_close(cropped(images, crops, (8, 8)), whole, rtol=0, atol=TOLERANCE / 10)


def test_autocast_does_not_reach_it():
    images, crops = noise(2, 40, 40), crops_of([(0, 0, 30, 30), (5, 5, 20, 33)])
    with torch.autocast("cpu", torch.bfloat16):
        inside = cropped(images, crops, (16, 16))
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert torch.equal(inside, cropped(images, crops, (16, 16)))


@pytest.mark.slow  # capturing takes seconds
@pytest.mark.timeout(600)
def test_it_is_one_graph():
    """Nothing in it leaves the graph: no number is brought to Python, no shape depends on one."""
    images, crops = noise(3, 40, 40), crops_of([(0, 0, 30, 30), (5, 5, 20, 33), (1, 2, 3, 4)], [True, False, True])
    torch._dynamo.reset()
    captured = torch.compile(crop_and_normalise, backend="eager", fullgraph=True)
    assert torch.equal(captured(images, crops, as_raw((16, 12))), cropped(images, crops, (16, 12)))
    torch._dynamo.reset()


def test_a_batch_that_is_cropped_is_only_normalised():
    images, p = noise(2, 8, 8).permute(0, 3, 1, 2).contiguous(), as_raw((8, 8))
    assert torch.equal(model_input(Batch(images, torch.arange(2), {}), p, CPU), images.float())
    whole = Batch(noise(2, 8, 8), torch.arange(2), {}, None, crops_of([(0, 0, 8, 8)] * 2))
    assert torch.equal(model_input(whole, p, CPU), images.float())


def test_a_pinned_batch_has_all_its_tensors_pinned(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    batch = Batch(noise(2, 8, 8), torch.arange(2), {"a": "b"}, torch.arange(2), crops_of([(0, 0, 8, 8)] * 2))
    again = batch.pin_memory()
    assert again == batch
    assert {id(tensor) for tensor in pinned} == {
        id(tensor) for tensor in (batch.images, batch.keys, batch.labels, batch.crops.boxes, batch.crops.is_flipped)
    }


# --- the stream ---


class Memory:
    """A source of 23 images of one shape; those in `bad` cannot be read."""

    classes = None
    ignored = Ignored()

    def __init__(self, bad=frozenset(), dtype=np.uint8):
        self.bad, self.dtype = bad, dtype

    def __len__(self):
        return 23

    def name(self, index):
        return f"picture-{index}"

    def label(self, index):
        return index % 3

    def read(self, index):
        if index in self.bad:
            raise BadImage(f"broken {index}")
        image = noise(1, 20, 24, seed=index)[0].numpy().astype(self.dtype)
        image.flags.writeable = False  # as a pack's pages
        return image

    def fingerprint(self):
        return "memory"


SIZE = (8, 12)


def batches_of(source, crop_on_device, steps=6, kind="crop", crops=1, dtype="uint8", **changes):
    p = Preprocessing(channels=3, value_range=(0.0, 1.0), mean=(0.0,) * 3, std=(1.0,) * 3, image_size=SIZE, dtype=dtype)
    stream = Stream(source, p, Augmentation(kind=kind), 5, patch_size=4, crops_per_decode=crops,
                    crop_on_device=crop_on_device, with_labels=True)  # fmt: skip
    options = {
        "batch_size": 10,
        "micro_batch_size": 10,
        "workers": 0,
        "pin_memory": False,
        "share": range(10),
    } | changes
    return list(iterate_batches(training_loader(stream, steps=range(steps), **options)))


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        for name in ("images", "keys", "labels"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert torch.equal(one.crops.boxes, other.crops.boxes)
        assert torch.equal(one.crops.is_flipped, other.crops.is_flipped)
        assert one.bad == other.bad


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [frozenset(), frozenset({1, 2, 7})], ids=["readable", "some unreadable"])
@pytest.mark.parametrize(("kind", "crops"), [("crop", 1), ("crop", 5), ("crop-fixed", 1), ("none", 1)])
def test_samples_boxes_and_order_are_a_readers(kind, crops, bad):
    """Cut out afterwards by the reader's own function, the images are a reader's, bit for bit."""
    whole, readers = (
        batches_of(Memory(bad), crop_on_device, kind=kind, crops=crops) for crop_on_device in (True, False)
    )
    assert all(batch.crops is None for batch in readers)
    for one, other in zip(whole, readers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.labels, other.labels)
        assert one.bad == other.bad
        assert (one.images.shape, one.images.dtype) == ((10, 20, 24, 3), torch.uint8)
        of_each = zip(
            one.images.numpy(), one.crops.boxes.tolist(), one.crops.is_flipped.tolist(), other.images, strict=True
        )
        for image, box, is_flipped, wanted in of_each:
            cut = resized_crop(image, tuple(box), SIZE)
            assert torch.equal(cut.flip(-1) if is_flipped else cut, wanted)
    flipped = torch.cat([batch.crops.is_flipped for batch in whole]).float().mean()
    assert flipped == 0 if kind == "none" else 0.2 < flipped < 0.8


@pytest.mark.parametrize("crops", [1, 5])
def test_workers_and_micro_batches_change_nothing(crops):
    alone = batches_of(Memory({3}), True, crops=crops)
    assert_equal(batches_of(Memory({3}), True, crops=crops, workers=2), alone)
    parts = batches_of(Memory({3}), True, crops=crops, micro_batch_size=4)
    shares = [batches_of(Memory({3}), True, crops=crops, share=share) for share in (range(4), range(4, 10))]
    for step, batch in enumerate(alone):
        for some in (parts[3 * step : 3 * step + 3], [share[step] for share in shares]):
            assert torch.equal(torch.cat([part.images for part in some]), batch.images)
            assert torch.equal(torch.cat([part.crops.boxes for part in some]), batch.crops.boxes)
            assert torch.equal(torch.cat([part.crops.is_flipped for part in some]), batch.crops.is_flipped)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_deep_images_need_no_rounding(dtype):
    """Both ways compute in float32 then. Measured: 1.1e-4 of 255."""
    whole, readers = (batches_of(Memory(dtype=dtype), crop_on_device, dtype=dtype) for crop_on_device in (True, False))
    for one, other in zip(whole, readers, strict=True):
        assert one.images.dtype == torch.float32
        torch.testing.assert_close(model_input(one, as_raw(SIZE), CPU), other.images, rtol=0, atol=TOLERANCE)


def test_what_goes_on_after_the_crop_stays_in_the_reader():
    assert all(Augmentation(kind=kind).only_crops for kind in ("crop", "crop-fixed", "none"))
    for augmentation in (Augmentation(kind="crop-jitter"), Augmentation(rand_augment="rand-m9")):
        assert not augmentation.only_crops
        with pytest.raises(AssertionError):
            Stream(Memory(), as_raw(SIZE), augmentation, 0, 4, crop_on_device=True)


def test_a_raw_pack_is_known_by_its_shape(tmp_path):
    """Also where a part of it is held out; read from the file, it needs no copy before the batch."""
    (tmp_path / "files").mkdir()
    for i, image in enumerate(noise(6, 32, 32).numpy()):
        Image.fromarray(image).save(tmp_path / "files" / f"{i}.png")
    for form in ("raw", "jpeg"):
        pack(PackConfig(data=str(tmp_path / "files"), out=str(tmp_path / form), format=form, workers=0))
    source = open_source(str(tmp_path / "raw"))
    rest, held_out = split_held_out(source, 2)
    assert raw_shape(source) == raw_shape(rest) == raw_shape(held_out) == survey(rest).raw_shape == (32, 32, 3)
    jpegs = open_source(str(tmp_path / "jpeg"))
    assert raw_shape(jpegs) is raw_shape(open_source("embedded:digits")) is survey(jpegs).raw_shape is None
    stream = Stream(rest, as_raw(SIZE), Augmentation(), 0, 4, crop_on_device=True)
    samples = stream.__getitems__(range(4))
    assert all(np.shares_memory(sample.image, source._open_map()) for sample in samples)
    assert collate(samples).images.shape == (4, 32, 32, 3)
