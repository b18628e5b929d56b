"""What would help a run that waits for its data."""

from openmae.config import Dataset
from openmae.data.sources.manifest import pack_format
from openmae.errors import shown


def reading_advice(
    data: Dataset, workers: int, *, is_cpu: bool, cores: int, crops_per_decode: int | None, tiles: int | None = None
) -> str:
    """What would help a run that waits for its data, the cheapest first.

    Args:
        cores: of this machine, for each process.
        crops_per_decode: of the run; None where the task has no such setting.
    """
    # A CPU that computes needs every core that a reader takes; beside a GPU one feeds it.
    idle = 0 if is_cpu else cores - 1 - workers
    told = [f"--workers {workers + idle} would use the idle cores"] if idle > 0 else []
    kind = pack_format(data) if isinstance(data, str) else None
    if kind is None and not str(data).startswith("embedded:"):
        cut = "" if tiles is None else f" --tiles {tiles}"
        told.append(f"openmae pack {shown(str(data))} PACK{cut}: read 2 to 4 times as fast")
    elif kind == "jpeg":
        told.append("openmae pack --format raw: read twice as fast as JPEGs")
    if not told and crops_per_decode == 1:
        told.append("--crops-per-decode 2 in a new run halves the reading")
    return "; ".join(told) or "reading is as fast as these cores make it"
