"""`openmae detect`: from images with objects and a pre-trained encoder to a detector (paper, table 4)."""

from typing import Any

import torch

from openmae.config import DetectConfig, Preprocessing, ResolvedDetectConfig
from openmae.data.batch import Batch
from openmae.data.coco.augment import DetectionAugmentation
from openmae.data.coco.detection_data import DetectionData
from openmae.data.coco.open import open_detection
from openmae.data.coco.stream import AnnotatedStream
from openmae.data.sources.reading import reading_options
from openmae.errors import quoted
from openmae.machine.parallel import Processes, check_even_shares, parallelise
from openmae.planning.decisions import cosine_schedule, total_steps
from openmae.planning.detect import DetectPlan, plan_detect
from openmae.planning.detect_lines import checkpoint_bytes, detect_lines
from openmae.run.evaluators import Evaluator
from openmae.run.folder import PreviousRun
from openmae.run.lock import check_outside
from openmae.run.model_input import ModelInput
from openmae.run.open_run import open_run
from openmae.run.step import StepResult
from openmae.tasks.detect.evaluation import DetectEvaluation
from openmae.tasks.detect.predict import predict_images
from openmae.tasks.detect.report import result_text
from openmae.tasks.detect.step import DetectStep, train_step
from openmae.tasks.transfer.training import (
    make_optimizer,
    prepare_weights,
    read_initial_model,
    restore_state,
    write_held_out,
)
from openmae.training.checkpoint import MODEL
from openmae.training.optim import CosineSchedule, StepSchedule
from openmae.training.prefetch import StepInputs
from openmae.transfer.detection.detector import Detector


def detect(config: DetectConfig) -> dict[str, Any]:
    """Train a detector on images with objects, or with `predict` find objects; all it leaves lies in `config.out`.

    Returns:
        What RUN/summary.json holds; with `predict` how many images were searched, and which could not be read.

    Raises:
        RequestError: a wrong setting, unusable images or annotations, or too many of them.
        Interrupted: a signal; the run was saved and `--resume auto` continues it.
        Fault: a full disk, a dead reader process, or a loss that stays not finite.

    Example:
        >>> config = openmae.DetectConfig(data="objects", init="runs/photos", out="runs/detected", epochs=2)
        >>> openmae.detect(config)["status"]
        'complete'
    """
    if config.predict:
        return predict_images(config.plain())
    with open_run("detect", config, ResolvedDetectConfig) as run:
        # The data, and the settings that the user left open.
        device, processes = run.device, run.processes
        init = read_initial_model(run)
        data = open_data(run.requested, None if init is None else init.preprocessing, run.previous, processes)
        plan, facts = plan_detect(run.requested, init, data, device, processes.local_count, run.previous)
        resolved, num_steps = plan.config, total_steps(plan.config, len(data.train))
        run.check_batch_size(resolved.batch_size)
        check_even_shares(resolved.batch_size, processes.count)
        bad = data.bad.get("train", {})
        stream, task = make_stream(plan, data), DetectStep(plan, device, processes)

        # The model and its optimiser, from the checkpoint where there is one.
        torch.manual_seed(resolved.seed)
        model = Detector.from_shape(plan.shape)
        prepare_weights(model, init, resolved, run)
        model.to(device)
        optimizer = make_optimizer(model, resolved)
        schedule = rate_schedule(resolved, len(data.train), num_steps)
        run.restore(data.fingerprint, lambda checkpoint: restore_state(checkpoint, model, optimizer))
        if (summary := run.finished_summary(num_steps)) is not None:
            return summary
        run.print_plan([] if facts is None else detect_lines(plan, data, facts, device, num_steps))
        run.check_disk(checkpoint_bytes(plan.shape), resolved.keep)
        run.begin(
            resolved,
            plan.preprocessing,
            origins=data.origins,
            num_images=len(data.train),
            num_inputs=len(data.train) + len(bad),
            description=describe_detector(plan, data),
            state={"classes": list(data.classes), "category_ids": list(data.category_ids)},
        )

        write_held_out(run, data)

        # The step, on every batch of the stream; evaluations on the way and at the end.
        wrapped = parallelise(model.train(), processes, device)
        evaluation = DetectEvaluation(plan, data, model, device, processes, run.stop)

        def take_step(inputs: StepInputs[Batch, ModelInput], step: int) -> StepResult:
            return train_step(wrapped, optimizer, inputs, task)

        return run.train(
            model=model,
            optimizer=optimizer,
            schedule=schedule,
            batches=run.batches(resolved, stream, task.prepare),
            take_step=take_step,
            evaluators=lambda: [Evaluator(resolved.evaluate_every, evaluation.evaluate, is_shared=True)],
            bad={**bad, **(facts.bad if facts else {})},
            finish=lambda: evaluation.finish(run.path, run.num_steps, run.progress.log.quarantine),
            final_message=lambda summary: (
                f"{result_text(summary, data.final_split)}\n"
                f"done       {run.path / MODEL}; see {run.path / 'pictures'} and {run.path / 'classes.csv'}; use it: "
                f"openmae detect IMAGES --init {quoted(run.path)} --predict --out FOLDER"
            ),
        )


def open_data(
    config: DetectConfig,
    preprocessing: Preprocessing | None,
    previous: PreviousRun[ResolvedDetectConfig] | None,
    processes: Processes | None = None,
) -> DetectionData:
    """The images and objects of DATA; with `--report held-out` without the test split.

    Args: see `open_with_test`.

    Raises:
        RequestError: they cannot be used, or the run folder would lie among them.
    """
    check_outside(config.dataset, config.out)
    data = open_with_test(config, preprocessing, previous, processes)
    return data.without_test() if config.report == "held-out" else data


def open_with_test(
    config: DetectConfig,
    preprocessing: Preprocessing | None,
    previous: PreviousRun[ResolvedDetectConfig] | None = None,
    processes: Processes | None = None,
) -> DetectionData:
    """All splits of DATA, whatever `--report` says; with `held-out` there is one to choose by.

    Args:
        preprocessing: of the model to start from, for what the config leaves open; None from scratch.
        previous: of a resumed run, which knows its classes.
        processes: those that read the data together; None: this one does.

    Raises:
        RequestError: they cannot be used.
    """
    background = config.background if preprocessing is None else preprocessing.background
    return open_detection(
        config.dataset,
        held_out=config.held_out,
        needs_validation=config.report == "held-out",
        max_bad=config.max_bad,
        boxes_only=config.boxes_only,
        processes=processes,
        known_classes=None if previous is None else tuple(previous.state["classes"]),
        **reading_options(config, preprocessing, background),
    )


def rate_schedule(config: ResolvedDetectConfig, num_images: int, num_steps: int) -> CosineSchedule | StepSchedule:
    """Warm-up, then half a cosine (table 4), or two steps down (ViTDet)."""
    if config.schedule == "cosine":
        return cosine_schedule(config, config.base_lr, num_images, num_steps)
    return StepSchedule(
        peak=config.base_lr * config.batch_size / 256,
        warmup_steps=config.warmup_epochs * num_images / config.batch_size,
        total_steps=num_steps,
    )


def make_stream(plan: DetectPlan, data: DetectionData) -> AnnotatedStream:
    """The endless stream of the run's training samples."""
    c = plan.config
    augmentation = DetectionAugmentation(kind=c.augment, resize_range=c.resize_range)
    return AnnotatedStream(data.train, plan.preprocessing, augmentation, c.seed, with_masks=plan.shape.has_masks)


def describe_detector(plan: DetectPlan, data: DetectionData) -> dict[str, Any]:
    """What determines the weights or their use; no path, host, worker count or time: equal runs, equal bytes."""
    return {
        "kind": "detector",
        "shape": plan.shape.to_dict(),
        "preprocessing": plan.preprocessing.to_dict(),
        "classes": list(data.classes),
        "category_ids": list(data.category_ids),
        "recipe": plan.config.recipe,
        "seed": plan.config.seed,
    }
