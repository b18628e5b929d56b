"""Images of which only what is cut out is read: the pixels of the whole decode; damage is seen from the header."""

import os

import numpy as np
import pytest
import torch

from openmae.config import Preprocessing
from openmae.data.augment import Augmentation
from openmae.data.decoding import npy as npy_module
from openmae.data.decoding import regions
from openmae.data.decoding.decode import BadImage
from openmae.data.evaluation_loader import evaluation_batches
from openmae.data.loader import Stream
from openmae.data.sources import folder
from openmae.data.sources.axes import Axes
from openmae.data.sources.folder import FolderSource
from openmae.data.sources.sizes import cut_into_tiles
from openmae.data.sources.views import IndexedSubset

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(3)


@pytest.fixture(autouse=True)
def every_image_is_large(monkeypatch):
    monkeypatch.setattr(regions, "LARGE_PIXELS", 0)
    monkeypatch.setattr(folder, "LARGE_PIXELS", 0)


def noise(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def source_of(folder, *names, **options):
    return FolderSource(folder, names, **options)


def boxes(height, width, count=40):
    yield slice(None), slice(None)
    yield slice(None, 1), slice(None, 1)
    for _ in range(count):
        top, bottom = sorted(RNG.integers(0, height + 1, 2).tolist())
        left, right = sorted(RNG.integers(0, width + 1, 2).tolist())
        yield slice(top, bottom), slice(left, right)


def check(source, index=0):
    stored, whole = source.stored_image(index), source.read(index)
    assert stored is not None
    assert stored.shape == whole.shape
    for box in boxes(*whole.shape[:2]):
        found = stored[box]
        assert found.dtype == whole.dtype
        np.testing.assert_array_equal(found, whole[box])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
@pytest.mark.parametrize(
    ("shape", "axes"), [((41, 57), None), ((41, 57, 3), "YXC"), ((5, 41, 57), "CYX"), ((41, 5, 57), "YCX")]
)
def test_a_box_of_a_npy(tmp_path, dtype, shape, axes):
    values = noise(*shape, dtype=np.uint8 if dtype is np.uint8 else np.uint16).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    check(source_of(tmp_path, "a.npy", axes=Axes(axes)))


FORMS = {
    "strips": {"rowsperstrip": 7},
    "one strip": {"rowsperstrip": 41},
    "tiles": {"tile": (16, 32)},
    "big-endian": {"byteorder": ">", "rowsperstrip": 5},
    "BigTIFF": {"bigtiff": True, "tile": (32, 16)},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((41, 57), "u1"), ((41, 57), "u2"), ((41, 57, 3), "u1"), ((41, 57, 3), "u2"), ((41, 57, 5), "u2")],
)
def test_a_box_of_a_tiff(tmp_path, form, shape, dtype):
    options = {"planarconfig": "contig"} if len(shape) == 3 else {}
    photometric = "rgb" if shape[2:] == (3,) else "minisblack"
    values = noise(*shape, dtype=np.dtype(dtype).type)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric, **options, **FORMS[form])
    check(source_of(tmp_path, "a.tif"))


GREY = noise(41, 57)
XMP = b'<rdf:Description tiff:Orientation="6"/>'
WHOLE = {
    "compressed": (GREY, {"compression": "zlib"}),
    "floats": (GREY.astype(np.float32), {}),
    "signed": (GREY.astype(np.int16), {}),
    "32 bits": (GREY.astype(np.uint32), {}),
    "white is zero": (GREY, {"photometric": "miniswhite"}),
    "alpha": (noise(41, 57, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "planes": (noise(3, 41, 57), {"photometric": "rgb", "planarconfig": "separate"}),
    "pages": (noise(3, 41, 57), {"photometric": "minisblack"}),
    "turned": (GREY, {"extratags": [(274, 3, 1, 6, True)]}),
    "a marked value": (GREY, {"extratags": [(42113, 2, 2, "0", True)]}),
    "turned in XMP": (GREY, {"extratags": [(700, 1, len(XMP), XMP, True)]}),
    "ImageJ": (GREY, {"imagej": True}),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_is_not_number_by_number_in_the_file_is_read_whole(tmp_path, kind):
    values, options = WHOLE[kind]
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    source = source_of(tmp_path, "a.tif", nodata="marked")
    assert source.stored_image(0) is None
    source.read(0)


def test_what_stands_for_none_decides_whether_numbers_are_read_whole(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    for nodata, is_stored in (("off", True), ("marked", True), (0.0, False), (-9999.0, True), (0.5, True)):
        assert (source_of(tmp_path, "a.npy", nodata=nodata).stored_image(0) is not None) == is_stored


@pytest.mark.parametrize("values", [GREY.astype(np.int32), GREY.astype(np.float32), np.asfortranarray(GREY)])
def test_npys_that_are_read_whole(tmp_path, values):
    """Which may not fit into 16 bits, may not be finite, or lie in the file column by column."""
    np.save(tmp_path / "a.npy", values)
    assert source_of(tmp_path, "a.npy").stored_image(0) is None


def test_a_marked_value_that_numbers_cannot_be_changes_nothing(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, extratags=[(42113, 2, 6, "-9999", True)])
    check(source_of(tmp_path, "a.tif", nodata="marked"))


@pytest.mark.parametrize("form", ["a.npy", "strips.tif", "tiles.tif"])
def test_a_file_that_is_cut_off_is_bad_whatever_is_cut_out(tmp_path, form):
    """At any length: no part of it is read alone, and reading it whole says why."""
    if form == "a.npy":
        np.save(tmp_path / form, GREY)
    else:
        tifffile.imwrite(tmp_path / form, GREY, **FORMS[form[:-4]])
    data = (tmp_path / form).read_bytes()
    start = data.index(GREY[0, :16].tobytes())
    for length in (start, start + 1, start + GREY.size // 2, start + GREY.size - 1):
        (tmp_path / form).write_bytes(data[:length])
        source = source_of(tmp_path, form)
        assert source.stored_image(0) is None
        with pytest.raises(BadImage):
            source.read(0)


def test_a_segment_beyond_the_end_of_the_file_is_seen_from_the_header(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, tile=(16, 32))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        tag = tiff.pages[0].tags[324]
        tag.overwrite([*tag.value[:-1], (tmp_path / "a.tif").stat().st_size - 8])
    source = source_of(tmp_path, "a.tif")
    assert source.stored_image(0) is None
    with pytest.raises(BadImage):
        source.read(0)


def test_a_file_that_is_cut_off_behind_our_back(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    stored = source_of(tmp_path, "a.npy").stored_image(0)
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BadImage, match="cut off while it was read"):
        stored[30:, :]


def preprocessing(size=(12, 12)):
    values = {"channels": 3, "value_range": (0, 255), "mean": (0.5,) * 3, "std": (0.2,) * 3, "background": 1}
    return Preprocessing(image_size=size, **values)


@pytest.fixture
def pictures(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(90, 70, 3), photometric="rgb", tile=(32, 16))
    tifffile.imwrite(tmp_path / "b.tif", noise(60, 99, 3), photometric="rgb", rowsperstrip=4)
    np.save(tmp_path / "c.npy", noise(64, 64, 3))
    return IndexedSubset(FolderSource(tmp_path, ["a.tif", "b.tif", "c.npy"]), range(3))


def both_ways(monkeypatch, make):
    """What `make` gives where only parts are read, and where images are read whole."""
    with monkeypatch.context() as patch:
        patch.setattr(FolderSource, "read", lambda *arguments: pytest.fail("read whole"))
        parts = make()
    with monkeypatch.context() as patch:
        patch.setattr(FolderSource, "stored_image", lambda *arguments: None)
        return parts, make()


def test_a_file_that_breaks_since_it_was_opened_is_replaced(pictures, monkeypatch):
    """As one that was broken before: the next image takes its place."""
    stream = Stream(pictures, preprocessing(), Augmentation(), 0, 1)
    size = {"batch_size": 3, "workers": 0, "crop_fraction": 0.7, "patch_size": 1, "with_labels": False}
    name = pictures.source._root + b"/b.tif"
    real = regions.open_stored_image

    def open_and_break(file, *options):
        found = real(file, *options)
        if file.name == name and found is not None:
            os.truncate(name, 2000)
        return found

    monkeypatch.setattr(folder, "open_stored_image", open_and_break)
    indices = stream.locate(range(3))[0].tolist()
    samples = stream.__getitems__(range(3))
    assert [list(sample.bad) for sample in samples] == [["b.tif"] if index == 1 else [] for index in indices]
    (batch,) = evaluation_batches(pictures, preprocessing(), range(3), **size)
    assert list(batch.bad) == ["b.tif"]


@pytest.mark.parametrize("tiles", [None, 24])
def test_training_reads_what_it_crops(pictures, monkeypatch, tiles):
    source = pictures if tiles is None else cut_into_tiles(pictures, tiles, "data")
    stream = Stream(source, preprocessing(), Augmentation(), 0, 1)
    parts, whole = both_ways(monkeypatch, lambda: stream.__getitems__(range(30)))
    for one, other in zip(parts, whole, strict=True):
        assert torch.equal(one.image, other.image)
        assert one.bad == other.bad == {}


def test_evaluation_reads_its_box(pictures, monkeypatch):
    size = {"batch_size": 3, "workers": 0, "crop_fraction": 0.7, "patch_size": 1, "with_labels": False}
    (parts,), (whole,) = both_ways(
        monkeypatch, lambda: list(evaluation_batches(pictures, preprocessing(), range(3), **size))
    )
    assert torch.equal(parts.images, whole.images)


def test_a_tile_reads_no_more_than_itself(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", noise(640, 480, 3))
    tile, read, real = cut_into_tiles(source_of(tmp_path, "a.npy"), 32, "data"), [], regions.os.preadv

    def preadv(descriptor, buffers, offset):
        read.append(len(buffers[0]))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(regions.os, "preadv", preadv)
    assert tile.read(17).shape == (32, 32, 3)
    assert sum(read) == 32 * 32 * 3


def test_small_images_are_read_whole(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", GREY)
    monkeypatch.setattr(regions, "LARGE_PIXELS", GREY.size)
    assert source_of(tmp_path, "a.npy").stored_image(0) is None
    monkeypatch.setattr(regions, "LARGE_PIXELS", GREY.size - 1)
    assert source_of(tmp_path, "a.npy").stored_image(0) is not None
    monkeypatch.setattr(npy_module, "MAX_HEADER_LENGTH", 20)
    assert source_of(tmp_path, "a.npy").stored_image(0) is None
