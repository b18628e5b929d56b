"""Every GPU row of docs/benchmarks in one call: steps with MFU, memory, table 1c and 2, decoding, data-bound or not.

    python tools/gpu_rows.py OUT [--data FOLDER_OF_JPEGS] [--small PARQUET] [--quick] [--device cpu]

Writes one JSON file a benchmark and OUT/rows.md. About ten minutes on one GPU; on a CPU only to see that it runs.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torchvision.io import decode_jpeg

import openmae
from openmae import BenchConfig

LIMIT = 600  # seconds; what has not begun by then is left out, and said
BATCH, ROUNDS = 64, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", help="folder of JPEGs, for loader and decoding; photographs in the wheel else")
    parser.add_argument("--small", help="small images for the epoch, as CIFAR-10 in parquet")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    began, lines = time.monotonic(), ["| case | peer | ours (median) | ratio (low-high) |", "|---|---|---|---|"]
    found: dict[str, Any] = {}
    for name in ("step", "memory", "asymmetry", "loader", "epoch"):
        if time.monotonic() - began > LIMIT:
            lines.append(f"| {name} | not begun within {LIMIT} s | | |")
            continue
        data = {"loader": given.data, "epoch": given.small}.get(name)
        settings = BenchConfig(
            name=name, data=data, device=given.device, quick=given.quick, json=str(given.out / f"{name}.json")
        )
        try:
            found[name] = openmae.bench(settings)
        except (openmae.RequestError, openmae.Fault, RuntimeError) as error:  # the other rows are still wanted
            lines.append(f"| {name} | failed: {' '.join(str(error).split())[:200]} | | |")
            continue
        lines += [line_of(row) for row in found[name]["rows"]]
    lines += decoding(given.data, given.device, given.out)
    lines += data_bound(found)
    (given.out / "rows.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def line_of(row: dict[str, Any]) -> str:
    """A row of the table; with its share of the machine's measured ceiling where it has one."""
    ours = f"{statistics.median(row['ours']):.4g} {row['unit']}" if row["ours"] else "-"
    if "share_of_ceiling" in row:
        ours += f", {row['share_of_ceiling']:.0%} of the measured ceiling"
    ratio = f"{row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f})" if row["ratio"] else "-"
    return f"| {row['case']} | {row['peer']} | {ours} | {ratio} |"


def decoding(data: str | None, device: str, out: Path) -> list[str]:
    """Images/s of torchvision's JPEG decoder on the device, whole images, batches of encoded bytes in memory."""
    if data is None:
        return ["| JPEG decoding on the device | give --data FOLDER_OF_JPEGS | | |"]
    files = [path for path in sorted(Path(data).rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")][:BATCH]
    encoded = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in files]
    rates = []
    try:
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            decode_jpeg(encoded, device=device)
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            rates.append(len(encoded) / (time.perf_counter() - start))
    except RuntimeError as error:
        return [f"| JPEG decoding on the device | failed: {' '.join(str(error).split())[:200]} | | |"]
    (out / "decoding.json").write_text(json.dumps({"images_per_second": rates[1:]}, indent=1) + "\n")
    return [f"| JPEG decoding on {device}, {len(encoded)} images a call | | {statistics.median(rates[1:]):.0f}/s | |"]


def data_bound(found: dict[str, Any]) -> list[str]:
    """For each model whether all cores read as many images/s as the step takes."""
    if "loader" not in found or "step" not in found:
        return []
    cores = os.cpu_count() or 1
    lines = []
    for step in found["step"]["rows"]:
        for loader in found["loader"]["rows"]:
            if step.get("images_per_second") and loader["ours"]:
                supply = statistics.median(loader["ours"]) * cores
                verdict = "enough" if supply >= step["images_per_second"] else "data-bound"
                need = f"{step['images_per_second']:.0f} images/s taken, {supply:.0f} read by {cores} cores"
                lines.append(f"| {step['case']} from {loader['case']} | | {need} | {verdict} |")
    return lines


if __name__ == "__main__":
    main()
