"""`--also [NAME=]INIT`: initialisations that an experiment compares, each with the name of its row."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from openmae.errors import RequestError, shown

MAX_NAME = 60
_NAMED = re.compile(r"(?P<name>[^=/\\:]*)=(?P<init>.+)", re.DOTALL)  # a path or timm:… before "=" is no name
_NAME = re.compile(rf"[\w.+-][\w.+ -]{{0,{MAX_NAME - 1}}}")  # it becomes a folder's


@dataclass(frozen=True, kw_only=True)
class NamedInit:
    """A model to start from, and what its row is called."""

    name: str
    init: str

    @property
    def key(self) -> str:
        """What must differ between rows: file systems know no upper case, and a folder has dashes for spaces."""
        return self.name.replace(" ", "-").casefold()


def named_inits(also: Sequence[str], taken: Sequence[str] = ()) -> tuple[NamedInit, ...]:
    """The rows that `--also` asks for.

    Args:
        also: NAME=INIT, or INIT alone, whose row is called by the last part of its path or name.
        taken: names of the experiment's own rows.

    Raises:
        RequestError: a name or a model comes twice, or a name cannot be that of a row.
    """
    found: list[NamedInit] = []
    for value in also:
        named = _NAMED.fullmatch(value)
        init = named["init"] if named else value
        one = NamedInit(name=named["name"].strip() if named else short_name(init), init=init)
        if not _NAME.fullmatch(one.name) or not one.name.strip("."):
            raise RequestError(
                f"--also got {shown(value)}: its row cannot be called {one.name!r}; write NAME=INIT with a name of "
                f"letters, digits, spaces and . _ + -, {MAX_NAME} at most"
            )
        if one.key in {name.replace(" ", "-").casefold() for name in taken} | {other.key for other in found}:
            raise RequestError(f"--also got {shown(value)}, and a row is called {one.name!r} already: write NAME=INIT")
        if one.init in {other.init for other in found}:
            raise RequestError(f"--also got {shown(one.init)} twice: leave one of them out")
        found.append(one)
    return tuple(found)


def short_name(init: str) -> str:
    """The name of an `--init` in short: a folder's or file's own, or what stands behind `timm:` or `hf:ORG/`."""
    if init.startswith(("timm:", "hf:")):
        return init.partition(":")[2].partition("@")[0].rpartition("/")[2]
    path = PurePath(init)
    return path.stem if path.suffix in (".safetensors", ".pth", ".pt", ".bin", ".npz") else path.name
