"""Checks of the commands that train: the run folder, `--resume` and, for a new run, its weights and data.

A resumed run takes its weights and data from its own config.json, which the command checks itself.
"""

from pathlib import Path

from openmae.config import (
    SPLITS,
    DetectConfig,
    FinetuneConfig,
    PretrainConfig,
    ProbeConfig,
    SegmentConfig,
    TokenizerConfig,
    TrainingConfig,
    TransferConfig,
)
from openmae.config.training.pretrain import check_token_target
from openmae.data.labels.named_file import check_label_file
from openmae.data.masks.text_file import read_text
from openmae.data.sources.named import check_named
from openmae.errors import RequestError
from openmae.inference.mask_file import check_mask_file
from openmae.interchange.incoming.named import check_init
from openmae.interchange.incoming.named import check_tokenizer as check_tokenizer_name
from openmae.machine.device_name import check_device
from openmae.recipes import named_tokenizer, recipe_setting
from openmae.run.lock import cannot_resume_error, check_free, check_outside, check_run_folder, check_vacant, is_vacant
from openmae.training.checkpoint_name import CHECKPOINT_NAME


def check_pretrain(config: PretrainConfig) -> None:
    """Raise RequestError where the run folder cannot be used, or a new run's weights, data or mask are missing."""
    config = config.plain()
    is_new = _check_start(config)
    if not is_new:
        return
    if config.init is not None:
        check_init(config.init)
    tokenizer = named_tokenizer(config)
    check_token_target(config.target or recipe_setting(config.recipe, "target"), tokenizer, config.init)
    if tokenizer is not None:
        check_tokenizer_name(tokenizer)
    check_outside(config.dataset, config.out)
    check_named(config.dataset, ("train",) if config.held_out == 0 else ("train", "val"))
    if config.mask_file is not None:
        check_mask_file(config.mask_file)
    if config.watch_data is not None:
        try:
            check_named(config.watch_data)
        except RequestError as error:
            raise watch_error(config.watch, error) from None


def check_finetune(config: FinetuneConfig) -> None:
    """Raise RequestError where the run folder cannot be used, or a new run's weights, data or labels are missing."""
    config = config.plain()
    is_new = _check_start(config)
    if is_new:
        _check_labelled(config, None if config.is_from_scratch else config.init)


def check_probe(config: ProbeConfig) -> None:
    """Raise RequestError where the run folder cannot be used, or a new run's weights, data or labels are missing."""
    config = config.plain()
    is_new = _check_start(config)
    if is_new:
        _check_labelled(config, config.init)


def check_tokenizer(config: TokenizerConfig) -> None:
    """Raise RequestError where the run folder cannot be used, or a new run's data is missing."""
    config = config.plain()
    if _check_start(config):
        check_outside(config.dataset, config.out)
        check_named(config.dataset, ("train",) if config.held_out == 0 else ("train", "val"))


def check_segment(config: SegmentConfig) -> None:
    """Raise RequestError where the run folder cannot be used, or a new run's weights, data or named files are missing.

    With `--predict` the folder is one of pictures, and the images need no masks.
    """
    config = config.plain()
    if not _check_transfer(config):
        return
    if config.palette is not None:
        read_text(config.palette, "--palette")
    if config.class_names is not None:
        read_text(config.class_names, "--class-names")


def check_detect(config: DetectConfig) -> None:
    """Raise RequestError where the run folder cannot be used, or a new run's weights or data are missing."""
    _check_transfer(config.plain())


def _check_transfer(config: TransferConfig) -> bool:
    """Check folder, weights and data of a new run or of `--predict`; return whether it is one, not a resumed run.

    With `--predict` the folder is one of pictures, and the images need no labels.
    """
    if config.predict:
        check_run_folder(Path(config.out))
        check_free(Path(config.out))
        check_device(config.device)
    elif not _check_start(config):
        return False
    if not config.is_from_scratch:
        check_init(config.init)
    check_outside(config.dataset, config.out)
    check_named(config.dataset, SPLITS, takes_json=config.command == "detect" and not config.predict)
    return True


def watch_error(watch: str | None, error: RequestError) -> RequestError:
    """The error for data that `--watch` cannot measure on; `error` says why."""
    return RequestError(f"--watch {watch}: {error}; --watch-data takes labelled images of the same kind")


def _check_labelled(config: FinetuneConfig | ProbeConfig, init: str | None) -> None:
    if init is not None:
        check_init(init)
    check_outside(config.dataset, config.out)
    check_named(config.dataset, SPLITS)
    if config.label_file is not None:
        check_label_file(config.label_file)


def _check_start(config: TrainingConfig) -> bool:
    """Check run folder, `--resume` and device; return whether the run is new, not resumed.

    Raises:
        RequestError: the folder cannot be used, `--resume` names nothing, or there is no such kind of device.
    """
    run = Path(config.out)
    check_run_folder(run)
    if config.resume == "never":
        check_vacant(run)
    elif config.resume != "auto" and not Path(config.resume).exists():
        path = Path(config.resume)
        if not CHECKPOINT_NAME.fullmatch(path.name):
            raise cannot_resume_error(path)
    check_device(config.device)
    return config.resume in ("never", "auto") and is_vacant(run)
