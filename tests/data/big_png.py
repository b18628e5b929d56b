"""A PNG of many pixels, made in a second or two, and what reading it in a process of its own takes."""

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np

COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}  # PNG's number for so many channels


def write_png(path: Path, height: int, width: int, channels: int) -> None:
    """Rows of colours and of every alpha, 8 bits a channel; `height` a multiple of 250."""
    row = (np.arange(width * channels) * 37 // 64 % 256).astype(np.uint8).tobytes()
    rows = b"".join(b"\0" + row[shift:] + row[:shift] for shift in range(0, 250 * channels, channels))
    packer = zlib.compressobj(1, wbits=-15)
    part = packer.compress(rows) + packer.flush(zlib.Z_FULL_FLUSH)  # knows nothing of what is before it
    check = 1
    with path.open("wb") as file:

        def chunk(kind: bytes, data: bytes) -> None:
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

        file.write(b"\x89PNG\r\n\x1a\n")
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, COLOUR[channels], 0, 0, 0))
        chunk(b"IDAT", b"\x78\x01")
        for _ in range(height // 250):
            check = zlib.adler32(rows, check)
            chunk(b"IDAT", part)
        chunk(b"IDAT", packer.flush() + struct.pack(">I", check))
        chunk(b"IEND", b"")


SCRIPT = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from openmae.config import Preprocessing
from openmae.data.augment import Augmentation
from openmae.data.loader import Stream
from openmae.data.sources.folder import FolderSource
from openmae.machine.device import keep_freed_memory

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

keep_freed_memory()  # as every command does, and readers inherit it
folder, files, channels, dtype = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3]), sys.argv[4]
count = int(sys.argv[5])
values = (0.0, 255.0 if dtype == "uint8" else 65535.0)
p = Preprocessing(channels=channels, value_range=values, mean=(0.5,) * channels, std=(0.25,) * channels,
                  image_size=(32, 32), background=1.0, dtype=dtype)
small = FolderSource(Path(folder), ["small.png"])
import torchvision.io  # once a process; readers share it where a new run's survey met such a file
Stream(small, p, Augmentation(), 0, 1).__getitems__([0])  # all that is loaded when first needed
stream = Stream(FolderSource(Path(folder), files), p, Augmentation(), 0, 1)
before, start = peak(), time.process_time()
samples = stream.__getitems__(range(count))
print(json.dumps({"bytes": peak() - before, "seconds": (time.process_time() - start) / count,
                  "bad": [sample.bad for sample in samples]}))
"""


def reading(folder: Path, *files: str, channels: int = 3, dtype: str = "uint8", count: int = 2) -> dict:
    """What so many samples of such files take: bytes beyond those before, seconds of a core each, what was bad."""
    from PIL import Image

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "small.png")
    command = [sys.executable, "-c", SCRIPT, str(folder), ",".join(files), str(channels), dtype, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
