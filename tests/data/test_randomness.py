"""Order and chance are pure functions of integers, look random, and never change from one release to the next."""

import itertools
import multiprocessing
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms import RandomResizedCrop

from openmae.config import AUGMENTS, Preprocessing
from openmae.data.augment import (
    CROP_ATTEMPTS,
    NUM_UNIFORMS,
    Augmentation,
    centre_box,
    fixed_size_box,
    random_size_box,
    resized_crop,
)
from openmae.data.batch import Batch
from openmae.data.decoding.decode import BadImage
from openmae.data.evaluation_loader import read_all
from openmae.data.loader import Stream, training_loader
from openmae.data.randomness import Permutation, hash_ints, sample_keys, seeded_global_rng, seeds, uniforms
from openmae.data.readers import iterate_batches
from openmae.data.sources.open import Ignored
from openmae.data.sources.views import split_held_out
from openmae.errors import RequestError

MANY = settings(max_examples=200)
KEYS = st.integers(0, 2**63 - 1)

# --- permutations ------------------------------------------------------------------------------------------------


@MANY
@given(st.integers(1, 3000), st.lists(KEYS, min_size=1, max_size=3))
def test_a_permutation_takes_every_value_once(size: int, key: list[int]):
    permutation = Permutation(size, *key)
    values = permutation(np.arange(size))
    assert values.dtype == np.int64
    assert np.array_equal(np.sort(values), np.arange(size))
    backwards = np.arange(size)[::-1]  # one at a time, in another order, by an equal object: the same
    assert np.array_equal(Permutation(size, *key)(backwards), values[::-1])
    assert permutation(size - 1)[0] == values[-1]


@MANY
@given(st.integers(50, 3000), KEYS, KEYS)
def test_a_permutation_depends_on_every_part_of_its_key(size: int, first: int, second: int):
    values = [
        Permutation(size, *key)(np.arange(size)) for key in ((first, second), (first, second + 1), (first + 1, second))
    ]
    for one, other in itertools.combinations(values, 2):
        assert (one == other).mean() < 0.3  # on average one value in `size` stays where it is


def test_a_permutation_of_nothing_and_a_position_beyond():
    assert Permutation(5, 0)([]).shape == (0,)
    with pytest.raises(AssertionError):
        Permutation(5, 0)([5])


def chi_square(counts: NDArray, expected: float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_orders_of_a_few_are_equally_likely(size: int):
    """Chi-square below its 99.9 % point."""
    keys = 4800
    orders = Counter(tuple(Permutation(size, 0, epoch)(np.arange(size)).tolist()) for epoch in range(keys))
    possible = {2: 2, 3: 6, 4: 24}[size]
    assert len(orders) == possible
    assert chi_square(np.array(list(orders.values())), keys / possible) < {2: 10.8, 3: 20.5, 4: 49.7}[size]


@pytest.mark.parametrize("size", [10, 37, 64])
def test_any_value_may_come_at_any_place(size: int):
    keys = 2000
    values = np.stack([Permutation(size, seed, 0)(np.arange(size)) for seed in range(keys)])
    bound = size - 1 + 4.5 * (2 * (size - 1)) ** 0.5  # mean and deviations of chi-square
    for place in (0, 1, size // 2, size - 1):
        assert chi_square(np.bincount(values[:, place], minlength=size), keys / size) < bound
    # Nor do neighbours know each other: their difference takes each value but 0 equally often.
    steps = np.bincount((values[:, 1] - values[:, 0]) % size, minlength=size)
    assert steps[0] == 0
    assert chi_square(steps[1:], keys / (size - 1)) < bound


def test_a_long_permutation_has_no_pattern():
    size = 20_000
    values = Permutation(size, 1, 2)(np.arange(size))
    places = np.arange(size)
    assert abs(np.corrcoef(places, values)[0, 1]) < 4 / size**0.5
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 4 / size**0.5
    assert abs((np.diff(values) > 0).mean() - 0.5) < 0.02
    assert (values == places).sum() < 8
    halves = values[: size // 2]
    assert abs((halves < size // 2).mean() - 0.5) < 0.02
    assert abs((halves % 2).mean() - 0.5) < 0.02
    for epoch in (0, 1, 3):
        other = Permutation(size, 1, epoch)(np.arange(size))
        assert abs(np.corrcoef(other, values)[0, 1]) < 4 / size**0.5


# --- uniform numbers ---------------------------------------------------------------------------------------------


@MANY
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8), st.integers(1, 60))
def test_uniforms_of_many_keys_are_those_of_each(keys: list[int], count: int):
    numbers = uniforms(np.array(keys), count, "augment")
    assert numbers.shape == (len(keys), count)
    assert numbers.dtype == np.float64
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for key, row in zip(keys, numbers, strict=True):
        assert np.array_equal(uniforms(key, count, "augment"), row[None])
    # Asking for fewer gives the first of them.
    assert np.array_equal(uniforms(np.array(keys), 1, "augment"), numbers[:, :1])
    assert not np.isin(uniforms(np.array(keys), count, "mask"), numbers).any()


@MANY
@given(KEYS, st.lists(st.integers(0, 2**40), min_size=1, max_size=6), st.integers(0, 10**6))
def test_keys_of_many_samples_are_those_of_each(seed: int, indices: list[int], epoch: int):
    keys = sample_keys(seed, epoch, np.array(indices))
    assert keys.dtype == np.int64
    assert [int(sample_keys(seed, epoch, i)[0]) for i in indices] == keys.tolist()
    assert np.array_equal(sample_keys(seed, [epoch] * len(indices), indices), keys)


def test_uniforms_are_uniform_and_independent():
    keys = sample_keys(3, np.repeat(np.arange(10), 500), np.tile(np.arange(500), 10))
    crop, mask = uniforms(keys, 20, "augment"), uniforms(keys, 20, "mask")
    count = crop.size
    for numbers in (crop, mask):
        assert abs(numbers.mean() - 0.5) < 4 * (1 / 12 / count) ** 0.5
        assert abs(numbers.var() - 1 / 12) < 4 * (1 / 180 / count) ** 0.5
        assert chi_square(np.histogram(numbers, 50, (0, 1))[0], count / 50) < 49 + 4.5 * 98**0.5
        lowest_bits = (numbers * 2**53).astype(np.int64) & 1
        assert abs(lowest_bits.mean() - 0.5) < 4 * 0.5 / count**0.5
    # Between places, between streams, and between neighbouring samples.
    correlations = np.corrcoef(np.concatenate([crop, mask], axis=1).T)
    assert np.abs(correlations - np.eye(40)).max() < 5 / len(keys) ** 0.5
    assert abs(np.corrcoef(crop[:-1].ravel(), crop[1:].ravel())[0, 1]) < 4 / count**0.5


def test_no_two_samples_share_a_key():
    seeds, epochs, indices = np.meshgrid(np.arange(5), np.arange(20), np.arange(2000))
    keys = hash_ints(seeds.ravel(), epochs.ravel(), indices.ravel())
    assert len(np.unique(keys)) == keys.size


def test_golden_values():
    """These may never change: an interrupted run would go on with other images, other crops and other masks."""
    assert hash_ints(0).tolist() == [16294208416658607535]
    assert hash_ints(1, 2, 3).tolist() == [15020427595393229491]
    assert hash_ints(2**63 - 1).tolist() == [3055647633038352039]
    assert sample_keys(0, 0, [0, 1, 2]).tolist() == [2558736989570252433, 3400964856525257824, -5581002065636601042]
    assert sample_keys(7, 3, 123).tolist() == [7724957168462271598]
    key = sample_keys(0, 0, 0)
    assert uniforms(key, 3, "augment")[0].tolist() == [0.41755746095737145, 0.8570777977339636, 0.973057027560963]
    assert seeds(key, "rand-augment").tolist() == [11190155534739568717]
    assert [uniforms(key, 1, name)[0, 0] for name in ("rand-augment", "erase", "drop-path", "mix")] == [
        0.6125270040458656,
        0.13054331590404655,
        0.031343561862059444,
        0.36817629986493927,
    ]
    with seeded_global_rng(int(key[0]), "mix"):
        assert (random.random(), np.random.rand()) == (0.3090307851704319, 0.3090307851704319)
    assert uniforms(key, 3, "mask")[0].tolist() == [0.8287264069146568, 0.7350740365577708, 0.1533196996501236]
    assert Permutation(10, 0, 0)(range(10)).tolist() == [3, 8, 0, 6, 7, 5, 2, 9, 4, 1]
    assert Permutation(1000, 1, 2, 3)([0, 1, 2, 999]).tolist() == [37, 122, 362, 852]
    assert Permutation(1_281_167, 0, 0)([0, 1, 1_281_166]).tolist() == [1088974, 458497, 818862]


# --- the stream and its loader -----------------------------------------------------------------------------------

SIZE = 23
PREPROCESSING = Preprocessing(
    channels=3, value_range=(0.0, 255.0), mean=(0.5,) * 3, std=(0.25,) * 3, image_size=(8, 12)
)


class Memory:
    """A source of `size` small pictures; those in `bad` cannot be read. Each says its index in its first channel."""

    classes = None
    ignored = Ignored()

    def __init__(self, size: int = SIZE, bad: frozenset[int] = frozenset()) -> None:
        self.size, self.bad = size, bad

    def __len__(self) -> int:
        return self.size

    def name(self, index: int) -> str:
        return f"picture-{index}"

    def label(self, index: int) -> int | None:
        return None

    def read(self, index: int) -> NDArray[np.uint8]:
        assert 0 <= index < self.size
        if index in self.bad:
            raise BadImage(f"broken {index}")
        image = np.random.default_rng(index).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        image[..., 0] = index
        return image

    def fingerprint(self) -> str:
        return f"memory-{self.size}"


def batches_of(source: Memory, first: int, last: int, *, seed: int = 5, kind: str = "crop", **changes) -> list[Batch]:
    crops = changes.pop("crops_per_decode", 1)
    stream = Stream(source, PREPROCESSING, Augmentation(kind=kind), seed, patch_size=4, crops_per_decode=crops)
    settings = {"batch_size": 10, "micro_batch_size": 10, "workers": 0, "pin_memory": False} | changes
    settings.setdefault("share", range(settings["batch_size"]))
    return list(iterate_batches(training_loader(stream, steps=range(first, last), **settings)))


def indices_in(batches: list[Batch]) -> list[int]:
    """Which images these are, as their first channel says."""
    return [int(image[0, 0, 0]) for batch in batches for image in batch.images]


def assert_equal(some: list[Batch], others: list[Batch]) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.keys, other.keys)
        assert one.bad == other.bad


def test_batches_are_full_and_cross_epochs():
    batches = batches_of(Memory(), 0, 3 * SIZE // 10 + 1)
    for batch in batches:
        assert batch.images.shape == (10, 3, 8, 12)
        assert batch.images.dtype == torch.uint8
        assert batch.keys.shape == (10,)
        assert batch.keys.dtype == torch.int64
        assert batch.bad == {}
    seen = indices_in(batches)
    orders = [seen[epoch * SIZE : (epoch + 1) * SIZE] for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(SIZE))  # each image once in an epoch
    assert orders[0] != orders[1] != orders[2] != list(range(SIZE))
    for epoch, order in enumerate(orders):
        keys = torch.cat([batch.keys for batch in batches])[epoch * SIZE : (epoch + 1) * SIZE]
        assert keys.tolist() == sample_keys(5, epoch, order).tolist()


def test_a_batch_may_be_larger_than_the_data():
    seen = indices_in(batches_of(Memory(3), 0, 2))
    assert len(seen) == 20
    assert all(sorted(seen[i : i + 3]) == [0, 1, 2] for i in range(0, 18, 3))


@pytest.mark.parametrize("bad", [frozenset(), frozenset({1, 2, 7})], ids=["readable", "some unreadable"])
def test_workers_change_nothing(bad: frozenset[int]):
    alone = batches_of(Memory(bad=bad), 0, 6)
    assert_equal(batches_of(Memory(bad=bad), 0, 6, workers=2), alone)


def test_going_on_gives_the_tail():
    whole = batches_of(Memory(), 0, 8)
    assert_equal(batches_of(Memory(), 5, 8), whole[5:])
    assert batches_of(Memory(), 8, 8) == []


def test_small_parts_of_a_batch_make_the_batch():
    whole, parts = batches_of(Memory(), 2, 5), batches_of(Memory(), 2, 5, micro_batch_size=5)
    assert len(parts) == 2 * len(whole)
    for i, batch in enumerate(whole):
        assert torch.equal(torch.cat([part.images for part in parts[2 * i : 2 * i + 2]]), batch.images)
        assert torch.equal(torch.cat([part.keys for part in parts[2 * i : 2 * i + 2]]), batch.keys)


class Counting(Memory):
    """Counts how often it is read."""

    reads = 0

    def read(self, index: int) -> NDArray[np.uint8]:
        self.reads += 1
        return super().read(index)


@pytest.mark.parametrize("crops", [2, 5])
def test_crops_of_a_decode_differ_and_it_is_decoded_once(crops: int):
    source = Counting()
    batches = batches_of(source, 0, SIZE * crops // 10, crops_per_decode=crops)
    seen, keys = indices_in(batches), torch.cat([batch.keys for batch in batches]).tolist()
    images = torch.cat([batch.images for batch in batches])
    groups = [range(start, start + crops) for start in range(0, len(seen) - crops + 1, crops)]
    assert source.reads == -(-len(seen) // crops)
    for group in groups:
        assert len({seen[i] for i in group}) == 1
        assert len({keys[i] for i in group}) == crops
        assert len({images[i].numpy().tobytes() for i in group}) == crops
    # The order of the groups is that of the images without this option, and a group's first crop is that image's.
    plain = batches_of(Memory(), 0, len(groups) // 10 + 1)
    assert [seen[group.start] for group in groups] == indices_in(plain)[: len(groups)]
    first = torch.cat([batch.images for batch in plain])[: len(groups)]
    assert torch.equal(images[[group.start for group in groups]], first)
    assert len(set(keys)) == len(keys)


def test_in_as_many_epochs_as_crops_each_image_is_decoded_once():
    """An epoch stays as many crops as there are images: K of them see each image K times."""
    seen = indices_in(batches_of(Memory(20), 0, 3 * 20 // 10, crops_per_decode=3))
    assert sorted(seen) == sorted(list(range(20)) * 3)


@pytest.mark.parametrize("bad", [frozenset(), frozenset({1, 2, 7})], ids=["readable", "some unreadable"])
def test_workers_parts_and_processes_change_nothing_with_several_crops(bad: frozenset[int]):
    alone = batches_of(Memory(bad=bad), 0, 6, crops_per_decode=5)
    assert_equal(batches_of(Memory(bad=bad), 0, 6, crops_per_decode=5, workers=2), alone)
    assert_equal(batches_of(Memory(bad=bad), 4, 6, crops_per_decode=5), alone[4:])
    settings = {"crops_per_decode": 5, "micro_batch_size": 3}  # parts that cut the crops of an image asunder
    shares = [batches_of(Memory(bad=bad), 0, 6, share=share, **settings) for share in (range(4), range(4, 10))]
    for step, batch in enumerate(alone):
        parts = [part for i, share in enumerate(shares) for part in share[2 * step : 2 * step + 2]]
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.keys for part in parts]), batch.keys)


def test_seeds_and_epochs_crop_and_order_differently():
    one, other = batches_of(Memory(), 0, 3), batches_of(Memory(), 0, 3, seed=6)
    assert indices_in(one) != indices_in(other)
    single = [batch.images[0] for batch in batches_of(Memory(1), 0, 4, batch_size=1, micro_batch_size=1)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(single, 2))


def test_unreadable_images_are_replaced_by_the_next_readable_one():
    bad = frozenset({3, 4, SIZE - 1})
    batches = batches_of(Memory(bad=bad), 0, 5)  # 50 samples: two epochs and a little
    expected = [i for epoch in (0, 1) for i in Permutation(SIZE, 5, epoch)(np.arange(SIZE)).tolist()]
    seen = indices_in(batches)[: 2 * SIZE]
    assert seen == [{3: 5, 4: 5, SIZE - 1: 0}.get(i, i) for i in expected]
    # The key is the place's, so that nothing else changes with a repaired file.
    keys = torch.cat([batch.keys for batch in batches])[:SIZE].tolist()
    assert keys == sample_keys(5, 0, expected[:SIZE]).tolist()
    named = {name: reason for batch in batches for name, reason in batch.bad.items()}
    assert named == {f"picture-{i}": f"broken {i}" for i in bad}
    for s, batch in enumerate(batches[:4]):  # named in the batch where it happened
        places = expected[s * 10 : (s + 1) * 10]
        reached = {i for i in bad if i in places} | ({4} if 3 in places else set())
        assert batch.bad == {f"picture-{i}": f"broken {i}" for i in reached}
    good = batches_of(Memory(), 0, 5)
    is_same = torch.tensor([i not in bad for i in expected[:10]])
    assert torch.equal(batches[0].images[is_same], good[0].images[is_same])


def test_images_that_do_not_fit_are_bad_too():
    """Refused for their channels or size, not only for their bytes."""
    stream = Stream(Memory(), PREPROCESSING, Augmentation(kind="crop"), 0, patch_size=17)
    with pytest.raises(RequestError, match="16x20 px, smaller than a patch of 17 px"):
        stream[0]


def test_nothing_readable_is_a_wrong_request():
    bad = frozenset(range(SIZE))
    with pytest.raises(
        RequestError, match=rf"^{SIZE} images in a row cannot be read, the first 'picture-\d+': broken \d+$"
    ):
        batches_of(Memory(bad=bad), 0, 2)


@pytest.mark.slow
def test_nothing_readable_is_a_wrong_request_through_workers_too():
    """In a program of its own, because what goes wrong goes wrong later and elsewhere."""
    program = """
import time
from openmae.errors import RequestError
from tests.data.test_randomness import SIZE, Memory, batches_of
try:
    batches_of(Memory(bad=frozenset(range(SIZE))), 0, 20, workers=2)
except RequestError as error:
    time.sleep(1)
    print("refused:", "images in a row cannot be read" in str(error))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout == "refused: True\n", done.stderr


def test_readers_are_gone_when_reading_is_over():
    loader = training_loader(
        Stream(Memory(), PREPROCESSING, Augmentation(kind="crop"), 0, patch_size=4),
        steps=range(1000),
        batch_size=4,
        share=range(4),
        micro_batch_size=4,
        workers=2,
        pin_memory=False,
    )
    batches = iterate_batches(loader)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


def test_a_held_out_part_is_disjoint_and_fixed():
    rest, held_out = split_held_out(Memory(), 5)
    names = [{part.name(i) for i in range(len(part))} for part in (rest, held_out)]
    assert (len(rest), len(held_out)) == (len(names[0]), len(names[1])) == (SIZE - 5, 5)
    assert not names[0] & names[1]
    again = split_held_out(Memory(), 5)[1]
    assert [again.name(i) for i in range(5)] == [held_out.name(i) for i in range(5)]
    assert rest.fingerprint() != held_out.fingerprint() != Memory().fingerprint()
    assert rest.read(2)[0, 0, 0] == int(rest.name(2).split("-")[1])


def test_reading_all_leaves_out_and_names_what_is_bad():
    found = read_all(Memory(bad=frozenset({0, 9})), PREPROCESSING, patch_size=4)
    assert found.indices.tolist() == [i for i in range(SIZE) if i not in (0, 9)]
    assert found.images[:, 0, 0, 0].tolist() == found.indices.tolist()
    assert found.bad == {"picture-0": "broken 0", "picture-9": "broken 9"}
    found = read_all(Memory(3, bad=frozenset(range(3))), PREPROCESSING, patch_size=4)
    assert found.images.shape == (0, 3, 8, 12)
    assert len(found.indices) == 0
    assert len(found.bad) == 3


# --- crops -------------------------------------------------------------------------------------------------------

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)  # of pre-training (docs/paper.md)
SIDE = st.integers(1, 400)
CHANCE = st.floats(0, 1, exclude_max=True)


def is_inside(box: tuple[int, int, int, int], height: int, width: int) -> bool:
    top, left, box_height, box_width = box
    assert all(isinstance(value, int) for value in box)
    return 0 <= top <= top + box_height <= height and 0 <= left <= left + box_width <= width and min(box[2:]) > 0


@MANY
@given(SIDE, SIDE, SIDE, SIDE, KEYS)
def test_boxes_lie_within_the_image(height: int, width: int, rows: int, columns: int, key: int):
    chance = uniforms(key, 4 * CROP_ATTEMPTS, "augment").reshape(CROP_ATTEMPTS, 4)
    assert is_inside(random_size_box(height, width, SCALE, chance), height, width)
    fixed, centred = (
        fixed_size_box(height, width, (rows, columns), *chance[0, :2]),
        centre_box(np.empty((height, width, 1), np.uint8), (rows, columns)),
    )
    assert is_inside(fixed, height, width)
    assert is_inside(centred, height, width)
    # The largest centred box of that aspect fills one side and is as far from both ends of the other.
    assert centred[2] == height or centred[3] == width
    assert abs(centred[0] - (height - centred[2] - centred[0])) <= 1
    assert abs(centred[1] - (width - centred[3] - centred[1])) <= 1


@MANY
@given(st.integers(100, 800), st.integers(100, 800), st.lists(CHANCE, min_size=4, max_size=4))
def test_the_first_box_that_fits_has_the_area_and_aspect_drawn(height: int, width: int, chance: list[float]):
    top, left, box_height, box_width = random_size_box(height, width, SCALE, np.array([chance]))
    area = SCALE[0] + chance[0] * (SCALE[1] - SCALE[0])
    ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** chance[1]
    if (area * height * width * ratio) ** 0.5 <= width - 1 and (area * height * width / ratio) ** 0.5 <= height - 1:
        rounding = 1 / min(box_height, box_width) + 1e-9  # half a pixel on each of two sides
        assert box_height * box_width / (height * width) == pytest.approx(area, rel=rounding)
        assert box_width / box_height == pytest.approx(ratio, rel=rounding)
        assert top == int(chance[2] * (height - box_height + 1))
        assert left == int(chance[3] * (width - box_width + 1))


@pytest.mark.parametrize(("height", "width"), [(375, 500), (300, 300), (600, 200), (40, 1000)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int):
    """Means of area, log aspect, centre and their spread over 5,000 draws. (40, 1000) needs the fallback always."""
    draws = 5000
    chances = uniforms(np.arange(draws), 4 * CROP_ATTEMPTS, "augment").reshape(draws, CROP_ATTEMPTS, 4)
    ours = np.array([random_size_box(height, width, SCALE, chance) for chance in chances], dtype=float)
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(draws)], dtype=float
    )
    for name, of in {
        "area": lambda b: b[:, 2] * b[:, 3] / (height * width),
        "aspect": lambda b: np.log(b[:, 3] / b[:, 2]),
        "top": lambda b: b[:, 0] / height,
        "left": lambda b: b[:, 1] / width,
    }.items():
        mine, other = of(ours), of(theirs)
        error = 5 * (2 / draws) ** 0.5 * max(float(other.std()), 1e-3)
        assert abs(mine.mean() - other.mean()) < error, name
        assert mine.std() == pytest.approx(other.std(), rel=0.05, abs=1e-9), name


def test_a_fixed_box_sees_seven_eighths():
    """A crop of 224 from a short side of 256, anywhere."""
    boxes = np.array([fixed_size_box(256, 341, (224, 224), *uniforms(k, 2, "augment")[0]) for k in range(2000)])
    assert (boxes[:, 2:] == 224).all()
    assert (boxes[:, :2].min(0) == 0).all()
    assert (boxes[:, :2].max(0) == (256 - 224, 341 - 224)).all()
    assert abs(boxes[:, 0].mean() - 16) < 1


BYTES = (0.0, 255.0)


def augment(image: NDArray, kind: str, size: tuple[int, int], chance: NDArray, value_range=BYTES) -> torch.Tensor:
    return Augmentation(kind=kind)(image, size, chance, 0, value_range)


@pytest.mark.parametrize("kind", [kind for kind in AUGMENTS if kind != "none"])
def test_half_of_the_images_are_flipped(kind: str):
    """Whatever the box: flips and boxes must not know each other."""
    draws = 1000
    ramp = np.repeat(np.linspace(40, 200, 32).astype(np.uint8)[None, :, None], 24, axis=0)
    is_flipped, tops = [], []
    for chance in uniforms(np.arange(draws), NUM_UNIFORMS, "augment"):
        row = augment(ramp, kind, (6, 8), chance)[0, 0].float()
        is_flipped.append(bool(row[-1] < row[0]))
        tops.append(random_size_box(24, 32, SCALE, chance[: 4 * CROP_ATTEMPTS].reshape(CROP_ATTEMPTS, 4))[0])
    assert abs(np.mean(is_flipped) - 0.5) < 4 * 0.5 / draws**0.5
    assert abs(np.corrcoef(is_flipped, tops)[0, 1]) < 4 / draws**0.5


def test_none_takes_the_centre_and_no_chance():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    first, second = (augment(image, "none", (20, 20), np.full(NUM_UNIFORMS, c)) for c in (0.0, 0.9))
    assert torch.equal(first, second)
    assert torch.equal(first, torch.from_numpy(image[:, 5:25]).permute(2, 0, 1))


def test_a_crop_shows_its_box():
    """Without resizing, the pixels of the box and no others."""
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 2), dtype=np.uint8)
    assert torch.equal(resized_crop(image, (3, 4, 5, 6), (5, 6)), torch.from_numpy(image[3:8, 4:10]).permute(2, 0, 1))
    flat = np.full((20, 30, 1), 77, dtype=np.uint8)
    assert (resized_crop(flat, (0, 0, 13, 17), (32, 8)) == 77).all()


@pytest.mark.parametrize("kind", AUGMENTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_every_augmentation_works_for_every_kind_of_image(kind: str, dtype: type, channels: int):
    """16-bit images arrive as float32 with their raw values: no augmentation may press them into 0..1."""
    largest = 255 if dtype is np.uint8 else 60_000
    image = (np.random.default_rng(0).random((24, 32, channels)) * largest).astype(dtype)
    for chance in uniforms(range(8), NUM_UNIFORMS, "augment"):
        result = augment(image, kind, (10, 14), chance, (0.0, float(largest)))
        assert result.shape == (channels, 10, 14)
        assert result.dtype == (torch.uint8 if dtype is np.uint8 else torch.float32)
        assert result.isfinite().all()
        assert result.float().std() > largest / 50
        assert torch.equal(result, augment(image, kind, (10, 14), chance, (0.0, float(largest))))


def test_jitter_changes_colours_and_nothing_else():
    image = np.random.default_rng(0).integers(60, 190, (24, 32, 3), dtype=np.uint8)
    chance = uniforms(4, NUM_UNIFORMS, "augment")[0]
    plain, jittered = (augment(image, kind, (12, 16), chance) for kind in ("crop", "crop-jitter"))
    assert not torch.equal(plain, jittered)
    middle = chance.copy()
    middle[-4:] = 0.5  # no strength at all
    assert (augment(image, "crop-jitter", (12, 16), middle).int() - plain.int()).abs().max() <= 2
