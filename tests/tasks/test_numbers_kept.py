"""Labels that are numbers go through packs and tables of features as they are, and `inspect` says what they are."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from openmae.cli import run as openmae_run
from openmae.config import EmbedConfig, InspectConfig, PackConfig, PretrainConfig
from openmae.config.features import KnnConfig
from openmae.data.labels.labelled import open_labelled
from openmae.data.sources.open import open_source
from openmae.errors import RequestError
from openmae.tasks.embed import embed
from openmae.tasks.inspect.inspect import inspect
from openmae.tasks.knn import knn
from openmae.tasks.pack.pack import pack
from openmae.tasks.pretrain.watch import open_watch

LABELS = [20.5, None, 21.25, -3.0, 40.75, 20.5, 7.0, 8.5, 9.0, 11.0, 12.5, 13.0]


def parquet(path, labels, kind):
    chance, images = np.random.default_rng(0), []
    for _ in labels:
        buffer = io.BytesIO()
        Image.fromarray(chance.integers(0, 256, (10, 10), np.uint8)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue()})
    built = pa.table({"image": pa.array(images, pa.struct([("bytes", pa.binary())])), "label": pa.array(labels, kind)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(built, path)
    return path


@pytest.fixture(scope="module")
def ages(tmp_path_factory):
    return parquet(tmp_path_factory.mktemp("data") / "ages.parquet", LABELS, pa.float64())


def numbers_in(data):
    settings = {"labels": None, "label_file": None, "held_out": 3, "background": 1.0, "max_pixels": 10**6}
    found = open_labelled(str(data), **settings, task="regression")
    parts = [(part.name(i), part.label(i)[0]) for part in (found.train, found.final_source) for i in range(len(part))]
    return dict(parts)


@pytest.mark.parametrize("format", ["jpeg", "raw"])
def test_tiles_have_the_numbers_of_their_images(ages, pixel_run, tmp_path, format):
    """In a pack, in a pack of that, and in a table of features."""
    expected = {f"ages.parquet#{i}": label for i, label in enumerate(LABELS) if label is not None}
    packs = [ages, tmp_path / "pack", tmp_path / "again"]
    for data, out, settings in ((*packs[:2], {"tiles": 8}), (*packs[1:], {})):
        pack(PackConfig(data=str(data), out=str(out), format=format, workers=0, **settings))
        found = numbers_in(out)
        assert len(found) == 4 * len(expected)
        assert {(name.rpartition("#")[0], number) for name, number in found.items()} == set(expected.items())
    settings = {"data": str(ages), "init": str(pixel_run), "image_size": 8, "device": "cpu", "workers": 0}
    embed(EmbedConfig(out=str(tmp_path / "table.npz"), tiles=8, **settings))
    with np.load(tmp_path / "table.npz") as table:
        np.testing.assert_array_equal(table["labels"], np.repeat([np.nan if n is None else n for n in LABELS], 4))


@pytest.mark.parametrize("format", ["jpeg", "raw"])
def test_a_pack_has_the_numbers(ages, tmp_path, format):
    """With a fraction, below 0 and missing ones; whole ones that are classes leave no trace of it."""
    out = tmp_path / "pack"
    pack(PackConfig(data=str(ages), out=str(out), format=format, workers=0))
    expected = {f"ages.parquet#{i}": label for i, label in enumerate(LABELS) if label is not None}
    assert numbers_in(out) == numbers_in(ages) == expected
    again = tmp_path / "again"
    pack(PackConfig(data=str(out), out=str(again), format=format, workers=0))
    assert numbers_in(again) == expected
    if format == "jpeg":
        (table,) = out.glob("*.parquet")
        found = pq.read_table(table)
        assert found["label"].to_pylist() == LABELS
        told = json.loads(found.schema.metadata[b"huggingface"])["info"]["features"]["label"]
        assert told == {"dtype": "float64", "_type": "Value"}
    with pytest.raises(RequestError, match="are numbers, some with a fraction"):
        open_labelled(str(out), labels=None, label_file=None, held_out=3, background=1.0, max_pixels=10**6)
    classes = parquet(tmp_path / "classes.parquet", [0, 1, 2, -1], pa.int64())
    pack(PackConfig(data=str(classes), out=str(tmp_path / "classes"), format=format, workers=0))
    with np.load(tmp_path / "classes" / "train.index.npz") as index:
        assert "numbers" not in index
        assert index["labels"].tolist() == [0, 1, 2, -1]


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_a_table_of_features_has_the_numbers(pixel_run, ages, tmp_path, ending):
    out = tmp_path / f"features.{ending}"
    embed(EmbedConfig(data=str(ages), init=str(pixel_run), out=str(out), device="cpu", workers=0))
    if ending == "npz":
        with np.load(out) as found:
            labels = found["labels"]
    else:
        table = pq.read_table(out)
        assert table.schema.field("label").type == pa.float64()
        labels = table["label"].to_numpy()
    np.testing.assert_array_equal(labels, [np.nan if label is None else label for label in LABELS])
    classes = parquet(tmp_path / "classes.parquet", [0, 1, None], pa.float64())
    embed(EmbedConfig(data=str(classes), init=str(pixel_run), out=str(tmp_path / "c.npz"), device="cpu", workers=0))
    with np.load(tmp_path / "c.npz") as found:
        assert found["labels"].dtype == np.int64
        assert found["labels"].tolist() == [0, 1, -1]


def test_inspect_says_that_labels_are_numbers(ages, tmp_path, capsys):
    found = inspect(InspectConfig(path=str(ages)))
    assert found["numbers"] == {"count": 11, "lowest": -3.0, "highest": 40.75}
    assert found["classes"] is None
    told = capsys.readouterr().out
    assert "numbers    11 from -3 to 40.75, not all of them whole: --task regression predicts them" in told
    assert "labels     none" not in told
    for age in ("20.5", "31"):
        (tmp_path / "folders" / age).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (9, 9), number).save(tmp_path / "folders" / age / f"{number}.png")
    assert inspect(InspectConfig(path=str(tmp_path / "folders")))["numbers"]["highest"] == 31
    assert inspect(InspectConfig(path="embedded:digits"))["numbers"] is None


def test_pre_training_takes_them(ages, tmp_path):
    assert open_source(str(ages)).label(0) is None
    arguments = f"pretrain {ages} --out {tmp_path / 'run'} --steps 2 --width 16 --depth 1 --num-heads 2 --workers 0 "
    arguments += "--image-size 8 --patch-size 4 --decoder-width 16 --decoder-depth 1 --batch-size 4 --device cpu"
    assert openmae_run(arguments.split()) == 0


def test_what_measures_classes_alone_takes_no_numbers_for_them(pixel_run, tmp_path, capsys):
    """And does not offer a flag that it has not."""
    for part in ("train", "test"):
        for age in ("20.5", "31.5", "40"):
            (tmp_path / "folders" / part / age).mkdir(parents=True)
            for number in range(4):
                Image.new("L", (9, 9), number).save(tmp_path / "folders" / part / age / f"{number}.png")
    config = PretrainConfig(data="embedded:photos", out="run", watch="knn", watch_data=str(tmp_path / "folders"))
    with pytest.raises(RequestError, match=r"some with a fraction .*: what is watched is classes") as error:
        open_watch(config)
    assert "--task" not in str(error.value)
    arguments = f"experiment figure-9 {tmp_path / 'folders'} --init {pixel_run} --out {tmp_path / 'x'} --blocks 0.5"
    assert openmae_run(arguments.split()) == 2
    told = capsys.readouterr().err
    assert "some with a fraction (20.5, 31.5, 40): this experiment measures classes, name them otherwise" in told
    assert "--task" not in told


def test_neighbours_of_packed_numbers(pixel_run, ages, tmp_path):
    out = tmp_path / "pack"
    pack(PackConfig(data=str(ages), out=str(out), format="raw", workers=0))
    settings = {"init": str(pixel_run), "k": (3,), "device": "cpu", "workers": 0, "task": "regression", "held_out": 4}
    one = knn(KnnConfig(data=str(ages), out=str(tmp_path / "one"), **settings))
    two = knn(KnnConfig(data=str(out), out=str(tmp_path / "two"), **settings))
    assert (one["images"], one["train_images"]) == (two["images"], two["train_images"]) == (4, 7)
    # A raw pack keeps the pixels, a source of one type gives equal ones: measured 0.
    assert one["mae"] == pytest.approx(two["mae"], rel=0.05)
