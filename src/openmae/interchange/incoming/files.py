"""Any checkpoint of the field, read from disk without running what is in it; and the names that checkpoints go by."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from openmae.errors import RequestError, shown
from openmae.interchange.incoming.groups import MAX_TENSORS, Groups, check_tensors, sort_out
from openmae.interchange.incoming.kinds import Kind, kind_of, one_line, refuse, size_of
from openmae.interchange.incoming.pickled import read_pickled
from openmae.interchange.names import CONFIG, PROCESSOR

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
WORDS = {"safetensors": "safetensors", "zip": "pickle (weights only)", "legacy": "old pickle (weights only)"}

MAX_HEADER = 100_000_000  # what the library allows, too
MAX_JSON = 16 * 2**20
MAX_SHARDS = 10_000

HUB = "hf:"
HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class RawCheckpoint:
    """What lies in a checkpoint file or folder, before anyone has said what it is.

    Attributes:
        container: in words, for reports.
        groups: state dicts by the name they stand under: "" for a flat one, else `model`, `teacher`,
            `checkpoint.model`, …
        metadata: of a safetensors file.
        config, processor: `config.json` and `preprocessor_config.json` beside it; empty where there is none.
        extras: what else stood in a pickle, as JSON values: `epoch`, `args` as a flat dict; `left_alone` names
            what was not read, the optimiser's state among it.
    """

    path: Path
    container: str
    groups: Groups
    metadata: dict[str, str]
    config: dict[str, Any]
    processor: dict[str, Any]
    extras: dict[str, Any]


def find_stored(init: str) -> Path:
    """The file or folder of a path, or of `hf:ORG/NAME[@REVISION]`, which is fetched where it is not in the cache.

    Raises:
        RequestError: it does not exist, is private or gated, or cannot be fetched.
    """
    if not init.startswith(HUB):
        path = Path(init)
        if not path.is_dir():
            size_of(path)
        return path
    match = HUB_NAME.fullmatch(init.removeprefix(HUB))
    if match is None or ".." in init:
        raise RequestError(f"{shown(init)} names no model: write hf:ORG/NAME or hf:ORG/NAME@REVISION")
    safe = ["*.safetensors", "*.safetensors.index.json"]
    folder = _fetch(init, match["name"], match["revision"], [CONFIG, PROCESSOR, *safe])
    if not any(folder.glob("*.safetensors")):
        folder = _fetch(
            init, match["name"], match["revision"], [CONFIG, PROCESSOR, "pytorch_model*.bin", PICKLED_INDEX]
        )
    return folder


def _fetch(init: str, name: str, revision: str | None, patterns: list[str]) -> Path:
    import huggingface_hub  # half a second, and most commands have no need of it
    from huggingface_hub import errors

    try:
        # No folders: exports to other formats lie there.
        found = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
        return Path(found)
    except errors.GatedRepoError:
        why = f"is gated: accept its terms on huggingface.co/{name}, then run hf auth login"
    except errors.RepositoryNotFoundError:
        why = "is not on the Hub, or is private: check the name, or run hf auth login"
    except errors.RevisionNotFoundError:
        why = f"has no revision {revision}: name a branch, a tag or a commit"
    except errors.LocalEntryNotFoundError:
        why = "is not whole in the local cache and the Hub cannot be reached: go online once, or give a local folder"
    except Exception as error:  # of the network, of its library, of the disk
        why = f"could not be fetched ({type(error).__name__}: {one_line(error)})"
    raise RequestError(f"{init} {why}")


def read_stored(path: Path) -> RawCheckpoint:
    """Read a checkpoint: one file, or a folder as transformers and timm write them.

    Raises:
        RequestError: it cannot be read, is something else, claims more than it holds, or would run code.
    """
    try:
        return _read_folder(path) if path.is_dir() else _read_single(path)
    except MemoryError:
        refuse(path, "does not fit into the memory of this machine")
    except OSError as error:
        refuse(path, f"cannot be read ({error.strerror or one_line(error)})")


def _read_single(path: Path) -> RawCheckpoint:
    kind, groups, metadata, extras = _read_file(path)
    # A .pth in a folder of downloads has nothing to do with a config.json that lies there, too.
    beside = path.parent if path.name in (SAFE, PICKLED) else None
    config = _read_json(beside / CONFIG) if beside else {}
    processor = _read_json(beside / PROCESSOR) if beside else {}
    return RawCheckpoint(path, WORDS[kind], groups, metadata, config, processor, extras)


def _read_folder(folder: Path) -> RawCheckpoint:
    """config.json and, in this order: model.safetensors, its shards, pytorch_model.bin, its shards."""
    config, processor = _read_json(folder / CONFIG), _read_json(folder / PROCESSOR)
    for whole, index in ((SAFE, SAFE_INDEX), (PICKLED, PICKLED_INDEX)):
        if _is_there(folder / whole):
            kind, groups, metadata, extras = _read_file(folder / whole)
            return RawCheckpoint(folder, WORDS[kind], groups, metadata, config, processor, extras)
        if _is_there(folder / index):
            kind, num_shards, weights, metadata = _read_shards(folder, folder / index)
            container = f"{WORDS[kind]} in {num_shards} shards"
            return RawCheckpoint(folder, container, {"": weights}, metadata, config, processor, {})
    refuse(folder, f"holds no model: neither {SAFE} nor {PICKLED}, nor an index of shards; name the file in it")


def _read_shards(folder: Path, index: Path) -> tuple[Kind, int, dict[str, Tensor], dict[str, str]]:
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        refuse(index, "is no index: its weight_map does not say which file holds which tensor")
    shards = sorted(set(places.values()))
    if len(shards) > MAX_SHARDS or len(places) > MAX_TENSORS:
        refuse(index, f"names {len(shards):,} shards of {len(places):,} tensors: more than any model has")
    files = [_shard(folder, index, shard) for shard in shards]
    weights: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    kinds: set[Kind] = set()
    for file in files:
        kind, groups, said, _ = _read_file(file)
        if set(groups) != {""}:
            refuse(file, f"is no shard: it holds {', '.join(groups)} and not tensors alone")
        if twice := weights.keys() & groups[""].keys():
            refuse(file, f"holds {min(twice)!a}, which another shard holds, too")
        kinds.add(kind)
        weights |= groups[""]
        metadata |= said
    if lacking := places.keys() - weights.keys():
        refuse(index, f"names {min(lacking)!a} in {places[min(lacking)]!a}, which no shard holds")
    return max(kinds), len(shards), weights, metadata


def _shard(folder: Path, index: Path, name: str) -> Path:
    """A file of the folder itself. The Hub's cache links its snapshots to its own blobs; other links out are none."""
    if not re.fullmatch(r"[^/\\\0]+", name) or name in (".", ".."):
        refuse(index, f"names the shard {name[:100]!a}: only files of its own folder are read")
    home = Path(os.path.realpath(folder))
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed += [above / "blobs" for above in home.parents[1:3]]  # of the repository; of the whole cache
    target = Path(os.path.realpath(folder / name))
    if not any(target.is_relative_to(place) for place in allowed):
        refuse(index, f"names the shard {name[:100]!a}, a link out of its folder: copy the file there")
    return folder / name


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()  # a broken link is worth a message


def _read_file(path: Path) -> tuple[Kind, Groups, dict[str, str], dict[str, Any]]:
    kind = kind_of(path)
    groups: Groups
    metadata: dict[str, str] = {}
    extras: dict[str, Any] = {}
    if kind == "safetensors":
        tensors, metadata = _read_safetensors(path)
        groups = {"": tensors}
    else:
        groups, extras = sort_out(path, read_pickled(path, kind))
    check_tensors(path, groups)
    return kind, groups, metadata, extras


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(size_of(path) - 8, MAX_HEADER):
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
    if size_of(path) > MAX_JSON:
        refuse(path, f"has {size_of(path):,} bytes: more than {MAX_JSON // 2**20} MB is no description of a model")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # no JSON, bytes that are no UTF-8, numbers of 5,000 digits; nesting
        refuse(path, f"is no JSON that can be read ({type(error).__name__}): fetch it again")
    if not isinstance(content, dict):
        refuse(path, f"holds a {type(content).__name__} and no JSON object: fetch it again")
    return content
