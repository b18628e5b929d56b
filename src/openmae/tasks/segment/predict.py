"""`openmae segment IMAGES --init RUN --predict --out FOLDER`: the class of each pixel of new images."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from openmae.config import Preprocessing, SegmentConfig
from openmae.data.annotated.whole_images import whole_images
from openmae.data.masks.layouts import are_images_and_masks
from openmae.data.masks.pairs import has_masks
from openmae.data.sources.axes import decide_axes
from openmae.data.sources.folder_part import FolderPart
from openmae.data.sources.manifest import read_pack
from openmae.data.sources.named import EMBEDDED, is_folder
from openmae.data.sources.open import Source, open_splits
from openmae.data.sources.reading import reading_options
from openmae.data.sources.scan import scan
from openmae.errors import Fault, Interrupted, RequestError, shown
from openmae.inference.features import check_readable
from openmae.inference.load import load
from openmae.inference.matched import matched_model
from openmae.inference.segmentation import WINDOWS_AT_ONCE, WholeImageSegmenter
from openmae.inference.segmenter_model import SegmenterModel
from openmae.machine.device import default_workers, use_device
from openmae.machine.files import disk_faults, write_json
from openmae.machine.parallel import Processes, join_processes
from openmae.machine.signals import StopRequest
from openmae.run.create import make_and_lock
from openmae.run.lock import check_free, check_outside, check_run_folder
from openmae.run.quarantine import QUARANTINE, write_quarantine
from openmae.tasks.segment.prediction_files import prediction_paths, write_classes, write_prediction
from openmae.training.telemetry import ProgressBar

MAX_BAD = 0.01


def predict_images(config: SegmentConfig) -> dict[str, Any]:
    """Write OUT/masks and OUT/overlays, a file for each image, and OUT/classes.csv.

    Returns:
        status, images, unreadable, seconds; the same stands in OUT/summary.json. Where an error below is raised after
        OUT was made, that holds the status alone: failed or interrupted.

    Raises:
        RequestError: `--init` is no segmenter, or too many images cannot be read.
        Interrupted: a signal; what is written stays.
        Fault: a full disk, a dead reader process, too little memory.
    """
    started, out = time.monotonic(), Path(config.out)
    check_outside(config.dataset, config.out)
    check_run_folder(out)
    check_free(out)
    with join_processes() as processes, StopRequest() as stop, ExitStack() as lock:
        device = use_device(config.device, processes.local_rank)
        model = load_segmenter(config.init, str(device))
        sources = open_images(config, model.preprocessing)
        model, lines = matched_model(model, tuple(sources.values()), config.value_range)
        segmenter = segmenter_for(config, model)
        count = sum(map(len, sources.values()))
        processes.wait()  # until all have seen the folder as it was
        stop.defer()
        if processes.is_first:
            make_and_lock(out, lock)
        with status_written(out, processes.is_first):
            if processes.is_first:
                print("\n".join([f"images     {count:,} to segment", *lines]), flush=True)
                write_classes(out, model.classes)
                (out / QUARANTINE).unlink(missing_ok=True)  # of an attempt that failed here
            processes.wait()  # until the folder is made and locked
            bad: dict[str, str] = {}
            for source in sources.values():
                bad |= write_predictions(config, model, segmenter, source, processes, stop)
            if processes.is_first:
                write_quarantine(out, ((name, reason, None) for name, reason in bad.items()))
            check_readable(bad, count, MAX_BAD if config.max_bad is None else config.max_bad, "images")
            summary = {"status": "complete", "images": count - len(bad), "unreadable": len(bad)}
            summary |= {"seconds": round(time.monotonic() - started, 1)}
            if processes.is_first:
                with disk_faults(out):
                    write_json(out / "summary.json", summary)
                masks, overlays = shown(str(out / "masks")), shown(str(out / "overlays"))
                print(f"done       {count - len(bad):,} images: {masks}, {overlays}")
    return summary


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


def load_segmenter(init: str, device: str) -> SegmenterModel:
    """The segmenter that `--init` names. Raises RequestError where it is another kind of model."""
    model = load(init, device, verbose=True)
    if not isinstance(model, SegmenterModel):
        raise RequestError(
            f"--init {shown(init)} is no segmenter: train one, openmae segment DATA --init {shown(init)} --out RUN"
        )
    return model


def open_images(config: SegmentConfig, preprocessing: Preprocessing) -> dict[str, Source]:
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


def segmenter_for(config: SegmentConfig, model: SegmenterModel) -> WholeImageSegmenter:
    """The model as `--inference`, `--stride`, `--precision` and `--micro-batch-size` say, else as it was evaluated.

    Raises:
        RequestError: the stride is larger than the model's crops.
    """
    return model.whole_image_segmenter(
        inference=config.inference,
        stride=config.stride,
        precision=config.precision or "fp32",
        windows_at_once=config.micro_batch_size or WINDOWS_AT_ONCE,
    )


def write_predictions(
    config: SegmentConfig,
    model: SegmenterModel,
    segmenter: WholeImageSegmenter,
    source: Source,
    processes: Processes,
    stop: StopRequest,
) -> dict[str, str]:
    """Segment the images of a source, each process its share; return which could not be read, of all processes.

    Raises:
        Interrupted: a signal came to one of the processes.
        RequestError, Fault: one of the processes failed; all of them raise it.
    """
    paths = prediction_paths([source.name(index) for index in range(len(source))])
    share, bad, workers = processes.share(len(source)), dict[str, str](), config.workers
    images = whole_images(
        source,
        model.preprocessing,
        share,
        workers=default_workers(model.device, processes.local_count) if workers is None else workers,
        with_labels=False,
        with_pictures=True,
        should_stop=stop.is_received,
    )
    failure: RequestError | Fault | None = None
    try:
        with closing(images), ProgressBar(len(share), 0, "segment", quiet=not processes.is_first) as screen:
            for number, whole in enumerate(images, start=1):
                if isinstance(whole.image, str):
                    bad[whole.name] = whole.image
                else:
                    assert whole.picture is not None
                    labels = segmenter.class_map(whole.image, whole.size).cpu().numpy()
                    write_prediction(Path(config.out), paths[whole.index], whole.picture, labels, len(model.classes))
                screen.update(number, whole.name)
    except (RequestError, Fault) as error:  # such as ReaderKilled; the other processes wait for this one
        failure = error
    failures = [error for error in processes.gather(failure) if error is not None]
    if failures:
        raise failures[0] if failure is None else failure
    if processes.any(stop.is_received()):
        raise Interrupted(f"stopped: {shown(config.out)} holds the images so far; delete it to begin again")
    return {name: reason for part in processes.gather(bad) for name, reason in part.items()}
