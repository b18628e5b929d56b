"""Values that stand for none: found in every format, filled with the mean, out of statistics, kept by packs."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from openmae import PackConfig, pack
from openmae.config import Preprocessing
from openmae.config.checks import MARKED, OFF, nodata_setting
from openmae.data.augment import Augmentation
from openmae.data.conformed import conform_to_model
from openmae.data.decoding.decode import BadImage, decode, from_pil_image, masked_array
from openmae.data.decoding.jpeg_mask import jpeg_mask, with_jpeg_mask
from openmae.data.decoding.nodata import fill_values, filled, nodata_mask, valid_values
from openmae.data.device_crop import crop_and_normalise
from openmae.data.empty_patches import empty_patches
from openmae.data.evaluation_loader import read_all
from openmae.data.loader import Stream, training_loader
from openmae.data.preprocess import conform, normalise, survey
from openmae.data.readers import iterate_batches
from openmae.data.sources.manifest import read_pack
from openmae.data.sources.open import open_source
from openmae.data.sources.packed import PackedSource
from openmae.data.sources.tiles import is_blank
from openmae.errors import Interrupted, RequestError
from openmae.tasks.pack.job import PackJob

RNG = np.random.default_rng(0)
LOWEST = float(np.finfo(np.float32).min)
HOLE = (slice(1, 4), slice(2, 7))  # where the images of these tests are empty


def numbers(dtype, channels=1, low=1, high=200):
    return RNG.integers(low, high, (8, 9, channels)).astype(dtype)


def with_hole(dtype, value, channels=1, **options):
    image = numbers(dtype, channels, **options)
    image[HOLE] = value
    return image


def with_alpha(dtype, value):
    """Colour and alpha: a hole that is wholly transparent, and half of the rest that is so too but holds values."""
    image = with_hole(dtype, value, 4)
    image[..., 3] = np.iinfo(dtype).max
    image[HOLE][..., 3] = 0
    image[5:, :, 3] = 0
    return image


PALETTE = np.stack([np.where(np.arange(256) == 9, 7, np.arange(256)) * 257] * 3).astype(np.uint16)  # 9 looks like 7


def as_npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def as_tiff(array, mark=None, **options):
    file = io.BytesIO()
    tags = [] if mark is None else [(42113, 2, 0, mark, True)]
    options = {"photometric": "minisblack", **options}
    tifffile.imwrite(file, array, extratags=tags, **options)
    return file.getvalue()


def as_png(array):
    file = io.BytesIO()
    Image.fromarray(array.squeeze()).save(file, "PNG")
    return file.getvalue()


def hole(channels=1):
    mask = np.zeros((8, 9, channels), bool)
    mask[HOLE] = True
    return mask


@pytest.mark.parametrize(
    ("data", "nodata"),
    [
        (as_npy(with_hole(np.float32, np.nan)), MARKED),
        (as_npy(with_hole(np.float32, np.nan, 4)), MARKED),
        (as_npy(with_hole(np.float32, -9999)), -9999.0),
        (as_npy(with_hole(np.float32, LOWEST)), -1e30),  # any length in which the lowest float is written
        (as_npy(with_hole(np.float64, np.finfo(np.float64).min)), -1e30),  # beyond float32: found before it is cast
        (as_npy(with_hole(np.float32, 0.1)), 0.1),  # which no float32 is
        (as_npy(with_hole(np.int16, -9999)), -9999.0),  # does not fit uint16
        (as_npy(with_hole(np.uint8, 255, 3)), 255.0),
        (as_npy(with_hole(np.uint16, 65535, 3)), 65535.0),
        (as_tiff(with_hole(np.float32, -9999), "-9999"), MARKED),
        (as_tiff(with_hole(np.float32, -9999), "-9999", compression="zlib"), MARKED),
        (as_tiff(with_hole(np.float32, LOWEST), "-3.4028234663852886e+38"), MARKED),
        (as_tiff(with_hole(np.float32, np.nan), "nan"), MARKED),
        (as_tiff(with_hole(np.float32, np.nan, 4), planarconfig="contig"), MARKED),
        (as_tiff(np.moveaxis(with_hole(np.float32, -1, 4), 2, 0), "-1", planarconfig="separate"), MARKED),
        (as_tiff(with_hole(np.int16, -9999), "-9999 "), MARKED),
        (as_tiff(with_hole(np.uint16, 65535), "65535"), MARKED),
        (as_tiff(with_hole(np.uint16, 65535, 3), "65535", photometric="rgb"), MARKED),
        (as_tiff(with_hole(np.uint8, 0), "0"), MARKED),  # of a kind that Pillow reads
        (as_tiff(with_hole(np.uint8, 250), "250", photometric="miniswhite"), MARKED),
        (as_tiff(with_hole(np.uint16, 250), "250", photometric="miniswhite"), MARKED),
        (as_tiff(with_hole(np.uint8, 0, 3), photometric="rgb"), 0.0),
        (as_tiff(with_hole(np.uint8, 250), photometric="miniswhite"), 250.0),  # in the file's numbers, as 16 bits
        (as_tiff(with_hole(np.uint16, 250), photometric="miniswhite"), 250.0),
        (as_tiff(with_hole(np.uint8, 7), "7", photometric="palette", colormap=PALETTE), MARKED),
        (as_tiff(with_hole(np.uint8, 1, low=0, high=1)[..., 0] > 0, "1"), MARKED),  # of one bit
        (as_tiff(with_hole(np.uint8, 1, low=0, high=1)[..., 0] > 0, "1", photometric="miniswhite"), MARKED),
        (as_tiff(with_hole(np.float32, -0.5), "-0,5"), MARKED),
        (as_npy(with_hole(np.uint64, 2**64 - 1)), float(2**64)),  # no float is closer
        (as_tiff(with_hole(np.int64, 2**63 - 1), str(2**63 - 1)), MARKED),
        (as_tiff(with_alpha(np.uint8, 0), photometric="rgb", extrasamples=["unassalpha"]), 0.0),
        (as_tiff(with_alpha(np.uint8, 255), "255", photometric="rgb", extrasamples=["unassalpha"]), MARKED),
        (as_tiff(with_alpha(np.uint16, 0), "0", photometric="rgb", extrasamples=["unassalpha"]), MARKED),
        (as_png(with_alpha(np.uint8, 0)), 0.0),
        (as_png(with_alpha(np.uint8, 255)), 255.0),
        (as_png(np.delete(with_alpha(np.uint8, 255), [1, 2], 2)), 255.0),
        (as_png(with_hole(np.uint8, 0)), 0.0),
        (as_png(with_hole(np.uint8, 0, 3)), 0.0),
        (as_png(with_hole(np.uint16, 65535)), 65535.0),
    ],
)
def test_what_stands_for_none_is_masked_and_nothing_of_it_is_left(data, nodata):
    image = decode(data, nodata=nodata)
    np.testing.assert_array_equal(nodata_mask(image), hole(image.shape[2]))
    assert (image.data[HOLE] == 0).all()
    assert image.flags.c_contiguous


def test_values_beside_the_hole_are_those_of_the_file():
    image = with_hole(np.float32, np.nan, 4)
    found = decode(as_npy(image), nodata=MARKED)
    np.testing.assert_array_equal(found.data[~hole(4)], image[~hole(4)])


def test_pages_of_a_stack_have_holes_of_their_own():
    pages = np.stack([with_hole(np.uint16, 0)[..., 0], numbers(np.uint16)[..., 0], with_hole(np.uint16, 0)[..., 0]])
    found = decode(as_tiff(pages, "0"), nodata=MARKED)
    expected = hole(3)
    expected[..., 1] = False
    np.testing.assert_array_equal(nodata_mask(found), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_hole_is_turned_with_the_image(orientation):
    image = with_hole(np.float32, np.nan)
    image[~hole()] = 1.0
    tags = [(274, 3, 1, orientation, True)]
    file = io.BytesIO()
    tifffile.imwrite(file, image, photometric="minisblack", extratags=tags)
    found = decode(file.getvalue(), nodata=MARKED)
    np.testing.assert_array_equal(nodata_mask(found), found.data == 0)


def test_a_picture_that_was_opened_is_masked_as_its_file():
    data = as_png(with_alpha(np.uint8, 0))
    with Image.open(io.BytesIO(data)) as image:
        found, expected = from_pil_image(image, nodata=0.0), decode(data, nodata=0.0)
    np.testing.assert_array_equal(nodata_mask(found), nodata_mask(expected))
    np.testing.assert_array_equal(found.data, expected.data)


def test_a_value_beyond_a_type_is_not_its_infinity():
    with pytest.raises(BadImage, match="values of inf"):
        decode(as_npy(with_hole(np.float16, np.inf)), nodata=1e5)


@pytest.mark.parametrize("value", [-9999.0, 0.5, 70000.0, -1e30])
def test_a_value_that_the_type_cannot_hold_masks_nothing(value):
    assert nodata_mask(decode(as_npy(numbers(np.uint16)), nodata=value)) is None


@pytest.mark.parametrize(
    ("array", "nodata", "reason"),
    [
        (np.full((8, 9), np.nan, np.float32), MARKED, "no values: all of them are nodata"),
        (np.full((8, 9), 7, np.uint8), 7.0, "no values"),
        (
            with_hole(np.float32, LOWEST),
            MARKED,
            r"values of 3.4e\+38 in size: --nodata VALUE says which are nodata",
        ),
        (with_hole(np.float32, 2e18), MARKED, r"values of 2e\+18 in size: --nodata"),
        (with_hole(np.float32, np.inf), MARKED, "values of inf in size: --nodata"),
        (with_hole(np.float64, 1e300), MARKED, "values of inf in size: --nodata"),
        (with_hole(np.float32, np.nan), OFF, "values that are not finite"),
    ],
)
def test_what_no_model_can_take_is_a_bad_image(array, nodata, reason):
    with pytest.raises(BadImage, match=reason):
        decode(as_npy(array), nodata=nodata)


def test_off_takes_values_as_they_are():
    data = as_tiff(with_hole(np.float32, LOWEST), "-3.4028234663852886e+38")
    assert nodata_mask(decode(data, nodata=OFF)) is None
    assert decode(data, nodata=OFF).min() == LOWEST
    assert decode(data).min() == LOWEST  # as all callers had it before there was a choice


@pytest.mark.parametrize(
    ("text", "setting"),
    [("-9999", -9999.0), ("-3.4e38", -1e30), ("nan", MARKED), ("NaN", MARKED), ("inf", 1e30), ("off", OFF)],
)
def test_a_setting_as_it_is_typed(text, setting):
    assert nodata_setting(text) == setting


def test_a_word_is_refused():
    with pytest.raises(RequestError, match="--nodata got 'none': it must be a number that stands for none, marked"):
        nodata_setting("none")


# --- what becomes of it ---

PREPROCESSING = Preprocessing(
    channels=3, value_range=(0.0, 200.0), mean=(0.5, 0.25, 0.75), std=(0.2,) * 3, image_size=(8, 8), dtype="float32"
)


def test_the_model_sees_the_mean_of_each_channel():
    image = masked_array(with_hole(np.float32, np.nan, 3), MARKED)
    seen = conform_to_model(image, PREPROCESSING)
    assert fill_values(PREPROCESSING) == (100.0, 50.0, 150.0)
    np.testing.assert_array_equal(seen[HOLE], np.broadcast_to(np.float32([100, 50, 150]), (3, 5, 3)))
    np.testing.assert_array_equal(seen[~hole(3)], image.data[~hole(3)])
    assert not isinstance(seen, np.ma.MaskedArray)
    normalised = normalise(torch.from_numpy(seen).permute(2, 0, 1)[None], PREPROCESSING)
    torch.testing.assert_close(normalised[:, :, 1:4, 2:7], torch.zeros(1, 3, 3, 5), atol=1e-6, rtol=0)


def test_integers_are_filled_with_whole_numbers():
    image = masked_array(with_hole(np.uint8, 0, 3), 0.0)
    seen = conform(image, 3, "uint8", fill=(100.4, 50.6, 300.0))
    assert seen.dtype == np.uint8
    assert seen[2, 3].tolist() == [100, 51, 255]


@pytest.mark.parametrize(("have", "channels"), [(1, 3), (3, 1)])
def test_grey_and_colour_images_are_empty_where_any_channel_is(have, channels):
    image = numbers(np.uint8, have)
    image[2, 3, 0] = 0
    seen = conform(masked_array(image, 0.0), channels, "uint8", fill=(7.0,) * channels)
    assert seen[2, 3].tolist() == [7] * channels


def test_statistics_are_of_what_is_there(tmp_path):
    for number in range(6):
        image = RNG.normal(100 + number, 20, (64, 64, 2)).astype(np.float32)
        image[: 8 + number, :, 0] = np.nan
        image[5, 5, 1] = LOWEST
        np.save(tmp_path / f"{number}.npy", image)
    source = open_source(str(tmp_path), nodata=-1e30)
    facts = survey(source)
    images = [source.read(i) for i in range(len(source))]
    values = [np.concatenate([valid_values(image)[c] for image in images]) for c in range(2)]
    np.testing.assert_allclose(facts.mean, [v.mean() for v in values], rtol=1e-5)
    np.testing.assert_allclose(facts.std, [v.std(ddof=1) for v in values], rtol=1e-5)
    np.testing.assert_allclose(facts.value_range, np.percentile(np.concatenate(values), [0.1, 99.9]), rtol=1e-3)
    assert facts.num_with_nodata == 6
    assert facts.nodata_fraction == pytest.approx(np.mean([nodata_mask(image).mean() for image in images]))


def test_an_array_that_is_given_is_not_written_to():
    image = with_hole(np.float32, np.nan, 2)
    masked_array(image, MARKED)
    assert np.isnan(image[HOLE]).all()


def test_a_large_image_may_have_rows_without_any_value():
    """Rows are looked at a strip at a time, and one may be empty throughout."""
    values = np.ones((2100, 2100, 1), np.float32)
    values[:300] = np.nan
    image = conform_to_model(
        masked_array(values, MARKED),
        Preprocessing(
            channels=1, value_range=(0.0, 8.0), mean=(0.5,), std=(0.2,), image_size=(16, 16), dtype="float32"
        ),
    )
    assert (image[250:350, :10] == np.where(np.arange(250, 350) < 300, 4.0, 1.0)[:, None, None]).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_alpha_is_no_value_that_stands_for_none(dtype):
    """That of an opaque picture is the highest there is, and so is what a file may mark."""
    full = 1 if dtype == np.float32 else 65535
    image = np.full((8, 9, 4), full, dtype)
    image[..., :3] = numbers(dtype, 3) / (200 if dtype == np.float32 else 1)
    image[HOLE] = full
    found = decode(as_tiff(image, str(full), photometric="rgb", extrasamples=["unassalpha"]), nodata=MARKED)
    np.testing.assert_array_equal(nodata_mask(found), hole(3))
    np.testing.assert_allclose(found.data[~hole(3)], image[..., :3][~hole(3)])


def test_a_tile_with_nothing_beside_its_hole_is_blank():
    plain = np.full((8, 9, 2), 5.0, np.float32)
    plain[HOLE] = np.nan
    assert is_blank(masked_array(plain, MARKED))
    plain[0, 0, 1] = 6.0
    assert not is_blank(masked_array(plain, MARKED))
    assert is_blank(np.ma.MaskedArray(numbers(np.float32), np.ones((8, 9, 1), bool)))


def test_filled_has_the_mean_of_the_image():
    image = masked_array(with_hole(np.float32, np.nan, 2), MARKED)
    np.testing.assert_allclose(filled(image)[2, 3], [values.mean() for values in valid_values(image)], rtol=1e-6)


# --- patches ---


def test_a_patch_is_empty_when_more_than_half_of_its_values_are():
    mask = np.zeros((8, 8, 2), bool)
    mask[:4, :4, 0] = True  # half of the first patch's values: not more than half
    mask[:4, 4:, :] = True
    mask[4, 0, :] = True
    mask[4:, 4:, 0] = True
    mask[5, 5, 1] = True
    found = empty_patches(mask, (0, 0, 8, 8), (8, 8), 4)
    assert found.tolist() == [False, True, False, True]
    assert empty_patches(mask, (0, 0, 8, 8), (8, 8), 4, is_flipped=True).tolist() == [True, False, True, False]
    assert empty_patches(mask, (0, 4, 4, 4), (8, 8), 4).tolist() == [True] * 4  # the box alone counts


def test_patches_are_empty_as_the_channels_of_the_model_are(tmp_path):
    """Grey is empty where one of three channels is: it holds the mean there, and nothing to score."""
    image = RNG.normal(0, 1, (16, 16, 3)).astype(np.float32)
    image[:, :8, 0] = np.nan
    np.save(tmp_path / "a.npy", image)
    source = open_source(str(tmp_path), nodata=MARKED)
    record = Preprocessing(
        channels=1, value_range=(-3.0, 3.0), mean=(0.5,), std=(0.2,), image_size=(16, 16), dtype="float32"
    )
    left = [[True, True, False, False]] * 4
    assert read_all(source, record, 4).is_empty.view(4, 4).tolist() == left
    for crop_on_device in (False, True):
        (sample,) = Stream(source, record, Augmentation(kind="none"), 0, 4, crop_on_device=crop_on_device).__getitems__(
            [0]
        )
        assert sample.is_empty.view(4, 4).tolist() == left


@pytest.fixture(scope="module")
def holes(tmp_path_factory):
    """Twelve float images of which the left 16 columns are empty in every second."""
    root = tmp_path_factory.mktemp("holes")
    for number in range(12):
        image = RNG.normal(0, 1, (32, 32, 2)).astype(np.float32)
        if number % 2 == 0:
            image[:, :16] = np.nan
        np.save(root / f"{number:02d}.npy", image)
    return root


def stream_of(source, kind="crop", crop_on_device=False):
    record = Preprocessing(
        channels=2, value_range=(-3.0, 3.0), mean=(0.5,) * 2, std=(0.2,) * 2, image_size=(16, 16), dtype="float32"
    )
    return Stream(source, record, Augmentation(kind=kind), 0, 4, crop_on_device=crop_on_device)


def batches(stream, workers=0):
    loader = training_loader(
        stream, steps=range(3), batch_size=8, share=range(8), micro_batch_size=4, workers=workers, pin_memory=False
    )
    return list(iterate_batches(loader))


def test_a_batch_says_which_patches_are_empty(holes):
    source = open_source(str(holes), nodata=MARKED)
    stream = stream_of(source, "none")
    indices, _ = stream.locate(range(24))
    found = torch.cat([batch.is_empty for batch in batches(stream)])
    left = torch.zeros(4, 4, dtype=torch.bool)
    left[:, :2] = True
    for index, empty in zip(indices.tolist(), found, strict=True):
        assert torch.equal(empty.view(4, 4), left if index % 2 == 0 else torch.zeros_like(left))


def test_where_nothing_is_empty_a_batch_says_nothing():
    pictures = open_source("embedded:digits")
    record = Preprocessing(channels=1, value_range=(0.0, 255.0), mean=(0.5,), std=(0.2,), image_size=(8, 8))
    assert all(batch.is_empty is None for batch in batches(Stream(pictures, record, Augmentation(), 0, 2)))


def test_random_crops_and_flips_take_the_hole_with_them(holes):
    """Where the crop shows NaN's fill (0 here, after normalising) and nothing else, the patch is empty."""
    for batch in batches(stream_of(open_source(str(holes), nodata=MARKED))):
        patches = batch.images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        is_plain = (patches.abs() < 1e-6).float().mean(-1)
        assert batch.is_empty is not None
        assert batch.is_empty[is_plain > 0.99].all()
        assert not batch.is_empty[is_plain == 0].any()


def test_readers_say_the_same_as_the_parent(holes):
    stream = stream_of(open_source(str(holes), nodata=MARKED))
    for here, there in zip(batches(stream), batches(stream, workers=2), strict=True):
        assert torch.equal(here.images, there.images)
        assert torch.equal(here.is_empty, there.is_empty)


def test_crops_on_the_device_are_empty_where_readers_crops_are(holes, tmp_path):
    pack(PackConfig(data=str(holes), out=str(tmp_path / "raw"), format="raw", size=32, workers=0))
    source = open_source(str(tmp_path / "raw"), nodata=MARKED)
    cropped, whole = batches(stream_of(source)), batches(stream_of(source, crop_on_device=True))
    for one, other in zip(cropped, whole, strict=True):
        assert torch.equal(one.is_empty, other.is_empty)
        seen = crop_and_normalise(other.images, other.crops, stream_of(source).preprocessing)
        expected = normalise(one.images, stream_of(source).preprocessing)
        torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)  # measured 2e-6


def test_reading_all_says_which_patches_are_empty(holes):
    found = read_all(open_source(str(holes), nodata=MARKED), stream_of(None).preprocessing, 4)
    assert found.bad == {}
    assert found.is_empty.view(12, 4, 4)[::2, :, :2].all()
    assert found.is_empty.sum() == 6 * 8


# --- packs ---


def grey_holes(root, dtype, count=40):
    root.mkdir()
    for number in range(count):
        image = RNG.integers(1, 250, (24, 24)).astype(dtype)
        if number % 3 == 0:
            image[:, : 6 + number // 4] = 0
        np.save(root / f"{number:02d}.npy", image)
    return root


@pytest.mark.parametrize(
    ("form", "dtype"), [("raw", np.uint8), ("raw", np.uint16), ("raw", np.float32), ("jpeg", np.uint8)]
)
def test_packs_keep_what_is_empty(tmp_path, form, dtype):
    data, out = grey_holes(tmp_path / "data", dtype), tmp_path / "pack"
    pack(PackConfig(data=str(data), out=str(out), format=form, size=24, workers=0, nodata=0.0))
    manifest = read_pack(out)
    assert manifest["openmae_pack"] == 2
    assert manifest["nodata"] == 0.0
    assert manifest["splits"]["train"]["with_empty"] == 14
    assert (out / "train.empty.npy").exists() == (form == "raw" and dtype is not np.float32)
    before, after = open_source(str(data), nodata=0.0), open_source(str(out), nodata=MARKED)
    assert isinstance(after, PackedSource)
    for index in range(len(before)):
        expected, found = nodata_mask(before.read(index)), nodata_mask(after.read(index))
        assert (expected is None) == (found is None)
        if expected is not None:
            np.testing.assert_array_equal(found, expected)
            assert (after.read(index).data[expected] == 0).all()
        if form == "raw":
            np.testing.assert_array_equal(np.ma.filled(after.read(index), 0), np.ma.filled(before.read(index), 0))
    assert pack(PackConfig(data=str(data), out=str(out), format=form, size=24, nodata=0.0, resume="auto"))
    with pytest.raises(RequestError, match="was begun with --nodata 0"):
        pack(PackConfig(data=str(data), out=str(out), format=form, size=24, nodata=7.0, resume="auto"))
    pack(PackConfig(data=str(out), verify=True))


def test_a_resized_row_is_empty_where_most_of_its_source_is(tmp_path):
    image = np.ones((32, 32), np.float32)
    image[:, :10] = np.nan
    image[0, 20] = 2.0
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "0.npy", image)
    pack(PackConfig(data=str(tmp_path / "data"), out=str(tmp_path / "pack"), format="raw", size=16, workers=0))
    found = open_source(str(tmp_path / "pack"), nodata=MARKED).read(0)
    assert nodata_mask(found)[:, :5].all()
    assert not nodata_mask(found)[:, 5:].any()
    assert np.isnan(np.load(tmp_path / "pack" / "train.npy")[0, :, :5]).all()


def test_rows_of_a_pack_with_nan_are_bad_where_all_values_are_data(tmp_path):
    """As files are: nothing is measured of them."""
    (tmp_path / "data").mkdir()
    for number in range(4):
        image = RNG.normal(0, 1, (16, 16)).astype(np.float32)
        image[:number] = np.nan
        np.save(tmp_path / "data" / f"{number}.npy", image)
    pack(PackConfig(data=str(tmp_path / "data"), out=str(tmp_path / "pack"), format="raw", size=16))
    for root in ("data", "pack"):
        facts = survey(open_source(str(tmp_path / root), nodata=OFF))
        assert facts.bad == {f"{number}.npy": "values that are not finite" for number in (1, 2, 3)}
        assert np.isfinite([*facts.mean, *facts.value_range]).all()


def test_a_jpeg_says_what_is_empty_at_its_own_size(tmp_path):
    """What has no values when it is resized is not packed; where nothing is left empty, nothing is said."""
    (tmp_path / "data").mkdir()
    for name, is_kept in (("all", np.s_[::4, ::4]), ("none", np.s_[1:]), ("whole", np.s_[:])):
        image = np.zeros((64, 64), np.uint8)
        image[is_kept] = RNG.integers(1, 256, (64, 64))[is_kept]
        Image.fromarray(image).save(tmp_path / "data" / f"{name}.png")
    config = PackConfig(data=str(tmp_path / "data"), out=str(tmp_path / "pack"), format="jpeg", size=16, nodata=0.0)
    pack(replace(config, max_bad=1.0))
    source = open_source(str(tmp_path / "pack"), nodata=MARKED)
    assert [source.name(index) for index in range(len(source))] == ["none.png", "whole.png"]
    assert all(nodata_mask(source.read(index)) is None for index in range(len(source)))
    line = json.loads((tmp_path / "pack" / "quarantine.jsonl").read_text())
    assert "no values at the size of the pack" in str(line)
    assert json.loads((tmp_path / "pack" / "pack.json").read_bytes())["openmae_pack"] == 1


def test_packs_without_anything_empty_are_as_they_were(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(5):
        Image.fromarray(numbers(np.uint8, 3)).save(data / f"{number}.png")
    pack(PackConfig(data=str(data), out=str(tmp_path / "a"), format="raw", size=8, workers=0))
    pack(PackConfig(data=str(data), out=str(tmp_path / "b"), format="raw", size=8, workers=0, nodata="off"))
    one, other = (json.loads((tmp_path / name / "pack.json").read_bytes()) for name in "ab")
    assert one.pop("nodata") == MARKED
    assert "nodata" not in other
    assert one == other
    assert one["openmae_pack"] == 1
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["pack.json", "train.index.npz", "train.npy"]


@pytest.mark.parametrize("form", ["raw", "jpeg"])
@pytest.mark.parametrize("stops_at", [1, 3, 4])
def test_a_pack_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, monkeypatch, form, stops_at):
    data = grey_holes(tmp_path / "data", np.uint8)
    options = {"data": str(data), "format": form, "size": 24, "workers": 0, "nodata": 0.0, "shard_mb": 0.005}
    pack(PackConfig(out=str(tmp_path / "whole"), **options))
    real, calls = PackJob._next, []

    def next_or_stop(self, *arguments):
        calls.append(1)
        if len(calls) == stops_at:
            raise Interrupted("stopped")
        return real(self, *arguments)

    monkeypatch.setattr("openmae.tasks.pack.job.BATCH_IMAGES", 7)
    with monkeypatch.context() as patch:
        patch.setattr(PackJob, "_next", next_or_stop)
        with pytest.raises(Interrupted):
            pack(PackConfig(out=str(tmp_path / "parts"), **options))
    pack(PackConfig(out=str(tmp_path / "parts"), resume="auto", **options))
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("whole", "parts"))
    assert one == other


def test_an_old_unfinished_pack_goes_on_without(tmp_path):
    """Its manifest has no such setting: NaN stays unreadable, as when it was begun."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(6):
        image = numbers(np.float32)
        image[0, 0] = np.nan if number == 3 else 1.0
        np.save(data / f"{number}.npy", image)
    options = {"data": str(data), "format": "raw", "size": 8, "workers": 0, "max_bad": 1.0}
    pack(PackConfig(out=str(tmp_path / "pack"), nodata="off", **options))
    assert "nodata" not in json.loads((tmp_path / "pack" / "pack.json").read_bytes())
    before = (tmp_path / "pack" / "pack.json").read_bytes()
    pack(PackConfig(out=str(tmp_path / "pack"), resume="auto", **options))
    assert (tmp_path / "pack" / "pack.json").read_bytes() == before


def test_jpeg_masks_survive_and_are_checked():
    picture = io.BytesIO()
    Image.fromarray(numbers(np.uint8, 3)).save(picture, "JPEG")
    mask = RNG.random((8, 9, 3)) < 0.3
    data = with_jpeg_mask(picture.getvalue(), mask)
    np.testing.assert_array_equal(jpeg_mask(data, (8, 9, 3)), mask)
    np.testing.assert_array_equal(nodata_mask(decode(data, nodata=MARKED)), mask)
    np.testing.assert_array_equal(decode(data), decode(picture.getvalue()))  # whoever asks for none sees the picture
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(Image.open(picture)))
    assert jpeg_mask(picture.getvalue(), (8, 9, 3)) is None
    with pytest.raises(BadImage, match="mask of empty values that is damaged"):
        jpeg_mask(data, (8, 9, 1))
    large = RNG.random((700, 900, 3)) < 0.5  # more than a segment holds
    np.testing.assert_array_equal(jpeg_mask(with_jpeg_mask(picture.getvalue(), large), large.shape), large)


@pytest.mark.parametrize("change", [lambda a: a[:, :-1], lambda a: a[::-1], lambda a: a.astype(np.uint16)])
def test_a_file_of_empty_rows_that_lies_is_refused(tmp_path, change):
    data, out = grey_holes(tmp_path / "data", np.uint8), tmp_path / "pack"
    pack(PackConfig(data=str(data), out=str(out), format="raw", size=24, workers=0, nodata=0.0))
    path = out / "train.empty.npy"
    np.save(path, np.ascontiguousarray(change(np.load(path))))
    manifest = json.loads((out / "pack.json").read_bytes())
    manifest["files"][path.name]["bytes"] = path.stat().st_size
    (out / "pack.json").write_text(json.dumps(manifest))
    with pytest.raises(RequestError, match="is damaged"):
        open_source(str(out))
