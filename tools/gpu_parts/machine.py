"""What the check runs on."""

import platform
import subprocess
from importlib import metadata

from gpu_parts.part import Context, Failed

PACKAGES = ("torchvision", "triton", "transformers", "timm", "numpy", "pillow", "simplejpeg", "pyarrow", "jaxtyping")


def machine(context: Context) -> None:
    """Hardware and versions. Raises Failed where there is no GPU to check."""
    import torch

    import openmae
    from openmae.benchmarks.machine import hardware

    if context.is_gpu and not torch.cuda.is_available():
        raise Failed("torch finds no CUDA device (--device cpu walks the parts at tiny sizes, to try this program)")
    found = hardware(torch.device("cuda:0" if context.is_gpu else "cpu"), "bf16")
    kept = ("gpu", "cuda", "torch", "cpu", "cores", "memory_gb", "python")
    context.note(openmae=openmae.__version__, **{name: found[name] for name in kept if name in found})
    if context.is_gpu:
        memory = torch.cuda.get_device_properties(0).total_memory
        context.note(gpus=torch.cuda.device_count(), gpu_memory_gb=memory / 1e9, driver=_driver())
    context.note(system=f"{platform.system()} {platform.release()}")
    for package in PACKAGES:
        try:
            context.note(**{package: metadata.version(package)})
        except metadata.PackageNotFoundError:
            context.note(**{package: "absent"})


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"
