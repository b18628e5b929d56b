"""`openmae finetune`: a classifier from labels, or numbers predicted: fine-tuned, partially or from scratch
(paper, tables 9 and 11)."""

from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from openmae.config import FinetuneConfig, SettledFinetune
from openmae.data.augment import Augmentation, fill_colour
from openmae.data.labels.labelled import LabelledData
from openmae.data.labels.subsets import Oversampled, targets_of
from openmae.data.loader import Batch, Stream
from openmae.data.preprocess import DataFacts, look_at
from openmae.errors import RequestError
from openmae.interchange.incoming.reading import Hints
from openmae.interchange.init import read_described, read_init
from openmae.interchange.load_weights import load_encoder
from openmae.interchange.stored import Described
from openmae.machine.device import use_device
from openmae.machine.parallel import Processes, joined, parallelise
from openmae.machine.signals import StopRequest
from openmae.model import cost
from openmae.model.heads import Classifier
from openmae.planning.decisions import Machine, cosine, total_steps
from openmae.planning.finetune import SettledTuning, settle_finetune
from openmae.planning.summary_lines import check_disk, tuning_lines
from openmae.run.folder import (
    Earlier,
    begin,
    find_earlier,
    settings_of,
    summary_if_finished,
    with_remembered_micro_batch,
)
from openmae.run.loop import StepResult, Training, run_loop
from openmae.run.model_input import ModelInput
from openmae.run.progress import open_progress
from openmae.run.training_data import check_outside, names_of_step, read_steps
from openmae.tasks.classification.classification import (
    check_classes,
    counts_of,
    describe_tuned,
    named_figures,
    open_data,
    said,
    state_of,
    without_test,
    write_split,
)
from openmae.tasks.classification.report import write_report
from openmae.tasks.finetune.averaged_checkpoint import put_back, save_averaged
from openmae.tasks.finetune.figures import TuningFigures
from openmae.tasks.finetune.step import TuningStep, train_step
from openmae.tasks.pretrain.evaluators import Evaluator
from openmae.training.average import Average
from openmae.training.checkpoint import MODEL
from openmae.training.copy_ahead import StepInputs, inputs_of_steps
from openmae.training.optim import adamw_of, layer_decay_groups


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Train a classifier, or a regression model, on labels; all that it leaves behind lies in `config.out`.

    Returns:
        What RUN/summary.json holds.

    Raises:
        RequestError: a wrong setting, unusable data or labels, or too many unreadable files.
        Interrupted: a signal; the run was saved and `--resume auto` continues it.
        Fault: a full disk, a dead reader process, or a loss that is not finite.
    """
    config = FinetuneConfig.from_dict(config.to_dict())  # paths as strings
    with joined() as processes, StopRequest() as stop, ExitStack() as lock:
        # Set-up. Nothing is written before all that can be wrong has been looked at.
        run, earlier = Path(config.out), find_earlier(config, SettledFinetune)
        asked = earlier.config if earlier else with_remembered_micro_batch(config)
        device = use_device(asked.device, processes.local_rank)
        starts_anew = earlier is None or earlier.checkpoint is None
        init = None
        if starts_anew and not asked.is_from_scratch:
            init = read_init(asked.init, Hints(num_heads=asked.num_heads))
        check_outside(asked.dataset, asked.out)
        model_input = None if init is None else init.preprocessing
        background = asked.background if model_input is None else model_input.background
        data = open_data(asked, model_input, background, asked.report == "held-out")
        asked = replace(asked, task=data.task)
        if asked.report == "held-out":
            data = without_test(data)
        tuned, facts = decide(asked, earlier, init, data, device, processes)
        chosen = tuned.config
        num_steps = total_steps(chosen, len(data.train))
        check_shares(chosen, processes)
        stream, task = make_stream(tuned, data), TuningStep(tuned, data, device, processes)

        # Model and optimiser, from the checkpoint where there is one.
        torch.manual_seed(chosen.seed)
        model = Classifier.from_shape(tuned.shape)
        lines = load_encoder(model.encoder, init) if init is not None else []
        if processes.is_first and lines:
            print("\n".join(lines), flush=True)
        model.train_only(chosen.blocks)
        model.to(device)
        average = Average(model, chosen.ema) if chosen.ema else None
        groups = layer_decay_groups(
            model,
            depth=tuned.shape.encoder.depth,
            layer_decay=chosen.layer_decay,
            weight_decay=chosen.weight_decay,
        )
        optimizer = adamw_of(groups, chosen.betas)
        schedule = cosine(chosen, chosen.base_lr, len(data.train), num_steps)
        step = restore(earlier, model, optimizer, average, data)
        if (summary := summary_if_finished(run, step, num_steps, processes)) is not None:
            return summary
        if processes.is_first and facts is not None:
            print(
                "\n".join([*data.told, *tuning_lines(tuned, data, facts, device, num_steps)]),
                flush=True,
            )
        for warning in earlier.warnings if processes.is_first and earlier else ():
            print(f"warning: {warning}", flush=True)
        copies = 4 if average else 3
        check_disk(run, 4 * copies * cost.classifier_parameters(tuned.shape), chosen.keep)
        processes.wait()  # until all have seen the run folder as it was

        # From here on the run folder exists.
        if processes.is_first:
            begin(chosen, tuned.preprocessing, earlier, lock, data.taken)
            write_split(run, chosen, data)
        progress = open_progress(run, chosen, earlier, processes, len(data.train), len(data.train))
        beginning = state_of(data, settings_of(chosen, tuned.preprocessing))
        metadata = describe_tuned(tuned.shape, tuned.preprocessing, data, chosen.recipe, chosen.seed)
        stepped = parallelise(model.train(), processes, device)
        figures = TuningFigures(tuned, data, model, average, device, processes, stop)

        def watched() -> list[Evaluator]:
            progress.note_bad(facts.bad if facts else {})
            return [Evaluator(chosen.evaluate_every, figures.evaluated, is_shared=True)]

        def save(step: int, state: dict[str, Any]) -> None:
            state = {**beginning, **state}
            save_averaged(run, step, model, optimizer, average, {**metadata, "step": step}, state, chosen.keep)

        def read_from(step: int, micro_batch_size: int) -> Generator[StepInputs[Batch, ModelInput], None, None]:
            if task.is_paired:
                micro_batch_size = max(2, micro_batch_size // 2 * 2)
            steps, pin = range(step, num_steps), device.type == "cuda"
            read = read_steps(
                stream,
                chosen.batch_size,
                micro_batch_size,
                chosen.workers,
                steps,
                processes,
                pin,
                task.is_paired,
                is_given_up=stop.is_received,
            )
            return inputs_of_steps(read, task.prepare, device)

        def take_step(parts: StepInputs[Batch, ModelInput], step: int) -> StepResult:
            result = train_step(stepped, optimizer, parts, step, task)
            if average is not None:
                average.update(result[2])
            return result

        def finish() -> dict[str, Any]:
            """The final figure, on images that decided nothing."""
            model.eval()
            predictions = figures.reported(num_steps)
            if processes.is_first:
                progress.log.quarantine_of(data.report_name, predictions.bad)
                title = f"{run.name}, {data.report_name}"
                write_report(run, predictions, data.report, data.classes, tuned.preprocessing, title)
            return {**named_figures(predictions), **counts_of(data)}

        training = Training(
            title="finetune",
            run=run,
            device=device,
            num_steps=num_steps,
            batch_size=chosen.batch_size,
            micro_batch_size=chosen.micro_batch_size,
            log_every=chosen.log_every,
            save_every=chosen.save_every,
            model=model,
            optimizer=optimizer,
            schedule=schedule,
            take_step=take_step,
            read_from=read_from,
            save=save,
            restore=lambda checkpoint: put_back(checkpoint, model, optimizer, average),
            names_of_step=lambda step: names_of_step(stream, step, chosen.batch_size),
        )
        summary = run_loop(training, progress, watched, stop, processes, step, finish)
        progress.log.summary(summary)
        if processes.is_first:
            print(said(summary, data, run))
        processes.wait()
        return summary


def decide(
    config: FinetuneConfig,
    earlier: Earlier | None,
    init: Described | None,
    data: LabelledData,
    device: torch.device,
    processes: Processes,
) -> tuple[SettledTuning, DataFacts | None]:
    """The settings of the run: those of its earlier start, or new ones after a look at the data.

    Raises:
        RequestError: no image of the look can be read, or the settings do not fit.
    """
    if earlier is not None:
        check_classes(earlier, data)
        assert earlier.checkpoint is not None
        like = read_described(earlier.checkpoint.folder / MODEL).encoder_shape
        tuned = SettledTuning.of(earlier.config, data.num_outputs, earlier.preprocessing, like)
        return replace(tuned, config=replace(tuned.config, device=str(device))), None
    try:
        facts = look_at(data.train, beside=data.parts)
    except RequestError as error:
        raise RequestError(f"{config.dataset}: {error}") from None
    machine = Machine.of(device, processes.local_count, facts.largest)
    start = None if init is None else (init.encoder_shape, init.preprocessing)
    tuned = settle_finetune(config, facts, data.num_outputs, data.is_multi_label, machine, start)
    return replace(tuned, config=replace(tuned.config, device=str(device))), facts


def check_shares(config: SettledFinetune, processes: Processes) -> None:
    """Raise RequestError where a process would get nothing of a batch."""
    smallest = 2 if config.mixup or config.cutmix else 1
    if processes.count * smallest > config.batch_size:
        raise RequestError(
            f"--batch-size {config.batch_size} for {processes.count} processes: give at least {smallest} each"
        )


def make_stream(tuned: SettledTuning, data: LabelledData) -> Stream:
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


def restore(
    earlier: Earlier | None,
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    data: LabelledData,
) -> int:
    """Put the newest good checkpoint back; return the step to go on from.

    Raises:
        RequestError: the data is not that of the checkpoint.
    """
    if earlier is None or earlier.checkpoint is None:
        return 0
    earlier.check_settings()
    earlier.check_data(data.fingerprint)
    put_back(earlier.checkpoint, model, optimizer, average)
    return int(earlier.state["step"])
