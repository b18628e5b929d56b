"""`openmae finetune`: train a classifier or a regression model on labels (paper, tables 9 and 11).

The encoder is fine-tuned, whole or its last blocks, or trained from scratch.
"""

from functools import partial
from typing import Any

import torch

from openmae.config import FinetuneConfig, ResolvedFinetuneConfig
from openmae.data.augment import Augmentation, fill_colour
from openmae.data.batch import Batch
from openmae.data.labels.labelled import LabelledData
from openmae.data.labels.subsets import Oversampled, targets_of
from openmae.data.loader import Stream
from openmae.interchange.incoming.reading import Hints
from openmae.interchange.init import read_init
from openmae.interchange.load_weights import load_encoder
from openmae.machine.parallel import parallelise
from openmae.model import cost
from openmae.model.heads import Classifier
from openmae.planning.decisions import cosine, total_steps
from openmae.planning.finetune import FinetunePlan, plan_finetune
from openmae.planning.summary_lines import finetune_lines
from openmae.run.evaluators import Evaluator
from openmae.run.folder import check_outside
from openmae.run.model_input import ModelInput
from openmae.run.open_run import Run, open_run
from openmae.run.step import StepResult
from openmae.tasks.classification.classification import (
    check_classes,
    counts_of,
    describe_tuned,
    labels_of_run,
    named_figures,
    open_data,
    said,
    without_test,
    write_split,
)
from openmae.tasks.classification.report import write_report
from openmae.tasks.finetune.averaged_checkpoint import restore_state, save_averaged
from openmae.tasks.finetune.figures import FinetuneMetrics
from openmae.tasks.finetune.step import FinetuneStep, train_step
from openmae.training.average import Average
from openmae.training.optim import adamw_of, layer_decay_groups
from openmae.training.prefetch import StepInputs


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Train a classifier, or a regression model, on labels; all that it leaves behind lies in `config.out`.

    Returns:
        What RUN/summary.json holds.

    Raises:
        RequestError: a wrong setting, unusable data or labels, or too many unreadable files.
        Interrupted: a signal; the run was saved and `--resume auto` continues it.
        Fault: a full disk, a dead reader process, or a loss that is not finite.
    """
    with open_run("finetune", config, ResolvedFinetuneConfig) as run:
        # The data, and what the person left open.
        asked, device, processes = run.requested, run.device, run.processes
        init = None
        if run.is_new and not asked.is_from_scratch:
            init = read_init(asked.init, Hints(num_heads=asked.num_heads))
        check_outside(asked.dataset, asked.out)
        model_input = None if init is None else init.preprocessing
        background = asked.background if model_input is None else model_input.background
        data = open_data(asked, model_input, background, asked.report == "held-out")
        if asked.report == "held-out":
            data = without_test(data)
        check_classes(run.previous, data)
        plan, facts = plan_finetune(asked, init, data, device, processes.local_count, run.previous)
        chosen, num_steps = plan.config, total_steps(plan.config, len(data.train))
        run.check_shares(chosen.batch_size, 2 if chosen.mixup or chosen.cutmix else 1)
        stream, task = make_stream(plan, data), FinetuneStep(plan, data, device, processes)

        # The model and its optimiser, from the checkpoint where there is one.
        torch.manual_seed(chosen.seed)
        model = Classifier.from_shape(plan.shape)
        run.say(*(load_encoder(model.encoder, init) if init is not None else ()))
        model.train_only(chosen.blocks)
        model.to(device)
        average = Average(model, chosen.ema) if chosen.ema else None
        optimizer = make_optimizer(model, chosen)
        schedule = cosine(chosen, chosen.base_lr, len(data.train), num_steps)
        run.restore(
            data.fingerprint, restore_state=lambda checkpoint: restore_state(checkpoint, model, optimizer, average)
        )
        if (summary := run.finished(num_steps)) is not None:
            return summary
        lines = [] if facts is None else [*data.source_lines, *finetune_lines(plan, data, facts, device, num_steps)]
        copies = 4 if average else 3
        run.announce(lines, 4 * copies * cost.classifier_parameters(plan.shape), chosen.keep)
        run.begin(
            chosen,
            plan.preprocessing,
            taken=data.origins,
            num_images=len(data.train),
            num_inputs=len(data.train),
            description=describe_tuned(plan.shape, plan.preprocessing, data, chosen.recipe, chosen.seed),
            state=labels_of_run(data),
        )
        if processes.is_first:
            write_split(run.path, chosen, data)

        # The step, on every batch of the stream; figures on the way and in the end.
        wrapped = parallelise(model.train(), processes, device)
        figures = FinetuneMetrics(plan, data, model, average, device, processes, run.stop)

        def take_step(parts: StepInputs[Batch, ModelInput], step: int) -> StepResult:
            result = train_step(wrapped, optimizer, parts, step, task)
            if average is not None:
                average.update(result[2])
            return result

        batches = run.batches(chosen, stream, task.prepare, is_paired=task.is_paired, size_of_micro_batch=task.even)
        return run.train(
            model=model,
            optimizer=optimizer,
            schedule=schedule,
            batches=batches,
            take_step=take_step,
            evaluators=lambda: [Evaluator(chosen.evaluate_every, figures.evaluated, is_shared=True)],
            bad=facts.bad if facts else None,
            save=partial(save_averaged, average=average),
            finish=lambda: report(run, model, figures, plan, data),
            closing=lambda summary: said(summary, data, run.path),
        )


def make_optimizer(model: Classifier, config: ResolvedFinetuneConfig) -> torch.optim.Optimizer:
    """AdamW with a rate for each layer."""
    groups = layer_decay_groups(
        model,
        depth=model.shape.encoder.depth,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
    )
    return adamw_of(groups, config.betas)


def report(
    run: Run[ResolvedFinetuneConfig],
    model: Classifier,
    figures: FinetuneMetrics,
    plan: FinetunePlan,
    data: LabelledData,
) -> dict[str, Any]:
    """The final figure, on images that decided nothing."""
    model.eval()
    predictions = figures.reported(run.num_steps)
    if run.processes.is_first:
        run.progress.log.quarantine.replace_part(data.final_split, predictions.bad)
        title = f"{run.path.name}, {data.final_split}"
        write_report(run.path, predictions, data.final_source, data.classes, plan.preprocessing, title)
    return {**named_figures(predictions), **counts_of(data)}


def make_stream(tuned: FinetunePlan, data: LabelledData) -> Stream:
    """The endless stream of the run's training samples."""
    config, preprocessing = tuned.config, tuned.preprocessing
    has_rand_augment = config.rand_augment != "none"
    augmentation = Augmentation(
        kind=config.augment,
        crop_scale=config.crop_scale,
        crop_aspect=config.crop_aspect,
        rand_augment=config.rand_augment if has_rand_augment else None,
        fill=fill_colour(preprocessing) if has_rand_augment else None,
    )
    source = Oversampled(data.train, targets_of(data.train)) if config.balance == "sampling" else data.train
    return Stream(source, preprocessing, augmentation, config.seed, config.patch_size, with_labels=True)
