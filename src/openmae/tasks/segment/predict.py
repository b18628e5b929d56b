"""`openmae segment IMAGES --init RUN --predict --out FOLDER`: the class of each pixel of new images."""

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openmae.config import Preprocessing, SegmentConfig
from openmae.data.conformed import conform_to_model
from openmae.data.decoding.decode import BadImage
from openmae.data.decoding.regions import open_pixels
from openmae.data.masks.evaluation import WholeImage, whole_images
from openmae.data.masks.pairs import has_masks
from openmae.data.preprocess import normalise, to_unit
from openmae.data.sources.open import Source, open_splits
from openmae.data.sources.reading import reading_options
from openmae.errors import Interrupted, RequestError, shown
from openmae.inference.features import check_readable
from openmae.inference.load import load
from openmae.inference.matched import matched_model
from openmae.inference.segmentation import Windows, class_map
from openmae.inference.segmenter_model import SegmenterModel
from openmae.machine.device import default_workers, use_device
from openmae.machine.files import disk_faults, write_json
from openmae.machine.parallel import Processes, join_processes
from openmae.machine.signals import StopRequest
from openmae.pictures.sheet import to_picture
from openmae.run.create import make_and_lock
from openmae.run.lock import check_outside, check_vacant
from openmae.run.quarantine import write_quarantine
from openmae.tasks.segment.prediction_files import prediction_paths, write_classes, write_prediction
from openmae.training.telemetry import ProgressBar

MAX_BAD = 0.01
WINDOWS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A segmenter and how it is used on new images."""

    model: SegmenterModel
    windows: Windows | None
    precision: str
    batch_size: int

    def class_map(self, whole: WholeImage) -> NDArray[np.int64]:
        """The class of each pixel of an image, at its own size."""
        assert not isinstance(whole.image, str)
        classes = class_map(
            self.model.segmenter,
            whole.image,
            whole.size,
            self.model.preprocessing,
            self.windows,
            device=self.model.device,
            precision=self.precision,
            batch_size=self.batch_size,
        )
        return classes.cpu().numpy()


def predict_images(config: SegmentConfig) -> dict[str, Any]:
    """Write OUT/masks and OUT/overlays, a file for each image, and OUT/classes.csv.

    Returns:
        status, images, unreadable, seconds; the same stands in OUT/summary.json.

    Raises:
        RequestError: `--init` is no segmenter, or too many images cannot be read.
        Interrupted: a signal; what is written stays.
        Fault: a full disk.
    """
    started, out = time.monotonic(), Path(config.out)
    check_outside(config.dataset, config.out)
    check_vacant(out)
    with join_processes() as processes, StopRequest() as stop, ExitStack() as lock:
        device = use_device(config.device, processes.local_rank)
        model = load_segmenter(config.init, str(device))
        sources = open_images(config, model.preprocessing)
        model, lines = matched_model(model, tuple(sources.values()), config.value_range)
        processes.wait()  # until all have seen the folder as it was
        if processes.is_first:
            make_and_lock(out, lock)
            print("\n".join([f"images     {sum(map(len, sources.values())):,} to segment", *lines]), flush=True)
            write_classes(out, model.classes)
            with disk_faults(out):
                write_json(out / "summary.json", {"status": "running"})
        stop.defer()
        bad: dict[str, str] = {}
        for source in sources.values():
            bad |= write_predictions(config, model, source, processes, stop)
        count = sum(map(len, sources.values()))
        summary = {"status": "complete", "images": count - len(bad), "unreadable": len(bad)}
        summary |= {"seconds": round(time.monotonic() - started, 1)}
        if processes.is_first:
            write_quarantine(out, ((name, reason, None) for name, reason in bad.items()))
            check_readable(bad, count, MAX_BAD if config.max_bad is None else config.max_bad, "images")
            with disk_faults(out):
                write_json(out / "summary.json", summary)
            print(
                f"done       {count - len(bad):,} images: {shown(str(out / 'masks'))}, {shown(str(out / 'overlays'))}"
            )
    return summary


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
    if has_masks(config.dataset):
        raise RequestError(f"{shown(str(config.dataset))} holds masks beside images: name the folder of images")
    options = reading_options(config, preprocessing)
    return dict(open_splits(config.dataset, ("train", "val", "test"), **options).sources)


def write_predictions(
    config: SegmentConfig, model: SegmenterModel, source: Source, processes: Processes, stop: StopRequest
) -> dict[str, str]:
    """Segment the images of a source, each process its share; return which could not be read, of all processes.

    Raises:
        Interrupted: a signal came to one of the processes.
    """
    out, p, workers = Path(config.out), model.preprocessing, config.workers
    prediction = Prediction(
        model=model,
        windows=windows_of(config, model),
        precision=config.precision or "fp32",
        batch_size=config.micro_batch_size or WINDOWS_AT_ONCE,
    )
    paths = prediction_paths([source.name(index) for index in range(len(source))])
    share, bad = processes.share(len(source)), dict[str, str]()
    images = whole_images(
        source,
        p,
        share,
        workers=default_workers(model.device, processes.local_count) if workers is None else workers,
        with_labels=False,
        should_stop=stop.is_received,
    )
    with closing(images), ProgressBar(len(share), 0, "segment", quiet=not processes.is_first) as screen:
        for number, whole in enumerate(images, start=1):
            try:
                if isinstance(whole.image, str):
                    raise BadImage(whole.image)
                picture = drawn(source, whole.index, p)
                write_prediction(out, paths[whole.index], picture, prediction.class_map(whole), len(model.classes))
            except BadImage as error:
                bad[whole.name] = str(error)
            screen.update(number, whole.name)
    if processes.any(stop.is_received()):
        raise Interrupted(f"stopped: {shown(str(out))} holds the images so far; delete it to begin again")
    return {name: reason for part in processes.gather(bad) for name, reason in part.items()}


def windows_of(config: SegmentConfig, model: SegmenterModel) -> Windows | None:
    """How whole images are segmented: as `--inference` and `--stride` say, else as the model was evaluated."""
    if config.inference == "whole":
        return None
    windows, size = model.windows, model.preprocessing.image_size
    if config.stride is not None and config.stride > min(size):
        raise RequestError(f"--stride got {config.stride}, more than the model's crops of {min(size)} px: give less")
    if windows is None and config.inference is None and config.stride is None:
        return None
    stride = config.stride or model.description["stride"]
    return Windows(size, (stride, stride))


def drawn(source: Source, index: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """An image at its own size as an RGB picture, H × W × 3. Raises BadImage."""
    pixels = conform_to_model(open_pixels(source, index), preprocessing)[:, :]
    planes = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]
    return np.array(to_picture(to_unit(normalise(planes, preprocessing), preprocessing)[0]))
