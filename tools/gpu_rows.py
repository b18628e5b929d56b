"""Fill every row of the goals that needs a GPU: python tools/gpu_rows.py OUT.json [--data DATA].

Steps of B and L at batch 256 and of H at 128 (eager and compiled, the peer too) with their share of the measured bf16
product (MFU), peak memory, the asymmetry, images/s of the readers beside what the steps need, JPEGs decoded on the GPU,
whole images of a raw pack cropped there (`pretrain --crop-on device`), CUDA graphs on a small model, and the forms of
the step that are not the default.

Not yet run: there was no GPU where this was written. About ten minutes are expected; a part that takes too long is
given up, and after fifteen all are. Each part is a process of its own, so one that fails, or the GPU in it, leaves the
others; what failed is said at the end.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BENCHES = {
    "step-base": "step --case base",
    "step-large": "step --case large",
    "step-huge": "step --case huge --batch-size 128",
    "memory": "memory --case base",
    "asymmetry": "asymmetry --case 8-block 1-block --batch-size 64",
    "forms": "step --case base --forms",
}
# Seconds after which a part is given up.
SECONDS = {"step-base": 150, "step-large": 110, "step-huge": 110, "memory": 120, "asymmetry": 60, "forms": 150}
SECONDS |= {"readers": 45, "decoded_on_gpu": 30, "cropped_on_gpu": 30, "cuda_graphs": 95}
READ_SECONDS = 10
Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", help="JPEGs of full size, in a folder; photographs in the wheels unless given")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=float, nargs="*", default=[], help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.measure is not None:
        with tempfile.TemporaryDirectory() as place:
            row = MEASURES[given.measure](given.data, Path(place), given.steps)
        given.out.write_text(json.dumps({"rows": [row]}))
        return 0
    result: dict[str, Any] = {"hardware": None, "rows": []}
    failed = []
    with tempfile.TemporaryDirectory() as place:
        for name in (*BENCHES, *MEASURES):
            steps = [row["images_per_second"] for row in result["rows"] if "mfu_goal" in row]
            file = Path(place) / f"{name}.json"
            try:
                subprocess.run(command_of(name, file, given.data, steps), check=True, timeout=SECONDS[name])
                part = json.loads(file.read_bytes())
            except (subprocess.SubprocessError, OSError, ValueError) as error:
                failed.append(f"{name}: {error}")
                continue
            result["hardware"] = result["hardware"] or part.get("hardware")
            result["rows"] += part["rows"]
            given.out.write_text(json.dumps(result, indent=1) + "\n")  # what is done is kept
    for row in result["rows"]:
        share = f"  MFU {row['share_of_ceiling']:.0%}" if "share_of_ceiling" in row else ""
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        print(f"{row['case']:60} {ratio:>6}  {row['peer']}{share}")
    print("\n".join(f"failed  {line}" for line in failed))
    return 1 if failed else 0


def command_of(name: str, file: Path, data: str | None, steps: list[float]) -> list[str]:
    """The process that measures a part and writes its rows to `file`."""
    if name in BENCHES:
        bench = [sys.executable, "-m", "openmae", "bench", *BENCHES[name].split()]
        return [*bench, "--device", "cuda", "--json", str(file)]
    words = [sys.executable, __file__, str(file), "--measure", name, "--steps", *map(str, steps)]
    return words if data is None else [*words, "--data", data]


def row_of_rates(case: str, rates: list[float], steps: list[float]) -> Row:
    """Images/s of each round against the fastest step: below 1 a run would wait."""
    fastest = max(steps, default=None)
    ratios = [] if fastest is None else sorted(rate / fastest for rate in rates)
    return {
        "case": case,
        "peer": "the fastest step: below 1 a run waits",
        "ratio": ratios[len(ratios) // 2] if ratios else None,
        "low": min(ratios, default=None),
        "high": max(ratios, default=None),
        "ours": rates,
        "theirs": [] if fastest is None else [fastest] * len(rates),
        "unit": "images/s",
    }


def files_of(data: str | None, place: Path) -> Path:
    from openmae.benchmarks.loader import write_photographs

    folder = place / "photographs"
    return Path(data) if data else folder if folder.exists() else write_photographs(folder)


def readers(data: str | None, place: Path, steps: list[float]) -> Row:
    """Images/s of the default number of reader processes, against the fastest step: below 1 a run waits for data."""
    import torch

    from openmae.config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
    from openmae.data.augment import Augmentation
    from openmae.data.loader import Stream
    from openmae.data.sources import open_source
    from openmae.tasks.training_data import read_steps
    from openmae.training.device import default_workers
    from openmae.training.parallel import Processes

    source = open_source(str(files_of(data, place)))
    assert source is not None
    preprocessing = Preprocessing(
        channels=3, value_range=(0.0, 255.0), mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=(224, 224)
    )
    stream = Stream(source, preprocessing, Augmentation(), seed=0, min_side=16)
    workers = default_workers(torch.device("cuda"))
    batches = read_steps(stream, 256, 256, workers, range(10**6), Processes(), pin=True)
    for _ in range(2 * workers + 2):  # what was read ahead
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < READ_SECONDS:
        count += sum(len(part.images) for part in next(batches))
    rate = count / (time.perf_counter() - start)
    batches.close()
    return row_of_rates(f"{workers} readers, images/s", [rate], steps)


def decoded_on_gpu(data: str | None, place: Path, steps: list[float]) -> Row:
    """JPEGs/s that nvJPEG decodes in batches, against the fastest step."""
    import torch
    from torchvision.io import decode_jpeg, read_file

    files = sorted(p for p in files_of(data, place).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[:64]
    encoded = [read_file(str(file)) for file in files]
    rates = []
    for _ in range(6):
        torch.cuda.synchronize()
        start = time.perf_counter()
        decode_jpeg(encoded, device="cuda")
        torch.cuda.synchronize()
        rates.append(len(encoded) / (time.perf_counter() - start))
    return row_of_rates(f"{len(files)} JPEGs at once on the GPU, images/s", rates[1:], steps)


def cropped_on_gpu(data: str | None, place: Path, steps: list[float]) -> Row:
    """Images/s of 256 px that are cropped to 224, flipped and normalised, 256 at once, against the fastest step.

    A ratio of r means that cropping takes 1/r of that step's time.
    """
    import torch

    from openmae.benchmarks.machine import waiting
    from openmae.benchmarks.rows import timed

    device = torch.device("cuda")
    crop, count = whole_batch(device, batch=256, side=256, size=224)
    measure = timed(crop, waiting(device))
    rates = [count / measure() for _ in range(12)][2:]
    return row_of_rates(f"{count} whole images cropped on the GPU, images/s", rates, steps)


def cuda_graphs(data: str | None, place: Path, steps: list[float], device_name: str = "cuda") -> Row:
    """A step of the small model, 64 images, with CUDA graphs (`reduce-overhead`) against compiled without them.

    Above 1 they pay, and `openmae pretrain --compile` should have them for small batches. Both losses are compared.
    """
    import torch

    from openmae.benchmarks.machine import waiting
    from openmae.benchmarks.ours import make_ours, settled_for
    from openmae.benchmarks.rows import in_turn, timed

    device = torch.device(device_name)
    settled = settled_for("small", 64, device, "bf16" if device_name == "cuda" else "fp32")
    plain, graphs = make_ours(settled, device, is_compiled=True), make_ours(settled, device)
    graphs.stepped = torch.compile(graphs.model, dynamic=False, mode="reduce-overhead")
    wait = waiting(device)
    ours, theirs = in_turn(10, timed(graphs.step, wait), timed(plain.step, wait))
    losses = [float(side.loss().detach()) for side in (graphs, plain)]
    if abs(losses[0] - losses[1]) > 1e-2 * losses[1]:
        raise ValueError(f"after equal steps the losses differ: {losses}")
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    return {
        "case": "28 px, patch 4, 192 x 12, batch 64, CUDA graphs",
        "peer": "ours compiled without them",
        "ratio": ratios[len(ratios) // 2],
        "low": ratios[0],
        "high": ratios[-1],
        "ours": ours,
        "theirs": theirs,
    }


def whole_batch(device: Any, *, batch: int, side: int, size: int) -> tuple[Callable[[], Any], int]:
    """What crops a batch of noise that lies on the device, and how many images it holds."""
    import numpy as np
    import torch

    from openmae.config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
    from openmae.data.augment import NUM_CHANCES, Augmentation
    from openmae.data.device_crop import crop_and_normalise
    from openmae.data.loader import Crops

    preprocessing = Preprocessing(
        channels=3, value_range=(0.0, 255.0), mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=(size, size)
    )
    chance = np.random.default_rng(0)
    images = chance.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    found = [Augmentation().crop(image, (size, size), chance.uniform(size=NUM_CHANCES)) for image in images]
    crops = Crops(torch.tensor([crop.box for crop in found]), torch.tensor([crop.is_flipped for crop in found]))
    on_device, crops = torch.from_numpy(images).to(device), crops.to(device)
    return lambda: crop_and_normalise(on_device, crops, preprocessing), batch


MEASURES: dict[str, Callable[..., Row]] = {
    "readers": readers,
    "decoded_on_gpu": decoded_on_gpu,
    "cropped_on_gpu": cropped_on_gpu,
    "cuda_graphs": cuda_graphs,
}

if __name__ == "__main__":
    sys.exit(main())
