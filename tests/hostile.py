"""Files that are broken, odd or malicious, made on the spot. For tests and for the drill."""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file

PNG_START = b"\x89PNG\r\n\x1a\n"


def encoded(image: Any, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, depth: int, colour: int, body: bytes) -> bytes:
    """A PNG that says what it likes about itself."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return PNG_START + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def hostile_images(folder: Path) -> tuple[set[str], set[str], int]:
    """Fill a folder; 8-bit colour images are what it is about.

    Returns:
        Names that must be refused, names that must be read, and how many more a scan must leave out.
    """
    chance = np.random.default_rng(0)
    noise = chance.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    good: dict[bytes, bytes] = {f"plain-{i}.png".encode(): encoded(np.roll(noise, i, axis=0)) for i in range(8)}
    bad: dict[bytes, bytes] = {}

    for form in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF"):
        whole = encoded(picture, form)
        good[f"whole-{form}.{'tif' if form == 'TIFF' else form.lower()}".encode()] = whole
        for percent in (10, 50, 95):
            bad[f"cut-{percent}-{form}.png".encode()] = whole[: len(whole) * percent // 100]
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        good[b"turned-%d.jpg" % orientation] = encoded(picture, "JPEG", exif=exif)
    frames = [Image.new("RGB", (48, 48), (i % 256, 0, 0)) for i in range(500)]
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    good |= {
        b"cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        b"palette-alpha.png": encoded(palette, transparency=b"\x00\xff"),
        b"grey-alpha.png": encoded(picture.convert("LA")),
        b"alpha.webp": encoded(picture.convert("RGBA"), "WEBP"),
        b"bilevel.png": encoded(picture.convert("1")),
        b"sixteen-bit.png": encoded(chance.integers(0, 65536, (48, 48), dtype=np.uint16)),
        b"many-frames.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        b"frames.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:20]),
        b"png-inside.jpg": encoded(picture),
        b"with space.png": encoded(picture),
        b"line\nend.png": encoded(picture),
        b"no-utf8-\xff\xfe.png": encoded(picture),
        b"damaged-exif.png": encoded(picture, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    }
    bad |= {
        b"empty.jpg": b"",
        b"zeros.png": bytes(5000),
        b"words.png": b"these are words",
        b"elf.png": b"\x7fELF" + bytes(100),
        b"page.jpg": b"<html><script>alert(1)</script></html>",
        b"vector.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        b"signature-only.png": PNG_START,
        b"bomb-header.png": png_of(100_000, 100_000, 8, 2, b"x"),
        b"bomb-warned-only.png": png_of(14_000, 14_000, 8, 2, b"x"),
        b"bomb-inflating.png": png_of(20_000, 20_000, 8, 0, zlib.compress(bytes(20_001 * 2000), 9)),
        b"no-pixels.png": png_of(0, 0, 8, 2, b""),
        b"one-pixel.png": encoded(noise[:1, :1]),
        b"a-line.png": encoded(np.zeros((1, 20000, 3), np.uint8)),
        b"a-column.png": encoded(np.zeros((20000, 1, 3), np.uint8)),
        b"many-channels.npy": npy(np.zeros((48, 48, 13), np.uint8)),
        b"floats.npy": npy(np.zeros((48, 48, 3), np.float32)),
        b"not-finite.npy": npy(np.full((48, 48, 3), np.nan, np.float32)),
        b"lying-shape.npy": npy(np.zeros((4, 4, 3), np.uint8)).replace(b"(4, 4, 3)", b"(9, 9, 3)"),
        b"objects.npy": npy(np.array([{"a": 1}], dtype=object)),
        b"four-dimensions.npy": npy(np.zeros((2, 4, 4, 3), np.uint8)),
        b"many-pages.tif": tiff(np.zeros((65, 40, 40), np.uint8), photometric="minisblack"),
        b"complex.tif": tiff(np.zeros((40, 40), np.complex64)),
        b"endless.tif": b"II*\0" + struct.pack("<IHI", 8, 0, 8) + bytes(40),
        b"cut-header.tif": b"II*\0",
    }
    for name, content in (good | bad).items():
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(content)
    os.mkfifo(folder / "pipe.png")
    (folder / "dangling.png").symlink_to(folder / "nothing")
    (folder / "loop").symlink_to(folder)
    (folder / "self.png").symlink_to("self.png")
    (folder / "notes.txt").write_text("words")
    return set(map(os.fsdecode, bad)), set(map(os.fsdecode, good)), 4  # the loop is a folder seen already


def table(path: Path, images: list[Any], label: Any = None, classes: list[str] | None = None) -> Path:
    columns: dict[str, Any] = {"image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    if label is not None:
        columns["label"] = label
    built = pa.table(columns)
    if classes:
        meta = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}}}
        built = built.replace_schema_metadata({"huggingface": json.dumps(meta)})
    pq.write_table(built, path)
    return path


def broken_tables(folder: Path) -> tuple[list[Path], tuple[Path, int]]:
    """Parquet files that must be refused, and one that can be used, with how many of its rows are bad."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 48, 3), dtype=np.uint8)
    rows: list[Any] = [{"bytes": encoded(image), "path": None} for image in noise]
    whole = table(folder / "whole.parquet", rows).read_bytes()
    refused = []
    for percent in (10, 50, 95):
        refused.append(folder / f"cut-{percent}.parquet")
        refused[-1].write_bytes(whole[: len(whole) * percent // 100])
    for name, content in (("empty", b""), ("words", b"words"), ("magic-only", b"PAR1PAR1"), ("zeros", bytes(4096))):
        refused.append(folder / f"{name}.parquet")
        refused[-1].write_bytes(content)
    columns: dict[str, dict[str, Any]] = {
        "no-image": {"picture": [b"x"]},
        "text-image": {"image": ["words"]},
        "path-only": {"image": [{"path": "/etc/passwd"}]},
        "text-bytes": {"image": [{"bytes": "words"}]},
        "number-image": {"image": [1.5]},
    }
    for name, values in columns.items():
        refused.append(folder / f"{name}.parquet")
        pq.write_table(pa.table(values), refused[-1])
    refused += [
        table(folder / "text-label.parquet", rows[:1], pa.array(["cat"])),
        table(folder / "float-label.parquet", rows[:1], pa.array([0.5])),
        table(folder / "label-too-large.parquet", rows[:1], pa.array([2]), ["a", "b"]),
        table(folder / "no-rows.parquet", []),
        table(folder / "all-null.parquet", [None] * 4),
    ]
    nothing: list[Any] = [None, {"bytes": None, "path": "/etc/passwd"}, {"bytes": b"", "path": None}]
    nothing += [{"bytes": content, "path": None} for content in (b"words", rows[0]["bytes"][:99])]
    return refused, (table(folder / "some-bad.parquet", rows + nothing), len(nothing))


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def malicious_files(folder: Path, trace: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Files that would make `trace` if they were executed: as checkpoints, as images, as masks."""
    bomb = Bomb(trace)
    checkpoints = []
    for protocol in (0, 2, 4, 5):
        checkpoints.append(folder / f"protocol-{protocol}.safetensors")
        checkpoints[-1].write_bytes(pickle.dumps(bomb, protocol))
    for name, options in (("new.pth", {}), ("old.pt", {"_use_new_zipfile_serialization": False})):
        checkpoints.append(folder / name)
        torch.save({"model": bomb}, checkpoints[-1], **options)
    checkpoints.append(folder / "described.safetensors")
    code = f"!!python/object/apply:os.mkdir ['{trace}']"
    save_file({"a": torch.zeros(2)}, checkpoints[-1], metadata={"openmae": code})
    checkpoints.append(folder / "evaluated.safetensors")
    described = {"format_version": 1, "shape": f"__import__('os').mkdir('{trace}')", "preprocessing": code}
    save_file({"a": torch.zeros(2)}, checkpoints[-1], metadata={"openmae": json.dumps(described)})

    images = folder / "images"
    images.mkdir()
    objects = npy(np.array([bomb], dtype=object))
    header = f"__import__('os').mkdir({str(trace)!r})".encode().ljust(118) + b"\n"
    contents = {
        "objects.npy": objects,
        "pickle.npy": pickle.dumps(bomb),
        "evaluated.npy": b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header,
        "pickle.png": pickle.dumps(bomb),
        "postscript.png": f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(mkdir {trace}) system\n".encode(),
        "shell.png": f"#!/bin/sh\nmkdir {trace}\n".encode(),
    }
    for name, content in contents.items():
        (images / name).write_bytes(content)
    masks = [folder / "objects.npy", folder / "pickle.npy", folder / "archive.npy"]
    masks[0].write_bytes(objects)
    masks[1].write_bytes(pickle.dumps(bomb))
    with zipfile.ZipFile(masks[2], "w") as archive:
        archive.writestr("../traversal.npy", objects)
    return checkpoints, sorted(images.iterdir()), masks
