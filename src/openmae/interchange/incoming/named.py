"""What an `--init` or a `--tokenizer` names: a path, timm's or the Hub's. Imports no torch."""

import os
import re
from pathlib import Path

from openmae.errors import RequestError, shown
from openmae.interchange.incoming.kinds import file_kind, file_size

TIMM = "timm:"
TIMM_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_-]+)?")  # none of timm's schemes, which read folders and the Hub
HUB = "hf:"
TOKENIZER_ADVICE = (
    "give a run of openmae tokenizer DATA --out RUN, hf:facebook/flava-image-codebook, or a folder of that kind"
)
TOKENIZER_FILES = ("checkpoints", "model.safetensors", "config.json")  # a tokenizer's folder has one of them
DALLE_PICKLES = ("encoder.pkl", "decoder.pkl")  # as they were published
HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def check_init(init: str) -> None:
    """Raise RequestError where an `--init` is no name, is not there, or is a file that is no checkpoint."""
    if init.startswith(TIMM):
        timm_name(init)
    elif init.startswith(HUB):
        hub_name(init)
    elif (path := local_path(init)).is_file():
        file_kind(path)


def check_tokenizer(spec: str) -> None:
    """Raise RequestError where a `--tokenizer` is no name, is not there, or is a file that is no checkpoint."""
    if spec.startswith(TIMM):
        raise RequestError(f"--tokenizer got {shown(spec)}, but timm has no tokenizers: {TOKENIZER_ADVICE}")
    if spec.startswith(HUB):
        hub_name(spec)
        return
    path = Path(spec)
    if not os.path.exists(path):
        raise RequestError(f"--tokenizer {shown(path)} does not exist: {TOKENIZER_ADVICE}")
    is_folder = not local_path(spec).is_file()
    if is_folder and any((path / name).exists() for name in TOKENIZER_FILES):
        return
    pickle = next((path / name for name in DALLE_PICKLES if (path / name).exists()), None) if is_folder else path
    if pickle is not None and _is_dalle_pickle(pickle):
        raise RequestError(
            f"--tokenizer {shown(pickle)} is DALL-E's pickle of a whole module, which can run code, so it is not "
            "opened: give hf:facebook/flava-image-codebook, the same encoder as plain weights, or train your own with "
            "openmae tokenizer DATA --out RUN"
        )
    if is_folder:
        raise RequestError(f"--tokenizer {shown(path)} holds no tokenizer: {TOKENIZER_ADVICE}")
    file_kind(path)


def _is_dalle_pickle(path: Path) -> bool:
    """Whether a file is one of DALL-E's, by its name or by that of its package, which such a pickle begins with."""
    if path.name in DALLE_PICKLES:
        return True
    try:
        with path.open("rb") as file:
            return b"dall_e." in file.read(2**16)
    except OSError:
        return False  # whoever reads it says why not


def local_path(init: str) -> Path:
    """A file or folder that is there. Raises RequestError where there is none."""
    path = Path(init)
    if not path.is_dir():
        file_size(path)
    return path


def hub_name(init: str) -> tuple[str, str | None]:
    """ORG/NAME and revision of `hf:ORG/NAME[@REVISION]`. Raises RequestError where it is no such name."""
    match = HUB_NAME.fullmatch(init.removeprefix(HUB))
    if match is None or ".." in init:
        raise RequestError(f"{shown(init)} names no model: write hf:ORG/NAME or hf:ORG/NAME@REVISION")
    return match["name"], match["revision"]


def timm_name(init: str) -> str:
    """NAME of `timm:NAME`. Raises RequestError where it can be none of timm's."""
    name = init.removeprefix(TIMM)
    if not TIMM_NAME.fullmatch(name):
        raise RequestError(f"{shown(init)} names no model of timm: write timm:NAME, or hf:ORG/NAME, or a folder")
    return name
