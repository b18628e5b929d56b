"""The command line as a user meets it: wrong input ends with one line that helps, exit 2, and nothing written."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import openmae
from openmae.cli import run
from openmae.commands import COMMANDS
from openmae.errors import quoted

TINY = "--width 24 --depth 1 --num-heads 3 --decoder-width 16 --decoder-depth 1 --batch-size 8 --steps 2 --held-out 4"
TINY += " --device cpu --precision fp32 --workers 0"
PRETRAIN_FLAGS = """
--out --recipe --model --width --depth --num-heads --image-size --patch-size --mask --mask-ratio --target
--decoder-depth --decoder-width --mask-tokens-in-encoder --augment --epochs --steps --batch-size --base-lr --seed
--device --precision --workers --max-bad --resume --init
""".split()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 2-pixel patches on 8 x 8 digits. Tests only read it."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert run(f"pretrain embedded:digits --out {out} --patch-size 2 {TINY}".split()) == 0
    return out


@pytest.fixture
def place(tmp_path, monkeypatch, finished):
    """A working folder with all kinds of inputs; what stands there before a command must stand there after it."""
    monkeypatch.chdir(tmp_path)
    chance = np.random.default_rng(0)

    def picture(path, side=32):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)

    for number in range(8):
        picture(tmp_path / "images" / f"{number}.png")
        picture(tmp_path / "small" / f"{number}.png", side=6)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "liars").mkdir()
    for name in ("a.txt", "b.md"):
        (tmp_path / "texts" / name).write_text("words")
    for name in ("a.png", "b.jpg"):
        (tmp_path / "liars" / name).write_text("words")
    np.save(tmp_path / "all.npy", np.ones((4, 4), bool))
    np.save(tmp_path / "none.npy", np.zeros((4, 4), bool))
    np.save(tmp_path / "wide.npy", np.eye(4, 5, dtype=bool))
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(os.getcwd))
    (tmp_path / "file").write_text("a file")
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"model": 1}))
    return tmp_path


def listing(folder):
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def refused(capsys, arguments, *wanted):
    """Run a command that must end with exit 2 and one line that holds each of `wanted`."""
    assert run(arguments if isinstance(arguments, list) else arguments.split()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("openmae: ")
    for text in wanted:
        assert text in lines[0]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        # names: the nearest known one is offered
        ("images --model bse", ["--model got 'bse'", "did you mean 'base'", "tiny, small"]),
        ("images --mask blok", ["--mask got 'blok'", "did you mean 'block'"]),
        ("images --target pixl", ["--target got 'pixl'", "did you mean 'pixel'"]),
        ("images --augment crop-jiter", ["--augment got 'crop-jiter'", "did you mean 'crop-jitter'"]),
        ("images --precision fp23", ["--precision got 'fp23'", "did you mean 'fp32'"]),
        ("images --recipe mae-larg", ["--recipe got 'mae-larg'", "did you mean 'mae-large'"]),
        ("embedded:photo", ["photo", "did you mean embedded:photos"]),
        ("images --device gpu", ["--device got 'gpu'", "cpu"]),
        # numbers
        ("images --steps 0", ["--steps got 0", "at least 1"]),
        ("images --epochs 0", ["--epochs got 0", "above 0"]),
        ("images --epochs nan", ["--epochs got nan"]),
        ("images --batch-size -4", ["--batch-size got -4"]),
        ("images --base-lr -1", ["--base-lr got -1"]),
        ("images --base-lr inf", ["--base-lr got inf"]),
        ("images --seed -1", ["--seed got -1"]),
        ("images --workers -1", ["--workers got -1"]),
        ("images --max-bad 2", ["--max-bad got 2", "at most 1"]),
        ("images --keep 0", ["--keep got 0"]),
        ("images --betas 0.9 1.0", ["--betas got 1", "below 1"]),
        ("images --depth 0", ["--depth got 0"]),
        ("images --image-size 0", ["--image-size got 0"]),
        ("images --image-size 999999", ["--image-size got 999999"]),
        ("images --width 50", ["--width got 50"]),
        ("images --width 48 --num-heads 5", ["--num-heads got 5"]),
        ("images --mask-ratio 0", ["--mask-ratio got 0"]),
        ("images --mask-ratio 1", ["--mask-ratio got 1"]),
        ("images --mask-ratio 0.999", ["mask ratio of 0.999 on 64 patches leaves no patch visible"]),
        ("images --image-size 16 --patch-size 16", ["on 1 patches leaves no patch visible"]),
        ("images --mask grid --image-size 16 --patch-size 16", ["no patch masked"]),
        ("images --image-size 30 --patch-size 16", ["16 px does not divide", "30x30", "--image-size 32 32 would do"]),
        ("images --image-size 8 --patch-size 16", ["8x8 px is smaller than one patch of 16 px"]),
        ("images --mask-ratio 0.5 --mask grid", ["--mask grid keeps one of each 2x2"]),
        ("images --mean 0.5 --std 0.5", ["--mean got 1 values for 3 channels"]),
        ("images --mean 0.5 0.5 0.5", ["--mean and --std go together"]),
        ("images --channels 5", ["--channels got 5", "have 3"]),
        ("images --value-range 5 5", ["--value-range"]),
        ("images --steps 2 --epochs 3", ["both --epochs 3 and --steps 2"]),
        ("images --held-out 8", ["--held-out 8 leaves nothing to train on", "has 8 images"]),
        # data
        ("nowhere", ["no such file or folder: nowhere"]),
        ("empty", ["empty is empty"]),
        ("texts", ["no images in texts", "1 .txt"]),
        ("liars", ["images looked at can be read", "liars"]),
        ("small --patch-size 8 --image-size 16", ["about 6 px, smaller than a patch of 8 px"]),
        ("images/0.png", ["is a single file", "folder"]),
        ("file", ["file is not a parquet file"]),
        # masks
        ("images --mask given", ["--mask given and --mask-file FILE.npy go together"]),
        ("images --mask-file all.npy", ["--mask given and --mask-file FILE.npy go together"]),
        ("images --image-size 16 --patch-size 4 --mask given --mask-file all.npy", ["all.npy hides 16 of 16"]),
        ("images --image-size 16 --patch-size 4 --mask given --mask-file none.npy", ["none.npy hides 0 of 16"]),
        ("images --image-size 16 --patch-size 4 --mask given --mask-file wide.npy", ["shape (4, 5)", "(4, 4)"]),
        ("images --image-size 16 --patch-size 4 --mask given --mask-file pickle.npy", ["cannot be read as .npy"]),
        ("images --image-size 16 --patch-size 4 --mask given --mask-file no.npy", ["no.npy cannot be read"]),
        # checkpoints
        ("images --init nowhere", ["nowhere does not exist"]),
        ("images --init empty", ["empty holds no model"]),
        ("images --init images/0.png", ["images/0.png is an image"]),
        ("images --init weights.pth", ["weights.pth is a pickle"]),
        ("images --init run --width 48", ["--width got 48, but --init has 24"]),
        ("images --resume nowhere", ["--resume nowhere cannot be resumed"]),
    ],
)
def test_pretrain_refuses(place, capsys, arguments, wanted):
    before = listing(place)
    device = "" if "--device" in arguments else "--device cpu"
    refused(capsys, f"pretrain {arguments} --out out {device}", *wanted)
    assert not (place / "out").exists()
    assert listing(place) == before


@pytest.mark.parametrize(
    ("out", "resume", "wanted"),
    [
        ("run", "", ["run exists already", "--resume auto"]),
        ("images", "", ["images exists already"]),
        ("images/run", "", ["--out images/run lies inside images"]),
        ("images", "--resume auto", ["images holds no run that can be resumed"]),
        ("file", "", ["cannot be a folder"]),
        ("file", "--resume auto", ["cannot be a folder"]),
        ("run", "--resume auto --seed 7", ["--seed 0, not 7"]),
    ],
)
def test_pretrain_spoils_no_existing_folder(place, capsys, out, resume, wanted):
    before = listing(place)
    refused(capsys, f"pretrain images --out {out} {resume}", *wanted)
    assert listing(place) == before


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("nowhere.png --init run", ["nowhere.png"]),
        ("images/0.png nowhere.png --init run", ["nowhere.png is not an image file"]),
        ("images --init nowhere", ["nowhere does not exist"]),
        ("liars/a.png --init run", ["no image could be read", "liars/a.png"]),
        ("texts --init run", ["no images in texts"]),
        ("liars --init run", ["no image could be read"]),
        ("images texts --init run", ["name image files, or one data set alone"]),
        ("embedded:digit --init run", ["did you mean embedded:digits"]),
        ("images/0.png --init run --mask-ratio 0.99", ["no patch visible"]),
        ("images/0.png --init run --mask blok", ["did you mean 'block'"]),
        ("images/0.png --init run --undo tru", ["did you mean 'true'"]),
        ("images/0.png --init run --limit 0", ["--limit got 0"]),
        ("images/0.png --init run --max-pixels 0", ["--max-pixels got 0: it must be at least 1"]),
        ("images/0.png --init run --tiles 64", ["(--tiles is for pretrain, tokenizer, embed, inspect, pack)"]),
        ("images/0.png --init run --image-size 9", ["does not divide an image of 9x9"]),
        ("images/0.png --init run --mask given --mask-file wide.npy", ["shape (4, 5)"]),
        ("--init run", ["reconstruct got no image"]),
    ],
)
def test_reconstruct_refuses(place, capsys, arguments, wanted):
    refused(capsys, f"reconstruct {arguments} --device cpu --out out.png", *wanted)
    assert not (place / "out.png").exists()


@pytest.mark.parametrize("flags", ["--limit 3", "--tiles 64", "--value-range 0 1", "--axes CYX", "--max-pixels 99"])
@pytest.mark.parametrize(("path", "kind"), [("run", "run"), ("run/model.safetensors", "model")])
def test_inspect_takes_nothing_of_data_for_what_is_none(place, capsys, path, kind, flags):
    refused(capsys, f"inspect {path} {flags}", f"{flags.split()[0]} is for a data set, and {path} is a {kind}")


@pytest.mark.parametrize("out", ["out.jpg", "out", "png"])
def test_reconstruct_writes_png_only(place, capsys, out):
    refused(capsys, f"reconstruct images/0.png --init run --out {out}", f"--out got '{out}'", ".png")
    assert not (place / out).exists()


@pytest.mark.parametrize("images", ["images/0.png", "images/1.png images/0.png", "images"])
def test_reconstruct_replaces_no_input(place, capsys, images):
    before = listing(place)
    refused(capsys, f"reconstruct {images} --init run --out images/../images/0.png", "lies among, the images")
    assert listing(place) == before


def test_reconstruct_writes_a_sheet(place, capsys):
    assert (
        run("reconstruct images/0.png images/1.png liars/a.png --init run --out new/out.png --device cpu".split()) == 0
    )
    said = capsys.readouterr()
    assert re.search(r"PSNR \d+\.\d\d dB on masked pixels", said.out)
    assert "skipped liars/a.png" in said.out
    assert said.err == ""
    with Image.open(place / "new" / "out.png") as sheet:
        assert sheet.format == "PNG"


def test_demo_replaces_nothing_but_a_demo(place, capsys):
    before = listing(place)
    for out in ("images", "run", "file"):
        refused(capsys, f"demo --out {out} --steps 1", f"{out} exists and is no earlier demo")
    assert listing(place) == before


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("", ["pretrain, finetune, probe, segment, detect, tokenizer, knn, embed, attention, robustness, experiment"]),
        ("pretrian images --out out", ["'pretrian'", "did you mean 'pretrain'"]),
        ("pretrain", ["DATA", "--out"]),
        ("pretrain images", ["--out"]),
        ("pretrain images --out out --stepz 5", ["--stepz", "did you mean --steps"]),
        ("pretrain images --out out --steps five", ["--steps got 'five'", "INT"]),
        ("pretrain images --out out --steps 1.5", ["--steps got '1.5'", "INT"]),
        ("pretrain images --out out --image-size 1 2 3", ["--image-size got '1', '2', '3'"]),
        ("reconstruct images/0.png --out out.png", ["--init"]),
        ("fine-tune images --init run --out out", ["'fine-tune'", "did you mean 'finetune'"]),
        ("finetune images --out out", ["--init"]),
        ("probe images --init run", ["--out"]),
        ("probe images --init run --out out --base-lr fast", ["--base-lr got 'fast'", "FLOAT"]),
        ("knn --init run --out out", ["DATA"]),
        ("knn images --init run --out out --k many", ["--k got 'many', which it does not take"]),
        ("embed images --init run", ["--out"]),
        ("experiment figure-9 images --init run --out out --blockz 1", ["--blockz", "did you mean --blocks"]),
        ("experiment figure-9", ["DATA"]),
        ("pack images", ["no OUT given: openmae pack DATA OUT"]),
        ("pack images out --format png", ["--format got 'png'", "known are jpeg, raw"]),
    ],
)
def test_a_wrong_usage_is_one_line_too(place, capsys, arguments, wanted):
    refused(capsys, arguments, *wanted)
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("finetune images --blocks 0.3", ["--blocks got 0.3", "0.5"]),
        ("finetune images --mixup -1", ["--mixup got -1"]),
        ("finetune images --layer-decay 0", ["--layer-decay got 0", "above 0"]),
        ("finetune images --crop-scale 0.5 0.1", ["--crop-scale got 0.5 0.1", "rising"]),
        ("finetune images --report tests", ["--report got 'tests'", "did you mean 'test'"]),
        ("finetune images", ["no training image of images has a label"]),
        ("finetune nowhere", ["no such file or folder: nowhere"]),
        ("probe images --optimizer lasr", ["--optimizer got 'lasr'", "did you mean 'lars'"]),
        ("probe images --base-lr 1 1", ["--base-lr got a rate twice"]),
        ("probe images --momentum 1", ["--momentum got 1", "below 1"]),
        ("probe images", ["no training image of images has a label"]),
        ("probe images --steps 2 --epochs 3", ["both --epochs 3 and --steps 2"]),
        ("knn images --k 0", ["--k got 0"]),
        ("knn images --pool max", ["--pool got 'max'", "cls, mean"]),
        ("knn images", ["no training image of images has a label"]),
        ("embed images", ["--out got 'out'", ".npz or .parquet"]),
        ("attention images", ["--out got 'out'", ".png"]),
        ("robustness", ["--imagenet-c"]),
        ("experiment figure-3 images", ["the experiment got 'figure-3'", "did you mean 'figure-"]),
        ("experiment figure-9 images --epochs 1", ["--epochs got 1 values for 3 --labels"]),
        ("experiment figure-9 images --blocks 0.5", ["no training image of images has a label"]),
    ],
)
def test_commands_on_a_model_refuse(place, capsys, command, wanted):
    before = listing(place)
    refused(capsys, f"{command} --init run --out out --device cpu", *wanted)
    assert not (place / "out").exists()
    assert listing(place) == before


@pytest.mark.parametrize(
    ("command", "out"),
    [("finetune", "new"), ("probe", "new"), ("knn", "new"), ("embed", "new.npz"), ("attention", "new.png")],
)
def test_a_model_that_is_none_is_refused(place, capsys, command, out):
    for init, wanted in (("nowhere", "nowhere does not exist"), ("empty", "empty holds no model")):
        refused(capsys, f"{command} images --init {init} --out {out} --device cpu", wanted)
        assert not (place / out).exists()


def test_a_name_that_is_no_text_is_shown_in_one_line(place, capsys):
    assert run(["pretrain", "no\nsuch \udcff folder", "--out", "out"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_path_in_a_command_of_a_message_can_be_typed(place, capsys):
    folder = place / "my images"
    folder.mkdir()
    shutil.copy(place / "images" / "0.png", folder)
    (folder / "a.json").write_text("{}")
    refused(capsys, ["detect", "my images/a.json", "--init", "none", "--out", "out"], "--train 'my images/a.json'")
    assert quoted("runs/first") == "runs/first"


def test_a_message_has_an_end(place, capsys):
    folder = place / "objects"
    folder.mkdir()
    names = [{"id": 1, "name": "a" * 20_000}, {"id": 1, "name": "b" * 20_000}]
    (folder / "train.json").write_text(json.dumps({"images": [], "annotations": [], "categories": names}))
    shutil.copy(place / "images" / "0.png", folder)
    assert run(["detect", "objects", "--init", "none", "--out", "out"]) == 2
    message = capsys.readouterr().err
    assert len(message) <= len("openmae: \n") + 2000
    assert "..." in message
    assert message.endswith("the same in all files\n")


LONG = "a" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        f"pretrain images --out {LONG}",
        f"pretrain {LONG} --out out",
        f"pretrain images --out out --init {LONG}",
        f"pretrain images --out out --resume {LONG}",
        "pretrain images --out file/out --steps 1",
        f"reconstruct {LONG} --init run --out out.png",
        f"reconstruct images/0.png --init run --out {LONG}.png",
        "reconstruct images/0.png --init run --out file/out.png",
        "reconstruct images/0.png --init run --out images",
    ],
)
def test_an_impossible_path_is_one_line(place, capsys, arguments):
    before = listing(place)
    assert run(arguments.split()) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith("openmae: ")
    assert len(said.splitlines()) == 1
    assert listing(place) == before


@pytest.mark.parametrize(
    "arguments",
    [
        f"convert {LONG} out --to timm",
        f"convert run {LONG} --to timm",
        "convert run dangling/out --to timm",
        f"embed images --init run --out {LONG}.npz",
        f"embed images --init run --out {LONG}/out.npz",
        "embed images --init run --out dangling/out.npz",
        f"knn images --init {LONG} --out out",
        f"pretrain images --out out --resume {LONG}",
        f"pack {LONG} --verify",
        f"demo --out {LONG}",
        f"bench step --json {LONG}",
        f"attention {LONG} --init run --out out.png",
        "attention images/0.png --init run --out file/out.png",
        f"reconstruct images/0.png --init run --out {LONG}.png",
        "reconstruct images/0.png --init run --out file/out.png",
    ],
)
def test_a_path_that_cannot_be_is_a_wrong_request(place, capsys, arguments):
    (place / "dangling").symlink_to("nowhere")
    assert run(arguments.split()) == 2
    assert capsys.readouterr().err.startswith("openmae: ")


def test_the_version(capsys):
    for flag in ("--version", "-V"):
        assert run([flag]) == 0
        assert capsys.readouterr().out == f"openmae {openmae.__version__}\n"


def help_of(capsys, *command):
    with pytest.raises(SystemExit) as ended:
        run([*command, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_names_the_commands(capsys):
    said = help_of(capsys)
    listed = re.findall(r"^\W*([a-z]+) {2,}\w", said, re.MULTILINE)
    assert {command.name for command in COMMANDS} <= set(listed)


def test_help_of_pretrain_names_every_flag(capsys):
    flags = set(re.findall(r"--[a-z-]+", help_of(capsys, "pretrain")))
    assert set(PRETRAIN_FLAGS) <= flags


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("reconstruct", ["--init", "--out", "--mask", "--mask-ratio", "--seed", "--undo"]),
        ("demo", ["--out", "--steps"]),
        (
            "finetune",
            ["--init", "--out", "--blocks", "--labels", "--label-file", "--layer-decay", "--recipe", "--report"],
        ),
        ("probe", ["--init", "--out", "--optimizer", "--base-lr", "--augment", "--pool", "--momentum", "--held-out"]),
        ("knn", ["--init", "--out", "--k", "--temperature", "--pool", "--labels"]),
        ("embed", ["--init", "--out", "--pool"]),
        ("attention", ["--init", "--out"]),
        ("robustness", ["--init", "--out"]),
        ("experiment", ["--init", "--out", "--labels", "--epochs", "--blocks", "--base-lr", "--seeds", "--held-out"]),
    ],
)
def test_help_of_other_commands(capsys, command, flags):
    said = help_of(capsys, command)
    assert all(flag in said for flag in flags)


def test_help_lists_what_is_required_then_the_commands_own_then_what_it_shares(capsys):
    listed = re.findall(r"^\W (--[a-z-]+)", help_of(capsys, "finetune"), re.MULTILINE)
    assert listed[:4] == ["--init", "--out", "--blocks", "--pool"]
    some = ["--ema", "--task", "--epochs", "--seed", "--keep", "--train"]
    assert [flag for flag in listed if flag in some] == some


def test_help_tells_what_is_decided_from_what_is_off(capsys):
    said = help_of(capsys, "knn")
    for flag, default in (("--layer", "none"), ("--test", "none"), ("--task", "decided"), ("--workers", "decided")):
        assert re.search(rf"^\W*{flag} .*?\(default:\s+(\w+)", said, re.DOTALL | re.MULTILINE)[1] == default


# --- in a process of its own ---


def test_python_m_openmae(tmp_path):
    done = subprocess.run([sys.executable, "-m", "openmae", "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"openmae {openmae.__version__}\n", "")
    done = subprocess.run(
        [sys.executable, "-m", "openmae", "pretrain", "x", "--out", "y", "--model", "bse"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("openmae: --model got 'bse'")
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_a_stopped_run_is_exit_3(tmp_path):
    command = f"-m openmae pretrain embedded:digits --out run --patch-size 2 {TINY}".replace(
        "--steps 2", "--steps 100000"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        for line in process.stdout:
            if line.startswith("timed"):
                break
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 3
    assert re.search(r"^openmae: SIGTERM at step [\d,]+: saved, --resume auto continues\n\Z", said, re.MULTILINE)
    assert '"status": "interrupted"' in (tmp_path / "run" / "summary.json").read_text()
