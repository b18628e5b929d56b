"""Folders of small images and masks, made for tests."""

import io
import zlib

import numpy as np
from PIL import Image

SIZE = (4, 6)  # height, width


def png(values, mode=None, **options):
    """A PNG of an array; `mode` where Pillow would not find it."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.asarray(values))
    (image if mode is None else image.convert(mode)).save(buffer, "PNG", **options)
    return buffer.getvalue()


def encoded(values, form, **options):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(values)).save(buffer, form, **options)
    return buffer.getvalue()


def indexed(values, colours=None):
    """A palette PNG of indices; each index has a colour of its own."""
    image = Image.fromarray(np.asarray(values, np.uint8), "L")
    image.putpalette(list(range(256)) * 3 if colours is None else colours)
    assert image.mode == "P"
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def raw_png(rows, width, bits, colour_type=0, height=None):
    """A PNG of any bit depth from the packed bytes of its rows, which Pillow cannot write."""

    def chunk(kind, data):
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = width.to_bytes(4) + (height or len(rows)).to_bytes(4) + bytes([bits, colour_type, 0, 0, 0])
    data = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def picture(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def put_images(root, *names, size=SIZE):
    for i, name in enumerate(names):
        write(root / name, encoded(picture(i, size), "JPEG" if name.lower().endswith("jpg") else "PNG"))


def mask(*values, size=SIZE):
    """A mask in which each of the values has as many pixels as the others, but for the remainder."""
    return np.resize(np.array(values), size).astype(np.uint16 if max(values) > 255 else np.uint8)


def put_masks(root, *names, values=(0, 1, 2), size=SIZE):
    for name in names:
        write(root / name, png(mask(*values, size=size)))


def put_pairs(root, *names, images="images", masks="masks", values=(0, 1, 2)):
    """Pairs in two folders, for names without extension."""
    put_images(root, *(f"{images}/{name}.jpg" for name in names))
    put_masks(root, *(f"{masks}/{name}.png" for name in names), values=values)
