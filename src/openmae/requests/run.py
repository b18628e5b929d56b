"""`pretrain`, `finetune`, `probe`: a run folder that may be begun, and for a new run its weights and data."""

from pathlib import Path

from openmae.config import SPLITS, FinetuneConfig, PretrainConfig, ProbeConfig
from openmae.data.labels.named_file import check_label_file
from openmae.data.sources.named import check_named
from openmae.errors import RequestError
from openmae.inference.mask_file import check_mask_file
from openmae.interchange.incoming.named import check_init
from openmae.machine.device_name import check_device
from openmae.run.lock import cannot_be_resumed, check_outside, check_run_folder, check_vacant, is_vacant
from openmae.training.checkpoint_name import CHECKPOINT_NAME


def check_pretrain(config: PretrainConfig) -> None:
    """Raise RequestError where the run cannot begin."""
    config = config.plain()
    if not _is_new(config):
        return
    if config.init is not None:
        check_init(config.init)
    check_outside(config.dataset, config.out)
    check_named(config.dataset, ("train",) if config.held_out == 0 else ("train", "val"))
    if config.mask_file is not None:
        check_mask_file(config.mask_file)
    if config.watch_data is not None:
        try:
            check_named(config.watch_data)
        except RequestError as error:
            raise not_watched(config.watch, error) from None


def check_finetune(config: FinetuneConfig) -> None:
    """Raise RequestError where the run cannot begin."""
    config = config.plain()
    if _is_new(config):
        _check_labelled(config, None if config.is_from_scratch else config.init)


def check_probe(config: ProbeConfig) -> None:
    """Raise RequestError where the run cannot begin."""
    config = config.plain()
    if _is_new(config):
        _check_labelled(config, config.init)


def not_watched(watch: str | None, error: RequestError) -> RequestError:
    """What is said of images that cannot be looked at while a run trains."""
    return RequestError(f"--watch {watch}: {error}; --watch-data takes labelled images of the same kind")


def _check_labelled(config: FinetuneConfig | ProbeConfig, init: str | None) -> None:
    if init is not None:
        check_init(init)
    check_outside(config.dataset, config.out)
    check_named(config.dataset, SPLITS)
    if config.label_file is not None:
        check_label_file(config.label_file)


def _is_new(config: PretrainConfig | FinetuneConfig | ProbeConfig) -> bool:
    """Whether the settings are all that the run is: one that goes on has its own. Raises RequestError."""
    run = Path(config.out)
    check_run_folder(run)
    if config.resume == "never":
        check_vacant(run)
    elif config.resume != "auto" and not Path(config.resume).exists():
        path = Path(config.resume)
        if not CHECKPOINT_NAME.fullmatch(path.name):
            raise cannot_be_resumed(path)
    check_device(config.device)
    return config.resume in ("never", "auto") and is_vacant(run)
