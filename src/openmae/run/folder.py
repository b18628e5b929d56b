"""The run folder: an existing one is protected, or resumed where that is requested."""

import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from openmae.config import (
    Preprocessing,
    ResolvedTrainingConfig,
    TrainingConfig,
    flag_of,
    format_value,
)
from openmae.config.training.finetune import FROM_SCRATCH
from openmae.data.value_scale import stored_value_range
from openmae.errors import Fault, RequestError, quoted
from openmae.machine.files import PARTIAL_PREFIX, disk_faults, link_or_copy
from openmae.machine.parallel import Processes
from openmae.run.create import create_run
from openmae.run.lock import cannot_resume_error, check_run_folder, check_vacant, is_vacant, status_of, summary_of
from openmae.run.reader import parse_resolved_config
from openmae.training.checkpoint import (
    MODEL,
    Checkpoint,
    DamagedCheckpoint,
    newest_checkpoint,
    verify_checkpoint,
)
from openmae.training.checkpoint_name import CHECKPOINT_NAME

# Settings that may change when a run is resumed; any other would make it another run. Whether the data is the same
# is decided by its fingerprint, not by its path.
MAY_CHANGE = {"workers", "device", "compile", "recompute", "steps", "epochs", "max_bad", "resume", "out"}
MAY_CHANGE |= (DATA_PATHS := {"data", "train", "val", "test"})
MAY_CHANGE |= {"tokenizer"}  # its hash is checked, or the checkpoint has it
MAY_CHANGE |= {"watch", "watch_data", "watch_every", "watch_images"}  # evaluation only
# Settings that a user may not change, yet a checkpoint is not checked against: the initial weights are contained in
# it, and the micro-batch may have been halved for want of memory.
NOT_CHECKED = {"init", "micro_batch_size"}


RequestedConfigT = TypeVar("RequestedConfigT", bound=TrainingConfig)
ResolvedConfigT = TypeVar("ResolvedConfigT", bound=ResolvedTrainingConfig)


@dataclass(frozen=True)
class PreviousRun(Generic[ResolvedConfigT]):
    """What a resumed run continues: its settings, and the checkpoint that `--resume` names or the newest good one."""

    config: ResolvedConfigT
    preprocessing: Preprocessing
    checkpoint: Checkpoint
    warnings: list[str]

    def check_settings(self) -> None:
        """Raise RequestError where config.json is not what the checkpoint was trained with."""
        saved = dict(self.state.get("settings", {}))
        for name, value in run_settings(self.config, self.preprocessing).items():
            if name == "preprocessing" and name in saved:  # an older run's may lack what has a default since
                saved[name] = json.loads(json.dumps(Preprocessing.from_dict(saved[name]).to_dict()))
            if name in saved and saved[name] != value:
                raise RequestError(
                    f"config.json says {flag_of(name)} {value}, the checkpoint was trained with {saved[name]}: "
                    "put it back"
                )

    def check_data(self, fingerprint: str) -> None:
        """Raise RequestError where the data is not that of the checkpoint."""
        if self.state["data"] != fingerprint:
            raise RequestError(
                f"{self.config.dataset} is not the data that this run began with (files were added, removed or "
                "changed, or their labels): restore it, or start a new run with another --out, from these weights with "
                "--init"
            )

    @property
    def state(self) -> dict[str, Any]:
        """The checkpoint's state: its step, the data's fingerprint, settings, counts."""
        return self.checkpoint.state


def run_settings(config: TrainingConfig, preprocessing: Preprocessing) -> dict[str, Any]:
    """The settings that identify a run, as JSON values; every checkpoint keeps them."""
    values = {**config.to_dict(), "preprocessing": preprocessing.to_dict()}
    return json.loads(
        json.dumps({name: value for name, value in values.items() if name not in MAY_CHANGE | NOT_CHECKED})
    )


def find_previous_run(
    config: TrainingConfig, config_type: type[ResolvedConfigT]
) -> PreviousRun[ResolvedConfigT] | None:
    """The run to continue, or None to start one.

    Raises:
        RequestError: the folder exists and `--resume` does not say what to do with it, it is no run, or
            settings differ from the run's.
    """
    run = Path(config.out)
    check_run_folder(run)
    if config.resume == "never":
        check_vacant(run)
        return None
    if config.resume != "auto":
        return _from_checkpoint(config, Path(config.resume), config_type)
    if is_vacant(run):
        return None
    checkpoint, damaged = newest_checkpoint(run)
    if damaged and checkpoint is None:
        raise RequestError(f"no checkpoint of {run} is whole ({'; '.join(damaged)}): another --out starts anew")
    if checkpoint is None and (run / "config.json").is_file():
        if (run / MODEL).exists():
            raise RequestError(
                f"{run} holds a model but its checkpoints are gone: continue from its weights with "
                f"--init {quoted(run)} and another --out"
            )
        _check_kind(run, config_type)
        return None  # it ended before its first checkpoint: start anew, with whatever settings are given now
    saved, preprocessing = _read_config(run, config, config_type)
    assert checkpoint is not None, "a folder without a checkpoint is a run's, or refused"
    warnings = [f"{line}: the one before it is used" for line in damaged]
    return PreviousRun(saved, preprocessing, checkpoint, warnings)


def _check_kind(run: Path, config_type: type[ResolvedConfigT]) -> None:
    """Raise RequestError where config.json is not of a run of this command."""
    try:
        config_type.from_dict(json.loads((run / "config.json").read_bytes()))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        raise RequestError(f"{run} holds something other than a run of this command: choose another --out") from None


def _from_checkpoint(
    config: TrainingConfig, path: Path, config_type: type[ResolvedConfigT]
) -> PreviousRun[ResolvedConfigT]:
    folder = path if (path / "manifest.json").exists() or CHECKPOINT_NAME.fullmatch(path.name) else None
    if folder is None:
        checkpoint, damaged = newest_checkpoint(path)
        if checkpoint is None:
            raise cannot_resume_error(path, "; ".join(damaged)) if damaged else cannot_resume_error(path)
    else:
        try:
            checkpoint, damaged = verify_checkpoint(folder), []
        except DamagedCheckpoint as error:
            raise RequestError(f"--resume {path} is damaged ({error}): --resume auto takes the one before it") from None
    origin, run = checkpoint.folder.absolute().parent.parent, Path(config.out)
    if not is_vacant(run) and not (run.is_dir() and run.samefile(origin)):
        raise RequestError(f"{run} exists already and is not the run of --resume {path}: choose another --out")
    saved, preprocessing = _read_config(origin, config, config_type)
    return PreviousRun(saved, preprocessing, checkpoint, damaged)


def _read_config(
    run: Path, config: TrainingConfig, config_type: type[ResolvedConfigT]
) -> tuple[ResolvedConfigT, Preprocessing]:
    try:
        values = json.loads((run / "config.json").read_bytes())
        other, _ = parse_resolved_config(values)
        if other is not None and not isinstance(other, config_type):
            raise RequestError("it is a run of another command")
        saved, preprocessing = config_type.from_dict(values), Preprocessing.from_dict(values["preprocessing"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(
            f"{run} holds no run that can be resumed (config.json: {error}); choose another --out"
        ) from None
    requested = config.explicit()
    for name, value in requested.items():
        before, flag = getattr(saved, name), flag_of(name)
        if name == "value_range" and getattr(saved, "init", None) not in (None, FROM_SCRATCH):
            data_range = stored_value_range(
                preprocessing
            )  # with --init the config has the model's range, not the data's
            before = data_range if data_range is not None and value != before else before
        if name not in MAY_CHANGE and value != before and not _same_size(name, value, before):
            had = f"no {flag}" if before is None else f"{flag} {format_value(before)}"
            raise RequestError(
                f"the run in {run} has {had}, not {format_value(value)}: leave {flag} out to continue "
                "it, or start another with a new --out"
            )
    for name in ("steps", "epochs"):
        value, before = requested.get(name), getattr(saved, name)
        if value is not None and before is not None and value < before:
            raise RequestError(
                f"the run in {run} has {flag_of(name)} {before:g}: it can go on with more, not {value:g}"
            )
    changed = {name: value for name, value in requested.items() if name in MAY_CHANGE}
    if "steps" in changed:
        changed["epochs"] = None
    elif "epochs" in changed:
        changed["steps"] = None
    if DATA_PATHS & changed.keys():  # given again, as one path or one for each split
        changed |= {name: requested.get(name) for name in DATA_PATHS}
    return replace(saved, **{"out": config.out, **changed}), preprocessing


def _same_size(name: str, value: Any, before: Any) -> bool:
    return name == "image_size" and ((value, value) == before or value == (before, before))


def start_run(
    config: TrainingConfig,
    preprocessing: Preprocessing,
    previous: PreviousRun | None,
    lock: ExitStack,
    origins: dict[str, str] | None = None,
) -> None:
    """Create the run folder with its settings, the status "running", and the checkpoint that it resumes from.

    A run that starts from another run's checkpoint gets a copy of it, so that it can itself be resumed at once. The
    folder stays locked until `lock` is closed.

    Args:
        origins: see `Run.begin`; stored as `parts`.
    """
    run = Path(config.out)
    record = {**config.to_dict(), "preprocessing": preprocessing.to_dict()}
    if origins:
        record["parts"] = origins
    create_run(run, record, lock)
    if previous is None:
        return
    with disk_faults(run):
        origin = previous.checkpoint.folder
        folder = run / "checkpoints" / origin.name
        if not folder.exists():
            partial = folder.with_name(PARTIAL_PREFIX + folder.name)
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(origin, partial)
            partial.rename(folder)
        link_or_copy(folder / MODEL, run / MODEL)


def summary_if_finished(run: Path, step: int, num_steps: int, processes: Processes) -> dict[str, Any] | None:
    """The summary of a run that is at its last step and complete, else None; all processes must agree.

    Raises:
        RequestError: the checkpoint is of a step beyond the last one.
        Fault: the processes see different checkpoints.
    """
    if len(set(processes.gather(step))) > 1:
        raise Fault(f"the processes see different checkpoints in {run}: is --out on a file system that all share?")
    if step > num_steps:
        raise RequestError(f"the checkpoint is at step {step:,}, beyond the {num_steps:,} asked for: give more --steps")
    if step < num_steps or status_of(run) != "complete":
        return None
    if processes.is_first:
        print(f"{run} is complete at step {step:,}: more --steps or --epochs would continue it")
    return summary_of(run)
