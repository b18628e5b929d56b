"""Processes of one run as threads: they wait for one another where processes would."""

import threading

from openmae.machine.parallel import Processes


def two_processes() -> list[Processes]:
    """Both, each to be used in a thread of its own; one that waits for a minute fails."""
    barrier, values = threading.Barrier(2, timeout=60), [None, None]

    class Together(Processes):
        def gather(self, value):
            values[self.rank] = value
            barrier.wait()
            gathered = list(values)
            barrier.wait()
            return gathered

        def any(self, flag):
            return any(self.gather(flag))

    return [Together(rank=rank, count=2) for rank in range(2)]
