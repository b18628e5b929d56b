"""What a pack says of itself in `pack.json`. Imports no torch: it is asked before that is loaded."""

import json
import math
import os
from pathlib import Path
from typing import Any

from openmae.errors import RequestError, shown

MANIFEST, UNFINISHED = "pack.json", ".partial-pack.json"
VERSION, WITH_EMPTY = 1, 2  # of packs, and of those with images that have values that stand for none
DTYPES = ("uint8", "uint16", "float32")


def read_pack(root: Path) -> dict[str, Any] | None:
    """The manifest of the pack in a folder; None where the folder is no pack.

    Raises:
        RequestError: the pack is unfinished, damaged, or of a newer kind.
    """
    try:
        manifest = json.loads((root / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or "openmae_pack" not in manifest:
        if any(os.path.lexists(str(index).removesuffix(".index.npz") + ".npy") for index in root.glob("*.index.npz")):
            raise RequestError(f"{shown(root)} is a raw pack without a {MANIFEST}: copy it again, or pack again")
        if os.path.lexists(root / UNFINISHED):
            raise RequestError(f"{shown(root)} is an unfinished pack: openmae pack … --resume auto finishes it")
        return None
    if manifest["openmae_pack"] not in (VERSION, WITH_EMPTY):
        raise RequestError(
            f"{shown(root)} is a pack of version {manifest['openmae_pack']}; this openmae reads {VERSION} and "
            f"{WITH_EMPTY}: update openmae, or pack the data again"
        )
    try:
        _check_manifest(manifest)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError):
        raise RequestError(f"{shown(root / MANIFEST)} is damaged: pack the data again") from None
    return manifest


def pack_format(data: str) -> str | None:
    """jpeg or raw, where DATA is a pack."""
    try:
        manifest = read_pack(Path(data))
    except (RequestError, ValueError):
        return None
    return None if manifest is None else str(manifest["format"])


def require(is_so: Any, what: str = "") -> None:
    """Raise ValueError where a file does not say what it must: no assert, which an option of Python leaves out."""
    if not is_so:
        raise ValueError(what)


def _check_manifest(manifest: dict[str, Any]) -> None:
    require(manifest["format"] in ("jpeg", "raw"))
    for name, entry in manifest["files"].items():
        require(name == os.path.basename(name) and not name.startswith(".") and "\0" not in name)
        require(isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str))
    for split in manifest["splits"].values():
        require(isinstance(split["images"], int) and split["images"] > 0)
        require(split["classes"] is None or all(isinstance(c, str) for c in split["classes"]))
        parts = (*split["data"], split["index"], *([split["empty"]] if "empty" in split else []))
        require(all(name in manifest["files"] for name in parts))
    if manifest["format"] == "raw":
        require(manifest["dtype"] in DTYPES and len(manifest["shape"]) == 3)
        low, high = stated_range(manifest) or (0.0, 1.0)
        require(math.isfinite(low) and math.isfinite(high) and low < high)
        require(all(isinstance(side, int) and side > 0 for side in manifest["shape"]))


def stated_range(manifest: dict[str, Any]) -> tuple[float, float] | None:
    """The raw values that the pack says are 0 and 1; None where it says none."""
    stated = manifest.get("value_range") if manifest["format"] == "raw" else None
    return None if stated is None else (float(stated[0]), float(stated[1]))
