"""What is reported of masks: every pixel is counted once, and classes are those that training would have."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmae.data.masks.findings import judge_masks, mask_findings, value_rows
from openmae.data.masks.open import open_segmentation, open_sources
from openmae.data.masks.pairs import find_pairs, has_masks
from openmae.data.masks.survey import survey_masks

from .made import mask, png, put_images, put_masks, put_pairs, write

READING = {"background": 1.0, "max_pixels": 10**6, "nodata": "off"}


def judged(root, names=None, **settings):
    found = find_pairs(str(root))
    sources = open_sources(found, None, READING, None, None)
    surveys = {split: survey_masks(source, 1) for split, source in sources.items()}
    defaults = {"palette": None, "ignore_index": None, "reduce_zero_label": False}
    judgement = judge_masks(str(root), sources, surveys, names=names, **{**defaults, **settings})
    return judgement, surveys, mask_findings(found, sources, surveys, judgement)


@settings(max_examples=10, deadline=None)
@given(masks=st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=5), min_size=2, max_size=5))
def test_every_pixel_is_in_one_row_and_training_pixels_are_those_of_the_data(masks):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for i, values in enumerate(masks):
            put_images(root, f"images/{i}.png")
            put_masks(root, f"masks/{i}.png", values=values)
        judgement, surveys, _ = judged(root)
        rows = value_rows(surveys, judgement.decided)
        stored = np.concatenate([mask(*values).ravel() for values in masks])
        expected = dict(zip(*(a.tolist() for a in np.unique(stored, return_counts=True)), strict=True))
        assert {row["value"]: row["pixels"] for row in rows} == expected
        assert {row["value"]: row["images"] for row in rows} == {v: sum(v in m for m in masks) for v in expected}
        assert [row["pixels"] for row in rows] == sorted(expected.values(), reverse=True)
        if judgement.refusal is None:
            opened = open_segmentation(str(root), background=1.0, max_pixels=10**6, threads=1)
            assert judgement.pixels["train"].tolist() == opened.pixels.tolist()
            assert judgement.decided.classes == opened.classes


def test_rare_and_absent_classes_are_named(tmp_path):
    big = np.zeros((60, 60), np.uint8)
    big[0, :2] = 2
    for name in ("a", "b", "c", "d"):
        put_images(tmp_path, f"images/{name}.png", size=(60, 60))
        write(tmp_path / f"masks/{name}.png", png(big))
    _, _, found = judged(tmp_path)
    assert found["rare"] == {"class 2": pytest.approx(2 / 3600, abs=1e-8)}
    assert found["absent"] == ["class 1"]


def test_a_folder_of_classes_has_no_masks(tmp_path):
    put_images(tmp_path / "plain", "images/a.png", "other/b.png")
    put_pairs(tmp_path / "pairs", "a", "b")
    assert not has_masks(str(tmp_path / "plain"))
    assert not has_masks("embedded:digits")
    assert not has_masks(str(tmp_path / "nothing"))
    assert has_masks(str(tmp_path / "pairs"))


def test_files_without_a_partner_are_kept_apart_from_parts(tmp_path):
    put_pairs(tmp_path, "train/a", "train/b")
    put_images(tmp_path, "images/train/c.jpg", "images/test/d.jpg", "images/test/e.jpg")
    put_masks(tmp_path, "masks/train/f.png")
    found = find_pairs(str(tmp_path))
    assert found.parts.keys() == {"train"}
    train = found.unpaired["train"]
    assert (train.images, train.masks) == ([b"images/train/c.jpg"], [b"masks/train/f.png"])
    assert found.unpaired["test"].images == [b"images/test/d.jpg", b"images/test/e.jpg"]
