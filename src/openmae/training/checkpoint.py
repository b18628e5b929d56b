"""Checkpoints that are complete, atomic and self-describing. Safetensors and JSON only: nothing is unpickled.

A checkpoint is a folder, written under a temporary name and renamed when it is complete on disk:

    step-00001000/model.safetensors      weights; the metadata describes the model
                  optimizer.safetensors  the optimiser's tensors, by parameter name
                  state.json             where the run stands
                  manifest.json          the others' sizes and SHA-256
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openmae.errors import Fault, RequestError
from openmae.machine.files import PARTIAL_PREFIX, disk_faults, json_bytes, link_or_copy, make_readable, sync, write_json
from openmae.training.checkpoint_name import CHECKPOINT_NAME

FORMAT_VERSION = 1
# One metadata key only: safetensors writes several in no fixed order, and equal runs must give equal bytes.
METADATA_KEY = "openmae"
MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"


class DamagedCheckpoint(Exception):
    """A checkpoint's files differ from those that were written; the message names the first."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its folder and what `state.json` held."""

    folder: Path
    state: dict[str, Any]


def save_checkpoint(
    run: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    metadata: dict[str, Any],
    state: dict[str, Any],
    keep: int,
    extra_tensors: dict[str, Tensor] | None = None,
) -> Path:
    """Write `checkpoints/step-…`, make it the newest, and delete all but the newest `keep`.

    Args:
        metadata: what determines the weights or their use; no time, host or path.
        state: where the run stands, as JSON values.
        extra_tensors: further tensors that training needs, stored with the optimiser's and named `kind/…`.

    Raises:
        Fault: the disk is full or cannot be written; earlier checkpoints are untouched.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    partial = folder.with_name(PARTIAL_PREFIX + folder.name)
    with disk_faults(folder, is_resumable=True):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            save_model(partial / MODEL, model, metadata)
            save_file({**optimizer_tensors(model, optimizer), **(extra_tensors or {})}, partial / OPTIMIZER)
            write_json(partial / STATE, {"step": step, **state})
            entries = {name: _entry(partial / name) for name in (MODEL, OPTIMIZER, STATE)}
            write_json(partial / MANIFEST, {"format_version": FORMAT_VERSION, "files": entries})
            for path in (partial / MODEL, partial / OPTIMIZER, partial):  # the JSON files are synced already
                sync(path)
            shutil.rmtree(folder, ignore_errors=True)  # of the same step, see below
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync(folder.parent)
        link_or_copy(folder / MODEL, run / MODEL)
        # Checkpoints of later steps are damaged, or of a run that has since been resumed from an earlier step.
        folders = checkpoint_folders(run)
        newest = folders.index(folder)
        for other in folders[:newest] + folders[newest + keep :]:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def save_model(path: Path, model: nn.Module, metadata: dict[str, Any]) -> None:
    """Write a model's weights with metadata; equal weights and metadata give equal bytes."""
    save_weights(path, model.state_dict(), metadata)


def save_weights(path: Path, weights: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """As `save_model`, from weights by name."""
    description = json.dumps({"format_version": FORMAT_VERSION, **metadata}, sort_keys=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, path, metadata={METADATA_KEY: description})
    make_readable(path)


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and description of a model.safetensors.

    Raises:
        RequestError: it is missing, damaged, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(METADATA_KEY)
        if metadata is None:
            raise RequestError(f"{path} holds no openmae model: its metadata has no {METADATA_KEY!r}")
        description = json.loads(metadata)
        version = description.get("format_version") if isinstance(description, dict) else None
        if not isinstance(version, int):
            raise RequestError(f"{path} holds no openmae model: its description names no format_version")
        if version > FORMAT_VERSION:
            raise RequestError(
                f"{path} has format_version {version}, this openmae reads up to {FORMAT_VERSION}: upgrade openmae"
            )
        return load_file(path), description
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist: give a run folder, a checkpoint or a model.safetensors") from None
    except RequestError:
        raise
    except (SafetensorError, ValueError, OSError, RecursionError) as error:  # json: also numbers of 5,000 digits
        raise RequestError(f"{path} cannot be read as safetensors ({error}): it is damaged or something else") from None


def checkpoint_folders(run: Path) -> list[Path]:
    """The folders of the run's finished checkpoints, newest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if CHECKPOINT_NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def newest_checkpoint(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint, and a line about each newer, damaged one."""
    damaged: list[str] = []
    for folder in checkpoint_folders(run):
        try:
            return verify_checkpoint(folder), damaged
        except DamagedCheckpoint as error:
            damaged.append(f"{folder.name} is damaged ({error})")
    return None, damaged


def verify_checkpoint(folder: Path) -> Checkpoint:
    """Check every file of a checkpoint against its manifest.

    Raises:
        DamagedCheckpoint: a file is missing or differs.
    """
    try:
        written = (folder / MANIFEST).read_bytes()
        manifest = json.loads(written)
        entries, version = manifest["files"], manifest["format_version"]
        # The manifest has no checksum of its own: it is trusted only if writing it again gives the same bytes.
        if json_bytes(manifest) == written and isinstance(version, int) and version > FORMAT_VERSION:
            raise DamagedCheckpoint(f"{MANIFEST} says format_version {version}, this openmae reads {FORMAT_VERSION}")
        if json_bytes(manifest) != written or version not in range(1, FORMAT_VERSION + 1):
            raise DamagedCheckpoint(f"{MANIFEST} is not what was written")
        for name in (MODEL, OPTIMIZER, STATE):
            if _entry(folder / name) != entries[name]:
                raise DamagedCheckpoint(f"{name} is not what was written")
        return Checkpoint(folder, json.loads((folder / STATE).read_bytes()))
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{Path(error.filename).name} is missing") from None
    except (ValueError, KeyError, TypeError, RecursionError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedCheckpoint(f"{MANIFEST} cannot be read: {error}") from None
    except OSError as error:  # a failing disk or server does not mean that the checkpoint is damaged
        raise Fault(f"{folder} cannot be read: {error}") from error


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by parameter name: `exp_avg/encoder.norm.weight` and so on."""
    return {
        f"{key}/{name}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ignored: str | None = None
) -> None:
    """Load the optimiser's saved tensors, except those of the kind `ignored`; group settings come from the config."""
    parameters = dict(model.named_parameters())
    for full_name, value in load_file(folder / OPTIMIZER).items():
        key, _, name = full_name.partition("/")
        if key == ignored:
            continue
        parameter = parameters.get(name)
        if parameter is None or value.shape not in ((), parameter.shape):
            raise RequestError(f"{folder / OPTIMIZER} has {full_name} {tuple(value.shape)}, which fits no parameter")
        # All on the parameter's device, also AdamW's step counter, as the fused kernel needs it.
        optimizer.state[parameter][key] = value.to(parameter.device)


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
