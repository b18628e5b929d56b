"""The run folder: protected when it exists, continued when asked."""

import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from openmae.config import (
    Dataset,
    FinetuneConfig,
    LabelledConfig,
    Preprocessing,
    PretrainConfig,
    ProbeConfig,
    ResolvedFinetuneConfig,
    ResolvedPretrainConfig,
    ResolvedProbeConfig,
    flag_of,
    paths_of,
    said,
)
from openmae.config.finetune import FROM_SCRATCH
from openmae.data.value_scale import stored_value_range
from openmae.errors import Fault, RequestError
from openmae.machine.files import PARTIAL, disk_faults, link_or_copy
from openmae.machine.parallel import Processes
from openmae.run.create import create_run
from openmae.run.lock import check_place
from openmae.training.checkpoint import (
    CHECKPOINT_NAME,
    MODEL,
    Checkpoint,
    DamagedCheckpoint,
    newest_checkpoint,
    verify,
)

# What a resumed run may be told anew. All else would make it another run. The data's fingerprint, not its
# path, says whether it is the same.
MAY_CHANGE = {"workers", "device", "compile", "recompute", "steps", "epochs", "max_bad", "resume", "out"}
MAY_CHANGE |= (PLACES := {"data", "train", "val", "test"})
MAY_CHANGE |= {"watch", "watch_data", "watch_every", "watch_images"}  # they look, and change nothing
# What a person may not change, yet leaves the same run: the weights it began with are in it, and memory may
# have asked for fewer images at a time.
NOT_THE_RUN = {"init", "micro_batch_size"}


AnyConfig = PretrainConfig | LabelledConfig
C = TypeVar("C", PretrainConfig, FinetuneConfig, ProbeConfig)
T = TypeVar("T", ResolvedPretrainConfig, ResolvedFinetuneConfig, ResolvedProbeConfig)


@dataclass(frozen=True)
class PreviousRun(Generic[T]):
    """What an earlier start of this run left: its settings and its newest good checkpoint."""

    config: T
    preprocessing: Preprocessing
    checkpoint: Checkpoint
    warnings: list[str]

    def check_settings(self) -> None:
        """Raise RequestError where config.json is not what the checkpoint was trained with."""
        saved = dict(self.state.get("settings", {}))
        for name, value in settings_of(self.config, self.preprocessing).items():
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
        """Where the checkpoint stands."""
        return self.checkpoint.state


def settings_of(config: AnyConfig, preprocessing: Preprocessing) -> dict[str, Any]:
    """What makes a run this run, as JSON values: a checkpoint keeps it."""
    values = {**config.to_dict(), "preprocessing": preprocessing.to_dict()}
    return json.loads(
        json.dumps({name: value for name, value in values.items() if name not in MAY_CHANGE | NOT_THE_RUN})
    )


def find_previous_run(config: AnyConfig, settled: type[T]) -> PreviousRun[T] | None:
    """The run to continue, or None to start one.

    Raises:
        RequestError: the folder exists and `--resume` does not say what to do with it, it is no run, or
            settings differ from the run's.
    """
    run = Path(config.out)
    check_place(run)
    if config.resume == "never":
        if not _is_vacant(run):
            raise RequestError(f"{run} exists already: --resume auto continues the run there, another --out starts one")
        return None
    if config.resume != "auto":
        return _from_checkpoint(config, Path(config.resume), settled)
    if _is_vacant(run):
        return None
    checkpoint, damaged = newest_checkpoint(run)
    if damaged and checkpoint is None:
        raise RequestError(f"no checkpoint of {run} is whole ({'; '.join(damaged)}): another --out starts anew")
    if checkpoint is None and (run / "config.json").is_file():
        if (run / MODEL).exists():
            raise RequestError(
                f"{run} holds a model but its checkpoints are gone: continue from its weights with --init {run} and "
                "another --out"
            )
        _check_kind(run, settled)
        return None  # it ended before its first checkpoint: start anew, with whatever settings are given now
    saved, preprocessing = _read_config(run, config, settled)
    assert checkpoint is not None, "a folder without a checkpoint is a run's, or refused"
    warnings = [f"{line}: the one before it is used" for line in damaged]
    return PreviousRun(saved, preprocessing, checkpoint, warnings)


def _check_kind(run: Path, settled: type[T]) -> None:
    """Raise RequestError where config.json is not of a run of this kind: another command's results are not ours."""
    try:
        settled.from_dict(json.loads((run / "config.json").read_bytes()))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        raise RequestError(f"{run} holds something other than a run of this command: choose another --out") from None


def _from_checkpoint(config: AnyConfig, path: Path, settled: type[T]) -> PreviousRun[T]:
    folder = path if (path / "manifest.json").exists() or CHECKPOINT_NAME.fullmatch(path.name) else None
    if folder is None:
        checkpoint, damaged = newest_checkpoint(path)
        if checkpoint is None:
            told = "; ".join(damaged) or "no such run or checkpoint"
            raise RequestError(f"--resume {path} cannot be resumed: {told}")
    else:
        try:
            checkpoint, damaged = verify(folder), []
        except DamagedCheckpoint as error:
            raise RequestError(f"--resume {path} is damaged ({error}): --resume auto takes the one before it") from None
    origin, run = checkpoint.folder.absolute().parent.parent, Path(config.out)
    if not _is_vacant(run) and not (run.is_dir() and run.samefile(origin)):
        raise RequestError(f"{run} exists already and is not the run of --resume {path}: choose another --out")
    saved, preprocessing = _read_config(origin, config, settled)
    return PreviousRun(saved, preprocessing, checkpoint, damaged)


def _is_vacant(run: Path) -> bool:
    """Whether nothing can be lost there: no folder, an empty one, or a run that failed before its first checkpoint."""
    if not run.exists():
        return True
    if not run.is_dir():
        return False
    return not any(run.iterdir()) or (_status(run) == "failed" and not (run / "checkpoints").exists())


def _read_config(run: Path, config: AnyConfig, settled: type[T]) -> tuple[T, Preprocessing]:
    try:
        values = json.loads((run / "config.json").read_bytes())
        saved, preprocessing = settled.from_dict(values), Preprocessing.from_dict(values["preprocessing"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(
            f"{run} holds no run that can be resumed (config.json: {error}); choose another --out"
        ) from None
    asked = config.explicit()
    for name, value in asked.items():
        before, flag = getattr(saved, name), flag_of(name)
        if name == "value_range" and saved.init not in (None, FROM_SCRATCH):
            guessed = stored_value_range(preprocessing)  # the config has the model's own range then, not the data's
            before = guessed if guessed is not None and value != before else before
        if name not in MAY_CHANGE and value != before and not _same_size(name, value, before):
            had = f"no {flag}" if before is None else f"{flag} {said(before)}"
            raise RequestError(
                f"the run in {run} has {had}, not {said(value)}: leave {flag} out to continue "
                "it, or start another with a new --out"
            )
    for name in ("steps", "epochs"):
        value, before = asked.get(name), getattr(saved, name)
        if value is not None and before is not None and value < before:
            raise RequestError(
                f"the run in {run} has {flag_of(name)} {before:g}: it can go on with more, not {value:g}"
            )
    changed = {name: value for name, value in asked.items() if name in MAY_CHANGE}
    if "steps" in changed:
        changed["epochs"] = None
    elif "epochs" in changed:
        changed["steps"] = None
    if PLACES & changed.keys():  # named anew, as one or by its parts
        changed |= {name: asked.get(name) for name in PLACES}
    return replace(saved, **{"out": config.out, **changed}), preprocessing


def _same_size(name: str, value: Any, before: Any) -> bool:
    return name == "image_size" and ((value, value) == before or value == (before, before))


def check_outside(data: Dataset, out: str) -> None:
    """Raise RequestError where the run folder would lie among its data."""
    for path in paths_of(data):
        if os.path.isdir(path) and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(path)):
            raise RequestError(f"--out {out} lies inside {path}: the run's pictures would become its data")


def begin(
    config: AnyConfig,
    preprocessing: Preprocessing,
    previous: PreviousRun | None,
    lock: ExitStack,
    parts: dict[str, str] | None = None,
) -> None:
    """Make the run folder: its settings, that it is under way, and the checkpoint that it goes on from.

    A run that starts from another's checkpoint takes it along, so that it can itself be resumed at once. The
    folder is held until `lock` is left.

    Args:
        parts: what of the data was taken for what, for whoever reads config.json.
    """
    run = Path(config.out)
    record = {**config.to_dict(), "preprocessing": preprocessing.to_dict()} | ({"parts": parts} if parts else {})
    create_run(run, record, lock)
    if previous is None:
        return
    with disk_faults(run):
        origin = previous.checkpoint.folder
        folder = run / "checkpoints" / origin.name
        if not folder.exists():
            partial = folder.with_name(PARTIAL + folder.name)
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(origin, partial)
            partial.rename(folder)
        link_or_copy(folder / MODEL, run / MODEL)


def summary_if_finished(run: Path, step: int, num_steps: int, processes: Processes) -> dict[str, Any] | None:
    """The summary of a run that stands at its last step and is complete, else None; all processes must agree.

    Raises:
        RequestError: the checkpoint lies beyond the last step.
        Fault: the processes see different checkpoints.
    """
    if len(set(processes.gather(step))) > 1:
        raise Fault(f"the processes see different checkpoints in {run}: is --out on a file system that all share?")
    if step > num_steps:
        raise RequestError(f"the checkpoint is at step {step:,}, beyond the {num_steps:,} asked for: give more --steps")
    if step < num_steps or _status(run) != "complete":
        return None
    if processes.is_first:
        print(f"{run} is complete at step {step:,}: more --steps or --epochs would continue it")
    return _summary(run)


def _status(run: Path) -> str | None:
    return _summary(run).get("status")


def _summary(run: Path) -> dict[str, Any]:
    try:
        summary = json.loads((run / "summary.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) else {}
