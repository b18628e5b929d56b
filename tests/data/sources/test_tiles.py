"""Tiles: they cover their image, lie within it, are of one shape, and are named, labelled and read as promised."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openmae.config import Preprocessing
from openmae.data.augment import Augmentation
from openmae.data.decoding.decode import BadImage
from openmae.data.evaluation_loader import read_all
from openmae.data.loader import Stream, collate
from openmae.data.preprocess import survey
from openmae.data.sources.open import open_source
from openmae.data.sources.sizes import cut_into_tiles, sizes_of
from openmae.data.sources.tiles import Tiled, count_blank, is_blank, span, tiles_along
from openmae.data.sources.views import IndexedSubset, raw_shape, split_by_image, tile_image_ids
from openmae.errors import RequestError


class Arrays:
    """Images in memory; `read` counts how often each was decoded, and None is one that cannot be."""

    def __init__(self, *images):
        self.images, self.classes, self.ignored = images, None, None
        self.reads = [0] * len(images)

    def __len__(self):
        return len(self.images)

    def name(self, index):
        return f"{index}.png"

    def label(self, index):
        return index % 2

    def read(self, index):
        self.reads[index] += 1
        if self.images[index] is None:
            raise BadImage("broken")
        return self.images[index]

    def fingerprint(self):
        return "arrays"


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def tiled(size, *images):
    source = Arrays(*images)
    sizes = [image.shape[:2] if image is not None else (0, 0) for image in images]
    return Tiled(source, size, np.array(sizes, np.int32))


sides = st.integers(1, 60)


@given(height=sides, width=sides, size=st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_tiles_cover_their_image_lie_within_it_and_are_equal(height, width, size):
    image = np.arange(height * width).reshape(height, width, 1).astype(np.float32)
    source = tiled(size, image)
    tiles = [source.read(i) for i in range(len(source))]
    assert {tile.shape for tile in tiles} == {(min(size, height), min(size, width), 1)}
    assert {int(value) for tile in tiles for value in tile.flat} == set(range(height * width))
    assert len(tiles) == -(-height // size) * -(-width // size)
    rows, columns = tiles_along(np.array([height, width]), size).tolist()
    assert [source.locate(i)[1:] for i in range(len(source))] == [(r, c) for r in range(rows) for c in range(columns)]
    for length, count in ((height, rows), (width, columns)):
        spans = [span(length, size, number) for number in range(count)]
        assert spans[0][0] == 0
        assert spans[-1][0] + spans[-1][1] == length
        starts = [start for start, _ in spans]
        assert starts == sorted(set(starts))
        assert all(start >= 0 for start in starts)
        assert starts[:-1] == [number * size for number in range(count - 1)]  # the last alone shifts inward


def test_names_labels_and_places():
    source = tiled(10, noise(10, 10), noise(25, 14), noise(4, 30))
    names = [source.name(i) for i in range(len(source))]
    assert names == [
        "0.png",
        *(f"1.png#{row},{column}" for row in range(3) for column in range(2)),
        *(f"2.png#0,{column}" for column in range(3)),
    ]
    assert [source.label(i) for i in range(len(source))] == [0] + [1] * 6 + [0] * 3
    assert source.image_numbers.tolist() == [0] + [1] * 6 + [2] * 3
    assert source.num_cut == 2
    image = source.source.images[1]
    assert np.array_equal(source.read(1), image[:10, :10])
    assert np.array_equal(source.read(6), image[15:25, 4:14])  # the last row and column, shifted inward
    assert source.read(9).shape == (4, 10, 3)  # only one side is larger
    for outside in (-1, 10):
        with pytest.raises(IndexError):
            source.read(outside)


def test_tiles_read_in_order_decode_each_image_once_and_keep_one():
    source = tiled(10, noise(30, 30), noise(20, 20), noise(5, 5))
    for i in range(len(source) - 1):
        source.read(i)
    assert source.source.reads == [1, 1, 0]
    assert source._cached is not None
    assert source._cached[0] == 1
    assert pickle.loads(pickle.dumps(source))._cached is None
    assert source.read(0).base is None  # a tile alone does not hold the whole image in memory


def test_an_image_that_is_not_as_counted_is_bad():
    source = tiled(10, noise(30, 30))
    source.source.images = (noise(30, 31),)
    with pytest.raises(BadImage, match="30 x 31 px, its tiles were counted for 30 x 30"):
        source.read(0)


def test_the_fingerprint_covers_the_tiles():
    images = noise(30, 30), noise(20, 20)
    prints = {tiled(10, *images).fingerprint(), tiled(9, *images).fingerprint(), tiled(10, *images[::-1]).fingerprint()}
    assert len(prints) == 3
    assert tiled(10, *images).fingerprint() == tiled(10, *images).fingerprint()


def test_sizes_come_from_headers_whatever_the_source(tmp_path):
    (tmp_path / "images").mkdir()
    shapes = [(30, 40), (8, 8), (50, 9)]
    for i, (height, width) in enumerate(shapes):
        Image.fromarray(noise(height, width)).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "3.png").write_bytes(b"no image")
    rows = [{"bytes": (tmp_path / "images" / f"{i}.png").read_bytes(), "path": None} for i in range(4)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "table.parquet")
    for name in ("images", "table.parquet"):
        source = open_source(str(tmp_path / name))
        assert sizes_of(source).tolist() == [*map(list, shapes), [0, 0]]
    cut = cut_into_tiles(open_source(str(tmp_path / "images")), 20, "images")
    assert [cut.name(i) for i in (0, 3, 4, 7, 8)] == ["0.png#0,0", "0.png#1,1", "1.png", "2.png#2,0", "3.png"]
    assert len(cut) == 9
    with pytest.raises(BadImage, match="not an image"):
        cut.read(8)


@pytest.mark.parametrize(
    ("tile", "expected"),
    [
        (np.full((40, 40, 3), 255, np.uint8), True),
        (np.tile(np.array([1, 2, 3], np.uint8), (40, 40, 1)), True),  # one colour
        (np.full((40, 40, 1), np.nan, np.float32), True),
        (np.full((5, 5, 1), -9999, np.float32), True),
        (noise(40, 40), False),
    ],
)
def test_what_is_blank(tile, expected):
    assert is_blank(tile) == expected


@given(row=st.integers(0, 39), column=st.integers(0, 39), channel=st.integers(0, 2))
def test_one_value_makes_a_tile_worth_reading(row, column, channel):
    tile = np.full((40, 40, 3), 7, np.uint8)
    tile[row, column, channel] += 1
    assert not is_blank(tile)
    floats = np.where(tile == 7, np.nan, tile).astype(np.float32)
    assert not is_blank(floats)


def test_blank_tiles_are_counted():
    image = np.full((25, 14, 3), 255, np.uint8)
    image[:10, :4] = noise(10, 4)
    assert count_blank(image, 10) == (6, 5)
    assert count_blank(image[:10, :4], 10) == (1, 0)


def stream(source, **options):
    preprocessing = Preprocessing(
        channels=3, value_range=(0.0, 255.0), mean=(0.5,) * 3, std=(0.5,) * 3, image_size=(8, 8)
    )
    return Stream(source, preprocessing, Augmentation(kind="none"), 0, 2, **options)


def half_blank(seed=0, size=40):
    image = noise(size, size, seed=seed)
    image[: size // 2] = 255
    return image


def test_a_blank_tile_is_replaced_by_another_of_its_image_always_the_same():
    source = tiled(10, noise(10, 10), half_blank(), noise(10, 10, seed=2))
    reader = stream(source, with_labels=True)
    found = [reader._read(i) for i in range(len(source))]
    assert [f.was_blank for f in found] == [False] + [True] * 8 + [False] * 9
    assert not any(f.bad for f in found)
    own = [source.read(i) for i in range(9, 17)]
    chosen = [next(k for k, tile in enumerate(own) if np.array_equal(tile, f.image)) for f in found[1:9]]
    assert len(set(chosen)) > 3  # not always the first behind the blank ones
    assert all(f.label == 1 for f in found[1:17])
    again = [stream(tiled(10, *source.source.images))._read(i).image for i in (3, 1)]
    assert np.array_equal(again[0], found[3].image)
    assert np.array_equal(again[1], found[1].image)


def test_blank_tiles_are_counted_in_a_batch_and_are_not_bad():
    reader = stream(tiled(10, half_blank()))
    batch = collate(reader.__getitems__(range(16)))  # an epoch
    assert batch.num_blank == 8
    assert batch.bad == {}
    assert batch.images.flatten(1).float().std(1).min() > 0


def test_an_image_of_blank_tiles_only_is_replaced_by_the_next_one():
    blank = np.full((20, 20, 3), 255, np.uint8)
    source = tiled(10, blank, noise(10, 10, seed=1))
    found = stream(source)._read(0)
    assert found.was_blank
    assert np.array_equal(found.image, source.read(4))
    with pytest.raises(RequestError, match=r"all tiles of '0.png#0,0' and of the images after it are blank"):
        stream(tiled(10, blank))._read(0)


def test_a_broken_image_is_tried_once_for_a_sample_and_named_by_its_tile():
    source = tiled(10, noise(40, 40), noise(10, 10, seed=1))
    source.source.images = (None, source.source.images[1])
    found = stream(source)._read(5)
    assert found.bad == {"0.png#1,1": "broken"}
    assert source.source.reads == [1, 1]
    assert not found.was_blank


def test_without_tiles_a_blank_image_is_an_image():
    blank = np.full((20, 20, 3), 255, np.uint8)
    found = stream(Arrays(blank))._read(0)
    assert np.array_equal(found.image, blank)
    assert not found.was_blank


@given(counts=st.lists(st.integers(1, 6), min_size=2, max_size=12), data=st.data())
@settings(deadline=None)
def test_no_image_lies_on_both_sides_of_a_split(counts, data):
    numbers = np.repeat(np.arange(len(counts)), counts)
    held_out = data.draw(st.integers(1, len(counts) - 1))
    rest, held = split_by_image(numbers, held_out)
    assert sorted([*rest, *held]) == list(range(len(numbers)))
    assert not set(numbers[rest]) & set(numbers[held])
    assert len(set(numbers[held])) == held_out


def test_what_image_a_tile_is_of_shows_through_parts():
    source = tiled(10, noise(20, 10), noise(20, 20))
    assert tile_image_ids(IndexedSubset(source, [5, 0, 1])).tolist() == [1, 0, 0]
    assert tile_image_ids(IndexedSubset(Arrays(noise(4, 4)), [0])) is None
    assert raw_shape(IndexedSubset(source, [0])) is None


def test_a_look_leaves_blank_tiles_out_of_the_facts():
    source = tiled(10, half_blank(), half_blank(seed=1))
    facts, blank = survey(source), 16
    assert (facts.num_blank, facts.bad, facts.count) == (blank, {}, 32)
    assert source.source.reads == [1, 1]
    white = survey(IndexedSubset(source, range(32))).mean  # a part is no source of tiles: its blank ones count
    assert max(facts.mean) < 140 < min(white)
    with pytest.raises(RequestError, match="all of 4 tiles looked at are blank"):
        survey(tiled(10, np.zeros((20, 20, 3), np.uint8)))


def test_what_is_measured_leaves_blank_tiles_out_and_does_not_call_them_bad():
    source = IndexedSubset(tiled(10, half_blank()), range(16))
    found = read_all(source, stream(source).preprocessing, 2)
    assert found.indices.tolist() == list(range(8, 16))
    assert (len(found.images), found.bad) == (8, {})
