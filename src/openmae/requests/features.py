"""`knn`, `embed`, `robustness`: an output that replaces nothing, the model, the images."""

import json
import os
from pathlib import Path

from openmae.config import SPLITS, EmbedConfig, KnnConfig, RobustnessConfig, paths_of
from openmae.data.labels.named_file import check_label_file
from openmae.data.sources.named import check_named, names_in
from openmae.errors import RequestError, shown
from openmae.interchange.incoming.named import check_init
from openmae.machine.device_name import check_device
from openmae.run.lock import check_outside, check_run_folder, exists_already

ROWS = "robustness.jsonl"  # a line for each finished part: what --resume auto goes on behind


def check_knn(config: KnnConfig) -> None:
    """Raise RequestError where nothing can be measured or written."""
    config = config.plain()
    check_vacant(Path(config.out))
    check_device(config.device)
    check_init(config.init)
    check_named(config.dataset)
    if config.label_file is not None:
        check_label_file(config.label_file)


def check_vacant(run: Path) -> None:
    """Raise RequestError where a run would be lost, or none can be made."""
    check_run_folder(run)
    if not run.exists() or not any(run.iterdir()):
        return
    try:
        has_failed = json.loads((run / "summary.json").read_bytes()) == {"status": "failed"}  # as knn writes it
    except (OSError, ValueError):
        has_failed = False
    if not has_failed:
        raise RequestError(f"{shown(run)} exists already and is not empty: choose another --out")


def check_embed(config: EmbedConfig) -> None:
    """Raise RequestError where there is nothing to embed or no place for the table."""
    config = config.plain()
    check_out(config)
    check_device(config.device)
    check_init(config.init)
    check_named(config.dataset, SPLITS if config.split == "all" else (config.split,))


def check_out(config: EmbedConfig) -> None:
    """Raise RequestError where the table would be among the images, or no file can be."""
    out = Path(config.out)
    place = Path(os.path.realpath(out))
    if any(place.is_relative_to(os.path.realpath(path)) for path in paths_of(config.dataset)):
        raise RequestError(f"--out {shown(out)} is, or lies among, the images to embed: choose another name")
    if out.is_dir():
        raise RequestError(f"--out {shown(out)} is a folder: give the name of a file")
    there = next(place for place in out.absolute().parents if place.exists())
    if not there.is_dir():
        raise RequestError(f"--out {shown(out)} cannot be written: {shown(there)} is no folder")


def check_robustness(config: RobustnessConfig) -> None:
    """Raise RequestError where nothing can be measured or written."""
    config = config.plain()
    check_run(config, Path(config.out))
    check_device(config.device)
    check_init(config.init)
    for flag, folder in sets_of(config).items():
        if folder is not None:
            names_in(Path(folder), flag)


def check_run(config: RobustnessConfig, run: Path) -> None:
    """Raise RequestError where the run folder cannot be made, lies among the images, or is not to be touched."""
    check_run_folder(run)
    for data in sets_of(config).values():
        if data is not None:
            check_outside(data, config.out)
    if not run.exists() or not any(run.iterdir()):
        return
    if config.resume == "never":
        raise exists_already(run)
    if not (run / ROWS).is_file():
        raise RequestError(f"{run} holds no run of openmae robustness that can be resumed: choose another --out")


def sets_of(config: RobustnessConfig) -> dict[str, str | None]:
    """The folders of the sets, by flag."""
    return {
        "--imagenet-c": config.imagenet_c,
        "--imagenet-a": config.imagenet_a,
        "--imagenet-r": config.imagenet_r,
        "--imagenet-sketch": config.imagenet_sketch,
    }
