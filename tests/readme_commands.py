"""A program of its own: run README's commands in this folder, on made images, with the openmae that is installed.

It is started by `test_wheel.py` in an environment without the tests, so it imports nothing of them. Each command is run
as it stands, with settings added that make it small. What came of each is printed as one line of JSON.
"""

import contextlib
import functools
import io
import json
import os
import shlex
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import openmae
from openmae.cli import run
from openmae.data.sources.imagenet_variants import ALEXNET, IMAGENET_A, IMAGENET_R, SEVERITIES
from openmae.planning import probe as make_probe_plan

# What makes a command small. A later flag overrides an earlier one, so README's own values are still read and checked.
PLACE = "--device cpu --workers 0"
STEPS = f"{PLACE} --precision fp32 --batch-size 8"
SHAPE = "--width 24 --depth 2 --num-heads 3 --decoder-width 16 --decoder-depth 1 --image-size 16 --patch-size 4"
SMALL = {
    "pretrain": f"{STEPS} --held-out 8",
    "finetune": f"{STEPS} --image-size 16",
    "probe": STEPS,
    "knn": PLACE,
    "embed": PLACE,
    "attention": "--device cpu",
    "robustness": PLACE,
    "experiment": f"{PLACE} --batch-size 8 --labels 20% --epochs 0.1 --base-lr 0.001 --blocks 1 --seeds 1",
    "convert": "",
    "reconstruct": "--device cpu",
    "inspect": "",
    "pack": "--workers 0",
}
CLASSES = [name for name in IMAGENET_A.classes if name in IMAGENET_R.classes][:3]  # also of ImageNet and its variants


def main() -> None:
    lines, blocks = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    make_inputs()
    make_probe_plan.TARGET_STEPS = 20  # of the experiment's probe, which has no flag for them
    for line in lines:
        if "vit-mae-base" in line and not Path("stand-ins").exists():
            make_public_weights()
        began = time.monotonic()
        status, out, err = run_line(line)
        report(line=line, status=status, out=out[-2000:], err=err[-2000:], seconds=time.monotonic() - began)
    make_small(openmae)
    for block in blocks:
        for folder in ("runs/mine", "runs/tuned"):
            aside(Path(folder))
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block, "README.md", "exec"), {})
        report(line=block, status=0, out="", err="", seconds=0)
    loaded = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "openmae"]
    print(json.dumps({"modules": [file for file in loaded if file]}))


def report(**what: object) -> None:
    print(json.dumps({**what, "file": openmae.__file__}), flush=True)


def make_public_weights() -> None:
    """Stand-ins for what README gets from elsewhere: a model in the Hub's cache, a file of the reference's layout."""
    for arguments in ("mae --to transformers", "reference.pth --to reference"):
        made = run(["convert", "runs/mine", *f"stand-ins/{arguments}".split()])
        assert made == 0, arguments
    Path("stand-ins/reference.pth").rename("mae_pretrain_vit_base.pth")
    repository = Path(os.environ["HF_HOME"], "hub", "models--facebook--vit-mae-base")
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    Path("stand-ins/mae").rename(repository / "snapshots" / ("a" * 40))


def run_line(line: str) -> tuple[int, str, str]:
    """Run one command of README. A run that an earlier line wrote makes room, for none is overwritten."""
    arguments = shlex.split(line, comments=True)[1:]
    path = Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else None
    kept = aside(path) if path and "--resume" not in arguments else None
    if not {"--help", "--show"} & set(arguments):
        arguments += small(arguments)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run(arguments)
        except SystemExit as ending:  # after --help
            status = int(ending.code or 0)
    if kept and not path.exists():  # the command failed: the next ones use what stood there
        kept.rename(path)
    return status, out.getvalue(), err.getvalue()


def small(arguments: list[str]) -> list[str]:
    added = SMALL[arguments[0]].split()
    if arguments[0] in ("pretrain", "finetune", "probe"):
        added += ["--epochs", "0.1"] if "--epochs" in arguments else ["--steps", "2"]
    if arguments[0] == "finetune" and "--labels" in arguments:
        added += ["--labels", "50"]  # there are 90
    if arguments[0] == "pretrain" and "--init" not in arguments:  # elsewhere the shape is the given model's
        added += SHAPE.split()
    return added


def aside(path: Path) -> Path | None:
    """Give what is there another name; return it."""
    if not path.is_dir():
        return None
    number = len(list(path.parent.glob(f"{path.name}.*")))
    return path.rename(path.with_name(f"{path.name}.{number}"))


def make_small(package: object) -> None:
    """Give the classes of settings that README's Python calls small defaults."""
    shape = {"width": 24, "depth": 2, "num_heads": 3, "decoder_width": 16, "decoder_depth": 1}
    common = {"device": "cpu", "workers": 0, "precision": "fp32", "batch_size": 8}
    pretrain = functools.partial(openmae.PretrainConfig, **shape, **common, held_out=8, image_size=16, patch_size=4)
    package.PretrainConfig = lambda **given: pretrain(**{**given, "epochs": 0.1})
    package.FinetuneConfig = functools.partial(openmae.FinetuneConfig, **common, steps=2)


# --- what README's names stand for ---


def make_inputs() -> None:
    chance = np.random.default_rng(0)

    def picture(path: Path, side: int = 20) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        values = chance.uniform(0, 255, 3) + chance.normal(0, 40, (side, side, 3))
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)

    picture(Path("cat.jpg"), 40)
    picture(Path("dog.png"), 40)
    for folder in ("PATH", "PATH/TO/IMAGES", "IMAGES", "PHOTOS", "photos"):
        for number in range(24):
            picture(Path(folder, f"{number:02}.png"))
    ages = [f"{number:02}.png,{20 + number / 2}" for number in range(24)]
    Path("ages.csv").write_text("\n".join(["path,age", *ages, ""]))
    for folder, count in (("LABELLED", 30), ("IMAGENET", 20), ("labelled", 20)):
        for name in CLASSES:
            for part, share in (("train", count), ("val", 6), ("test", 6)):
                for number in range(share):
                    picture(Path(folder, part, name, f"{number:03}.png"))
    for name in CLASSES:
        for number in range(4):
            for folder in ("A", "R", "SKETCH"):
                picture(Path(folder, name, f"{number}.png"))
        for corruption in ALEXNET:
            for severity in SEVERITIES:
                picture(Path("C", corruption, str(severity), name, "0.png"))


if __name__ == "__main__":
    main()
