"""Checks of `experiment`: the model, the devices' names, the data, the output folder."""

from pathlib import Path

from openmae.config import ExperimentConfig
from openmae.data.sources.named import check_named
from openmae.errors import RequestError
from openmae.interchange.incoming.named import check_init
from openmae.machine.device_name import check_device
from openmae.run.lock import check_outside, check_run_folder


def check_experiment(config: ExperimentConfig) -> None:
    """Raise RequestError where the model or the data cannot be found or the output folder cannot be used."""
    if config.init is not None:
        check_init(config.init)
    for one in config.also_inits:
        check_init(one.init)
    for device in config.devices:
        check_device(device)
    for dataset in config.paths or (config.dataset,):
        check_named(dataset, takes_json=True)
        check_outside(dataset, config.out)
    check_folder_and_labels(config, Path(config.out))


def check_folder_and_labels(config: ExperimentConfig, out: Path) -> None:
    """Raise RequestError where the folder cannot be created, or `--labels` repeats a share (each is a row)."""
    check_run_folder(out)
    if config.labels is not None and len(set(config.labels)) < len(config.labels):
        raise RequestError(f"--labels got a share twice: {' '.join(config.labels)}")
