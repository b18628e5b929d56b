"""The scale of the data: how many bits images use, and what maps their values to the model's."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmae.config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from openmae.config.preprocessing import STORED_AS
from openmae.data.conformed import conform_to_model
from openmae.data.decoding.decode import BadImage
from openmae.data.depths import BitDepths, bits_for
from openmae.data.preprocess import conform
from openmae.data.value_scale import Rescale, match_own_scale, match_scale, scale_warning, stored_value_range
from openmae.errors import RequestError

EIGHT = Preprocessing(
    channels=3, value_range=(0.0, 255.0), mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=(8, 8), dtype="uint8"
)
TWELVE = replace(EIGHT, value_range=(0.0, 4095.0), dtype="uint16")
ALL_EIGHT = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
ALL_SIXTEEN = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1).repeat(3, axis=2)


def depths(dtype, highest, count=10):
    image = np.zeros((2, 2, 1), dtype)
    image[0, 0] = highest
    return BitDepths.from_images([image] * count)


@pytest.mark.parametrize(
    ("highest", "bits"),
    [
        (0, 8),
        (255, 8),
        (256, 10),
        (1023, 10),
        (1024, 12),
        (4095, 12),
        (4096, 14),
        (16383, 14),
        (16384, 16),
        (65535, 16),
    ],
)
def test_the_smallest_number_of_bits_that_holds_a_value(highest, bits):
    assert bits_for(highest) == bits


@pytest.mark.parametrize(("bits", "highest"), [(10, 700), (12, 3825), (14, 9000)])
def test_pictures_in_more_bits_become_what_they_are_in_eight(bits, highest):
    most = 2**bits - 1
    wide = np.rint(ALL_EIGHT * (most / 255)).astype(np.uint16)
    matched, lines = match_scale(EIGHT, depths("uint16", highest), None)
    assert (matched.source_dtype, matched.source_range, matched.target_range) == ("uint16", (0, most), (0, 255))
    assert np.array_equal(conform_to_model(wide, matched), ALL_EIGHT)
    assert conform_to_model(wide, matched).dtype == np.uint8
    assert f"uint16 values of 0 to {most} become 0 to 255" in lines[0]
    assert f"{bits} bits hold {highest}" in lines[0]
    assert "--value-range" in lines[0]


def test_sixteen_bits_that_are_used_keep_their_bytes():
    matched, _ = match_scale(EIGHT, depths("uint16", 65000), None)
    assert matched.source_range == (0.0, 65535.0)
    assert np.array_equal(conform_to_model(ALL_SIXTEEN, matched), (ALL_SIXTEEN >> 8).astype(np.uint8))
    sixteen = replace(EIGHT, value_range=(90.0, 64000.0), dtype="uint16")
    matched, _ = match_scale(sixteen, depths("uint8", 255), None)
    assert np.array_equal(conform_to_model(ALL_EIGHT, matched), ALL_EIGHT.astype(np.float32) * 257)


def test_eight_bits_become_twelve_for_a_model_of_twelve():
    matched, lines = match_scale(TWELVE, depths("uint8", 200), None)
    found = conform_to_model(ALL_EIGHT, matched)
    assert found.dtype == np.float32
    assert np.allclose(found, ALL_EIGHT * (4095 / 255), atol=1e-3)
    assert "uint8 values of 0 to 255 become 0 to 4095" in lines[0]


def test_equal_types_are_left_alone():
    for record, seen in ((EIGHT, depths("uint8", 3)), (TWELVE, depths("uint16", 65535)), (EIGHT, BitDepths())):
        assert match_scale(record, seen, None) == (record, [])
        assert match_scale(record, seen, record.value_range) == (record, [])
    assert np.array_equal(conform_to_model(ALL_EIGHT, EIGHT), ALL_EIGHT)


def test_a_person_is_believed_also_of_equal_types_and_of_floats():
    matched, lines = match_scale(EIGHT, depths("uint16", 9000), (1000.0, 3000.0))
    pixels = conform_to_model(np.array([[[0], [1000], [2000], [3000], [9000]]], np.uint16), matched)
    assert pixels[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert lines == ["uint16 values of 1000 to 3000 become 0 to 255 of the model, as --value-range says"]
    matched, _ = match_scale(TWELVE, depths("uint16", 16000), (0.0, 16383.0))
    assert conform_to_model(np.full((1, 1, 3), 16383, np.uint16), matched).tolist() == [[[4095.0] * 3]]
    matched, _ = match_scale(EIGHT, depths("float32", 1), (0.0, 1.0))
    assert conform_to_model(np.array([[[-1.0], [0.5], [7.0]]], np.float32), matched)[0, :, 0].tolist() == [0, 128, 255]
    floats = replace(EIGHT, value_range=(-1.0, 1.0), dtype="float32")
    matched, _ = match_scale(floats, depths("uint16", 4000), (0.0, 4095.0))
    assert conform_to_model(np.full((1, 1, 3), 4095, np.uint16), matched).tolist() == [[[1.0] * 3]]


def test_floats_among_integers_are_not_guessed():
    for record, seen, image in (
        (EIGHT, depths("float32", 1), np.zeros((2, 2, 3), np.float32)),
        (replace(EIGHT, dtype="float32"), depths("uint8", 255), ALL_EIGHT),
    ):
        matched, _ = match_scale(record, seen, None)
        assert matched == record
        with pytest.raises(BadImage, match="--value-range"):
            conform_to_model(image, matched)


def test_what_is_stored_is_used_again_whatever_the_look_says():
    stored, _ = match_scale(EIGHT, depths("uint16", 3000), None)
    again, lines = match_scale(stored, depths("uint16", 500), None)
    assert again == stored
    assert "as it was before" in lines[0]
    _, lines = match_scale(stored, depths("uint16", 60000), None)
    assert lines[1].startswith("warning: values up to 60000 lie above 4095")
    other, _ = match_scale(stored, depths("uint16", 500), (0.0, 1023.0))
    assert other.source_range == (0.0, 1023.0)
    assert match_scale(stored, depths("uint8", 9), None) == (stored, [])  # nothing to map, and nothing forgotten


def test_a_packs_own_word_counts_for_other_types_only():
    matched, lines = match_scale(EIGHT, depths("uint16", 500), None, stated=(0.0, 4095.0))
    assert matched.source_range == (0.0, 4095.0)
    assert "as the pack says" in lines[0]
    assert match_scale(TWELVE, depths("uint16", 500), None, stated=(0.0, 16383.0)) == (TWELVE, [])
    assert match_scale(EIGHT, depths("uint16", 5), (0.0, 7.0), stated=(0.0, 9.0))[0].source_range == (0.0, 7.0)


def test_several_depths_are_measured_and_said():
    mixed = depths("uint8", 255, 40) + depths("uint16", 3825, 14)
    assert mixed.counts == {"uint8": 40, "uint16": 14}
    assert mixed.highest == {"uint8": 255.0, "uint16": 3825.0}
    own, lines = match_own_scale(EIGHT, mixed)
    assert lines[0] == "of 54 images looked at 40 uint8, 14 uint16 (up to 3825)"
    assert own.source_range == (0.0, 4095.0)
    sixteen = depths("uint16", 4000, 3) + depths("uint16", 50000, 2)
    _, lines = match_scale(EIGHT, sixteen, None)
    assert "12 bits in 3, 16 bits in 2" in lines[0]
    assert match_scale(replace(TWELVE), sixteen, None)[1] == lines[:1]  # said where nothing is mapped, too


def test_the_scale_of_a_folder_of_twelve_bits_holds_its_eight_bit_images():
    mixed = depths("uint16", 4000, 9) + depths("uint8", 255, 2)
    own, _ = match_own_scale(replace(TWELVE, value_range=(10.0, 900.0)), mixed)  # percentiles, as they are measured
    assert conform_to_model(np.full((1, 1, 3), 255, np.uint8), own).tolist() == [[[4095.0] * 3]]


def test_a_range_that_says_what_is_stored():
    stored, _ = match_scale(replace(EIGHT, value_range=(50.0, 850.0), dtype="uint16"), depths("uint8", 255), None)
    said, _ = match_scale(
        replace(stored, source_range=None, target_range=None), depths("uint8", 255), stored_value_range(stored)
    )
    assert np.allclose(conform_to_model(ALL_EIGHT, said), conform_to_model(ALL_EIGHT, stored), atol=1e-3)
    assert stored_value_range(EIGHT) is None


def test_a_foreign_model_that_scales_nothing_takes_eight_bits():
    unscaled = replace(EIGHT, value_range=(0.0, 1.0))
    matched, _ = match_scale(unscaled, depths("uint16", 4000), (0.0, 4095.0))
    assert conform_to_model(np.full((1, 1, 3), 4095, np.uint16), matched).tolist() == [[[255] * 3]]


@pytest.mark.parametrize(
    ("image", "record", "doubt"),
    [
        (np.full((2, 2, 1), 3825, np.uint16), EIGHT, "12 bits"),
        (np.full((2, 2, 1), 38250, np.uint16), EIGHT, None),
        (np.full((2, 2, 1), 255, np.uint8), TWELVE, "12 bits"),
        (np.full((2, 2, 1), 255, np.uint8), replace(TWELVE, value_range=(9.0, 60000.0)), None),
        (np.full((2, 2, 1), 255, np.uint8), EIGHT, None),
        (np.full((2, 2, 1), 3, np.uint16), TWELVE, None),
        (np.ones((2, 2, 1), np.float32), EIGHT, None),
        (np.full((2, 2, 1), 3825, np.uint16), match_scale(EIGHT, depths("uint16", 4000), None)[0], None),
        (np.full((2, 2, 1), 5000, np.uint16), match_scale(EIGHT, depths("uint16", 4000), None)[0], "above"),
    ],
)
def test_what_may_be_taken_for_another_scale_is_doubted(image, record, doubt):
    found = scale_warning(image, record)
    assert found is None if doubt is None else doubt in found


@given(st.integers(0, 60000), st.integers(1, 5000), st.integers(0, 65535))
def test_mapping_is_linear_and_clipped(low, width, value):
    rescale = Rescale("uint16", (float(low), float(low + width)), (0.0, 255.0))
    found = int(rescale(np.array([[[value]]], np.uint16), "uint8")[0, 0, 0])
    exact = min(255.0, max(0.0, (value - low) * 255 / width))
    assert abs(found - exact) <= 0.5


def test_a_record_without_it_is_written_as_it_always_was():
    late = {"source_dtype", "source_range", "target_range"}
    stored = {STORED_AS.get(f.name, f.name) for f in fields(Preprocessing)}
    assert "margin" in stored
    assert EIGHT.to_dict().keys() == stored - late - {"axes", "nodata"}
    assert Preprocessing.from_dict({**EIGHT.to_dict(), "margin": 0.5}).crop_fraction == 0.5
    matched, _ = match_scale(EIGHT, depths("uint16", 4000), None)
    assert matched.to_dict().keys() >= late
    assert Preprocessing.from_dict(matched.to_dict()) == matched
    assert Rescale.from_preprocessing(EIGHT) is None
    # What a record of an older run means: the full ranges of the types.
    assert conform(np.full((1, 1, 1), 0x8081, np.uint16), 1, "uint8").item() == 0x80


@pytest.mark.parametrize(
    "broken", [{"source_range": (0.0, 1.0)}, {"source_range": (1.0, 1.0), "target_range": (0.0, 1.0)}]
)
def test_half_a_mapping_is_refused(broken):
    with pytest.raises(RequestError, match="range"):
        replace(EIGHT, **broken)
