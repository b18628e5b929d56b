"""`pack`: a folder that nothing is lost in, apart from its data, and data that are there."""

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
    """Raise RequestError where there is nothing to pack or to check, or no place for it."""
    config = config.plain()
    if config.verify:
        assert config.data is not None
        manifest_of(config.data)
        return
    assert config.out is not None
    out = Path(config.out)
    check_run_folder(out, "OUT")
    check_no_overlap(config.dataset, out)
    check_vacant(config, out)
    check_named(config.dataset)


def manifest_of(data: str) -> dict[str, Any]:
    """What a pack says of itself. Raises RequestError where there is none."""
    manifest = read_pack(Path(data))
    if manifest is None:
        raise RequestError(f"{shown(data)} is no pack: it has no {MANIFEST}")
    return manifest


def check_no_overlap(data: Dataset, out: Path) -> None:
    """Raise RequestError where the pack would lie among its data, or they in it."""
    for path in paths_of(data):
        there, here = Path(os.path.realpath(path)), Path(os.path.realpath(out))
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise RequestError(f"OUT {shown(out)} and DATA {shown(path)} lie inside each other: choose another OUT")


def check_vacant(config: PackConfig, out: Path) -> None:
    """Raise RequestError where something would be lost."""
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    if there <= {PARTIAL_PREFIX + UNFINISHED}:  # it was ended while it wrote the first file
        return
    is_ours = os.path.lexists(out / UNFINISHED) or (os.path.lexists(out / MANIFEST) and read_pack(out) is not None)
    if not is_ours:
        raise RequestError(f"{shown(out)} exists and holds something else: choose another OUT")
    if config.resume == "never":
        raise RequestError(f"{shown(out)} exists already: --resume auto goes on with it, another OUT starts one")
