"""Checks of `knn`, `embed` and `robustness`: the output, the device's name, the model, the data."""

import json
import os
from pathlib import Path

from openmae.config import SPLITS, EmbedConfig, KnnConfig, RobustnessConfig, paths_of
from openmae.data.labels.named_file import check_label_file
from openmae.data.sources.named import check_named, names_in
from openmae.errors import RequestError, shown
from openmae.interchange.incoming.named import check_init
from openmae.machine.device_name import check_device
from openmae.run.lock import already_exists_error, check_file_path, check_outside, check_run_folder

ROWS_FILE = "robustness.jsonl"  # a line for each finished part; --resume auto measures only the others


def check_knn(config: KnnConfig) -> None:
    """Raise RequestError where model, data or labels cannot be found, or the run folder cannot be used."""
    config = config.plain()
    check_knn_folder(Path(config.out))
    check_device(config.device)
    check_init(config.init)
    check_named(config.dataset)
    if config.label_file is not None:
        check_label_file(config.label_file)


def check_knn_folder(run: Path) -> None:
    """Raise RequestError where the run folder cannot be created or is not empty; what a failed `knn` left may stay."""
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
    """Raise RequestError where the model or the data cannot be found, or the table cannot be written."""
    config = config.plain()
    check_table_path(config)
    check_device(config.device)
    check_init(config.init)
    check_named(config.dataset, SPLITS if config.split == "all" else (config.split,))


def check_table_path(config: EmbedConfig) -> None:
    """Raise RequestError where `--out` is a folder, cannot be created, or is or lies among the images."""
    out = Path(config.out)
    real_out = Path(os.path.realpath(out))
    if any(real_out.is_relative_to(os.path.realpath(path)) for path in paths_of(config.dataset)):
        raise RequestError(f"--out {shown(out)} is, or lies among, the images to embed: choose another name")
    if out.is_dir():
        raise RequestError(f"--out {shown(out)} is a folder: give the name of a file")
    check_file_path(out, "--out")


def check_robustness(config: RobustnessConfig) -> None:
    """Raise RequestError where the model or a data set cannot be found, or the run folder cannot be used."""
    config = config.plain()
    check_robustness_folder(config, Path(config.out))
    check_device(config.device)
    check_init(config.init)
    for flag, folder in folders_of_sets(config).items():
        if folder is not None:
            names_in(Path(folder), flag)


def check_robustness_folder(config: RobustnessConfig, run: Path) -> None:
    """Raise RequestError where the run folder cannot be created or resumed, or lies among the images."""
    check_run_folder(run)
    for folder in folders_of_sets(config).values():
        if folder is not None:
            check_outside(folder, config.out)
    if not run.exists() or not any(run.iterdir()):
        return
    if config.resume == "never":
        raise already_exists_error(run)
    if not (run / ROWS_FILE).is_file():
        raise RequestError(f"{run} holds no run of openmae robustness that can be resumed: choose another --out")


def folders_of_sets(config: RobustnessConfig) -> dict[str, str | None]:
    """The folder of each data set, by its flag; None where it is not measured."""
    return {
        "--imagenet-c": config.imagenet_c,
        "--imagenet-a": config.imagenet_a,
        "--imagenet-r": config.imagenet_r,
        "--imagenet-sketch": config.imagenet_sketch,
    }
