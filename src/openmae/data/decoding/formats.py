"""The format of an image file by its first bytes, whatever its extension; orientation and transparency flags."""

import io
import os
import warnings

from PIL import ExifTags, Image

from openmae.data.decoding.pillow import FORMATS

UNKNOWN, EMPTY = "unknown", "empty"
_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"\x93NUMPY", "NPY"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"\0\0\0\x0cjP  ", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    # Unsupported formats that occur: failed downloads, and what cameras and scanners write.
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "ZIP"),
    (b"\x1f\x8b", "GZIP"),
    (b"\x89HDF", "HDF5"),
    (b"8BPS", "PSD"),
)
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC"}
_TEXT = {b"<!doctype": "HTML", b"<html": "HTML", b"<?xml": "XML", b"<svg": "SVG", b"version https://git-lfs": "LFS"}
# fmt: off
_CLAIMS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".mpo": "JPEG", ".png": "PNG", ".apng": "PNG",
    ".gif": "GIF", ".bmp": "BMP", ".dib": "BMP", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PNM",
    ".pgm": "PNM", ".pbm": "PNM", ".pnm": "PNM", ".jp2": "JPEG2000", ".j2k": "JPEG2000", ".avif": "AVIF",
    ".npy": "NPY",
}
# fmt: on


def format_of(data: bytes) -> str:
    """The format by the first bytes; `unknown` where it is none of those above.

    "LFS" is a pointer of git's large-file storage that stands where the image should be.
    """
    if not data:
        return EMPTY
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and data[8:12] in _BRANDS:
        return _BRANDS[data[8:12]]
    if data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3].isspace():
        return "PNM"
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((name for text, name in _TEXT.items() if start.startswith(text)), UNKNOWN)


def claimed_format(name: str) -> str | None:
    """The format by a file's extension; None for other extensions."""
    return _CLAIMS.get(os.path.splitext(name)[1].lower())


def has_exif_rotation(data: bytes, form: str) -> bool:
    """Whether the EXIF orientation is other than 1: the pixels must be rotated or mirrored."""
    # Opening is slow, so only files that can have an orientation are opened.
    may_have_exif = form == "TIFF" or b"Exif\0\0" in data[:65536] or b"eXIf" in data[:65536]
    if not may_have_exif and not (form == "WEBP" and b"EXIF" in data):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return int(image.getexif().get(ExifTags.Base.Orientation, 1)) in range(2, 9)
    except Exception:  # a damaged header
        return False


def is_transparent(data: bytes, form: str) -> bool:
    """Whether a PNG or WebP declares transparency."""
    if form == "PNG":
        return data[25:26] in (b"\x04", b"\x06") or b"tRNS" in data[: max(data.find(b"IDAT"), 0)]
    if form == "WEBP":
        return (data[12:16] == b"VP8X" and bool(data[20] & 16)) if len(data) > 20 else False
    return False
