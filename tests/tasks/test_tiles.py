"""--tiles: an epoch counts tiles, none of an image lies on both sides of a split, blank ones are apart, runs resume."""

import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import openmae
from openmae import EmbedConfig, FinetuneConfig, InspectConfig, PackConfig, PretrainConfig
from openmae.cli import run
from openmae.data.labels.labelled import open_labelled
from openmae.data.sources.manifest import read_pack
from openmae.data.sources.open import open_source
from openmae.data.sources.views import tile_image_ids
from openmae.errors import Interrupted, RequestError
from openmae.tasks.pack.job import PackJob
from openmae.tasks.pretrain.data import open_training_data
from openmae.tasks.pretrain.pretrain import pretrain

from ..shared import metrics, same_training_state, signal_at, snapshot, untimed

TILE, PER_IMAGE = 16, 6
SHAPE = {"image_size": 16, "patch_size": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twenty-four images of 32 x 48 px of two classes: six tiles each. Of every third the upper three are blank."""
    root = tmp_path_factory.mktemp("tiles") / "data"
    chance = np.random.default_rng(0)
    for number in range(24):
        image = np.kron(chance.integers(0, 256, (8, 12, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
        if number % 3 == 0:
            image[:16] = 255
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    return root


@pytest.fixture
def tiles_config(digits_config, data):
    def make(out, **changes):
        return digits_config(out, **{"data": str(data), "tiles": TILE, "held_out": None, **SHAPE, **changes})

    return make


@pytest.fixture(scope="module")
def pack_of_tiles(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("packs") / "raw"
    openmae.pack(PackConfig(data=str(data), out=str(out), tiles=TILE, format="raw", workers=0))
    return out


def images_of(source):
    return {source.name(i).split("#")[0] for i in range(len(source))}


def test_an_epoch_counts_tiles_and_blank_ones_are_counted_apart(tmp_path, tiles_config, capsys):
    summary = pretrain(tiles_config(tmp_path / "run", steps=None, epochs=2.0, batch_size=6, max_bad=0.0))
    said = capsys.readouterr().out
    assert summary["epoch"] == 2.0
    assert summary["images_seen"] == 2 * 23 * PER_IMAGE  # one of the twenty-four images is held out
    blank = 2 * 3 * sum(number % 3 == 0 for number in range(24) if f"{number:02d}" not in held_names(tmp_path / "run"))
    assert summary["blank_tiles"] == blank  # a tile as often as it was asked for
    assert summary["bad_inputs"] == 0
    assert not (tmp_path / "run" / "quarantine.jsonl").exists()
    assert [line["blank_tiles"] for line in metrics(tmp_path / "run") if "lr" in line][-1] == blank
    assert "data       138 tiles to train on, 6 held out" in said
    assert "tiles      138 of 16 px, from the headers of 23 images: 23 are larger and cut, 0 stay whole" in said
    assert f"openmae pack {tiles_config('x').data} PACK --tiles 16" in said


def test_packing_is_advised_where_tiles_decode_whole_images(tmp_path, tiles_config, monkeypatch, capsys):
    """Not of plain numbers, of which a tile is all that is read."""
    monkeypatch.setattr("openmae.data.sources.folder.LARGE_PIXELS", 0)
    monkeypatch.setattr("openmae.data.decoding.regions.LARGE_PIXELS", 0)
    data = tmp_path / "data"
    data.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)
    np.save(data / "a.npy", noise)
    pretrain(tiles_config(tmp_path / "plain", data=str(data), steps=1))
    assert "decodes it whole" not in capsys.readouterr().out
    Image.fromarray(noise[:40, :40]).save(data / "b.png")
    pretrain(tiles_config(tmp_path / "png", data=str(data), steps=1))
    assert "each tile of an image like b.png (40 x 40 px) decodes it whole: openmae pack" in capsys.readouterr().out


def held_names(run):
    """The numbers of the images that the run with these settings holds out."""
    config = json.loads((run / "config.json").read_bytes())
    assert (config["tiles"], config["held_out"]) == (TILE, 1)
    held = open_training_data(PretrainConfig.from_dict(config)).held_out
    return {name.split("/")[1].removesuffix(".png") for name in images_of(held)}


@pytest.mark.parametrize("held_out", [None, 1, 5, 20])
@pytest.mark.parametrize("is_packed", [False, True])
def test_no_image_is_trained_on_and_held_out(tmp_path, data, pack_of_tiles, held_out, is_packed):
    where = {"data": str(pack_of_tiles)} if is_packed else {"data": str(data), "tiles": TILE}
    found = open_training_data(PretrainConfig(out=str(tmp_path / "run"), held_out=held_out, **where))
    assert found.num_held_out == (held_out or 1)
    assert len(images_of(found.held_out)) == (held_out or 1)
    assert not images_of(found.train) & images_of(found.held_out)
    assert len(images_of(found.train)) == 24 - (held_out or 1)
    if not is_packed:
        assert len(found.train) == (24 - (held_out or 1)) * PER_IMAGE
    with pytest.raises(RequestError, match=r"--held-out 24 leaves nothing to train on: .* has 24 images"):
        open_training_data(PretrainConfig(out=str(tmp_path / "run"), held_out=24, **where))


def test_of_many_held_out_tiles_some_are_measured(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        chance = np.random.default_rng(number)
        Image.fromarray(chance.integers(0, 256, (80, 80, 3), np.uint8)).save(data / f"{number}.png")
    found = open_training_data(PretrainConfig(data=str(data), out=str(tmp_path / "run"), tiles=4, held_out=1))
    assert len(found.held_out) == 256
    assert len(images_of(found.held_out)) == 1
    assert len(found.train) == 2 * 400


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, tiles_config, monkeypatch, workers):
    straight = tiles_config(tmp_path / "straight", save_every=5)
    pretrain(straight)
    broken = tiles_config(tmp_path / "broken", save_every=5, workers=workers)
    with monkeypatch.context() as patch:
        signal_at(patch, 7)
        with pytest.raises(Interrupted):
            pretrain(broken)
    pretrain(tiles_config(tmp_path / "broken", resume="auto", tiles=None))
    same_training_state(tmp_path / "straight", tmp_path / "broken")
    assert untimed(metrics(tmp_path / "straight")) == untimed(metrics(tmp_path / "broken"))
    summaries = [json.loads((tmp_path / name / "summary.json").read_bytes()) for name in ("straight", "broken")]
    assert summaries[0]["blank_tiles"] == summaries[1]["blank_tiles"] > 0


def test_a_run_keeps_its_tiles(tmp_path, tiles_config, data):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    config = tiles_config(tmp_path / "run", data=str(copy), steps=2)
    pretrain(config)
    with pytest.raises(RequestError, match=r"has --tiles 16, not 32"):
        pretrain(tiles_config(tmp_path / "run", data=str(copy), tiles=32, steps=4, resume="auto"))
    pretrain(tiles_config(tmp_path / "whole", steps=1, tiles=None))
    with pytest.raises(RequestError, match=r"has no --tiles, not 16: leave --tiles out"):
        pretrain(tiles_config(tmp_path / "whole", steps=2, resume="auto"))
    first = next((copy / "a").iterdir())  # other tiles in a file of as many bytes are other data
    size = first.stat().st_size
    Image.new("RGB", (16, 16)).save(first)
    first.write_bytes(first.read_bytes() + b"\0" * (size - first.stat().st_size))
    assert first.stat().st_size == size
    with pytest.raises(RequestError, match="is not the data that this run began with"):
        pretrain(tiles_config(tmp_path / "run", data=str(copy), steps=4, resume="auto"))


def test_tiles_of_a_raw_pack_are_cropped_on_the_device(tmp_path, data, tiles_config):
    openmae.pack(PackConfig(data=str(data), out=str(tmp_path / "pack"), format="raw", size=32, workers=0))
    settings = {"data": str(tmp_path / "pack"), "steps": 3, "held_out": 2}
    for where in ("reader", "device"):
        pretrain(tiles_config(tmp_path / where, crop_on=where, **settings))
    lines = [[line["blank_tiles"] for line in metrics(tmp_path / w) if "lr" in line] for w in ("reader", "device")]
    assert lines[0] == lines[1]
    losses = [[line["loss"] for line in metrics(tmp_path / w) if "lr" in line] for w in ("reader", "device")]
    assert np.abs(np.subtract(*losses)).max() < 2e-3  # measured 1.4e-4: a reader rounds to 8 bits


def test_a_run_without_tiles_says_nothing_of_them(pixel_run):
    assert not any("blank_tiles" in line for line in metrics(pixel_run))
    assert "blank_tiles" not in json.loads((pixel_run / "summary.json").read_bytes())


def test_a_pack_of_tiles_holds_the_tiles(data, pack_of_tiles, tmp_path):
    source = open_source(str(pack_of_tiles))
    assert len(source) == 24 * PER_IMAGE - 8 * 3
    assert source.shape == (TILE, TILE, 3)
    place = [source.name(i) for i in range(len(source))].index("b/01.png#1,2")
    image = np.asarray(Image.open(data / "b" / "01.png"))
    assert np.array_equal(source.read(place), image[16:32, 32:48])
    assert source.label(place) == 1
    numbers, names = tile_image_ids(source).tolist(), [source.name(i).split("#")[0] for i in range(len(source))]
    assert len(set(numbers)) == len(set(names)) == len(set(zip(numbers, names, strict=True))) == 24
    manifest = read_pack(pack_of_tiles)
    assert manifest["tiles"] == TILE
    assert manifest["splits"]["train"]["blank_tiles"] == 24
    lines = [json.loads(line) for line in (pack_of_tiles / "quarantine.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in lines} == {"blank tile"}
    assert len(lines) == 24


def test_packing_counts_blank_tiles_apart_and_a_stopped_pack_goes_on(data, pack_of_tiles, tmp_path, monkeypatch):
    settings = {"data": str(data), "tiles": TILE, "format": "raw", "workers": 0, "max_bad": 0.0}
    real, turns = PackJob._next, itertools.count(1)

    def stopped_at_the_third(self, split, images):
        if next(turns) == 3:
            raise Interrupted("stopped")
        return real(self, split, images)

    with monkeypatch.context() as patch:
        patch.setattr(PackJob, "_next", stopped_at_the_third)
        with pytest.raises(Interrupted):
            openmae.pack(PackConfig(out=str(tmp_path / "pack"), **settings))
    assert not (tmp_path / "pack" / "pack.json").exists()
    found = openmae.pack(PackConfig(out=str(tmp_path / "pack"), resume="auto", **settings))
    assert (found["images"], found["unreadable"], found["blank_tiles"]) == (120, 0, 24)
    again = openmae.pack(PackConfig(out=str(tmp_path / "pack"), resume="auto", **settings))
    assert (again["unreadable"], again["blank_tiles"]) == (0, 24)
    for name in ("pack.json", "train.npy", "train.index.npz"):
        assert (tmp_path / "pack" / name).read_bytes() == (pack_of_tiles / name).read_bytes()
    before = snapshot(tmp_path / "pack")
    for other in ({"tiles": None}, {"tiles": 32}):
        with pytest.raises(RequestError, match=r"was begun with|is not what .* was begun with"):
            openmae.pack(PackConfig(out=str(tmp_path / "pack"), resume="auto", **{**settings, **other}))
    assert snapshot(tmp_path / "pack") == before


def test_jpegs_of_tiles_keep_their_size(data, tmp_path):
    openmae.pack(PackConfig(data=str(data), out=str(tmp_path / "pack"), tiles=20, workers=0))
    source = open_source(str(tmp_path / "pack"))
    assert {source.read(i).shape for i in range(len(source))} == {(20, 20, 3)}


def test_what_is_held_out_of_a_labelled_pack_of_tiles_is_held_out_by_image(pack_of_tiles):
    found = open_labelled(
        str(pack_of_tiles), labels=None, label_file=None, held_out=8, background=1.0, max_pixels=10**6
    )
    assert len(images_of(found.validation)) == 8
    assert not images_of(found.train) & images_of(found.validation)
    assert len(found.train) + len(found.validation) == 120
    assert {found.validation.label(i) for i in range(len(found.validation))} == {0, 1}


def test_a_pack_of_a_pack_of_tiles_knows_what_image_each_is_of(pack_of_tiles, tmp_path):
    openmae.pack(PackConfig(data=str(pack_of_tiles), out=str(tmp_path / "again"), format="raw", workers=0))
    of_tiles, again = (tile_image_ids(open_source(str(path))) for path in (pack_of_tiles, tmp_path / "again"))
    assert np.array_equal(of_tiles, again)
    data = open_training_data(PretrainConfig(data=str(tmp_path / "again"), out=str(tmp_path / "run"), held_out=3))
    assert len(images_of(data.held_out)) == 3
    assert not images_of(data.train) & images_of(data.held_out)


def test_finetuning_trains_on_a_pack_of_tiles(pack_of_tiles, tiles_config, tmp_path):
    pretrain(tiles_config(tmp_path / "run", steps=1))
    settings = {"data": str(pack_of_tiles), "init": str(tmp_path / "run"), "steps": 1, "batch_size": 8, "workers": 0}
    openmae.finetune(FinetuneConfig(out=str(tmp_path / "tuned"), device="cpu", precision="fp32", **settings))
    split = json.loads((tmp_path / "tuned" / "split.json").read_bytes())
    train = {open_source(str(pack_of_tiles)).name(i) for i in range(120)} - set(split["held_out"])
    assert not {name.split("#")[0] for name in train} & {name.split("#")[0] for name in split["held_out"]}


def test_embedding_gives_a_row_for_each_tile(data, tiles_config, tmp_path):
    pretrain(tiles_config(tmp_path / "run", steps=1))
    settings = {"data": str(data), "init": str(tmp_path / "run"), "device": "cpu", "workers": 0}
    found = openmae.embed(EmbedConfig(out=str(tmp_path / "tiles.npz"), tiles=TILE, **settings))
    assert found["images"] == 24 * PER_IMAGE
    table = np.load(tmp_path / "tiles.npz")
    assert table["paths"][:7].tolist() == [f"a/00.png#{r},{c}" for r in (0, 1) for c in (0, 1, 2)] + ["a/02.png#0,0"]
    assert table["labels"].tolist() == [0] * 72 + [1] * 72
    assert json.loads(str(table["about"]))["tiles"] == TILE
    tile = tmp_path / "tile"  # the same as of the tile as an image
    tile.mkdir()
    Image.fromarray(np.asarray(Image.open(data / "a" / "02.png"))[16:, 32:]).save(tile / "one.png")
    openmae.embed(EmbedConfig(out=str(tmp_path / "one.npz"), **{**settings, "data": str(tile)}))
    one = np.load(tmp_path / "one.npz")["features"][0]
    assert np.abs(table["features"][11] - one).max() < 1e-5  # measured 0 to 4e-7: batches differ
    openmae.embed(EmbedConfig(out=str(tmp_path / "whole.npz"), **settings))
    assert len(np.load(tmp_path / "whole.npz")["features"]) == 24


def test_inspecting_counts_tiles(data, capsys):
    report = openmae.inspect(InspectConfig(path=str(data), tiles=TILE, workers=0))
    expected = {"size": TILE, "tiles": 144, "images_cut": 24, "looked_at": 144, "blank": 24}
    assert report["splits"]["train"]["tiles"] == expected
    said = " ".join(capsys.readouterr().out.split())
    assert "--tiles 16: 144 tiles, 24 images are cut; of 144 looked at 24 are blank" in said
    assert "images of 16 x 16 px" in said
    limited = openmae.inspect(InspectConfig(path=str(data), tiles=TILE, workers=0, limit=2))["splits"]["train"]["tiles"]
    assert (limited["tiles"], limited["looked_at"]) == (144, 12)
    assert "tiles" not in openmae.inspect(InspectConfig(path=str(data), workers=0))["splits"]["train"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["pretrain", "DATA", "--out", "OUT", "--tiles", "0"], "--tiles got 0: it must be at least 1"),
        (["pretrain", "DATA", "--out", "OUT", "--tiles", "9" * 25], "it must be at least 1 and at most 100000"),
        (["embed", "DATA", "--init", "RUN", "--out", "OUT.npz", "--tiles", "9" * 25], "at most 100000"),
        (["inspect", "DATA", "--tiles", "9" * 25], "at most 100000"),
        (
            ["pretrain", "DATA", "--out", "OUT", "--tiles", "16", "--image-size", "32"],
            "--tiles got 16, less than --image-size 32: tiles would be enlarged, give 32 or more",
        ),
        (["pretrain", "DATA", "--out", "OUT", "--tiles", "4", "--patch-size", "8"], "less than --patch-size 8"),
        (["pretrain", "DATA", "--out", "OUT", "--tiles", "16", "--recipe", "mae-large"], "less than --image-size 224"),
        (["pretrain", "PACK", "--out", "OUT", "--tiles", "8"], "is a pack of tiles already: leave it out"),
        (["pretrain", "WHOLE", "--out", "OUT", "--tiles", "64"], "no image of the pack"),
        (["embed", "DATA", "--init", "RUN", "--out", "OUT.npz", "--tiles", "8"], "less than --image-size 16"),
        (["pack", "DATA", "OUT", "--tiles", "16", "--size", "32"], "less than --size 32"),
        (["pack", "PACK", "OUT", "--tiles", "16"], "is a pack of tiles already"),
        (["inspect", "RUN", "--tiles", "16"], "--tiles is for a data set, and"),
        (["inspect", "PACK", "--tiles", "8"], "is a pack of tiles already"),
    ],
)
def test_what_cannot_be_is_refused(command, said, data, pack_of_tiles, small_run, tmp_path, capsys):
    places = {"DATA": data, "PACK": pack_of_tiles, "WHOLE": small_run / "whole", "RUN": small_run / "run"}
    words = [str(places.get(word, word)).replace("OUT", str(tmp_path / "out")) for word in command]
    assert run(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def small_run(data, tmp_path_factory):
    """A run for 16 px images and a pack of whole images."""
    root = tmp_path_factory.mktemp("small")
    shape = {"width": 24, "depth": 1, "num_heads": 3, "decoder_width": 16, "decoder_depth": 1, **SHAPE}
    pretrain(PretrainConfig(data=str(data), out=str(root / "run"), steps=1, device="cpu", workers=0, **shape))
    openmae.pack(PackConfig(data=str(data), out=str(root / "whole"), workers=0))
    return root
