"""`--predict`: from the images of DATA and a trained model to files, a folder of them, every image once."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Generic, Protocol, TypeVar

from openmae.config import Preprocessing
from openmae.data.annotated.whole_images import Scaling, WholeImage, whole_images
from openmae.data.masks.layouts import are_images_and_masks
from openmae.data.masks.pairs import has_masks
from openmae.data.sources.axes import decide_axes
from openmae.data.sources.folder_part import FolderPart
from openmae.data.sources.manifest import read_pack
from openmae.data.sources.named import EMBEDDED, is_folder
from openmae.data.sources.open import Source, open_splits
from openmae.data.sources.reading import ReadingSettings, reading_options
from openmae.data.sources.scan import scan
from openmae.errors import Fault, Interrupted, RequestError, shown
from openmae.inference.features import check_readable
from openmae.inference.matched import matched_model
from openmae.inference.models import EncoderModel
from openmae.machine.device import default_workers, use_device
from openmae.machine.files import disk_faults, write_json
from openmae.machine.parallel import Processes, join_processes
from openmae.machine.shared_work import gather_work
from openmae.machine.signals import StopRequest
from openmae.run.create import make_and_lock
from openmae.run.lock import check_free, check_outside, check_run_folder
from openmae.run.quarantine import QUARANTINE, write_quarantine
from openmae.tasks.prediction.files import prediction_paths
from openmae.training.telemetry import ProgressBar

MAX_BAD = 0.01
M = TypeVar("M", bound=EncoderModel)
# From an image and where its files go, without extension, to what the first process keeps of it.
Predict = Callable[[WholeImage, PurePosixPath], Any]


class PredictSettings(ReadingSettings, Protocol):
    """The settings of a command that `--predict` reads."""

    @property
    def data(self) -> str | None: ...
    @property
    def dataset(self) -> Any: ...
    @property
    def init(self) -> str: ...
    @property
    def out(self) -> str: ...
    @property
    def device(self) -> str | None: ...
    @property
    def workers(self) -> int | None: ...
    @property
    def max_bad(self) -> float | None: ...
    @property
    def value_range(self) -> tuple[float, float] | None: ...


@dataclass(frozen=True, kw_only=True)
class Prediction(Generic[M]):
    """What a task does with images, beside what all do.

    Attributes:
        verb: the command, for messages.
        load: the model that `--init` names, on a device.
        predict: how the model, matched to the data, is used on an image.
        scaling: the size at which the model sees an image, see `whole_images`.
        begin: writes what does not depend on the images; in the first process.
        finish: writes what is of all images, from what `predict` returned, in their order; in the first process.
        files: what it writes, for the last line.
    """

    verb: str
    load: Callable[[str, str], M]
    predict: Callable[[M], Predict]
    scaling: Scaling
    begin: Callable[[Path, M], None]
    finish: Callable[[Path, M, list[Any]], None]
    files: tuple[str, ...]


def predict_images(config: PredictSettings, task: Prediction[M]) -> dict[str, Any]:
    """Write what the task writes for each image, and OUT/summary.json.

    Returns:
        status, images, unreadable, seconds; the same stands in OUT/summary.json. Where an error below is raised after
        OUT was made, that holds the status alone: failed or interrupted.

    Raises:
        RequestError: `--init` is another kind of model, or too many images cannot be read.
        Interrupted: a signal; what is written stays.
        Fault: a full disk, a dead reader process, too little memory.
    """
    started, out = time.monotonic(), Path(config.out)
    check_outside(config.dataset, config.out)
    check_run_folder(out)
    check_free(out)
    with join_processes() as processes, StopRequest() as stop, ExitStack() as lock:
        device = use_device(config.device, processes.local_rank)
        model = task.load(config.init, str(device))
        sources = open_images(config, model.preprocessing)
        model, lines = matched_model(model, tuple(sources.values()), config.value_range)
        predict = task.predict(model)
        count = sum(map(len, sources.values()))
        processes.wait()  # until all have seen the folder as it was
        stop.defer()
        if processes.is_first:
            make_and_lock(out, lock)
        with status_written(out, processes.is_first):
            if processes.is_first:
                print("\n".join([f"images     {count:,} to {task.verb}", *lines]), flush=True)
                task.begin(out, model)
                (out / QUARANTINE).unlink(missing_ok=True)  # of an attempt that failed here
            processes.wait()  # until the folder is made and locked
            bad, kept = dict[str, str](), list[Any]()
            for source in sources.values():
                of_source = predict_source(config, model, task, predict, source, processes, stop)
                bad |= of_source[0]
                kept += of_source[1]
            if processes.is_first:
                write_quarantine(out, ((name, reason, None) for name, reason in bad.items()))
            check_readable(bad, count, MAX_BAD if config.max_bad is None else config.max_bad, "images")
            summary = {"status": "complete", "images": count - len(bad), "unreadable": len(bad)}
            summary |= {"seconds": round(time.monotonic() - started, 1)}
            if processes.is_first:
                with disk_faults(out):
                    task.finish(out, model, kept)
                    write_json(out / "summary.json", summary)
                print(f"done       {count - len(bad):,} images: {_joined(out, task.files)}")
    return summary


def _joined(out: Path, files: Sequence[str]) -> str:
    return ", ".join(shown(str(out / name)) for name in files)


@contextmanager
def status_written(out: Path, is_first: bool) -> Iterator[None]:
    """OUT/summary.json says "running" within the context, and what became of it where that ends with an error."""
    if is_first:
        with disk_faults(out):
            write_json(out / "summary.json", {"status": "running"})
    try:
        yield
    except BaseException as error:
        if is_first:
            status = "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
            with suppress(Fault, OSError):  # the first error is the one to report
                write_json(out / "summary.json", {"status": status})
        raise


def open_images(config: PredictSettings, preprocessing: Preprocessing) -> dict[str, Source]:
    """The images of DATA, whatever part they are of. Raises RequestError where masks lie among them."""
    options, data = reading_options(config, preprocessing), str(config.data)
    if data.startswith(EMBEDDED) or not is_folder(data) or read_pack(Path(data)) is not None:
        return dict(open_splits(data, ("train", "val", "test"), **options).sources)
    scanned = scan(Path(data))
    if has_masks(data) or are_images_and_masks(scanned.images):
        raise RequestError(f"{shown(data)} holds masks beside images: name the folder of images")
    if not scanned.images:
        return dict(open_splits(data, ("train", "val", "test"), **options).sources)
    part = FolderPart(root=Path(data), files=scanned.images, depth=0, is_table=False, ignored=scanned.ignored)
    axes = decide_axes(part.shapes(), options["axes"], options["default_axes"])
    reading = {name: options[name] for name in ("background", "max_pixels", "nodata")}
    return {"all": part.open([], {**reading, "axes": axes})}


def predict_source(
    config: PredictSettings,
    model: M,
    task: Prediction[M],
    predict: Predict,
    source: Source,
    processes: Processes,
    stop: StopRequest,
) -> tuple[dict[str, str], list[Any]]:
    """Use the model on the images of a source, each process on its share.

    Returns:
        Which could not be read, and what is kept of the others, in their order; of all processes.

    Raises:
        Interrupted: a signal came to one of the processes.
        RequestError, Fault: one of the processes failed; all of them raise it.
    """
    paths = prediction_paths([source.name(index) for index in range(len(source))])
    share, workers = processes.share(len(source)), config.workers
    images = whole_images(
        source,
        model.preprocessing,
        share,
        workers=default_workers(model.device, processes.local_count) if workers is None else workers,
        scaling=task.scaling,
        with_pictures=True,
        should_stop=stop.is_received,
    )

    def predict_share() -> tuple[dict[str, str], list[Any]]:
        bad, kept = dict[str, str](), list[Any]()
        with closing(images), ProgressBar(len(share), 0, task.verb, quiet=not processes.is_first) as screen:
            for number, whole in enumerate(images, start=1):
                if isinstance(whole.image, str):
                    bad[whole.name] = whole.image
                else:
                    kept.append(predict(whole, paths[whole.index]))
                screen.update(number, whole.name)
        return bad, kept

    parts = gather_work(predict_share, processes)  # shares are of images in a row: their order is that of the source
    if processes.any(stop.is_received()):
        raise Interrupted(f"stopped: {shown(config.out)} holds the images so far; delete it to begin again")
    return {name: reason for part, _ in parts for name, reason in part.items()}, [k for _, part in parts for k in part]
