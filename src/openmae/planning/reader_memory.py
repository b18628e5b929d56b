"""How much memory reader processes take for the largest image, and how many of them there is room for."""

from openmae.data.sources.largest import LargestImage
from openmae.machine.device import free_memory

READER_MEMORY_SHARE = 0.8  # of the free memory, up to which readers are planned
FROM_CORES = "from the cores"  # the reason for the number of readers
MIN_REPORTED_BYTES = 500_000_000  # of a reader; the plan has no line about less


def workers_that_fit(workers: int, num_processes: int, largest: LargestImage | None) -> tuple[int, str]:
    """How many readers each of `num_processes` may have, at most `workers`, and the reason."""
    free = free_memory()
    if largest is None or free is None:
        return workers, FROM_CORES
    room = int(READER_MEMORY_SHARE * free / num_processes / largest.reader_bytes)
    if room >= workers:
        return workers, FROM_CORES
    why = f"{free / 1e9:.3g} GB are free, and one takes up to {largest.reader_bytes / 1e9:.3g} for the largest image"
    return max(1, room), why


def reader_lines(largest: LargestImage | None, workers: int) -> list[str]:
    """The plan's lines about readers of large images; none where images are not large."""
    if largest is None or largest.reader_bytes < MIN_REPORTED_BYTES:
        return []
    height, width, channels, _, num_seen, num_images = largest
    surveyed = f"all {num_images:,}" if num_seen == num_images else f"{num_seen:,} of {num_images:,}"
    size, free = largest.reader_bytes / 1e9, free_memory()
    line = f"readers    up to {size:.3g} GB each: {height} x {width} px in {channels} channels is the largest image"
    lines = [f"{line} (headers of {surveyed})"]
    if free is not None and max(1, workers) * largest.reader_bytes > free:
        lines.append(
            f"note       {max(1, workers)} at a time may take {max(1, workers) * size:.3g} GB, and {free / 1e9:.3g} GB "
            "are free: give fewer --workers, or smaller images (openmae pack)"
        )
    return lines
