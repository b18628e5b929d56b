"""`bench`: data that are there, and a name for the figures."""

from pathlib import Path

from openmae.config import BenchConfig
from openmae.data.sources.named import check_named
from openmae.errors import RequestError
from openmae.machine.device_name import check_device


def check_bench(config: BenchConfig) -> None:
    """Raise RequestError where nothing can be measured or written."""
    check_device(config.device)
    check_json(config)
    if config.data is not None and config.name == "loader" and not Path(config.data).is_dir():
        raise no_image_files(config.data)
    if config.data is not None and config.name == "epoch":
        check_named(config.data)


def check_json(config: BenchConfig) -> None:
    """Raise RequestError where the figures' file is a folder."""
    if config.json is not None and Path(config.json).is_dir():
        raise RequestError(f"--json {config.json} is a folder: give the name of a file")


def no_image_files(data: str) -> RequestError:
    """What is said of a DATA that the loader cannot be compared on."""
    return RequestError(f"--data {data} holds no image files: the loader is compared on a folder of JPEGs")
