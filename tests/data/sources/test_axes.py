"""Axes of `.npy` files: told by their shapes, decided once for a data set, or asked for."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from openmae.config import ResolvedPretrainConfig, SplitPaths
from openmae.data.decoding.decode import BadImage, decode
from openmae.data.decoding.headers import read_size
from openmae.data.decoding.npy import evident_order
from openmae.data.sources.axes import decide_axes
from openmae.data.sources.open import open_source, open_splits
from openmae.data.sources.sizes import cut_into_tiles
from openmae.data.sources.views import axes_of, split_held_out
from openmae.errors import RequestError

RECORD = Path(__file__).parents[2] / "fixtures" / "format-1" / "config.json"


def picture(shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def save(folder, *shapes):
    """Numbered files of H × W × C pictures in these shapes; what a channel-last reader sees of each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, shape in enumerate(shapes):
        np.save(folder / f"{number}.npy", picture(shape, seed=number))
    return folder


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((12, 64, 64), "CYX"),
        ((16, 64, 64), "CYX"),
        ((17, 64, 64), None),
        ((64, 64, 12), "YXC"),
        ((64, 64, 17), None),
        ((3, 12, 500), "CYX"),
        ((3, 11, 500), None),
        ((1, 4, 4), "CYX"),
        ((64, 3, 64), None),
        ((8, 8, 3), None),
    ],
)
def test_the_smallest_axis_by_four_times(shape, order):
    assert evident_order(shape) == order


@given(st.tuples(*[st.integers(1, 300)] * 3))
def test_a_shape_tells_one_thing_and_its_mirror_the_other(shape):
    mirrored = {"CYX": "YXC", "YXC": "CYX", None: None}
    assert evident_order(shape[::-1]) == mirrored[evident_order(shape)]


@pytest.mark.parametrize("axes", ["CYX", "YXC", "CXY", "YCX", "XYC", "XCY"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_order_gives_rows_columns_channels(axes, order):
    values = picture((5, 6, 7), np.uint16)  # Y, X, C
    stored = values.transpose(["YXC".index(axis) for axis in axes])
    found = decode(npy(np.asarray(stored, order=order)), axes=axes)
    assert np.array_equal(found, values)
    assert found.flags.c_contiguous


def test_two_axes_are_rows_and_columns_whatever_is_said():
    grey = picture((5, 6))
    for axes in ("CYX", "YXC", None):
        assert np.array_equal(decode(npy(grey), axes=axes), grey[..., None])


def test_a_file_alone_is_told_by_its_shape_or_refused():
    assert decode(npy(picture((3, 64, 64))), axes=None).shape == (64, 64, 3)
    assert decode(npy(picture((64, 64, 3))), axes=None).shape == (64, 64, 3)
    with pytest.raises(BadImage, match="which axis holds the channels"):
        decode(npy(picture((20, 30, 30))), axes=None)
    assert decode(npy(picture((20, 30, 30)))).shape == (20, 30, 30)  # as it was before there was a choice


def test_a_folder_is_decided_once_for_all_its_parts(tmp_path):
    save(tmp_path / "train", (12, 64, 64), (12, 40, 40), (64, 64))  # the second does not tell
    save(tmp_path / "test", (12, 30, 30))
    for split, sizes in (("train", [(64, 64, 12), (40, 40, 12), (64, 64, 1)]), ("test", [(30, 30, 12)])):
        source = open_source(str(tmp_path), split)
        assert [source.read(i).shape for i in range(len(source))] == sizes
        assert source.axes.order == "CYX"
        assert source.axes.lines == [
            "axes       CYX: the first axis of 12 x 64 x 64 is the smallest (--axes says otherwise)"
        ]
    assert axes_of(split_held_out(open_source(str(tmp_path)), 1)).order == "CYX"


def test_named_parts_are_decided_together(tmp_path):
    """Each part tells nothing or the same: what one tells holds for all, whichever of them is opened."""
    tells, silent = save(tmp_path / "a", (12, 64, 64)), save(tmp_path / "b", (12, 40, 40))
    pictures = {"train": str(silent), "val": str(tells)}
    for parts in (SplitPaths(**pictures), SplitPaths(train=pictures["val"], test=pictures["train"])):
        whole = open_splits(parts).sources
        assert {axes_of([source]).order for source in whole.values()} == {"CYX"}
        for split, source in whole.items():
            assert np.array_equal(open_source(parts, split).read(0), source.read(0))
    with pytest.raises(RequestError, match="--axes"):
        open_splits(SplitPaths(train=pictures["train"]))
    assert open_splits(SplitPaths(train=pictures["train"]), axes="YXC").sources["train"].read(0).shape == (12, 40, 40)
    save(tmp_path / "c", (64, 64, 12))
    with pytest.raises(RequestError, match="now first, now last"):
        open_source(SplitPaths(train=pictures["val"], val=str(tmp_path / "c")), "train")


def test_what_does_not_tell_is_asked_and_a_person_is_believed(tmp_path):
    data = str(save(tmp_path / "data", (12, 40, 40), (12, 30, 30)))
    with pytest.raises(RequestError, match=r"12 x \d0 x \d0: which axis.*--axes CYX .*--axes YXC"):
        open_source(data)
    for axes, size in (("CYX", (40, 40, 12)), ("YXC", (12, 40, 40))):
        source = open_source(data, axes=axes)
        assert source.read(0).shape == size
        assert source.axes.lines == [f"axes       {axes}: as --axes says"]
        assert open_source(data, default_axes=axes).read(0).shape == size
    clear = str(save(tmp_path / "clear", (12, 64, 64)))
    assert open_source(clear, default_axes="YXC").axes.order == "CYX"  # what the data tells itself comes first
    assert open_source(clear, axes="YXC").read(0).shape == (12, 64, 64)


def test_shapes_that_contradict_each_other_are_asked_about(tmp_path):
    data = str(save(tmp_path / "data", (12, 64, 64), (64, 64, 12)))
    with pytest.raises(
        RequestError, match=r"now first, now last: .*12 x 64 x 64.*64 x 64 x 12|64 x 64 x 12.*12 x 64 x 64"
    ):
        open_source(data)
    assert open_source(data, axes="CYX").read(0).shape == (64, 64, 12)


def test_broken_files_say_nothing(tmp_path):
    folder = save(tmp_path / "data", (12, 64, 64))
    (folder / "cut.npy").write_bytes(npy(picture((9, 9, 9)))[:40])
    (folder / "text.npy").write_text("no array")
    np.save(folder / "four.npy", picture((2, 3, 4, 5)))
    assert open_source(str(folder)).axes.order == "CYX"


def test_pictures_have_no_such_axes(tmp_path):
    source = open_source(str(save(tmp_path / "data", (64, 64))))
    assert (source.axes.order, source.axes.lines) == (None, [])


def test_tiff_says_it_itself(tmp_path):
    values = picture((12, 40, 48))
    for name, options in (("pages", {"photometric": "minisblack"}), ("planes", {"planarconfig": "separate"})):
        folder = tmp_path / name
        folder.mkdir()
        tifffile.imwrite(folder / "a.tif", values, **{"photometric": "minisblack", **options})
        for axes in (None, "YXC", "CYX"):
            assert np.array_equal(open_source(str(folder), axes=axes).read(0), values.transpose(1, 2, 0))


def test_rows_of_a_table_are_decided_by_the_first(tmp_path):
    rows = [{"bytes": npy(picture((12, 64, 64), seed=i)), "path": f"{i}.npy"} for i in range(12)]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, struct)}), tmp_path / "a.parquet", row_group_size=5)
    for data in (tmp_path, tmp_path / "a.parquet"):
        source = open_source(str(data))
        assert source.axes.order == "CYX"
        assert source.read(11).shape == (64, 64, 12)
    pq.write_table(
        pa.table({"image": pa.array(rows[:1] * 0 + [{"bytes": npy(picture((9, 9, 9)))}], struct)}),
        tmp_path / "a.parquet",
    )
    with pytest.raises(RequestError, match=r"a\.parquet#0 is 9 x 9 x 9"):
        open_source(str(tmp_path))


def test_decisions_need_no_order():
    shapes = [("a", (12, 64, 64)), ("b", (9, 20, 20)), ("c", (7, 7))]
    assert decide_axes(shapes, None, None) == decide_axes(shapes[::-1], None, None)


def test_an_older_run_reads_channels_last():
    assert ResolvedPretrainConfig.from_dict(json.loads(RECORD.read_text())).axes == "YXC"


@given(st.tuples(*[st.integers(1, 40)] * 3), st.sampled_from(["CYX", "YXC", "XYC", "YCX", None]), st.booleans())
def test_the_size_in_the_header_is_that_of_the_image(shape, axes, is_fortran):
    data = npy(np.asarray(picture(shape), order="F" if is_fortran else "C"))
    if axes is None and evident_order(shape) is None:
        with pytest.raises(BadImage, match="which axis holds the channels"):
            read_size(io.BytesIO(data), axes=axes)
    else:
        assert read_size(io.BytesIO(data), axes=axes) == decode(data, axes=axes).shape[:2]


@pytest.mark.parametrize(("shape", "axes"), [((5, 40, 60), None), ((40, 60, 5), None), ((60, 40, 40), "XYC")])
def test_tiles_are_cut_along_rows_and_columns(tmp_path, shape, axes):
    save(tmp_path / "data", shape)
    values = picture(shape).transpose([(axes or evident_order(shape)).index(axis) for axis in "YXC"])
    pq.write_table(pa.table({"image": [npy(picture(shape))]}), tmp_path / "table.parquet")
    for name in ("data", "table.parquet"):
        source = open_source(str(tmp_path / name), axes=axes)
        assert source.size(0) == (40, 60)
        tiles = cut_into_tiles(source, 20, name)
        names = [tiles.name(i).rpartition("#")[2] for i in range(len(tiles))]
        assert names == ["0,0", "0,1", "0,2", "1,0", "1,1", "1,2"]
        assert np.array_equal(tiles.read(5), values[20:, 40:])
        assert axes_of(split_held_out(tiles, 1)).order == (axes or evident_order(shape))
