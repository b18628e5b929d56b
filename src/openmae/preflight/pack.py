"""Checks of `pack`: an output folder in which nothing would be lost, and which shares no folder with the data."""

import os
from pathlib import Path
from typing import Any

from openmae.config import Dataset, PackConfig, paths_of
from openmae.data.sources.manifest import MANIFEST, UNFINISHED, read_pack
from openmae.data.sources.named import check_named
from openmae.errors import RequestError, shown
from openmae.machine.files import PARTIAL_PREFIX
from openmae.run.lock import check_run_folder


def check_pack(config: PackConfig) -> None:
    """Raise RequestError where the data or, with --verify, the pack cannot be found, or OUT cannot be used."""
    config = config.plain()
    if config.verify:
        assert config.data is not None
        read_manifest(config.data)
        return
    assert config.out is not None
    out = Path(config.out)
    check_run_folder(out, "OUT")
    check_no_overlap(config.dataset, out)
    check_pack_folder(config, out)
    check_named(config.dataset)


def read_manifest(data: str) -> dict[str, Any]:
    """The manifest of a pack. Raises RequestError where the folder is no pack."""
    manifest = read_pack(Path(data))
    if manifest is None:
        raise RequestError(f"{shown(data)} is no pack: it has no {MANIFEST}")
    return manifest


def check_no_overlap(data: Dataset, out: Path) -> None:
    """Raise RequestError where OUT lies inside the data, or the data inside OUT."""
    for path in paths_of(data):
        real_data, real_out = Path(os.path.realpath(path)), Path(os.path.realpath(out))
        if real_out.is_relative_to(real_data) or real_data.is_relative_to(real_out):
            raise RequestError(f"OUT {shown(out)} and DATA {shown(path)} lie inside each other: choose another OUT")


def check_pack_folder(config: PackConfig, out: Path) -> None:
    """Raise RequestError unless OUT is empty or holds a pack, finished or not, that `--resume` allows to continue."""
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    if names <= {PARTIAL_PREFIX + UNFINISHED}:  # empty, or an earlier start was killed while it wrote the first file
        return
    is_pack = os.path.lexists(out / UNFINISHED) or (os.path.lexists(out / MANIFEST) and read_pack(out) is not None)
    if not is_pack:
        raise RequestError(f"{shown(out)} exists and holds something else: choose another OUT")
    if config.resume == "never":
        raise RequestError(f"{shown(out)} exists already: --resume auto goes on with it, another OUT starts one")
