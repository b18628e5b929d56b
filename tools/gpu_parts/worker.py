"""The first process of a part: python -m gpu_parts.worker FUNCTION OPTIONS DEVICE WORK HERE RESULT."""

import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from gpu_parts.part import Context, Failed


def main(arguments: list[str]) -> int:
    function, options, device, work, here, result = arguments
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    context = Context(device, Path(work), Path(here), Path(result))
    context.here.mkdir(parents=True, exist_ok=True)
    module, _, name = function.partition(":")
    try:
        getattr(importlib.import_module(module), name)(context, **json.loads(options))
    except Failed as failure:
        context.write(failed=str(failure))
        print(f"failed: {failure}", flush=True)
        return 1
    except Exception as error:
        traceback.print_exc()
        message = " ".join(str(error).split())
        context.write(failed=f"{type(error).__name__}: {message[:1500]}")
        return 1
    context.write()
    return 0


def _watch_parent(parent: int) -> None:
    """End with all that was started here when the scheduler is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
