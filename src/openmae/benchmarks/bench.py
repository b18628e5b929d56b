"""`openmae bench NAME`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from openmae.benchmarks.asymmetry import asymmetry_rows
from openmae.benchmarks.epoch import epoch_rows
from openmae.benchmarks.loader import loader_rows
from openmae.benchmarks.machine import check_measurable, hardware
from openmae.benchmarks.memory import memory_rows
from openmae.benchmarks.rows import table
from openmae.benchmarks.settings import settings_rows
from openmae.benchmarks.start import start_rows
from openmae.benchmarks.step import step_rows
from openmae.benchmarks.transfer import transfer_rows
from openmae.config import BenchConfig
from openmae.errors import RequestError
from openmae.machine.device import use_device
from openmae.machine.files import disk_faults, write_json
from openmae.planning.decisions import Machine
from openmae.preflight.bench import check_json_path

BENCHMARKS = {
    "step": step_rows,
    "memory": memory_rows,
    "asymmetry": asymmetry_rows,
    "loader": loader_rows,
    "epoch": epoch_rows,
    "start": start_rows,
    "settings": settings_rows,
    "transfer": transfer_rows,
}


def bench(config: BenchConfig) -> dict[str, Any]:
    """Run a benchmark, print the table, and write the JSON file where one is requested.

    Returns:
        The content of the file: `hardware` and `rows`.

    Raises:
        RequestError: wrong settings, unusable data, or nothing can be measured here.
        Fault: two programs that should compute the same do not.
    """
    device = use_device(config.device, 0)
    machine = Machine.of(device, 1)
    # As `openmae pretrain` on a GPU; on a CPU bf16 must be requested.
    precision = config.precision or ("bf16" if machine.device == "cuda" and machine.has_bf16 else "fp32")
    check_measurable(device, precision)
    check_json_path(config)
    facts = hardware(device, precision)
    gpu = f"; {facts['gpu']}" if "gpu" in facts else ""
    print(f"hardware  {facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads{gpu}", flush=True)
    print("versions  " + ", ".join(f"{n} {facts[n]}" for n in ("openmae", "torch", "transformers") if n in facts))
    rows = BENCHMARKS[config.name](replace(config, precision=precision), device)
    if not any(row.ours for row in rows):
        raise RequestError("nothing could be measured: " + "; ".join(dict.fromkeys(row.peer for row in rows)))
    result = {"hardware": facts, "rows": [row.to_dict() for row in rows]}
    print("\n" + "\n".join(table(rows)))
    print("ratio: median of the rounds, above 1 openmae is better; low and high are its worst and best round")
    if config.quick:
        print("--quick: too little work for figures; leave it out to measure")
    if config.json is not None:
        with disk_faults(Path(config.json)):
            write_json(Path(config.json), result)
    return result
