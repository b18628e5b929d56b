"""Checks of `bench`: the device's name, the path of the JSON file, the data."""

from pathlib import Path

from openmae.config import BenchConfig
from openmae.data.sources.named import check_named
from openmae.errors import RequestError
from openmae.machine.device_name import check_device


def check_bench(config: BenchConfig) -> None:
    """Raise RequestError where the benchmark cannot run or its results cannot be written."""
    check_device(config.device)
    check_json_path(config)
    if config.data is not None and config.name == "loader" and not Path(config.data).is_dir():
        raise no_image_files_error(config.data)
    if config.data is not None and config.name == "epoch":
        check_named(config.data)


def check_json_path(config: BenchConfig) -> None:
    """Raise RequestError where `--json` is a folder."""
    if config.json is not None and Path(config.json).is_dir():
        raise RequestError(f"--json {config.json} is a folder: give the name of a file")


def no_image_files_error(data: str) -> RequestError:
    """The error for a `--data` on which loaders cannot be compared."""
    return RequestError(f"--data {data} holds no image files: the loader is compared on a folder of JPEGs")
