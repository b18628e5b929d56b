"""`openmae segment`: from images with masks and a pre-trained encoder to a segmenter (paper, table 5)."""

from typing import Any

import torch

from openmae.config import Preprocessing, ResolvedSegmentConfig, SegmentConfig
from openmae.data.batch import Batch
from openmae.data.masks.augment import MaskAugmentation
from openmae.data.masks.open import open_segmentation
from openmae.data.masks.segmentation import SegmentationData
from openmae.data.masks.stream import MaskedStream
from openmae.data.sources.reading import reading_options
from openmae.errors import quoted
from openmae.machine.parallel import Processes, check_even_shares, parallelise
from openmae.planning.decisions import total_steps
from openmae.planning.segment import SegmentPlan, plan_segment
from openmae.planning.segment_lines import checkpoint_bytes, segment_lines
from openmae.run.evaluators import Evaluator
from openmae.run.folder import PreviousRun
from openmae.run.lock import check_outside
from openmae.run.model_input import ModelInput
from openmae.run.open_run import open_run
from openmae.run.step import StepResult
from openmae.tasks.segment.evaluation import SegmentEvaluation
from openmae.tasks.segment.predict import predict_images
from openmae.tasks.segment.report import result_text
from openmae.tasks.segment.step import SegmentStep, train_step
from openmae.tasks.transfer.training import (
    make_optimizer,
    prepare_weights,
    read_initial_model,
    restore_state,
    write_held_out,
)
from openmae.training.checkpoint import MODEL
from openmae.training.optim import PolynomialSchedule
from openmae.training.prefetch import StepInputs
from openmae.transfer.segmentation.segmenter import Segmenter


def segment(config: SegmentConfig) -> dict[str, Any]:
    """Train a segmenter on images with masks, or with `predict` segment images; all it leaves lies in `config.out`.

    Returns:
        What RUN/summary.json holds; with `predict` how many images were segmented, and which could not be read.

    Raises:
        RequestError: a wrong setting, unusable images or masks, or too many of them.
        Interrupted: a signal; the run was saved and `--resume auto` continues it.
        Fault: a full disk, a dead reader process, or a loss that stays not finite.

    Example:
        >>> config = openmae.SegmentConfig(data="masked", init="runs/photos", out="runs/segmented", epochs=2)
        >>> openmae.segment(config)["status"]
        'complete'
    """
    if config.predict:
        return predict_images(config.plain())
    with open_run("segment", config, ResolvedSegmentConfig) as run:
        # The data, and the settings that the user left open.
        device, processes = run.device, run.processes
        init = read_initial_model(run)
        data = open_data(run.requested, None if init is None else init.preprocessing, run.previous, processes)
        plan, facts = plan_segment(run.requested, init, data, device, processes.local_count, run.previous)
        resolved, num_steps = plan.config, total_steps(plan.config, len(data.train))
        run.check_batch_size(resolved.batch_size)
        check_even_shares(resolved.batch_size, processes.count)
        bad = data.bad.get("train", {})
        stream, task = make_stream(plan, data), SegmentStep(plan, device, processes)

        # The model and its optimiser, from the checkpoint where there is one.
        torch.manual_seed(resolved.seed)
        model = Segmenter.from_shape(plan.shape)
        prepare_weights(model, init, resolved, run)
        model.to(device)
        optimizer = make_optimizer(model, resolved)
        schedule = poly_schedule(resolved, len(data.train), num_steps)
        run.restore(data.fingerprint, lambda checkpoint: restore_state(checkpoint, model, optimizer))
        if (summary := run.finished_summary(num_steps)) is not None:
            return summary
        run.print_plan([] if facts is None else segment_lines(plan, data, facts, device, num_steps))
        run.check_disk(checkpoint_bytes(plan.shape), resolved.keep)
        run.begin(
            resolved,
            plan.preprocessing,
            origins=data.origins,
            num_images=len(data.train),
            num_inputs=len(data.train) + len(bad),
            description=describe_segmenter(plan, data),
            state={"classes": list(data.classes), "ignore_index": data.ignore_index, "bad_pairs": data.bad},
        )

        write_held_out(run, data)

        # The step, on every batch of the stream; evaluations on the way and at the end.
        wrapped = parallelise(model.train(), processes, device)
        evaluation = SegmentEvaluation(plan, data, model, device, processes, run.stop)

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
                f"openmae segment IMAGES --init {quoted(run.path)} --predict --out FOLDER"
            ),
        )


def open_data(
    config: SegmentConfig,
    preprocessing: Preprocessing | None,
    previous: PreviousRun[ResolvedSegmentConfig] | None,
    processes: Processes | None = None,
) -> SegmentationData:
    """The images and masks of DATA; with `--report held-out` without the test split.

    Args: see `open_with_test`.

    Raises:
        RequestError: they cannot be used, or the run folder would lie among them.
    """
    check_outside(config.dataset, config.out)
    data = open_with_test(config, preprocessing, previous, processes)
    return data.without_test() if config.report == "held-out" else data


def open_with_test(
    config: SegmentConfig,
    preprocessing: Preprocessing | None,
    previous: PreviousRun[ResolvedSegmentConfig] | None = None,
    processes: Processes | None = None,
) -> SegmentationData:
    """All splits of DATA, whatever `--report` says; with `held-out` there is one to choose by.

    Args:
        preprocessing: of the model to start from, for what the config leaves open; None from scratch.
        previous: of a resumed run, which knows its classes: the masks need not all be read again.
        processes: those that read the masks together; None: this one does.

    Raises:
        RequestError: they cannot be used.
    """
    background = config.background if preprocessing is None else preprocessing.background
    return open_segmentation(
        config.dataset,
        class_names=config.class_names,
        palette=config.palette,
        ignore_index=config.ignore_index if previous is None else None,
        reduce_zero_label=config.reduce_zero_label,
        held_out=config.held_out,
        needs_validation=config.report == "held-out",
        max_bad=config.max_bad,
        processes=processes,
        known_classes=None if previous is None else tuple(previous.state["classes"]),
        known_ignore_index=None if previous is None else previous.state["ignore_index"],
        known_bad=None if previous is None else previous.state["bad_pairs"],
        **reading_options(config, preprocessing, background),
    )


def poly_schedule(config: ResolvedSegmentConfig, num_images: int, num_steps: int) -> PolynomialSchedule:
    """Linear warm-up, then linearly (power 1) down to the minimum."""
    return PolynomialSchedule(
        peak=config.base_lr * config.batch_size / 256,
        minimum=config.min_lr,
        warmup_steps=config.warmup_epochs * num_images / config.batch_size,
        total_steps=num_steps,
    )


def make_stream(plan: SegmentPlan, data: SegmentationData) -> MaskedStream:
    """The endless stream of the run's training samples."""
    c = plan.config
    augmentation = MaskAugmentation(kind=c.augment, resize_range=c.resize_range, max_class_share=c.max_class_share)
    return MaskedStream(data.train, plan.preprocessing, augmentation, c.seed)


def describe_segmenter(plan: SegmentPlan, data: SegmentationData) -> dict[str, Any]:
    """What determines the weights or their use; no path, host, worker count or time: equal runs, equal bytes."""
    c = plan.config
    return {
        "kind": "segmenter",
        "shape": plan.shape.to_dict(),
        "preprocessing": plan.preprocessing.to_dict(),
        "classes": list(data.classes),
        "ignore_index": data.ignore_index,
        "reduce_zero_label": data.reduce_zero_label,
        "inference": c.inference,
        "stride": c.stride,
        "recipe": c.recipe,
        "seed": c.seed,
    }
