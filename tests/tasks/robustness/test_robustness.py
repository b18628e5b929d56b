"""`openmae robustness` on made folders: every figure by hand, from the classifier called directly."""

import contextlib
import csv
import json
import os
import random
import shutil
import socket
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from openmae.config import ClassifierShape, Preprocessing, ViTShape
from openmae.config.robustness import RobustnessConfig
from openmae.data.readers import ReaderKilled
from openmae.data.sources import imagenet_variants
from openmae.data.sources.imagenet_variants import ALEXNET, IMAGENET, IMAGENET_A, IMAGENET_C, IMAGENET_R, SEVERITIES
from openmae.errors import Fault, Interrupted, RequestError
from openmae.machine.parallel import Processes
from openmae.machine.signals import StopRequest
from openmae.model.heads import Classifier
from openmae.tasks.robustness import measure as task
from openmae.tasks.robustness.report import TABLE_13, paper_row
from openmae.tasks.robustness.robustness import robustness
from openmae.training.checkpoint import save_model

from ...processes import _server, wait

SIDE = 8
A, R = IMAGENET_A.classes, IMAGENET_R.classes
BOTH = [name for name in A if name in R]
# Two classes of -A only, one of both, one of -R only, one of neither; not in the standard order.
NEITHER = "n01440764"
MINE = (
    next(name for name in R if name not in A),
    *[name for name in A if name not in R][:2],
    NEITHER,
    BOTH[0],
)


def make_classifier(folder, classes=MINE, seed=0, **changes):
    """A classifier of random weights whose answers differ from image to image."""
    torch.manual_seed(seed)
    encoder = ViTShape(image_size=(SIDE, SIDE), patch_size=4, channels=3, width=24, depth=1, num_heads=3)
    shape = ClassifierShape(encoder=encoder, num_classes=len(classes), pool="mean")
    model = Classifier.from_shape(shape).eval()
    torch.nn.init.normal_(model.head.weight, std=1)
    preprocessing = Preprocessing(
        channels=3, value_range=(0.0, 255.0), mean=(0.5,) * 3, std=(0.25,) * 3, image_size=(SIDE, SIDE)
    )
    description = {
        "kind": "classifier",
        "shape": asdict(shape),
        "preprocessing": asdict(preprocessing),
        "classes": list(classes),
        "is_multi_label": False,
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / "model.safetensors", model, description)
    return str(folder)


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    return make_classifier(tmp_path_factory.mktemp("model"))


def make_images(folder, classes, count=3, seed=0):
    """PNGs of the model's own size, so that nothing is resized: {path: array}."""
    chance = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            # Smooth enough to be told apart by patches: a colour of its own and some noise.
            values = chance.uniform(0, 255, 3) + chance.normal(0, 40, (SIDE, SIDE, 3))
            Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def logits_of(init, folder):
    """By the classifier itself on pixels that Pillow read: {(class, file): logits}."""
    encoder = ViTShape(image_size=(SIDE, SIDE), patch_size=4, channels=3, width=24, depth=1, num_heads=3)
    weights = load_file(f"{init}/model.safetensors")
    shape = ClassifierShape(encoder=encoder, num_classes=len(weights["head.bias"]), pool="mean")
    model = Classifier.from_shape(shape).eval()
    model.load_state_dict(weights)
    found = {}
    for path in sorted(folder.rglob("*.png")):
        pixels = torch.from_numpy(np.asarray(Image.open(path)).astype(np.float32)).permute(2, 0, 1)[None]
        with torch.no_grad():
            found[path.parent.name, path.name] = model((pixels / 255 - 0.5) / 0.25)[0].tolist()
    return found


def wrong_among(logits, competing, classes=MINE):
    """How many images' highest logit among the competing classes is another class's."""
    wrong = 0
    for (true, _), values in logits.items():
        answer = max((value, name) for value, name in zip(values, classes, strict=True) if name in competing)[1]
        wrong += answer != true
    return wrong


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """-A and -R and -Sketch of a few classes, and ImageNet-C of two images each, 8 px: margins are 1 there."""
    root = tmp_path_factory.mktemp("sets")
    make_images(root / "a", [name for name in MINE if name in A], count=12)
    make_images(root / "r", [name for name in MINE if name in R], count=12, seed=1)
    make_images(root / "sketch", MINE, count=6, seed=2)
    for number, corruption in enumerate(ALEXNET):
        for severity in SEVERITIES:
            make_images(root / "c" / corruption / str(severity), MINE[:3], count=1, seed=10 * number + severity)
    return root


@pytest.fixture(autouse=True)
def whole_images(monkeypatch):
    """Nothing is cut off, so that the tests' own pixels need no resizing."""
    monkeypatch.setattr(task, "evaluation_crop_fraction", lambda size: 1.0)


def config(init, out, **changes):
    settings = {"init": init, "out": str(out), "device": "cpu", "workers": 0, "batch_size": 5}
    return RobustnessConfig(**{**settings, **changes})


def make_released(monkeypatch, images):
    """Pretend that ImageNet-C was released with the classes and the number of images made here."""
    real = imagenet_variants.standard_classes
    monkeypatch.setattr(
        imagenet_variants, "standard_classes", lambda name: MINE[:3] if name == IMAGENET else real(name)
    )
    monkeypatch.setitem(IMAGENET_C.__dict__, "num_images", images)


# --- the figures ---


def test_top1_is_among_the_classes_of_the_set(init, sets, tmp_path):
    folders = {"imagenet_a": sets / "a", "imagenet_r": sets / "r", "imagenet_sketch": sets / "sketch"}
    summary = robustness(config(init, tmp_path / "run", **{k: str(v) for k, v in folders.items()}))
    differ = 0
    for name, folder, competing in (("a", sets / "a", A), ("r", sets / "r", R), ("sketch", sets / "sketch", MINE)):
        logits = logits_of(init, folder)
        wrong = wrong_among(logits, competing)
        differ += wrong != wrong_among(logits, MINE)
        assert summary[f"{name}_top1_partial"] == pytest.approx(100 * (1 - wrong / len(logits)))
        assert summary[f"{name}_images"] == len(logits)
        assert 0 < wrong < len(logits)
        assert f"{name}_top1" not in summary
    assert differ, "the test must be able to tell restricted from unrestricted answers"
    assert summary["status"] == "complete"
    assert (summary["a_classes"], summary["a_top1_missing"]) == (
        3,
        f"197 of 200 classes; {7500 - summary['a_images']:,} of 7,500 images",
    )
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary


def test_twelve_bits_in_sixteen_are_wrong_where_eight_are(init, tmp_path, capsys):
    chance, summaries = np.random.default_rng(3), {}
    for name in sorted({name for name in MINE if name in A}):
        for number in range(12):
            grey = (chance.uniform(0, 255) + chance.normal(0, 60, (SIDE, SIDE))).clip(0, 255).astype(np.uint8)
            for depth, values in (("8", grey), ("12", np.rint(grey * (4095 / 255)).astype(np.uint16))):
                path = tmp_path / depth / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)
    ranges = {"8": None, "12": None, "said": (0.0, 4095.0)}
    for run, value_range in ranges.items():
        data = str(tmp_path / ("8" if run == "8" else "12"))
        summaries[run] = robustness(config(init, tmp_path / f"run-{run}", imagenet_a=data, value_range=value_range))
        assert ("uint16 values of 0 to 4095 become 0 to 255" in capsys.readouterr().out) == (run != "8")
        rows = [json.loads(line) for line in (tmp_path / f"run-{run}" / "robustness.jsonl").read_text().splitlines()]
        summaries[run] = [row["wrong"] for row in rows]
    assert summaries["8"] == summaries["12"] == summaries["said"]
    other = config(init, tmp_path / "run-said", imagenet_a=str(tmp_path / "12"), value_range=(0.0, 9.0), resume="auto")
    with pytest.raises(RequestError, match="--value-range"):
        robustness(other)


def test_the_mean_corruption_error_by_hand(init, sets, tmp_path, monkeypatch, capsys):
    make_released(monkeypatch, images=3)
    summary = robustness(config(init, tmp_path / "run", imagenet_c=str(sets / "c")))
    relative, errors = [], {}
    for corruption, alexnet in ALEXNET.items():
        for severity in SEVERITIES:
            logits = logits_of(init, sets / "c" / corruption / str(severity))
            errors[corruption, severity] = wrong_among(logits, MINE[:3]) / 3
        mean = sum(errors[corruption, s] for s in SEVERITIES) / 5
        relative.append(mean / alexnet)
        assert summary[f"error_{corruption}"] == pytest.approx(100 * mean)
    assert summary["mce"] == pytest.approx(100 * sum(relative) / 15)
    assert len(set(errors.values())) > 2, "errors must differ for this to tell anything"
    assert summary["images"] == 225
    assert not any("partial" in name or "missing" in name for name in summary)
    with (tmp_path / "run" / "robustness.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 75
    assert {(r["corruption"], int(r["severity"])): float(r["error"]) / 100 for r in rows} == pytest.approx(errors)
    out = capsys.readouterr().out
    assert f"| ImageNet-C mCE ↓ | 225 | {summary['mce']:.1f} |" in out
    assert "in the paper" not in out  # this model has none of its sizes


def test_grouped_folders_give_equal_figures(init, sets, tmp_path):
    groups = {"noise": 3, "blur": 4, "weather": 4, "digital": 4}
    left = list(ALEXNET)
    for group, count in groups.items():
        for corruption in left[:count]:
            shutil.copytree(sets / "c" / corruption, tmp_path / "c" / group / corruption)
        left = left[count:]
    one = robustness(config(init, tmp_path / "one", imagenet_c=str(tmp_path / "c")))
    two = robustness(config(init, tmp_path / "two", imagenet_c=str(sets / "c")))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_what_is_missing_makes_the_figure_partial(init, sets, tmp_path, monkeypatch, capsys):
    make_released(monkeypatch, images=3)
    shutil.copytree(sets / "c", tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "fog" / "2")
    shutil.rmtree(tmp_path / "c" / "snow")
    make_images(tmp_path / "c" / "spatter" / "1", MINE[:3])
    summary = robustness(config(init, tmp_path / "run", imagenet_c=str(tmp_path / "c")))
    assert "mce" not in summary
    assert summary["mce_missing"] == "snow; fog 2"
    assert summary["mce_corruptions"] == 13
    whole = [summary[f"ce_{name}"] for name in ALEXNET if name not in ("fog", "snow")]
    assert summary["mce_partial"] == pytest.approx(sum(whole) / 13)
    assert "ce_fog" not in summary
    assert "error_fog" in summary
    out = capsys.readouterr().out
    assert "left out   spatter: no part of the mean corruption error" in out
    assert "ImageNet-C mCE ↓, partial: it lacks snow; fog 2" in out


@pytest.mark.parametrize("what", ["image", "class"])
def test_fewer_images_than_were_released_make_it_partial(init, sets, tmp_path, monkeypatch, what):
    make_released(monkeypatch, images=3 if what == "class" else 4)
    data = sets / "c"
    if what == "class":
        data = shutil.copytree(sets / "c", tmp_path / "c")
        (data / "fog" / "2" / MINE[0] / "0.png").rename(data / "fog" / "2" / MINE[1] / "1.png")
    summary = robustness(config(init, tmp_path / "run", imagenet_c=str(data)))
    assert "mce" not in summary
    assert "mce_partial" in summary
    assert ("fog 2: 1 of 3 classes" if what == "class" else "1 of 4 images") in summary["mce_missing"]


def test_an_unreadable_image_is_counted_and_not_replaced(init, sets, tmp_path, monkeypatch):
    make_released(monkeypatch, images=3)
    c, a = shutil.copytree(sets / "c", tmp_path / "c"), shutil.copytree(sets / "a", tmp_path / "a")
    (c / "frost" / "4" / MINE[1] / "0.png").write_bytes(b"not an image")
    (a / MINE[1] / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    logits = {key: value for key, value in logits_of(init, sets / "a").items() if key != (MINE[1], "3.png")}
    summary = robustness(config(init, tmp_path / "run", imagenet_c=str(c), imagenet_a=str(a), batch_size=1))
    wrong = wrong_among(logits, A)
    assert summary["a_top1_partial"] == pytest.approx(100 * (1 - wrong / 35))
    assert summary["a_top1_lower_bound"] == pytest.approx(100 * (1 - (wrong + 1) / 36))
    assert (summary["unreadable"], summary["a_unreadable"], summary["images"]) == (2, 1, 224 + 35)
    assert "mce" in summary  # all images are there, one cannot be read
    frost = summary["mce_upper_bound"] - summary["mce"]
    logits = {key: value for key, value in logits_of(init, sets / "c" / "frost" / "4").items() if key[0] != MINE[1]}
    wrong = wrong_among(logits, MINE[:3])
    assert frost == pytest.approx(100 * ((wrong + 1) / 3 - wrong / 2) / 5 / ALEXNET["frost"] / 15)
    named = [json.loads(line)["name"] for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert named == [f"imagenet-c/frost/4/{MINE[1]}/0.png", f"imagenet-a/{MINE[1]}/3.png"]


def test_nothing_of_the_released_corruptions_is_cut_off_at_their_size(init, sets, tmp_path, monkeypatch):
    """ImageNet-C is released cut to 224 × 224; elsewhere a classifier of up to 224 px sees 7/8 of the short side."""
    monkeypatch.setattr(task, "evaluation_crop_fraction", lambda size: 7 / 8)
    robustness(config(init, tmp_path / "run", imagenet_c=str(sets / "c"), imagenet_a=str(sets / "a")))
    lines = [json.loads(line) for line in (tmp_path / "run" / "robustness.jsonl").read_text().splitlines()]
    assert {line["part"].split("/")[0]: line["margin"] for line in lines} == {"imagenet-c": 1.0, "imagenet-a": 7 / 8}


def test_a_model_of_1000_unnamed_classes_is_taken_to_be_in_the_standard_order(tmp_path, capsys):
    """Thirty images are filed under the model's answer among -R's classes, ten more under another class."""
    standard = imagenet_variants.standard_classes(IMAGENET)
    init = make_classifier(tmp_path / "model", tuple(map(str, range(1000))))
    logits = logits_of(init, make_images(tmp_path / "images", ["any"], count=40))
    outside = 0
    for number, ((_, file), values) in enumerate(logits.items()):
        ranked = sorted(zip(values, standard, strict=True), reverse=True)
        answers = [name for _, name in ranked if name in R]
        outside += ranked[0][1] not in R
        folder = tmp_path / "r" / answers[0 if number < 30 else 1]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "images" / "any" / file, folder)
    assert outside > 10, "the test must be able to tell restricted from unrestricted answers"
    summary = robustness(config(init, tmp_path / "run", imagenet_r=str(tmp_path / "r")))
    assert "taken to be ImageNet's in the standard order" in capsys.readouterr().out
    assert (summary["r_top1_partial"], summary["r_images"]) == (75.0, 40)


def test_the_papers_figures_stand_beside_models_of_its_sizes_only():
    base = ViTShape(image_size=(224, 224), patch_size=16, channels=3, width=768, depth=12, num_heads=12)
    huge = ViTShape(image_size=(224, 224), patch_size=14, channels=3, width=1280, depth=32, num_heads=16)
    assert paper_row(base, (224, 224)) == TABLE_13["base", 224]
    assert paper_row(base, (448, 448)) is None
    assert paper_row(base, (224, 448)) is None
    assert paper_row(huge, (448, 448))[1] == {"mce": 36.8, "a_top1": 76.7, "r_top1": 66.5, "sketch_top1": 50.9}


# --- several processes, stopping and going on ---


def _as_one_of_two(arguments, rank, port, log):
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "RANK": str(rank), "LOCAL_RANK": str(rank),
    }  # fmt: skip
    torch.set_num_threads(1)
    task.evaluation_crop_fraction = lambda size: 1.0
    with open(log, "a") as file, contextlib.redirect_stdout(file):
        robustness(RobustnessConfig(**arguments))


@pytest.mark.slow
def test_two_processes_count_each_image_once(init, sets, tmp_path):
    data = shutil.copytree(sets / "a", tmp_path / "a")
    (data / MINE[1] / "3.png").write_bytes(b"not an image")
    (data / MINE[1] / "4.png").unlink()  # 35 files: shares differ
    settings = {"init": init, "imagenet_a": str(data), "device": "cpu", "workers": 0, "batch_size": 4}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = {**settings, "out": str(tmp_path / "two")}
    processes = [
        _server.Process(target=_as_one_of_two, args=(arguments, rank, port, str(tmp_path / "log"))) for rank in range(2)
    ]
    for process in processes:
        process.start()
    assert wait(processes) == [0, 0]
    two = json.loads((tmp_path / "two" / "summary.json").read_text())
    one = robustness(RobustnessConfig(**settings, out=str(tmp_path / "one")))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert (two["a_images"], two["unreadable"]) == (34, 1)


def test_a_stopped_run_goes_on_behind_what_is_finished(init, sets, tmp_path, monkeypatch):
    whole = robustness(config(init, tmp_path / "whole", imagenet_c=str(sets / "c"), imagenet_a=str(sets / "a")))
    measured, real = [], task.count_wrong

    def count(model, source, columns, preprocessing, crop_fraction, config, processes, stop):
        measured.append(source)
        if len(measured) == 4:
            assert isinstance(stop, StopRequest)
            stop.received = "SIGTERM"
        return real(model, source, columns, preprocessing, crop_fraction, config, processes, stop)

    monkeypatch.setattr(task, "count_wrong", count)
    asked = config(init, tmp_path / "run", imagenet_c=str(sets / "c"), imagenet_a=str(sets / "a"), resume="auto")
    with pytest.raises(Interrupted, match="--resume auto"):
        robustness(asked)
    run = tmp_path / "run"
    assert json.loads((run / "summary.json").read_text()) == {"status": "interrupted"}
    rows = run / "robustness.jsonl"
    assert len(rows.read_text().splitlines()) == 3
    with rows.open("a") as file:
        file.write('{"part": "imagenet-c/gau')  # a crash in the middle of a line
    again = robustness(asked)
    assert len(measured) == 4 + 73  # the one that was stopped is measured anew, three are not
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    assert len(rows.read_text().splitlines()) == 76
    assert robustness(asked) == again  # a finished run measures nothing
    assert len(measured) == 77


def test_a_run_goes_on_with_the_same_model_settings_and_data_only(init, sets, tmp_path):
    data, run = shutil.copytree(sets / "a", tmp_path / "a"), tmp_path / "run"
    robustness(config(init, run, imagenet_a=str(data)))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(RequestError, match="exists already: --resume auto"):
        robustness(config(init, run, imagenet_a=str(data)))
    other = make_classifier(tmp_path / "other", seed=1)
    for changes, why in (
        ({"init": other}, "has another --init"),
        ({"image_size": 12}, r"has --image-size \[8, 8\], not \[12, 12\]"),
        ({"precision": "bf16"}, "has --precision fp32, not bf16"),
        ({"imagenet_a": None, "imagenet_r": str(sets / "r")}, "has measured imagenet-a: give that set too"),
    ):
        with pytest.raises(RequestError, match=why):
            robustness(config(**{"init": init, "out": run, "imagenet_a": str(data), "resume": "auto", **changes}))
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}
    moved = shutil.move(data, tmp_path / "moved")
    more = robustness(config(init, run, imagenet_a=str(moved), imagenet_r=str(sets / "r"), resume="auto"))
    assert {"a_top1_partial", "r_top1_partial"} <= set(more)
    next(iter(sorted((tmp_path / "moved").rglob("*.png")))).unlink()
    with pytest.raises(RequestError, match="has changed since it was measured"):
        robustness(config(init, run, imagenet_a=str(moved), imagenet_r=str(sets / "r"), resume="auto"))


# --- wrong requests ---


def test_wrong_requests_leave_nothing_behind(init, sets, tmp_path, pixel_run):
    out = tmp_path / "run"
    with pytest.raises(RequestError, match="give --imagenet-c, --imagenet-a"):
        config(init, out)
    with pytest.raises(RequestError, match="--resume"):
        config(init, out, imagenet_a="a", resume="always")
    several = make_classifier(tmp_path / "several", is_multi_label=True)
    named = make_classifier(tmp_path / "named", ("cat", "dog"))
    few = make_classifier(tmp_path / "few", MINE[:2])
    for changes, why in (
        ({"init": str(pixel_run)}, "has no classes: give a fine-tuned"),
        ({"init": several}, "several labels"),
        ({"init": named}, "2 classes, one named 'cat'"),
        ({"init": few}, "a class that the classifier was not trained on"),
        ({"imagenet_a": str(sets / "r")}, "none of ImageNet-A's 200 classes"),
        ({"out": sets / "a" / "run"}, "lies inside"),
        ({"image_size": 10}, "does not divide"),
    ):
        with pytest.raises(RequestError, match=why):
            robustness(config(**{"init": init, "out": out, "imagenet_a": str(sets / "a"), **changes}))
        assert not out.exists()
    (out / "mine").mkdir(parents=True)
    with pytest.raises(RequestError, match="holds no run of openmae robustness"):
        robustness(config(init, out, imagenet_a=str(sets / "a"), resume="auto"))


def test_scores_that_are_not_finite_end_it(sets, tmp_path):
    init = make_classifier(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({**load_file(path), "head.bias": torch.full((5,), float("nan"))}, path, metadata)
    with pytest.raises(Fault, match="36 of 36 images are not finite"):
        robustness(config(init, tmp_path / "run", imagenet_a=str(sets / "a")))
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"status": "failed"}


def test_a_set_that_cannot_be_read_at_all_ends_it(init, tmp_path):
    data = make_images(tmp_path / "a", [MINE[1]], count=2)
    for path in data.rglob("*.png"):
        path.write_bytes(random.Random(0).randbytes(50))
    with pytest.raises(RequestError, match="none of 2 images can be read"):
        robustness(config(init, tmp_path / "run", imagenet_a=str(data)))


def test_a_batch_too_large_for_memory_ends_it(init, sets, tmp_path, monkeypatch):
    def forward(model, images):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Classifier, "forward", forward)
    with pytest.raises(RequestError, match="out of memory with 5 images at a time: give a smaller --batch-size"):
        robustness(config(init, tmp_path / "run", imagenet_a=str(sets / "a")))


def test_killed_readers_of_one_process_are_told_to_the_others(init, sets, tmp_path, monkeypatch):
    """They would wait for it until the time is up."""
    said = []

    def killed(*arguments, **options):
        raise ReaderKilled("a reader process was killed")
        yield

    def gather(processes, value):
        said.append(value)
        return [value]

    monkeypatch.setattr(task, "logits_of", killed)
    monkeypatch.setattr(Processes, "gather", gather)
    with pytest.raises(ReaderKilled, match="a reader process was killed"):
        robustness(config(init, tmp_path / "run", imagenet_a=str(sets / "a")))
    assert isinstance(said[-1][0], ReaderKilled)
