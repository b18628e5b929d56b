"""The kind of a file by its first bytes, determined before anything opens it: its name is not trusted."""

import os
import stat
from codecs import getincrementaldecoder
from pathlib import Path
from typing import Literal, NoReturn

from openmae.errors import RequestError, shown

Kind = Literal["safetensors", "zip", "legacy"]

# The pickled magic number at the start of what torch.save wrote before 1.6.
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
OTHER_FORMATS = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, say)"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (257, b"ustar", "a tar archive (unpack it), or of a torch before 1.0 (save it again with a newer one)"),
    (0, b"\x1f\x8b", "compressed with gzip (unpack it)"),
    (0, b"BZh", "compressed with bzip2 (unpack it)"),
    (0, b"\xfd7zXZ\x00", "compressed with xz (unpack it)"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd (unpack it)"),
    (0, b"\x89PNG", "an image"),
    (0, b"\xff\xd8\xff", "an image"),
)


def refuse(path: Path, reason: str) -> NoReturn:
    """Raise RequestError with one line about a file."""
    raise RequestError(f"{shown(path)} {reason}")


def one_line(error: BaseException) -> str:
    """The first line of an error's message, printable, for a message of ours."""
    return shown((str(error).splitlines() or [type(error).__name__])[0][:200].encode("utf-8", "replace").decode())


def file_size(path: Path) -> int:
    """The size of a regular file in bytes; RequestError where it is none, for opening a FIFO would wait for ever."""
    try:
        info = os.stat(path)
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            refuse(path, "does not exist: give a checkpoint's file or folder, a run, timm:NAME or hf:ORG/NAME")
        refuse(path, f"cannot be looked at ({getattr(error, 'strerror', None) or 'no possible name'})")
    if not stat.S_ISREG(info.st_mode):
        refuse(path, "is no regular file (a pipe, socket or device, say), and is not opened")
    return info.st_size


def file_kind(path: Path) -> Kind:
    """The kind of a checkpoint file.

    Raises:
        RequestError: it is none that weights can be read from; the message says what it is.
    """
    if file_size(path) == 0:
        refuse(path, "is empty (0 bytes): fetch or copy it again")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        refuse(path, f"cannot be opened ({error.strerror})")
    kind: Kind | None = None
    if start.startswith(b"PK\x03\x04"):
        kind = "zip"
    elif start.startswith(LEGACY_START):
        kind = "legacy"
    if kind is not None:
        if path.name.endswith(".safetensors"):  # a name that promises that nothing is unpickled
            refuse(
                path, "is called safetensors and is a zip or a pickle: it is not opened; name it .pth if it is yours"
            )
        return kind
    if start[8:9] == b"{" and not _is_text(start):
        return "safetensors"
    refuse(path, f"is {_other(start)}: give safetensors, or what torch.save wrote of a state dict")


def _other(start: bytes) -> str:
    for offset, magic, name in OTHER_FORMATS:
        if start[offset:].startswith(magic):
            return name
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return "a pickle that torch.save did not write, which could run code, so it is not opened"
    if start[:1] == b"\x08" and start[2:3] in (b"\x12", b"\x3a", b"\x42"):  # the format's version, then a field
        return "an ONNX model"
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer and not the file it points at (run git lfs pull)"
    if _is_text(start):
        is_page = start.lstrip()[:5].lower() in (b"<!doc", b"<html")
        return "a web page, saved in place of a download" if is_page else "text"
    return "nothing that is known here"


def _is_text(start: bytes) -> bool:
    try:
        text = getincrementaldecoder("utf-8")().decode(start)  # its last character may be cut
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\t\r\n\f" for char in text)
