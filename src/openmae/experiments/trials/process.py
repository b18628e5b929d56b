"""The program that runs one trial: `python -m openmae.experiments.trials.process FOLDER [DEVICE] [WORKERS]`.

It reads FOLDER/trial.json and ends like a command does. Its standard input is a pipe that nothing is written to: it
closes when the process that started the trial dies, in whatever way, and then the trial saves and ends, too.
"""

import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from openmae.errors import Fault, Interrupted, RequestError, shown
from openmae.run.lock import locked

SECONDS_TO_SAVE = 30


def end_with_parent() -> None:
    """Start a thread that stops this process when its standard input closes."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS_TO_SAVE)
        os._exit(Interrupted.exit_code)

    threading.Thread(target=watch, name="openmae-parent", daemon=True).start()


def wait_for_folder(folder: Path, lock: ExitStack, seconds: float = 2 * SECONDS_TO_SAVE) -> None:
    """Lock the trial's folder until `lock` is closed; wait for a process that is still saving there.

    That is one whose parent was killed a moment ago, when the same command was started again at once.

    Raises:
        RequestError: another process has it for longer than that.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            lock.enter_context(locked(folder))
        except RequestError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return


def main(arguments: list[str]) -> int:
    """Run the trial of a folder; return the exit code, as of a command."""
    end_with_parent()
    import torch

    from openmae.experiments.trials.trial import TRIAL, Place, Trial, run_trial

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    folder, device, workers = Path(arguments[0]), arguments[1] or None, arguments[2]
    try:
        with ExitStack() as lock:
            wait_for_folder(folder, lock)
            trial = Trial.from_dict(json.loads((folder / TRIAL).read_bytes()))
            run_trial(trial, Place(folder=folder, device=device, workers=int(workers) if workers else None))
    except (RequestError, Interrupted, Fault) as error:
        print(f"openmae: {shown(' '.join(str(error).split()))}", flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
