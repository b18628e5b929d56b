"""Advice for a run that waits for its data."""

from openmae.config import Dataset, words_of
from openmae.data.sources.manifest import pack_format
from openmae.errors import quoted


def reading_advice(
    data: Dataset,
    workers: int,
    *,
    is_cpu: bool,
    cores: int,
    crops_per_decode: int | None,
    tiles: int | None = None,
    can_read_packs: bool = True,
) -> str:
    """What would make a run that waits for its data read faster, the cheapest first.

    Args:
        cores: cores of this machine for each process.
        crops_per_decode: the run's setting; None where the task has none.
        can_read_packs: whether the task could read a pack of the data.
    """
    # Where the CPU trains, readers would take cores from the model; beside a GPU one core is left to feed it.
    idle = 0 if is_cpu else cores - 1 - workers
    advice = [f"--workers {workers + idle} would use the idle cores"] if idle > 0 else []
    kind = pack_format(data) if isinstance(data, str) else None
    if can_read_packs and kind is None and not str(data).startswith("embedded:"):
        tiles_flag = "" if tiles is None else f" --tiles {tiles}"
        advice.append(f"openmae pack {quoted(*words_of(data))} PACK{tiles_flag}: read 2 to 4 times as fast")
    elif kind == "jpeg":
        advice.append("openmae pack --format raw: read twice as fast as JPEGs")
    if not advice and crops_per_decode == 1:
        advice.append("--crops-per-decode 2 in a new run halves the reading")
    return "; ".join(advice) or "reading is as fast as these cores make it"
