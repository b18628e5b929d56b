"""What devices are called. Imports no torch: it is asked before that is loaded."""

from openmae.errors import RequestError


def check_device(name: str | None) -> None:
    """Raise RequestError where no device has such a name; whether this one is here, only torch knows."""
    if name is not None and name.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise RequestError(f"--device got {name!r}: cpu, cuda, cuda:1 and mps are known")
