"""What can be changed inside a process before it begins, so that it fails in the middle of something.

Functions of a module: `functools.partial` of one goes with `tests.processes.start(…, patch=…)` into the process.
"""

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from openmae.data.batch import Batch
from openmae.data.evaluation_loader import _Evaluation
from openmae.data.loader import Stream
from openmae.inference import predict as evaluation
from openmae.planning import decisions
from openmae.run.progress import Progress
from openmae.tasks.pretrain import pretrain
from openmae.tasks.pretrain.held_out import HeldOut
from openmae.training import checkpoint as saving

task: Any = pretrain


def kill_in_save(number: int, seed: float) -> None:
    """Be killed at a random moment of the save with this number."""
    real, counter, lasted = task.save_checkpoint, itertools.count(1), [0.02]

    def save_checkpoint(*arguments: Any) -> Any:
        if next(counter) == number:
            delay = random.Random(seed).uniform(0, 1.1 * lasted[-1])
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        before = time.monotonic()
        result = real(*arguments)
        lasted.append(time.monotonic() - before)
        return result

    task.save_checkpoint = save_checkpoint


def signal_in(place: str, number: int) -> None:
    """Signal this process in the middle of its set-up, 9th step, 2nd evaluation or 2nd save."""
    owner, name, call = {
        "set-up": (decisions, "look_at", 1),
        "training": (Progress, "add", 9),
        "evaluation": (HeldOut, "loss", 2),
        "save": (saving, "save_file", 3),
    }[place]
    _at_call(owner, name, range(call, call + 1), lambda: os.kill(os.getpid(), number))


def hang_in_save() -> None:
    _at_call(saving, "save_file", range(1, 2), lambda: time.sleep(600))


def spoil_images(first: int, last: int, value: float) -> None:
    """Give images of calls first … last this value."""
    real, counter = task.model_input, itertools.count(1)
    task.model_input = lambda *a: real(*a) * (value if first <= next(counter) <= last else 1.0)


def spoil_weights(step: int) -> None:
    """Spoil a weight after this step."""
    real, counter = task.train_step, itertools.count(1)

    def train_step(model: torch.nn.Module, *arguments: Any) -> Any:
        result = real(model, *arguments)
        if next(counter) == step:
            next(model.parameters()).data.view(-1)[3] = float("inf")
        return result

    task.train_step = train_step


def too_large(most: int, calls: int) -> None:
    """Let images of more than `most` at a time be too many, from this call on."""
    real, counter = task.model_input, itertools.count(1)

    def model_input(batch: Batch, *rest: Any) -> torch.Tensor:
        if next(counter) >= calls and len(batch.images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(batch, *rest)

    task.model_input = model_input


def compile_without_a_compiler() -> None:
    """Let torch.compile capture the step's graphs and run them as they are."""
    compile_ = torch.compile
    torch.compile = lambda model, **options: compile_(model, backend="eager", **options)  # type: ignore[assignment]


def start_a_group_and_hang() -> None:
    """Be the first of a process group, so that readers get its signals; each reader hangs at its second batch."""
    os.setpgid(0, 0)
    break_reader("hang", 300)


def break_reader(what: str, timeout: int = 5) -> None:
    """Let a reader process hang or die at its second batch.

    Args:
        timeout: seconds until a hung one is given up.
    """
    from openmae.data import loader, readers

    readers.TIMEOUT = timeout
    end = {"hang": lambda: time.sleep(600), "die": lambda: os.kill(os.getpid(), signal.SIGKILL)}[what]
    _at_call(loader.Stream, "__getitems__", range(2, 3), end)


def _at_call(owner: Any, name: str, calls: range, action: Callable[[], Any]) -> None:
    real, counter = getattr(owner, name), itertools.count(1)

    def changed(*arguments: Any, **options: Any) -> Any:
        if next(counter) in calls:
            action()
        return real(*arguments, **options)

    setattr(owner, name, changed)


def kill_readers_at(marks: str, rank: int, positions: tuple[int, ...]) -> None:
    """In the process of this rank, the reader of each of these positions of the stream is killed, once."""
    if int(os.environ.get("RANK", "0")) != rank:
        return
    real = Stream.locate

    def locate(self: Stream, asked: Any) -> Any:
        for position in positions:
            mark = Path(marks, str(position))
            if torch.utils.data.get_worker_info() is not None and position in asked and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return real(self, asked)

    Stream.locate = locate  # type: ignore[method-assign]


def kill_readers_of_evaluation(rank: int) -> None:
    """In the process of this rank, every reader that evaluates is killed; all evaluate with readers."""
    evaluation.MAX_BATCH = 16
    if int(os.environ.get("RANK", "0")) != rank:
        return
    real = _Evaluation.__getitem__

    def read(self: _Evaluation, index: int) -> Any:
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, index)

    _Evaluation.__getitem__ = read  # type: ignore[method-assign]
