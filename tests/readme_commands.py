"""A script: run README's commands in the current folder, on generated images, with the installed openmae.

`test_wheel.py` starts it in an environment without the tests, so it imports nothing from them. Each command is run as
it is written, with flags added that make it small. The outcome of each is printed as one line of JSON.
"""

import contextlib
import functools
import io
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import openmae
from openmae.cli import run
from openmae.data.sources.imagenet_variants import ALEXNET, IMAGENET_A, IMAGENET_R, SEVERITIES
from openmae.planning import probe as probe_planning

# Flags that make a command small, by command. A later flag overrides an earlier one, so README's own values are still
# parsed and checked.
ON_CPU = "--device cpu --workers 0"
TRAINING = f"{ON_CPU} --precision fp32 --batch-size 8"
SHAPE = "--width 24 --depth 2 --num-heads 3 --decoder-width 16 --decoder-depth 1 --image-size 16 --patch-size 4"
SMALL_FLAGS = {
    "pretrain": f"{TRAINING} --held-out 8",
    "finetune": f"{TRAINING} --image-size 16",
    "probe": TRAINING,
    "segment": f"{TRAINING} --image-size 16 --head-width 8",
    "detect": f"{TRAINING} --image-size 32 --head-width 8 --roi-samples 8",
    "tokenizer": f"{TRAINING} --held-out 8 --width 16 --depth 1 --image-size 16 --patch-size 4",
    "knn": ON_CPU,
    "embed": ON_CPU,
    "attention": "--device cpu",
    "robustness": ON_CPU,
    "experiment": f"{ON_CPU} --scale tiny --batch-size 8",
    "convert": "",
    "reconstruct": "--device cpu",
    "inspect": "",
    "pack": "--workers 0",
}
CLASSES = [name for name in IMAGENET_A.classes if name in IMAGENET_R.classes][:3]  # which ImageNet has, too


def main() -> None:
    lines, blocks = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    make_inputs()
    probe_planning.TARGET_STEPS = 20  # for `experiment`, which has no flag for the steps of its probe
    for line in lines:
        if "vit-mae-base" in line and not Path("stand-ins").exists():
            make_stand_ins_for_public_weights()
        start = time.monotonic()
        status, out, err = run_line(line)
        report(line=line, status=status, out=out[-2000:], err=err[-2000:], seconds=time.monotonic() - start)
    patch_configs()
    for block in blocks:
        for folder in ("runs/mine", "runs/tuned"):
            rename_run(Path(folder))
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block, "README.md", "exec"), {})
        report(line=block, status=0, out="", err="", seconds=0)
    loaded = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "openmae"]
    print(json.dumps({"modules": [file for file in loaded if file]}))


def report(**values: object) -> None:
    print(json.dumps({**values, "file": openmae.__file__}), flush=True)


def make_stand_ins_for_public_weights() -> None:
    """Write what README's commands would download: a model in the Hub's cache, and a file in the reference's layout."""
    for arguments in ("mae --to transformers", "reference.pth --to reference"):
        status = run(["convert", "runs/mine", *f"stand-ins/{arguments}".split()])
        assert status == 0, arguments
    Path("stand-ins/reference.pth").rename("mae_pretrain_vit_base.pth")
    repository = Path(os.environ["HF_HOME"], "hub", "models--facebook--vit-mae-base")
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    Path("stand-ins/mae").rename(repository / "snapshots" / ("a" * 40))


def run_line(line: str) -> tuple[int, str, str]:
    """Run one command of README: exit status, stdout, stderr.

    A folder that an earlier line wrote under the same --out is renamed first, since openmae overwrites none.
    """
    arguments = shlex.split(line, comments=True)[1:]
    path = Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else None
    renamed = rename_run(path) if path and "--resume" not in arguments else None
    if not {"--help", "--show"} & set(arguments):
        arguments += small_flags(arguments)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run(arguments)
        except SystemExit as ended:  # after --help
            status = int(ended.code or 0)
    if renamed and not path.exists():  # the command failed: later ones use the folder of the earlier line
        renamed.rename(path)
    return status, out.getvalue(), err.getvalue()


def small_flags(arguments: list[str]) -> list[str]:
    """The flags to add to a command."""
    if "--predict" in arguments:
        return ON_CPU.split()
    added = SMALL_FLAGS[arguments[0]].split()
    if arguments[0] in ("pretrain", "finetune", "probe", "segment", "detect", "tokenizer"):
        added += ["--epochs", "0.1"] if "--epochs" in arguments else ["--steps", "2"]
    if arguments[0] == "finetune" and "--labels" in arguments:
        added += ["--labels", "50"]  # of 90 images
    if arguments[0] == "pretrain" and "--init" not in arguments:  # with --init the shape is that of the given model
        added += SHAPE.split()
    return added


def rename_run(path: Path) -> Path | None:
    """Rename a folder to PATH.0, PATH.1, …; return the new path, or None where there is no such folder."""
    if not path.is_dir():
        return None
    number = len(list(path.parent.glob(f"{path.name}.*")))
    return path.rename(path.with_name(f"{path.name}.{number}"))


def patch_configs() -> None:
    """Replace the config classes that README's Python uses by ones with small defaults."""
    shape = {"width": 24, "depth": 2, "num_heads": 3, "decoder_width": 16, "decoder_depth": 1}
    common = {"device": "cpu", "workers": 0, "precision": "fp32", "batch_size": 8}
    pretrain = functools.partial(openmae.PretrainConfig, **shape, **common, held_out=8, image_size=16, patch_size=4)
    openmae.PretrainConfig = lambda **given: pretrain(**{**given, "epochs": 0.1})
    openmae.FinetuneConfig = functools.partial(openmae.FinetuneConfig, **common, steps=2)


# --- the files and folders that README names ---


def make_inputs() -> None:
    rng = np.random.default_rng(0)

    def write_image(path: Path, side: int = 20) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        values = rng.uniform(0, 255, 3) + rng.normal(0, 40, (side, side, 3))
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)

    write_image(Path("cat.jpg"), 40)
    write_image(Path("dog.png"), 40)
    for folder in ("PATH", "PATH/TO/IMAGES", "IMAGES", "PHOTOS", "photos"):
        for number in range(24):
            write_image(Path(folder, f"{number:02}.png"))
    ages = [f"{number:02}.png,{20 + number / 2}" for number in range(24)]
    Path("ages.csv").write_text("\n".join(["path,age", *ages, ""]))
    for folder, num_train in (("LABELLED", 30), ("IMAGENET", 20), ("labelled", 20)):
        for name in CLASSES:
            for split, count in (("train", num_train), ("val", 6), ("test", 6)):
                for number in range(count):
                    write_image(Path(folder, split, name, f"{number:03}.png"))
    for split, count in (("train", 12), ("val", 4)):
        for number in range(count):
            write_image(Path("SCENES", "images", split, f"{number:02}.jpg"))
            mask = Path("SCENES", "masks", split, f"{number:02}.png")
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 3, (20, 20), dtype=np.uint8)).save(mask)
    write_objects(write_image)
    for name in CLASSES:
        for number in range(4):
            for folder in ("A", "R", "SKETCH"):
                write_image(Path(folder, name, f"{number}.png"))
        for corruption in ALEXNET:
            for severity in SEVERITIES:
                write_image(Path("C", corruption, str(severity), name, "0.png"))


def write_objects(write_image: Callable[[Path, int], None]) -> None:
    """Write OBJECTS: images of two splits, each with a box, and their COCO JSON."""
    box = {"iscrowd": 0, "area": 100, "bbox": [4, 4, 10, 10], "segmentation": [[4, 4, 14, 4, 14, 14, 4, 14]]}
    for split, count in (("train", 12), ("val", 4)):
        for number in range(count):
            write_image(Path("OBJECTS", split, f"{number:02}.jpg"), 32)
        size = {"height": 32, "width": 32}
        images = [{"id": number, "file_name": f"{number:02}.jpg", **size} for number in range(count)]
        annotations = [{"id": n, "image_id": n, "category_id": 1 + n % 2, **box} for n in range(count)]
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        Path("OBJECTS", f"{split}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()
