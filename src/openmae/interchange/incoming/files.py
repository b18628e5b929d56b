"""Reading safetensors and pickled checkpoints without running code in them; local paths and `hf:` names."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from openmae.errors import RequestError
from openmae.interchange.incoming.groups import MAX_TENSORS, Groups, check_tensors, extract_state_dicts
from openmae.interchange.incoming.kinds import Kind, file_kind, file_size, one_line, refuse
from openmae.interchange.incoming.named import HUB, hub_name, local_path
from openmae.interchange.incoming.pickled import read_pickled
from openmae.interchange.names import CONFIG, PROCESSOR

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
CONTAINER_NAMES = {"safetensors": "safetensors", "zip": "pickle (weights only)", "legacy": "old pickle (weights only)"}

MAX_HEADER = 100_000_000  # the limit of the safetensors library, too
MAX_JSON = 16 * 2**20
MAX_SHARDS = 10_000


@dataclass(frozen=True)
class RawCheckpoint:
    """The content of a checkpoint file or folder, not yet interpreted.

    Attributes:
        container: the file format, for reports.
        groups: state dicts by their key in the file: "" for a flat one, else `model`, `teacher`, `checkpoint.model`, …
        metadata: of a safetensors file.
        config, processor: `config.json` and `preprocessor_config.json` beside it; empty where there is none.
        extras: other entries of a pickle, as JSON values: `epoch`, `args` as a flat dict; `left_alone` names what was
            not read, such as the optimiser's state.
    """

    path: Path
    container: str
    groups: Groups
    metadata: dict[str, str]
    config: dict[str, Any]
    processor: dict[str, Any]
    extras: dict[str, Any]


def locate_checkpoint(init: str) -> Path:
    """The file or folder of a path or of `hf:ORG/NAME[@REVISION]`, which is downloaded unless it is in the cache.

    Raises:
        RequestError: it does not exist, is private or gated, or cannot be fetched.
    """
    if not init.startswith(HUB):
        return local_path(init)
    name, revision = hub_name(init)
    safe = ["*.safetensors", "*.safetensors.index.json"]
    folder = _fetch(init, name, revision, [CONFIG, PROCESSOR, *safe])
    if not any(folder.glob("*.safetensors")):
        folder = _fetch(init, name, revision, [CONFIG, PROCESSOR, "pytorch_model*.bin", PICKLED_INDEX])
    return folder


def _fetch(init: str, name: str, revision: str | None, patterns: list[str]) -> Path:
    import huggingface_hub  # takes half a second, and most commands do not need it
    from huggingface_hub import errors

    try:
        # No subfolders: they hold exports to other formats.
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
        return Path(folder)
    except errors.GatedRepoError:
        reason = f"is gated: accept its terms on huggingface.co/{name}, then run hf auth login"
    except errors.RepositoryNotFoundError:
        reason = "is not on the Hub, or is private: check the name, or run hf auth login"
    except errors.RevisionNotFoundError:
        reason = f"has no revision {revision}: name a branch, a tag or a commit"
    except errors.LocalEntryNotFoundError:
        reason = "is not whole in the local cache and the Hub cannot be reached: go online once, or give a local folder"
    except Exception as error:  # errors of the network, its library, the disk
        reason = f"could not be fetched ({type(error).__name__}: {one_line(error)})"
    raise RequestError(f"{init} {reason}")


def read_raw_checkpoint(path: Path) -> RawCheckpoint:
    """Read a checkpoint: one file, or a folder as transformers and timm write them.

    Raises:
        RequestError: it cannot be read, is no checkpoint, claims more than it holds, or would run code.
    """
    try:
        return _read_folder(path) if path.is_dir() else _read_single(path)
    except MemoryError:
        refuse(path, "does not fit into the memory of this machine")
    except OSError as error:
        refuse(path, f"cannot be read ({error.strerror or one_line(error)})")


def _read_single(path: Path) -> RawCheckpoint:
    kind, groups, metadata, extras = _read_file(path)
    # A .pth in a folder of downloads need not belong to the config.json there.
    folder = path.parent if path.name in (SAFE, PICKLED) else None
    config = _read_json(folder / CONFIG) if folder else {}
    processor = _read_json(folder / PROCESSOR) if folder else {}
    return RawCheckpoint(path, CONTAINER_NAMES[kind], groups, metadata, config, processor, extras)


def _read_folder(folder: Path) -> RawCheckpoint:
    """Read config.json and the first of: model.safetensors, its shards, pytorch_model.bin, its shards."""
    config, processor = _read_json(folder / CONFIG), _read_json(folder / PROCESSOR)
    for whole, index in ((SAFE, SAFE_INDEX), (PICKLED, PICKLED_INDEX)):
        if _is_there(folder / whole):
            kind, groups, metadata, extras = _read_file(folder / whole)
            return RawCheckpoint(folder, CONTAINER_NAMES[kind], groups, metadata, config, processor, extras)
        if _is_there(folder / index):
            kind, num_shards, weights, metadata = _read_shards(folder, folder / index)
            container = f"{CONTAINER_NAMES[kind]} in {num_shards} shards"
            return RawCheckpoint(folder, container, {"": weights}, metadata, config, processor, {})
    refuse(folder, f"holds no model: neither {SAFE} nor {PICKLED}, nor an index of shards; name the file in it")


def _read_shards(folder: Path, index: Path) -> tuple[Kind, int, dict[str, Tensor], dict[str, str]]:
    weight_map = _read_json(index).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        refuse(index, "is no index: its weight_map does not say which file holds which tensor")
    shards = sorted(set(weight_map.values()))
    if len(shards) > MAX_SHARDS or len(weight_map) > MAX_TENSORS:
        refuse(index, f"names {len(shards):,} shards of {len(weight_map):,} tensors: more than any model has")
    files = [_shard(folder, index, shard) for shard in shards]
    weights: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    kinds: set[Kind] = set()
    for file in files:
        kind, groups, own_metadata, _ = _read_file(file)
        if set(groups) != {""}:
            refuse(file, f"is no shard: it holds {', '.join(groups)} and not tensors alone")
        if repeated := weights.keys() & groups[""].keys():
            refuse(file, f"holds {min(repeated)!a}, which another shard holds, too")
        kinds.add(kind)
        weights |= groups[""]
        metadata |= own_metadata
    if missing := weight_map.keys() - weights.keys():
        refuse(index, f"names {min(missing)!a} in {weight_map[min(missing)]!a}, which no shard holds")
    return max(kinds), len(shards), weights, metadata


def _shard(folder: Path, index: Path, name: str) -> Path:
    """The path of a shard, refused outside the folder; but links of the Hub's cache to its own blobs are followed."""
    if not re.fullmatch(r"[^/\\\0]+", name) or name in (".", ".."):
        refuse(index, f"names the shard {name[:100]!a}: only files of its own folder are read")
    real_folder = Path(os.path.realpath(folder))
    allowed = [real_folder]
    if real_folder.parent.name == "snapshots":
        allowed += [parent / "blobs" for parent in real_folder.parents[1:3]]  # of the repository; of the whole cache
    target = Path(os.path.realpath(folder / name))
    if not any(target.is_relative_to(root) for root in allowed):
        refuse(index, f"names the shard {name[:100]!a}, a link out of its folder: copy the file there")
    return folder / name


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()  # a broken link exists too, and gets a message


def _read_file(path: Path) -> tuple[Kind, Groups, dict[str, str], dict[str, Any]]:
    kind = file_kind(path)
    groups: Groups
    metadata: dict[str, str] = {}
    extras: dict[str, Any] = {}
    if kind == "safetensors":
        tensors, metadata = _read_safetensors(path)
        groups = {"": tensors}
    else:
        groups, extras = extract_state_dicts(path, read_pickled(path, kind))
    check_tensors(path, groups)
    return kind, groups, metadata, extras


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(file_size(path) - 8, MAX_HEADER):
        refuse(path, f"says that its header has {length:,} bytes, which it cannot: it is cut off, damaged or hostile")
    try:
        with safe_open(path, framework="pt") as opened:
            names = opened.keys()
            if len(names) > MAX_TENSORS:
                refuse(path, f"holds {len(names):,} tensors: more than {MAX_TENSORS:,} are of no model")
            tensors = {name: opened.get_tensor(name) for name in names}
            metadata = opened.metadata() or {}
    except (RequestError, MemoryError):
        raise
    except Exception as error:  # SafetensorError, and torch's on a dtype it lacks
        refuse(path, f"cannot be read as safetensors ({one_line(error)}): it is cut off, damaged or hostile")
    if not tensors:
        refuse(path, "holds no weights: it is safetensors without a tensor")
    return tensors, metadata


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no file."""
    if not _is_there(path):
        return {}
    if file_size(path) > MAX_JSON:
        refuse(path, f"has {file_size(path):,} bytes: more than {MAX_JSON // 2**20} MB is no description of a model")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # no JSON, bytes that are no UTF-8, numbers of 5,000 digits; nesting
        refuse(path, f"is no JSON that can be read ({type(error).__name__}): fetch it again")
    if not isinstance(content, dict):
        refuse(path, f"holds a {type(content).__name__} and no JSON object: fetch it again")
    return content
