"""read_size: what the header says is the size of what `decode` gives, whichever side is up, and no pixel is decoded."""

import io
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from openmae.data.decoding import headers
from openmae.data.decoding.decode import BadImage, decode
from openmae.data.decoding.headers import read_size

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 13, 3), np.uint8)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def encoded(form, **options):
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation):
    block = Image.Exif()
    block[274] = orientation
    return block


def tiff(**options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, PICTURE, photometric="rgb", **options)
    return buffer.getvalue()


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def with_exif_behind_the_pixels(orientation):
    return (
        encoded("PNG").removesuffix(chunk(b"IEND", b""))
        + chunk(b"eXIf", exif(orientation).tobytes()[6:])
        + chunk(b"IEND", b"")
    )


def with_xmp(orientation):
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", (XMP % orientation).decode())
    return encoded("PNG", pnginfo=info)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


PLAIN = {
    **{form: encoded(form) for form in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "PPM", "JPEG2000", "AVIF", "TIFF")},
    "long JPEG header": encoded("JPEG", comment=b"x" * 60_000, icc_profile=b"y" * 200_000),
    "tiled TIFF": tiff(tile=(16, 16)),
    "npy": npy(PICTURE),
    "grey npy": npy(PICTURE[..., 0]),
    "fortran npy": npy(np.asfortranarray(PICTURE)),
}


@pytest.mark.parametrize("form", PLAIN)
def test_the_header_says_what_is_decoded(form):
    assert read_size(io.BytesIO(PLAIN[form])) == decode(PLAIN[form]).shape[:2] == (20, 13)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "write",
    [
        lambda o: encoded("JPEG", exif=exif(o)),
        lambda o: encoded("PNG", exif=exif(o)),
        lambda o: encoded("WEBP", exif=exif(o)),
        lambda o: encoded("TIFF", exif=exif(o)),
        lambda o: tiff(extratags=[(274, 3, 1, o, True)]),
        lambda o: encoded("JPEG", xmp=XMP % o),
        with_exif_behind_the_pixels,
        with_xmp,
    ],
    ids=["JPEG", "PNG", "WebP", "TIFF by Pillow", "TIFF", "XMP in JPEG", "PNG's last chunk", "XMP in PNG"],
)
def test_which_side_is_up_is_as_decoded(orientation, write):
    data = write(orientation)
    size = read_size(io.BytesIO(data))
    assert size == decode(data).shape[:2]
    assert (size == (13, 20)) == (orientation > 4)


def test_a_thumbnail_is_not_the_image():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(PICTURE[:5, :5], photometric="rgb", subfiletype=1)
        writer.write(PICTURE, photometric="rgb")
    assert read_size(io.BytesIO(buffer.getvalue())) == (20, 13)


@pytest.mark.parametrize("form", PLAIN)
def test_no_pixel_is_decoded(form, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", refuse)
    assert read_size(io.BytesIO(PLAIN[form])) == (20, 13)


def test_of_a_png_only_what_may_turn_it_is_read():
    noise = np.random.default_rng(1).integers(0, 256, (700, 700, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    file, seen = io.BytesIO(buffer.getvalue()), 0
    read = file.read

    class Counted(io.BytesIO):
        def read(self, count=-1):
            nonlocal seen
            found = read(count)
            seen += len(found)
            return found

    counted = Counted(buffer.getvalue())
    read = super(Counted, counted).read
    assert read_size(counted) == (700, 700)
    assert seen < 100_000 < len(buffer.getvalue())


@pytest.mark.parametrize("data", [b"", b"no image", PLAIN["JPEG"][:100], PLAIN["npy"][:40], PLAIN["tiled TIFF"][:9]])
def test_what_cannot_be_known_is_said(data):
    with pytest.raises(BadImage):
        read_size(io.BytesIO(data))


def test_the_limit_of_pixels_holds():
    with pytest.raises(BadImage, match="the limit is 259 pixels"):
        read_size(io.BytesIO(PLAIN["PNG"]), max_pixels=259)
    assert headers.read_size(io.BytesIO(PLAIN["PNG"]), max_pixels=260) == (20, 13)
