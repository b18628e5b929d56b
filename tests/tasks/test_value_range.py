"""12 bits in 16-bit files under a model of 8-bit images: every command sees what it would see of the 8-bit ones."""

import json
import re
import warnings
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from openmae.commands import COMMANDS
from openmae.config import (
    AttentionConfig,
    EmbedConfig,
    ExperimentConfig,
    FinetuneConfig,
    InspectConfig,
    KnnConfig,
    PackConfig,
    PretrainConfig,
    ProbeConfig,
    ReconstructConfig,
)
from openmae.data.augment import Augmentation
from openmae.data.depths import survey_depths
from openmae.data.loader import Stream, collate
from openmae.data.preprocess import survey
from openmae.data.sources.open import open_source
from openmae.data.sources.sizes import cut_into_tiles
from openmae.data.sources.views import split_held_out
from openmae.errors import Interrupted, RequestError
from openmae.experiments.experiment import experiment
from openmae.inference.load import load
from openmae.planning import probe as probe_planning
from openmae.tasks.attention import attention
from openmae.tasks.embed import embed
from openmae.tasks.finetune.finetune import finetune
from openmae.tasks.inspect.inspect import inspect
from openmae.tasks.knn import knn
from openmae.tasks.pack.pack import pack
from openmae.tasks.pretrain.pretrain import pretrain
from openmae.tasks.probe.probe import probe
from openmae.tasks.reconstruct import reconstruct
from openmae.training.checkpoint import read_model

from ..shared import gradients_config, run_trials_here, same_training_state, signal_at

TWELVE = (0.0, 4095.0)
WITHOUT_IMAGES = {"convert", "bench", "demo"}


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def pictures():
    """Grey pictures of two classes by part: 20 × 16 pixels, rising to the right or to the left."""
    chance = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for label in ("left", "right"):
            for number in range(count):
                ramp = np.linspace(10, 250, 20)[:: 1 if label == "right" else -1]
                yield f"{part}/{label}/{number}.png", (ramp + chance.normal(0, 4, (16, 20))).clip(0, 255)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same pictures in 8 bits, in 12 of 16 bits (those of `low` reach 250 only), and in 16 of 16."""
    root = tmp_path_factory.mktemp("depths")
    for name, values in pictures():
        eight = np.rint(values).astype(np.uint8)
        save(root / "eight" / name, eight)
        save(root / "twelve" / name, np.rint(eight * (4095 / 255)).astype(np.uint16))
        save(root / "sixteen" / name, eight.astype(np.uint16) << 8 | eight)
        save(root / "low" / name, np.rint(eight * (250 / 255)).astype(np.uint16))
    return root


@pytest.fixture(scope="module")
def eight_bit_run(folders, tmp_path_factory, digits_config):
    out = tmp_path_factory.mktemp("runs") / "eight"
    pretrain(gradients_config(digits_config, folders / "eight", out, steps=4, channels=1, evaluate_every=100))
    return out


def features(data, run, out, **settings):
    embed(EmbedConfig(data=str(data), init=str(run), out=str(out / "f.npz"), device="cpu", workers=0, **settings))
    with np.load(out / "f.npz") as file:
        return file["features"], json.loads(file["about"].item())["preprocessing"]


def test_every_command_with_images_takes_the_flag():
    taken = {command.name for command in COMMANDS if "value_range" in {f.name for f in fields(command.config)}}
    assert taken == {command.name for command in COMMANDS} - WITHOUT_IMAGES
    for config in (KnnConfig, EmbedConfig):
        with pytest.raises(RequestError, match="--value-range"):
            config(data="d", init="i", out="o.npz", value_range=(3.0, 3.0))


@pytest.mark.parametrize("depth", ["twelve", "sixteen"])
def test_features_are_those_of_the_eight_bit_pictures(folders, eight_bit_run, tmp_path, capsys, depth):
    expected, plain = features(folders / "eight", eight_bit_run, tmp_path)
    assert "values " not in capsys.readouterr().out
    assert "source_range" not in plain
    found, about = features(folders / depth, eight_bit_run, tmp_path)
    assert np.array_equal(found, expected)
    most = 4095 if depth == "twelve" else 65535
    assert about["source_range"] == [0, most]
    printed = capsys.readouterr().out
    assert f"values     uint16 values of 0 to {most} become 0 to 255 of the model" in printed
    found, _ = features(folders / depth, eight_bit_run, tmp_path, value_range=(0.0, float(most)))
    assert np.array_equal(found, expected)
    assert "as --value-range says" in capsys.readouterr().out


def run_settings(data, init, out):
    return {"data": str(data), "init": str(init), "out": str(out), "device": "cpu", "workers": 0}


def test_knn_and_probe_find_what_they_find_of_eight_bits(folders, eight_bit_run, tmp_path, capsys):
    for task, config in ((knn, KnnConfig), (probe, ProbeConfig)):
        extra = {"k": (5,)} if task is knn else {"steps": 20, "batch_size": 16, "base_lr": (0.5,), "evaluate_every": 20}
        found = {}
        for depth in ("eight", "twelve"):
            settings = run_settings(folders / depth, eight_bit_run, tmp_path / f"{task.__name__}-{depth}")
            found[depth] = task(config(**settings, **extra))
            printed = capsys.readouterr().out
            assert ("uint16 values of 0 to 4095 become 0 to 255" in printed) == (depth == "twelve")
        names = ("top1", "loss", "held_out_loss")
        assert [found["eight"].get(n) for n in names] == [found["twelve"].get(n) for n in names]


def test_a_tuned_model_keeps_what_was_understood_for_later_commands(folders, eight_bit_run, tmp_path, capsys):
    settings = {
        "steps": 3,
        "batch_size": 8,
        "evaluate_every": 3,
        "save_every": 3,
        "precision": "fp32",
        "augment": "none",
    }
    found = {}
    for depth, extra in (("eight", {}), ("twelve", {}), ("low", {"value_range": (0.0, 250.0)})):
        run = tmp_path / depth
        init = run_settings(folders / depth, eight_bit_run, run)
        found[depth] = finetune(FinetuneConfig(**init, **settings, rand_augment="none", **extra))
        weights, description = read_model(run / "model.safetensors")
        found[depth, "weights"] = weights["head.weight"]
        if depth != "eight":
            kept = description["preprocessing"]
            assert kept["source_dtype"] == "uint16"
            assert kept["source_range"] == [0, 4095 if depth == "twelve" else 250]
            assert kept["value_range"] == [0, 255]
    assert torch.equal(found["eight", "weights"], found["twelve", "weights"])
    assert found["eight"]["held_out_loss"] == found["twelve"]["held_out_loss"]
    assert json.loads((tmp_path / "low" / "config.json").read_text())["value_range"] == [0, 250]
    capsys.readouterr()
    # Images that reach 250 only would be guessed to have 8 bits; the model knows better.
    low, _ = features(folders / "low", tmp_path / "twelve", tmp_path)
    assert "as it was before" in capsys.readouterr().out
    again, _ = features(folders / "low", tmp_path / "twelve", tmp_path, value_range=TWELVE)
    assert np.array_equal(low, again)
    guessed, _ = features(folders / "low", tmp_path / "eight", tmp_path)
    assert not np.array_equal(low, guessed)
    # The same command goes on with the run, and another range is refused by name.
    same = run_settings(folders / "low", eight_bit_run, tmp_path / "low")
    assert finetune(FinetuneConfig(**same, value_range=(0.0, 250.0), resume="auto"))["status"] == "complete"
    with pytest.raises(RequestError, match="has --value-range 0 250, not 0 4095: leave"):
        finetune(FinetuneConfig(**same, value_range=TWELVE, resume="auto"))
    # So it is with what was understood unasked.
    same = run_settings(folders / "twelve", eight_bit_run, tmp_path / "twelve")
    assert finetune(FinetuneConfig(**same, value_range=TWELVE, resume="auto"))["status"] == "complete"
    with pytest.raises(RequestError, match="has --value-range 0 4095, not 0 250: leave"):
        finetune(FinetuneConfig(**same, value_range=(0.0, 250.0), resume="auto"))


def test_pretraining_goes_on_in_the_models_scale(folders, eight_bit_run, tmp_path, digits_config):
    runs = {}
    for depth in ("eight", "twelve"):
        runs[depth] = tmp_path / depth
        config = gradients_config(digits_config, folders / depth, runs[depth], init=str(eight_bit_run), steps=3)
        pretrain(replace(config, **dict.fromkeys(("image_size", "patch_size", "width", "num_heads", "decoder_width"))))
    weights = [read_model(run / "model.safetensors")[0] for run in runs.values()]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert read_model(runs["twelve"] / "model.safetensors")[1]["preprocessing"]["source_range"] == [0, 4095]
    again = PretrainConfig(data=str(folders / "twelve"), out=str(runs["twelve"]), resume="auto", value_range=TWELVE)
    assert pretrain(again)["status"] == "complete"
    with pytest.raises(RequestError, match="has --value-range 0 4095, not 0 250: leave"):
        pretrain(replace(again, value_range=(0.0, 250.0)))


def stop_at(step, train):
    """Train until a signal comes in the middle of this step."""
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, step)
        with pytest.raises(Interrupted):
            train()


def test_mixed_depths_are_said_and_go_on_to_the_same_bytes(folders, tmp_path, digits_config, capsys):
    for number, (_, values) in enumerate(pictures()):
        eight = np.rint(values).astype(np.uint8)
        kept = np.rint(eight * (4095 / 255)).astype(np.uint16) if number % 3 == 0 else eight
        save(tmp_path / "mixed" / f"{number:02d}.png", kept)
        save(tmp_path / "plain" / f"{number:02d}.png", eight)
    given = {"mean": (0.5,), "std": (0.25,)}  # measured, they would be of the most common type only
    runs = {name: tmp_path / f"run-{name}" for name in ("mixed", "plain", "stopped")}
    for name in ("mixed", "plain"):
        pretrain(gradients_config(digits_config, tmp_path / name, runs[name], channels=1, **given))
    told = re.search(r"of 32 images looked at (\d+) uint8, (\d+) uint16 \(up to \d+\)", capsys.readouterr().out)
    assert told is not None
    assert int(told[1]) + int(told[2]) == 32
    weights = [read_model(runs[name] / "model.safetensors")[0] for name in ("mixed", "plain")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    stop_at(
        5, lambda: pretrain(gradients_config(digits_config, tmp_path / "mixed", runs["stopped"], channels=1, **given))
    )
    pretrain(gradients_config(digits_config, tmp_path / "mixed", runs["stopped"], channels=1, resume="auto", **given))
    same_training_state(runs["mixed"], runs["stopped"])


def test_an_older_run_goes_on_as_it_began(tmp_path, digits_config, monkeypatch):
    """Its record says nothing of other types: then they are brought to the model's by the types' full ranges."""
    data, runs = tmp_path / "data", [tmp_path / "whole", tmp_path / "stopped"]
    for number, (_, values) in enumerate(pictures()):
        eight = np.rint(values).astype(np.uint8)
        save(data / f"{number:02d}.png", eight.astype(np.uint16) * 4 if number % 5 == 0 else eight)
    with monkeypatch.context() as older:
        older.setattr("openmae.planning.pretrain.match_own_scale", lambda preprocessing, depths: (preprocessing, []))
        pretrain(gradients_config(digits_config, data, runs[0], channels=1))
        stop_at(5, lambda: pretrain(gradients_config(digits_config, data, runs[1], channels=1)))
    pretrain(gradients_config(digits_config, data, runs[1], channels=1, resume="auto"))
    same_training_state(*runs)
    fresh = tmp_path / "fresh"
    pretrain(gradients_config(digits_config, data, fresh, channels=1))
    weights = [read_model(run / "model.safetensors")[0] for run in (runs[0], fresh)]
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_from_python_a_doubt_is_said_and_nothing_is_guessed(folders, eight_bit_run):
    name = next(name for name, _ in pictures())
    eight, twelve, sixteen = (folders / depth / name for depth in ("eight", "twelve", "sixteen"))
    model = load(str(eight_bit_run), "cpu")
    with pytest.warns(UserWarning, match=r"1 of 2 images.*12 bits.*value_range="):
        found = model.prepare([eight, twelve])
    wide = np.array(Image.open(twelve))
    assert torch.equal(found[1:], model.prepare((wide >> 8).astype(np.uint8)))
    told = load(str(eight_bit_run), "cpu", value_range=(0, 4095))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(told.prepare(twelve), model.prepare(eight))
        assert torch.equal(model.prepare(sixteen), model.prepare(eight))
        assert torch.equal(told.prepare(wide), model.prepare(eight))
    infinite = float("inf")
    for wrong in ((9, 9), (0,), (0, 1, 2), 4095, "09", ("0", "4095"), (None, 1), (0, infinite), (-1e308, 1e308)):
        with pytest.raises(RequestError, match="--value-range got"):
            load(str(eight_bit_run), "cpu", value_range=wrong)
    with pytest.raises(RequestError, match="--axes got ''"):
        load(str(eight_bit_run), "cpu", axes="")


def test_sheets_show_the_pictures(folders, eight_bit_run, tmp_path, capsys):
    name = next(name for name, _ in pictures())
    sheets = {}
    for depth in ("eight", "twelve"):
        for images in ((str(folders / depth / name),), (str(folders / depth),)):
            for task, config in ((reconstruct, ReconstructConfig), (attention, AttentionConfig)):
                out = tmp_path / "sheet.png"
                task(config(images=images, init=str(eight_bit_run), out=str(out), limit=2, device="cpu"))
                sheets[depth, len(sheets) % 4] = out.read_bytes()
                assert ("become 0 to 255" in capsys.readouterr().out) == (depth == "twelve")
    assert all(sheets["eight", number] == sheets["twelve", number] for number in range(4))


@pytest.mark.slow
def test_the_experiment_decides_once(folders, eight_bit_run, tmp_path, capsys, monkeypatch):
    run_trials_here(monkeypatch)
    monkeypatch.setattr(probe_planning, "TARGET_STEPS", 20)
    for name in ("probe", "finetune"):  # pictures are most of what tiny runs cost
        monkeypatch.setattr(f"openmae.tasks.{name}.{name}.write_report", lambda *arguments: None)
    config = ExperimentConfig(
        name="figure-9",
        data=str(folders / "twelve"),
        init=str(eight_bit_run),
        out=str(tmp_path / "figure"),
        labels=("50%",),
        epochs=(1.0,),
        blocks=(),
        base_lr=(1e-3,),
        seeds=1,
        batch_size=4,
        held_out=4,
        device="cpu",
        workers=0,
    )
    experiment(config)
    assert "uint16 values of 0 to 4095 become 0 to 255" in capsys.readouterr().out
    configs = list((tmp_path / "figure" / "runs").glob("*/seed-0/*/config.json"))
    assert len(configs) == 4
    for path in configs:
        record = json.loads(path.read_text())
        assert record["value_range"] == [0, 4095], path
        if "scratch" in path.parts[-4]:
            assert record["preprocessing"]["dtype"] == "uint16"
            assert record["preprocessing"]["value_range"] == [0, 4095]
        else:
            assert record["preprocessing"]["source_range"] == [0, 4095]


# --- packs and inspect ---


def test_a_pack_of_jpegs_takes_a_range(folders, tmp_path):
    with pytest.raises(RequestError, match=r"--format raw keeps it, --value-range"):
        pack(PackConfig(data=str(folders / "twelve"), out=str(tmp_path / "no"), workers=0))
    for depth, extra in (("eight", {}), ("twelve", {"value_range": TWELVE})):
        pack(PackConfig(data=str(folders / depth), out=str(tmp_path / depth), workers=0, **extra))
    first, second = (open_source(str(tmp_path / depth)) for depth in ("eight", "twelve"))
    assert len(first) == len(second) == 24
    assert all(np.array_equal(first.read(i), second.read(i)) for i in range(len(first)))


def test_a_raw_pack_keeps_its_word_for_what_reads_it(folders, eight_bit_run, tmp_path, capsys):
    out = tmp_path / "raw"
    settings = {"format": "raw", "size": 16, "workers": 0, "resume": "auto"}
    pack(PackConfig(data=str(folders / "low"), out=str(out), value_range=(0.0, 250.0), **settings))
    source = open_source(str(out))
    assert source.value_range == (0.0, 250.0)
    assert survey(source).value_range == (0.0, 250.0)
    capsys.readouterr()
    _, about = features(out, eight_bit_run, tmp_path)
    assert about["source_range"] == [0, 250]
    assert "as the pack says" in capsys.readouterr().out
    with pytest.raises(RequestError, match="begun with --value-range 0 250: give --value-range 0 250, or"):
        pack(PackConfig(data=str(folders / "low"), out=str(out), **settings))


def test_a_raw_pack_brings_other_depths_to_its_own(tmp_path, capsys):
    """And says nothing new of data of one type, whose manifest keeps its bytes."""
    for number, (_, values) in enumerate(pictures()):
        eight = np.rint(values).astype(np.uint8)
        save(tmp_path / "plain" / f"{number:02d}.png", eight)
        kept = np.rint(eight * (4095 / 255)).astype(np.uint16) if number % 3 == 0 else eight
        save(tmp_path / "mixed" / f"{number:02d}.png", kept)
    for name in ("plain", "mixed"):
        pack(PackConfig(data=str(tmp_path / name), out=str(tmp_path / f"p-{name}"), format="raw", size=16, workers=0))
    told = capsys.readouterr().out
    assert "become 0 to 255 of the uint8 images (12 bits hold" in told
    assert "--value-range" not in told  # it says what reads the pack takes for 0 and 1, and changes none of this
    plain, mixed = (json.loads((tmp_path / f"p-{name}" / "pack.json").read_text()) for name in ("plain", "mixed"))
    assert plain.keys() == mixed.keys() - {"rescale"}
    assert mixed["rescale"] == {"dtype": "uint16", "source": [0, 4095], "target": [0, 255]}
    assert np.array_equal(np.load(tmp_path / "p-plain/train.npy"), np.load(tmp_path / "p-mixed/train.npy"))


def test_inspect_tells_the_depths(folders, tmp_path, capsys):
    for number, (_, values) in enumerate(pictures()):
        eight = np.rint(values).astype(np.uint8)
        save(tmp_path / "data" / f"{number:02d}.png", eight.astype(np.uint16) * (16 if number % 2 else 256))
    report = inspect(InspectConfig(path=str(tmp_path / "data"), workers=0, value_range=(0.0, 65535.0)))
    train = report["splits"]["train"]
    assert train["bits"] == {"12": 18, "16": 18}
    assert 40000 < train["highest"]["uint16"] <= 65280
    assert report["statistics"]["value_range"] == [0, 65535]
    assert "12 bits in 18, 16 bits in 18" in " ".join(capsys.readouterr().out.split())


def mosaics(root, depth):
    """Two images of four tiles of 20 × 20 px in 8 or 12 bits; the last of each is blank: all that the type holds."""
    for number in range(2):
        image = np.random.default_rng(number).integers(0, 256, (40, 40), np.uint8)
        image[0, 0] = 255
        if depth == "twelve":
            image = np.rint(image * (4095 / 255)).astype(np.uint16)
        image[20:, 20:] = np.iinfo(image.dtype).max
        save(root / depth / f"{number}.png", image)
    return root / depth


def test_tiles_of_twelve_bits_are_those_of_eight(eight_bit_run, tmp_path, capsys, digits_config):
    eight, twelve = mosaics(tmp_path, "eight"), mosaics(tmp_path, "twelve")
    expected, _ = features(eight, eight_bit_run, tmp_path, tiles=20)
    capsys.readouterr()
    found, about = features(twelve, eight_bit_run, tmp_path, tiles=20)
    assert found.shape[0] == 8
    assert np.array_equal(found, expected)  # the blank ones too: what lies above the range is cut off
    assert about["source_range"] == list(TWELVE)  # of which the blank ones say nothing
    assert "values     uint16 values of 0 to 4095 become 0 to 255 of the model" in capsys.readouterr().out

    out = tmp_path / "run"
    settings = {"init": str(eight_bit_run), "tiles": 20, "steps": 2, "held_out": 1, "evaluate_every": 100}
    pretrain(gradients_config(digits_config, twelve, out, **settings))
    assert load(str(out), "cpu").preprocessing.source_range == TWELVE
    samples = []
    for data, run in ((eight, eight_bit_run), (twelve, out)):
        tiles = cut_into_tiles(open_source(str(data)), 20, "data")
        stream = Stream(tiles, load(str(run), "cpu").preprocessing, Augmentation(), 0, patch_size=4)
        samples.append(collate([stream[i] for i in range(16)]))
    assert torch.equal(samples[0].images, samples[1].images)
    assert samples[0].num_blank == samples[1].num_blank > 0
    assert survey_depths([split_held_out(tiles, 2)[0]]).highest["uint16"] <= 4095  # a part of the tiles, too


def test_packs_of_twelve_bit_tiles_hold_the_scale(eight_bit_run, tmp_path):
    twelve, eight = mosaics(tmp_path, "twelve"), mosaics(tmp_path, "eight")
    raw = PackConfig(data=str(twelve), out=str(tmp_path / "raw"), tiles=20, format="raw", value_range=TWELVE, workers=0)
    assert pack(raw)["blank_tiles"] == 2
    found, about = features(tmp_path / "raw", eight_bit_run, tmp_path)
    whole, _ = features(eight, eight_bit_run, tmp_path, tiles=20)
    assert np.array_equal(found, whole[[0, 1, 2, 4, 5, 6]])
    assert about["source_range"] == list(TWELVE)
    jpeg = replace(raw, out=str(tmp_path / "jpeg"), format="jpeg", quality=100)
    pack(jpeg)
    image = open_source(str(tmp_path / "jpeg")).read(1).astype(int)
    error = np.abs(image - open_source(str(eight)).read(0)[:20, 20:]).max()
    assert error <= 2  # measured: 1
