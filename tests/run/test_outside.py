"""A run folder must not lie among the images of its data, whatever names them."""

import os

import pytest

from openmae.config import SplitPaths
from openmae.errors import RequestError
from openmae.run.lock import check_outside

from ..data.coco.made import annotation, put_images, write_one


@pytest.fixture
def annotated(tmp_path):
    """a/1.png and b/annotations/train.json, whose image is b/images/1.png; and a/train.json."""
    (tmp_path / "a").mkdir()
    write_one(tmp_path / "a", [annotation(1)], count=1)
    put_images(tmp_path / "b" / "images", "1.png")
    (tmp_path / "b" / "annotations").mkdir()
    (tmp_path / "b" / "annotations" / "train.json").write_bytes((tmp_path / "a" / "train.json").read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("data", "inside", "outside"),
    [("a/train.json", "a/run", "run"), ("b/annotations/train.json", "b/run", "run"), ("a", "a/run", "b/run")],
)
def test_out_among_the_images_is_refused(annotated, monkeypatch, data, inside, outside):
    paths = SplitPaths(train=str(annotated / data))
    check_outside(paths, str(annotated / outside))
    with pytest.raises(RequestError, match="would become its data"):
        check_outside(paths, str(annotated / inside))


def test_the_json_file_is_named_from_within_its_folder_too(annotated, monkeypatch):
    monkeypatch.chdir(annotated / "a")
    with pytest.raises(RequestError, match=r"where the images of train.json are looked for"):
        check_outside(SplitPaths(train="train.json"), os.path.join("runs", "first"))
