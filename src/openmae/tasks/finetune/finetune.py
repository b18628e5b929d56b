"""`openmae finetune`: train a classifier or a regression model on labels (paper, tables 9 and 11).

The encoder is fine-tuned, whole or its last blocks, or trained from scratch.
"""

from functools import partial
from typing import Any

import torch

from openmae.config import FinetuneConfig, Preprocessing, ResolvedFinetuneConfig
from openmae.data.augment import Augmentation, fill_colour
from openmae.data.batch import Batch
from openmae.data.labels.labelled import LabelledData
from openmae.data.labels.subsets import Oversampled, targets_of
from openmae.data.loader import Stream
from openmae.interchange.incoming.conversion import Hints
from openmae.interchange.init import read_init
from openmae.interchange.load_weights import load_encoder
from openmae.interchange.stored import StoredModel
from openmae.machine.parallel import parallelise
from openmae.model import cost
from openmae.model.heads import Classifier
from openmae.planning.decisions import cosine_schedule, total_steps
from openmae.planning.finetune import FinetunePlan, plan_finetune
from openmae.planning.summary_lines import finetune_lines
from openmae.run.evaluators import Evaluator
from openmae.run.lock import check_outside
from openmae.run.model_input import ModelInput
from openmae.run.open_run import Run, open_run
from openmae.run.step import StepResult
from openmae.tasks.classification.classification import (
    check_classes,
    data_counts,
    describe_model,
    label_state,
    named_metrics,
    open_data,
    result_text,
    without_test,
    write_split,
)
from openmae.tasks.classification.report import write_report
from openmae.tasks.finetune.ema_checkpoint import restore_state, save_with_ema
from openmae.tasks.finetune.evaluation import FinetuneEvaluation
from openmae.tasks.finetune.step import FinetuneStep, train_step
from openmae.training.model_ema import ModelEMA
from openmae.training.optim import adamw_from_groups, layer_decay_groups
from openmae.training.prefetch import StepInputs


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Train a classifier, or a regression model, on labels; all that it leaves behind lies in `config.out`.

    Returns:
        What RUN/summary.json holds.

    Raises:
        RequestError: a wrong setting, unusable data or labels, or too many unreadable files.
        Interrupted: a signal; the run was saved and `--resume auto` continues it.
        Fault: a full disk, a dead reader process, or a loss that stays not finite.

    Example:
        >>> config = openmae.FinetuneConfig(data="labelled", init="runs/photos", out="runs/labelled", epochs=2)
        >>> openmae.finetune(config)["status"]
        'complete'
    """
    with open_run("finetune", config, ResolvedFinetuneConfig) as run:
        # The data, and the settings that the user left open.
        requested, device, processes = run.requested, run.device, run.processes
        init = read_initial_model(run)
        data = open_finetune_data(requested, None if init is None else init.preprocessing)
        check_classes(run.previous, data)
        plan, facts = plan_finetune(requested, init, data, device, processes.local_count, run.previous)
        resolved, num_steps = plan.config, total_steps(plan.config, len(data.train))
        run.check_batch_size(resolved.batch_size, 2 if resolved.mixup or resolved.cutmix else 1)
        stream, task = make_stream(plan, data), FinetuneStep(plan, data, device, processes)

        # The model and its optimiser, from the checkpoint where there is one.
        torch.manual_seed(resolved.seed)
        model = Classifier.from_shape(plan.shape)
        run.print_lines(*(load_encoder(model.encoder, init) if init is not None else ()))
        model.train_only(resolved.blocks)
        model.to(device)
        ema = ModelEMA(model, resolved.ema) if resolved.ema else None
        optimizer = make_optimizer(model, resolved)
        schedule = cosine_schedule(resolved, resolved.base_lr, len(data.train), num_steps)
        run.restore(data.fingerprint, lambda checkpoint: restore_state(checkpoint, model, optimizer, ema))
        if (summary := run.finished_summary(num_steps)) is not None:
            return summary
        lines = [] if facts is None else [*data.source_lines, *finetune_lines(plan, data, facts, device, num_steps)]
        copies = 4 if ema else 3
        run.print_plan(lines)
        run.check_disk(4 * copies * cost.classifier_parameters(plan.shape), resolved.keep)
        run.begin(
            resolved,
            plan.preprocessing,
            origins=data.origins,
            num_images=len(data.train),
            num_inputs=len(data.train),
            description=describe_model(plan.shape, plan.preprocessing, data, resolved.recipe, resolved.seed),
            state=label_state(data),
        )
        if processes.is_first:
            write_split(run.path, resolved, data)

        # The step, on every batch of the stream; evaluations on the way and at the end.
        wrapped_model = parallelise(model.train(), processes, device)
        evaluation = FinetuneEvaluation(plan, data, model, ema, device, processes, run.stop)

        def take_step(inputs: StepInputs[Batch, ModelInput], step: int) -> StepResult:
            result = train_step(wrapped_model, optimizer, inputs, step, task)
            if ema is not None:
                ema.update(result[2])
            return result

        return run.train(
            model=model,
            optimizer=optimizer,
            schedule=schedule,
            batches=run.batches(
                resolved, stream, task.prepare, is_paired=task.is_paired, adjust_micro_batch_size=task.even_size
            ),
            take_step=take_step,
            evaluators=lambda: [Evaluator(resolved.evaluate_every, evaluation.evaluate, is_shared=True)],
            bad=facts.bad if facts else None,
            save=partial(save_with_ema, ema=ema),
            finish=lambda: finish(run, model, evaluation, plan, data),
            final_message=lambda summary: result_text(summary, data, run.path),
        )


def read_initial_model(run: Run[ResolvedFinetuneConfig]) -> StoredModel | None:
    """The model that `--init` names; None from scratch, and for a resumed run, whose weights are in its checkpoint."""
    if not run.is_new or run.requested.is_from_scratch:
        return None
    return read_init(run.requested.init, Hints(num_heads=run.requested.num_heads))


def open_finetune_data(config: FinetuneConfig, preprocessing: Preprocessing | None) -> LabelledData:
    """The labelled splits of DATA; with `--report held-out` the test split stays unseen.

    Args:
        preprocessing: of the model to start from, for what the config leaves open; None from scratch.

    Raises:
        RequestError: they cannot be used, or the run folder would lie among them.
    """
    check_outside(config.dataset, config.out)
    background = config.background if preprocessing is None else preprocessing.background
    data = open_data(config, preprocessing, background, needs_validation=config.report == "held-out")
    return without_test(data) if config.report == "held-out" else data


def make_optimizer(model: Classifier, config: ResolvedFinetuneConfig) -> torch.optim.Optimizer:
    """AdamW with a learning rate for each layer (layer-wise decay)."""
    groups = layer_decay_groups(
        model,
        depth=model.shape.encoder.depth,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
    )
    return adamw_from_groups(groups, config.betas)


def finish(
    run: Run[ResolvedFinetuneConfig],
    model: Classifier,
    evaluation: FinetuneEvaluation,
    plan: FinetunePlan,
    data: LabelledData,
) -> dict[str, Any]:
    """Measure on the final split, whose images decided nothing, and write the report; what the summary says of it."""
    model.eval()
    predictions = evaluation.final_predictions(run.num_steps)
    if run.processes.is_first:
        run.progress.log.quarantine.replace_part(data.final_split, predictions.bad)
        title = f"{run.path.name}, {data.final_split}"
        write_report(run.path, predictions, data.final_source, data.classes, plan.preprocessing, title)
    return {**named_metrics(predictions), **data_counts(data)}


def make_stream(plan: FinetunePlan, data: LabelledData) -> Stream:
    """The endless stream of the run's training samples."""
    config, preprocessing = plan.config, plan.preprocessing
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
