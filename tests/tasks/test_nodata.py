"""--nodata: the loss is of what is there, over all micro-batches and processes; runs resume; every command takes it."""

import itertools
import json
import signal

import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import load_file

import openmae
from openmae import EmbedConfig, FinetuneConfig, InspectConfig, KnnConfig, ProbeConfig, ReconstructConfig
from openmae.cli import run as openmae_run
from openmae.config import ResolvedPretrainConfig
from openmae.errors import Interrupted, RequestError
from openmae.inference.mask_sampler import MaskSampler
from openmae.machine.parallel import Processes
from openmae.model.mae import MAE
from openmae.model.patches import gather, patchify
from openmae.planning import preprocessing
from openmae.run.model_input import ModelInput
from openmae.run.step_model import StepModel
from openmae.tasks.pretrain import pretrain as task
from openmae.tasks.pretrain.pretrain import loss_fn, pretrain

from ..processes import run as run_processes
from ..processes import said, same, send, start, wait, wait_for_step
from ..shared import metrics, same_training_state, signal_at, untimed

RNG = np.random.default_rng(0)
CPU = torch.device("cpu")
SHAPE = {
    "image_size": 16, "patch_size": 4, "width": 24, "depth": 1, "num_heads": 3, "decoder_width": 16,
    "decoder_depth": 1, "decoder_num_heads": 2, "target": "pixel", "batch_size": 8, "held_out": 4,
}  # fmt: skip
FLAGS = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in SHAPE.items())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Forty-eight float images in two classes; a third of the columns of every second is what GDAL marks -9999."""
    root = tmp_path_factory.mktemp("nodata") / "data"
    for number in range(48):
        y, x = np.mgrid[0:20, 0:20]
        image = (np.sin(0.3 * x * (1 + number % 2) + number) + np.cos(0.2 * y + number)).astype(np.float32)
        image = np.stack([image, image[::-1]], -1) + RNG.normal(0, 0.1, (20, 20, 2)).astype(np.float32)
        if number % 2:
            image[:, : 4 + number % 8] = -9999
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        tags = [(42113, 2, 0, "-9999", True)]
        options = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(folder / f"{number:02d}.tif", image.astype(np.float32), extratags=tags, **options)
    return root


@pytest.fixture
def nodata_config(digits_config, data):
    return lambda out, **changes: digits_config(out, **{"data": str(data), **SHAPE, **changes})


@pytest.fixture(scope="module")
def pretrained_here(data, tmp_path_factory):
    from ..tiny_runs import make_digits_config

    out = tmp_path_factory.mktemp("runs") / "run"
    pretrain(make_digits_config(out, data=str(data), **SHAPE))
    return out


def test_the_loss_is_the_mean_over_masked_patches_that_are_not_empty(nodata_config, tmp_path):
    """Against the definition, from the model's predictions alone; and the same in micro-batches of any size."""
    losses, grads = {}, {}
    for micro in (8, 3, 1):
        kept = {}

        def spy(model, optimizer, micro_batches, config, processes, masks, kept=kept, real=task.train_step):
            if not kept:
                kept["parts"] = [micro_batches[number] for number in range(len(micro_batches))]
                kept["empty"] = [micro_batch.is_empty for micro_batch in micro_batches.micro_batches]
                step, before = optimizer.step, {}

                def look():
                    before.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
                    return step()

                optimizer.step = look
                kept["expected"] = expected_loss(model, kept["parts"], kept["empty"])
                kept["result"] = real(model, optimizer, micro_batches, config, processes, masks)
                optimizer.step = step
                kept["grads"] = before
                return kept["result"]
            return real(model, optimizer, micro_batches, config, processes, masks)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task, "train_step", spy)
            pretrain(nodata_config(tmp_path / str(micro), steps=1, micro_batch_size=micro))
        assert any(empty is not None for empty in kept["empty"])
        torch.testing.assert_close(kept["result"][0], kept["expected"], rtol=1e-6, atol=0)  # measured 7e-8
        losses[micro], grads[micro] = kept["result"][0], kept["grads"]
    for micro in (3, 1):
        torch.testing.assert_close(losses[micro], losses[8], rtol=1e-6, atol=0)  # measured 7e-8
        for name, grad in grads[8].items():
            torch.testing.assert_close(grads[micro][name], grad, rtol=1e-4, atol=1e-6)  # measured 8e-8


def expected_loss(model, micro_batches, empties):
    """The mean over all masked patches of the batch that are not empty, patch by patch."""
    scores = []
    with torch.no_grad():
        for micro_batch, empty in zip(micro_batches, empties, strict=True):
            prediction = model(micro_batch.images, micro_batch.masking).prediction
            truth = gather(patchify(micro_batch.images, 4), micro_batch.masking.masked_ids)
            for image in range(len(micro_batch)):
                for place, patch in enumerate(micro_batch.masking.masked_ids[image].tolist()):
                    if empty is None or not empty[image, patch]:
                        scores.append((prediction[image, place] - truth[image, place]).square().mean())
    return torch.stack(scores).mean()


def test_a_batch_without_any_patch_that_counts_has_no_loss_and_moves_nothing(tiny_shape):
    torch.manual_seed(0)
    model = MAE.from_shape(tiny_shape(target="pixel"))
    keys = torch.arange(2)
    masks = MaskSampler("random", 0.75, (4, 4))
    micro_batch = ModelInput(torch.randn(2, 3, 16, 16), keys, masks(keys), is_counted=torch.zeros(2, 12), num_counted=0)
    loss = loss_fn(model, micro_batch, "fp32")
    loss.backward()
    assert loss.item() == 0.0
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


def test_the_compilers_check_weighs_pieces_as_the_step_does(tiny_shape):
    """A micro-batch and its quarters have equal gradients, whatever of them is empty."""
    torch.manual_seed(0)
    model = MAE.from_shape(tiny_shape(target="pixel")).train()
    keys = torch.arange(8)
    masking = MaskSampler("random", 0.75, (4, 4))(keys)
    counted = (torch.rand(8, 12) < torch.linspace(0, 1, 8)[:, None]).float()
    micro_batch = ModelInput(
        torch.randn(8, 3, 16, 16), keys, masking, is_counted=counted, num_counted=int(counted.sum())
    )
    step = StepModel(model, Processes(), CPU, is_compiled=False, precision="fp32", loss_fn=loss_fn)
    whole, pieces = (
        step._gradients(model, micro_batches, "fp32") for micro_batches in ([micro_batch], micro_batch.split(2))
    )
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)  # measured 8e-9


def test_where_nothing_is_empty_a_run_has_the_bytes_it_had(digits_config, tmp_path):
    for name in (None, "off"):
        pretrain(digits_config(tmp_path / str(name), nodata=name))
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("None", "off"))
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())
    assert untimed(metrics(tmp_path / "None")) == untimed(metrics(tmp_path / "off"))
    assert json.loads((tmp_path / "None" / "config.json").read_bytes())["nodata"] == "marked"


def test_a_run_says_and_stores_what_it_understood(nodata_config, tmp_path, capsys):
    summary = pretrain(nodata_config(tmp_path / "run"))
    told = capsys.readouterr().out
    assert "have values that stand for none" in told
    assert summary["bad_inputs"] == 0
    assert np.isfinite(summary["held_out_loss"])
    config = json.loads((tmp_path / "run" / "config.json").read_bytes())
    assert config["nodata"] == "marked"
    assert max(np.abs(config["mean"])) < 2  # -9999 would be far away


def test_the_held_out_loss_and_the_loss_of_guessing_leave_empty_patches_out(nodata_config, tmp_path, monkeypatch):
    """What lies under the hole changes nothing: filled with anything else, both are the same."""
    from openmae.tasks.pretrain import held_out

    found = []
    for value in (None, 7.0):

        def read_all(source, preprocessing, side, value=value, real=held_out.read_all):
            batch = real(source, preprocessing, side)
            if value is not None:
                whole = batch.is_empty.view(-1, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
                batch.images[whole[:, None].expand_as(batch.images)] = value
            return batch

        with monkeypatch.context() as patch:
            patch.setattr(held_out, "read_all", read_all)
            patch.setattr(MAE, "encode", lambda self, images, masking: torch.zeros(len(images), 5, 24))
            summary = pretrain(nodata_config(tmp_path / str(value), steps=1))
        found.append((summary["held_out_loss"], summary["trivial_loss"]))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize("step", [1, 5])
def test_a_stopped_run_goes_on_to_the_same_bytes(nodata_config, tmp_path, monkeypatch, step):
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    settings = {"steps": 8, "micro_batch_size": 3, "save_every": 2}
    pretrain(nodata_config(whole, **settings))
    with monkeypatch.context() as patch:
        signal_at(patch, step)
        with pytest.raises(Interrupted):
            pretrain(nodata_config(out, **settings))
    pretrain(nodata_config(out, resume="auto", **settings))
    same_training_state(whole, out, step=8)
    assert untimed(metrics(whole)) == untimed(metrics(out))
    with pytest.raises(RequestError, match="has --nodata marked, not -9999"):
        pretrain(nodata_config(out, resume="auto", nodata=-9999.0, **settings))


@pytest.mark.slow
def test_two_processes_do_what_one_does_and_a_killed_run_of_two_goes_on(data, tmp_path):
    """The loss divides by the patches of both: one's images are empty where the other's are not."""
    command = (
        f"pretrain {data} {FLAGS} --device cpu --precision fp32 --steps 30 --log-every 1 --save-every 5 --workers 0"
    )
    for count in (1, 2):
        log = tmp_path / f"{count}.log"
        assert set(run_processes(f"{command} --out {tmp_path / str(count)}", log, count)) == {0}, said(log)
    losses = [[line["loss"] for line in metrics(tmp_path / str(n)) if "loss" in line] for n in (1, 2)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)  # measured 2e-7
    out, log = tmp_path / "killed", tmp_path / "killed.log"
    processes = start(f"{command} --out {out}", log, 2)
    assert wait_for_step(out, 7, processes), said(log)
    send(processes, signal.SIGKILL)
    wait(processes)
    assert set(run_processes(f"{command} --out {out} --resume auto", log, 2)) == {0}, said(log)
    assert same(tmp_path / "2", out)


def test_an_older_run_goes_on_without(nodata_config, tmp_path, monkeypatch):
    """Its config has no such setting: a NaN stays an unreadable image, -9999 stays a number."""
    assert ResolvedPretrainConfig.__dataclass_fields__["nodata"].default == "off"
    monkeypatch.setattr(preprocessing, "stored_nodata", lambda setting: None)  # as records were
    whole, out = tmp_path / "whole", tmp_path / "run"
    pretrain(nodata_config(whole, nodata="off", steps=8))
    signal_at(monkeypatch, 4)
    with pytest.raises(Interrupted):
        pretrain(nodata_config(out, nodata="off", steps=8))
    monkeypatch.undo()
    record = json.loads((out / "config.json").read_bytes())
    assert record.pop("nodata") == "off"
    assert "nodata" not in record["preprocessing"]
    assert min(record["value_range"]) < -9000
    (out / "config.json").write_text(json.dumps(record))
    pretrain(nodata_config(out, steps=8, resume="auto"))
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_what_a_model_was_told_later_commands_know(digits_config, tmp_path):
    """--nodata of pretrain is stored beside the weights; without the tag nothing else could know it."""
    root = tmp_path / "data"
    for number in range(24):
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = RNG.normal(0, 1, (20, 20)).astype(np.float32) + number % 2
        image[:5] = -9999
        np.save(folder / f"{number:02d}.npy", image)
    out = tmp_path / "run"
    pretrain(digits_config(out, data=str(root), nodata=-9999.0, steps=2, **{**SHAPE, "held_out": 2}))
    model = openmae.load(str(out))
    assert model.preprocessing.nodata == -9999.0
    image, holed = np.full((20, 20), 3.0, np.float32), np.full((20, 20), 3.0, np.float32)
    image[0], holed[0] = 2.0, 2.0
    low, high = model.preprocessing.value_range
    image[5:9], holed[5:9] = low + model.preprocessing.mean[0] * (high - low), -9999
    torch.testing.assert_close(model.features(holed), model.features(image), rtol=1e-5, atol=1e-5)
    holed[5:9] = np.nan
    torch.testing.assert_close(model.features(holed), model.features(image), rtol=1e-5, atol=1e-5)
    common = {"data": str(root), "init": str(out), "device": "cpu", "workers": 0}
    tuned = openmae.finetune(FinetuneConfig(out=str(tmp_path / "tuned"), steps=2, batch_size=4, **common))
    assert tuned["bad_inputs"] == 0
    stored = [json.loads((tmp_path / "tuned" / "config.json").read_bytes())[n] for n in ("nodata", "preprocessing")]
    assert (stored[0], stored[1]["nodata"]) == (-9999.0, -9999.0)
    openmae.embed(EmbedConfig(out=str(tmp_path / "features.npz"), **common))
    with np.load(tmp_path / "features.npz") as features:
        values = next(features[name] for name in features.files if features[name].ndim == 2)
        assert np.isfinite(values).all()
    openmae.probe(ProbeConfig(out=str(tmp_path / "probe"), steps=2, held_out=4, **common))
    openmae.knn(KnnConfig(out=str(tmp_path / "knn"), k=(3,), **common))
    told = openmae.load(str(out), nodata="off").preprocessing.nodata
    assert told == "off"


def test_reconstructions_are_measured_where_there_is_something(pretrained_here, data, tmp_path, capsys):
    summary = openmae.reconstruct(
        ReconstructConfig(images=(str(data),), init=str(pretrained_here), out=str(tmp_path / "sheet.png"), limit=6)
    )
    assert summary["images"] == 6
    assert summary["skipped"] == 0
    model = openmae.load(str(pretrained_here))
    result = model.reconstruct(str(data / "b" / "07.tif"), mask_ratio=0.5)
    holed = result.is_masked & ~result.is_measured
    assert holed.any()
    assert not (result.is_measured & ~result.is_masked).any()


def test_where_nothing_is_left_to_measure_it_is_said(pretrained_here, tmp_path, capsys):
    image = np.full((20, 20, 2), np.nan, np.float32)
    image[0, 0] = 1.0
    np.save(tmp_path / "a.npy", image)
    settings = {"init": str(pretrained_here), "out": str(tmp_path / "sheet.png")}
    summary = openmae.reconstruct(ReconstructConfig(images=(str(tmp_path / "a.npy"),), **settings))
    assert np.isnan(summary["psnr"])
    assert "there is no PSNR" in capsys.readouterr().out


def test_inspect_counts(data, tmp_path, capsys):
    report = openmae.inspect(InspectConfig(path=str(data), out=str(tmp_path / "look"), workers=0))
    assert report["with_empty_values"] == 24
    assert report["unreadable"] == 0
    expected = np.mean([(tifffile.imread(path) == -9999).mean() for path in data.rglob("*.tif")])
    assert report["splits"]["train"]["empty_share"] == pytest.approx(expected, rel=1e-4)
    assert report["statistics"]["lowest"][0] > -10
    assert "24 with nodata values" in capsys.readouterr().out.replace("\n" + " " * 12, " ")


def test_a_fill_value_that_nobody_marked_is_named(tmp_path, capsys):
    root = tmp_path / "data"
    root.mkdir()
    for number in range(12):
        image = RNG.normal(0, 1, (20, 20)).astype(np.float32)
        image[:3] = np.finfo(np.float32).min
        np.save(root / f"{number}.npy", image)
    arguments = ["pretrain", str(root), "--out", str(tmp_path / "run"), "--steps", "2", "--device", "cpu"]
    assert openmae_run(arguments) == 2
    assert "values of 3.4e+38 in size: --nodata VALUE says which are nodata" in capsys.readouterr().err
    assert openmae_run([*arguments, "--nodata", "-3.4e38", "--workers", "0", *FLAGS.split()]) == 0


def test_a_step_that_was_skipped_names_its_images(nodata_config, tmp_path, monkeypatch, capsys):
    real, calls = task.model_input, itertools.count(1)

    def spoilt(*arguments):
        images = real(*arguments)
        return images * float("nan") if next(calls) == 6 else images

    monkeypatch.setattr(task, "model_input", spoilt)
    out = tmp_path / "run"
    pretrain(nodata_config(out, log_every=4))
    line = next(
        line for line in capsys.readouterr().out.splitlines() if "was skipped, its gradients were not finite" in line
    )
    assert "step 6 was skipped, its gradients were not finite; its batch: '" in line
    assert line.count(".tif") == 8
    assert not (out / "quarantine.jsonl").exists()


def test_files_of_numbers_and_commands_take_the_flag(data, pretrained_here, tmp_path, capsys):
    for arguments in (
        ["attention", str(data), "--init", str(pretrained_here), "--out", str(tmp_path / "a.png"), "--nodata", "-9999"],
        ["inspect", str(data), "--nodata", "off", "--workers", "0"],
        ["embed", str(data), "--init", str(pretrained_here), "--out", str(tmp_path / "e.csv"), "--nodata", "nan"],
    ):
        assert openmae_run(arguments) in (0, 2), capsys.readouterr().err
    capsys.readouterr()
    assert openmae_run(["knn", str(data), "--init", "x", "--out", "y", "--nodata", "none"]) == 2
    assert "--nodata got 'none'" in capsys.readouterr().err
