"""Reading what torch.save wrote, without running any code in it.

A pickle is a program, and a `.pth` is one with tensors beside it. There are three safeguards: size and container are
checked before anything is unpacked; every name that the pickle would import is extracted without importing it, and one
that is not on a short list is refused; then torch reads it with `weights_only=True`, with `argparse.Namespace` as the
only class allowed from outside torch.
"""

import argparse
import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from openmae.errors import RequestError
from openmae.interchange.incoming.kinds import Kind, file_size, refuse

MAX_MEMBERS = 100_000
# Each byte can become an object of 60; the pickle of a ViT-H with its optimiser has a quarter of a megabyte.
MAX_PICKLE = 32 * 2**20
NUM_LEGACY_PICKLES = 5  # the magic number, a version, the machine, the object, the keys of its storages

# Stricter than weights_only: no bytearray and _codecs.encode, with which a few bytes can claim any amount of memory.
ALLOWED = re.compile(
    r"argparse\.Namespace|collections\.(OrderedDict|Counter)|(__builtin__|builtins)\.set"
    r"|torch\.(Size|device|Tensor|_tensor\._rebuild_from_type_v2|nn\.parameter\.Parameter)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
    r"|torch\.(cuda\.)?\w+Storage|torch\.storage\.(Untyped|Typed)Storage"
    r"|torch\.(bfloat16|float\d\w*|u?int\d+|bool)"
)
NO_WEIGHTS = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values (of the meta device)",
}


def read_pickled(path: Path, kind: Kind) -> Any:
    """The object that torch.save wrote; from a zip its tensors are memory-mapped, not copied.

    Raises:
        RequestError: it is damaged, claims what it does not hold, or names anything but weights and plain settings.
    """
    size = file_size(path)
    if kind == "zip":
        _check_names(path, io.BytesIO(_program_of_zip(path, size)), 1)
    else:
        with path.open("rb") as file:
            _check_names(path, io.BytesIO(file.read(MAX_PICKLE)), NUM_LEGACY_PICKLES)
    try:
        # A mapped storage cannot grow to the size that a tensor claims. Torch warns of protocols that it then refuses.
        with _only_namespace(), warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            mapped = kind == "zip"
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        refuse(path, "claims more memory than there is: it is damaged or hostile")
    except Exception as error:  # a malformed pickle can raise anything
        refuse(path, f"cannot be read as weights ({type(error).__name__}): it is damaged, or no checkpoint")


@contextmanager
def _only_namespace() -> Iterator[None]:
    """Allow `argparse.Namespace` only, without what other libraries have added."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        yield
    finally:
        added_inside = [added for added in torch.serialization.get_safe_globals() if added is not argparse.Namespace]
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before + added_inside)


def _program_of_zip(path: Path, size: int) -> bytes:
    """The pickle in an archive such as torch writes: no member is compressed, and none claims more than the file."""
    _check_directory(path, size)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            name = _pickle_name(path, [member.filename for member in members])
            if min(member.header_offset for member in members) != 0:  # such a file can be two archives to two programs
                refuse(path, "is a zip archive with something before or behind it, as torch.save writes none")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                refuse(path, "is a zip archive with compressed members, as torch.save writes none: it is not unpacked")
            if sum(member.file_size for member in members) > size:
                refuse(path, f"is a zip archive whose members claim more than its {size:,} bytes")
            if archive.getinfo(name).file_size > MAX_PICKLE:
                refuse(path, f"has a pickle of more than {MAX_PICKLE // 2**20} MB, as no list of weights is")
            return archive.read(name)
    except RequestError:
        raise
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, OSError, ValueError, EOFError):
        refuse(path, "is a zip archive that is cut off or damaged: fetch or copy it again")


def _check_directory(path: Path, size: int) -> None:
    """Refuse a directory of too many members before it is read, for each becomes an object."""
    with path.open("rb") as file:
        file.seek(max(0, size - 98))  # zip64's record and its locator, as torch writes them, then the plain record
        end = file.read()
    is_long = end[-42:-38] == b"PK\x06\x07"
    is_whole = end[-22:-18] == b"PK\x05\x06" and end[-2:] == b"\0\0" and (not is_long or end[-98:-94] == b"PK\x06\x06")
    if not is_whole:
        refuse(path, "is a zip archive that is cut off, damaged, or followed by something: fetch or copy it again")
    length = int.from_bytes(end[-58:-50] if is_long else end[-10:-6], "little")
    if not 0 < length <= min(200 * MAX_MEMBERS, size):
        refuse(path, f"is a zip archive with a directory as of more than {MAX_MEMBERS:,} members, or of none")


def _pickle_name(path: Path, names: list[str]) -> str:
    """The name of the member that is the pickle; an archive without one is refused by what it is."""
    if len(names) > MAX_MEMBERS:
        refuse(path, f"is a zip archive with {len(names):,} members, and none with more than {MAX_MEMBERS:,} is read")
    root = names[0].split("/")[0]
    if f"{root}/constants.pkl" in names:
        refuse(path, "is a TorchScript archive, which is a program: save its state_dict where you trust it")
    if f"{root}/data.pkl" not in names:
        what = "NumPy's .npz" if any(name.endswith(".npy") for name in names) else "no checkpoint of torch.save"
        refuse(path, f"is a zip archive, but {what}: give safetensors, or what torch.save wrote of a state dict")
    if sum(name.lower().endswith("data.pkl") for name in names) > 1:  # torch might read another one than was checked
        refuse(path, "is a zip archive with more than one data.pkl, as torch.save writes none")
    return f"{root}/data.pkl"


def _check_names(path: Path, program: io.BytesIO, num_pickles: int) -> None:
    """Refuse a pickle that names anything but weights and plain settings. Nothing of it is run or imported."""
    try:
        for _ in range(num_pickles):
            strings: list[str] = ["", ""]  # the last two, which a STACK_GLOBAL joins to a name
            for opcode, argument, _position in pickletools.genops(program):
                if opcode.name in ("GLOBAL", "INST"):
                    name = str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    name = ".".join(strings)
                else:
                    strings = [strings[1], argument] if isinstance(argument, str) else strings
                    continue
                if not ALLOWED.fullmatch(name):
                    _refuse_name(path, name)
    except RequestError:
        raise
    except Exception as error:  # pickletools can raise anything on what is no pickle
        refuse(path, f"has a pickle that cannot be followed ({type(error).__name__}): it is damaged, or hostile")


def _refuse_name(path: Path, name: str) -> NoReturn:
    if name in NO_WEIGHTS:
        refuse(path, f"holds {NO_WEIGHTS[name]}, which is no weight of a model here: save it as plain tensors")
    shorter = ascii(name)[1:-1][:100]
    refuse(
        path,
        f"holds {shorter}, which is code and no weight: the file is not opened. Where you trust it, load it with the "
        "program that wrote it and save its state_dict as safetensors",
    )
