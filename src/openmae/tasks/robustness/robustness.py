"""`openmae robustness`: a classifier on ImageNet-C, -A, -R and -Sketch (paper, table 13).

Predictions are restricted to the classes of each set: the one with the highest logit.
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from openmae.config import Preprocessing
from openmae.config.robustness import RobustnessConfig
from openmae.data.sources.folder import FolderSource
from openmae.data.sources.imagenet_variants import (
    IMAGENET_A,
    IMAGENET_C,
    IMAGENET_R,
    IMAGENET_SKETCH,
    Variant,
    VariantPart,
    class_parts,
    corruption_parts,
    known_classes,
    open_part,
    synsets_of,
)
from openmae.data.sources.reading import reading_options
from openmae.errors import Fault, Interrupted, RequestError
from openmae.inference.features import default_batch_size, preprocessing_for
from openmae.inference.load import load
from openmae.inference.matched import matched_model
from openmae.inference.models import ClassifierModel, RegressionModel
from openmae.interchange.stored import hash_weights
from openmae.machine.device import default_workers, use_device
from openmae.machine.files import atomic_write, write_json
from openmae.machine.parallel import join_processes
from openmae.machine.signals import StopRequest
from openmae.preflight.evaluation import check_robustness_folder
from openmae.tasks.robustness.measure import measure
from openmae.tasks.robustness.report import EvaluationSet, paper_row, result_lines, summarise
from openmae.tasks.robustness.run import finish_run, finished_rows, start_run


def robustness(config: RobustnessConfig) -> dict[str, Any]:
    """Evaluate a classifier on the given sets; the results are in the run folder `config.out`.

    Returns:
        The content of RUN/summary.json.

    Raises:
        RequestError: no classifier of ImageNet's classes, folders of another layout, or a run of other settings.
        Interrupted: a signal; finished parts are kept, and `--resume auto` continues after them.
        Fault: scores that are not finite, or a full disk.
    """
    config = config.plain()
    run = Path(config.out)
    with join_processes() as processes, StopRequest() as stop, ExitStack() as lock:
        # Set-up: nothing is written before everything is checked.
        check_robustness_folder(config, run)
        device = use_device(config.device, processes.local_rank)
        model = load_classifier(config.init, str(device))
        preprocessing = preprocessing_for(model, config.size)
        synsets, is_by_order = synsets_of(model.classes)
        sets, extra = find_sets(config, synsets)
        model, lines = matched_model(model, first_parts(sets, config, preprocessing), config.value_range)
        preprocessing = preprocessing_for(model, config.size)
        settings = {
            "model": hash_weights(model.classifier.state_dict()),
            "image_size": list(preprocessing.image_size),
            "precision": config.precision,
            "value_range": None if config.value_range is None else list(config.value_range),
            "axes": config.axes,
            "nodata": config.nodata,
        }
        finished = finished_rows(run, settings, sets)
        if any(names != list(finished) for names in processes.gather(list(finished))):
            raise Fault(f"the processes see different runs in {run}: is --out on a file system that all share?")
        resolved = replace(
            config,
            image_size=preprocessing.image_size,
            batch_size=config.batch_size or default_batch_size(device),
            workers=default_workers(device, processes.local_count) if config.workers is None else config.workers,
            device=str(device),
        )
        processes.wait()  # until all have seen the run folder as it was

        # From here on the run folder exists.
        previous = (run / "summary.json").read_bytes() if finished and (run / "summary.json").exists() else None
        if processes.is_first:
            start_run(run, resolved, preprocessing, finished, lock)
            print("\n".join([*plan_lines(sets, extra, model, is_by_order), *lines]), flush=True)
        stop.defer()
        try:
            rows = measure(sets, model, synsets, preprocessing, resolved, settings, finished, processes, stop)
        except BaseException as error:
            if processes.is_first:
                with suppress(OSError):  # the first error is the one to report
                    if isinstance(error, RequestError) and previous is not None:  # refused: the earlier results stay
                        with atomic_write(run / "summary.json") as partial:
                            partial.write_bytes(previous)
                        raise
                    status = "interrupted" if isinstance(error, Interrupted) else "failed"
                    write_json(run / "summary.json", {"status": status})
            raise
        summary = summarise(sets, rows)
        if processes.is_first:
            finish_run(run, sets, rows, summary)
            paper = paper_row(model.encoder.shape, preprocessing.image_size)
            print("\n".join(result_lines(sets, rows, summary, paper)))
            print(f"wrote {run}")
        processes.wait()
    return summary


def load_classifier(init: str, device: str) -> ClassifierModel:
    """Load a classifier. Raises RequestError where the model is none, or is multi-label."""
    model = load(init, device, verbose=True)
    if not isinstance(model, ClassifierModel):
        what = "predicts numbers" if isinstance(model, RegressionModel) else "has no classes"
        if model.description.get("kind") == "segmenter":
            what = "is a segmentation model"
        raise RequestError(f"--init {init} {what}: give a fine-tuned or probed classifier")
    if model.description.get("is_multi_label"):
        raise RequestError(f"--init {init} gives an image several labels: these sets have one for each")
    return model


def find_sets(config: RobustnessConfig, synsets: Sequence[str]) -> tuple[list[EvaluationSet], list[str]]:
    """The sets to evaluate, and the names of extra corruptions, which are not part of the mean.

    Raises:
        RequestError: folders of another layout, or classes that the set or the classifier does not have.
    """
    variants: list[tuple[Variant, list[VariantPart]]] = []
    extra: list[str] = []
    if config.imagenet_c is not None:
        parts, extra = corruption_parts(config.imagenet_c)
        variants.append((IMAGENET_C, parts))
    for variant, root in (
        (IMAGENET_A, config.imagenet_a),
        (IMAGENET_R, config.imagenet_r),
        (IMAGENET_SKETCH, config.imagenet_sketch),
    ):
        if root is not None:
            variants.append((variant, class_parts(variant, root)))
    sets = [
        EvaluationSet(variant=variant, parts=parts, classes=known_classes(variant, synsets, parts))
        for variant, parts in variants
    ]
    return sets, extra


def first_parts(
    sets: list[EvaluationSet], config: RobustnessConfig, preprocessing: Preprocessing
) -> Generator[FolderSource, None, None]:
    """The first part of each set, whose images stand for those of the others."""
    for image_set in sets:
        yield open_part(image_set.parts[0], image_set.classes, **reading_options(config, preprocessing))


def plan_lines(sets: list[EvaluationSet], extra: list[str], model: ClassifierModel, is_by_order: bool) -> list[str]:
    """The plan, a line for each set."""
    lines = []
    if is_by_order:
        lines.append("classes    1000 without WordNet ids: taken to be ImageNet's in the standard order")
    for image_set in sets:
        parts = f", {len(image_set.parts)} corruptions and severities" if image_set.parts[0].corruption else ""
        num_classes = len(image_set.variant.classes)
        lines.append(
            f"{image_set.variant.title:17}answers among {len(image_set.classes)} of the model's {len(model.classes)} "
            f"classes (the set has {num_classes}){parts}"
        )
    if extra:
        lines.append(f"left out   {', '.join(extra)}: no part of the mean corruption error")
    return lines
