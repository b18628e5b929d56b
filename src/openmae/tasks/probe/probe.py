"""`openmae probe`: a linear classifier, or a linear regression, on a frozen encoder (paper, table 10)."""

import functools
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from openmae.config import ProbeConfig, SettledProbe
from openmae.data.labels.labelled import LabelledData
from openmae.data.preprocess import DataFacts, look_at
from openmae.errors import RequestError
from openmae.inference.features import check_readable
from openmae.inference.load import EncoderModel
from openmae.interchange.init import read_init
from openmae.interchange.load_weights import load_encoder, load_weights
from openmae.interchange.stored import Described, hash_of
from openmae.machine.device import use_device
from openmae.machine.files import disk_faults, written_aside
from openmae.machine.parallel import Processes, joined, parallelise
from openmae.machine.signals import StopRequest
from openmae.model.heads import Classifier
from openmae.model.probe import Probes
from openmae.planning.decisions import Machine, cosine, total_steps
from openmae.planning.probe import SettledProbing, settle_probe
from openmae.planning.summary_lines import check_disk, probing_lines
from openmae.run.folder import Earlier, begin, find_earlier, settings_of, summary_if_finished
from openmae.run.loop import Training, run_loop
from openmae.run.progress import open_progress
from openmae.run.training_data import check_outside, names_of_step
from openmae.tasks.classification.classification import (
    check_classes,
    counts_of,
    describe_tuned,
    named_figures,
    open_data,
    said,
    state_of,
    write_split,
)
from openmae.tasks.classification.report import write_report
from openmae.tasks.pretrain.evaluators import Evaluator
from openmae.tasks.probe.features import check_parts, features_of, make_reader, predictions_of
from openmae.tasks.probe.rates import best_of, chosen_by, figure_of, rate_lines, write_rates
from openmae.tasks.probe.step import head_groups, train_step
from openmae.training.checkpoint import MODEL, Checkpoint, read_model, restore_optimizer, save_checkpoint, save_model
from openmae.training.lars import LARS
from openmae.training.optim import sgd


def probe(config: ProbeConfig) -> dict[str, Any]:
    """Train linear heads on a frozen encoder, one for each rate; keep the best by a split of train.

    Returns:
        What RUN/summary.json holds.

    Raises:
        RequestError: a wrong setting, unusable data or labels, or too many unreadable files.
        Interrupted: a signal; the run was saved and `--resume auto` continues it.
        Fault: a full disk, a dead reader process, or a loss that is not finite.
    """
    config = ProbeConfig.from_dict(config.to_dict())  # paths as strings
    with joined() as processes, StopRequest() as stop, ExitStack() as lock:
        # Set-up. Nothing is written before all that can be wrong has been looked at.
        run, earlier = Path(config.out), find_earlier(config, SettledProbe)
        asked = earlier.config if earlier else config
        device = use_device(asked.device, processes.local_rank)
        init = read_init(asked.init)
        check_outside(asked.dataset, asked.out)
        needs_choice = asked.base_lr is None or len(asked.base_lr) > 1
        data = open_data(asked, init.preprocessing, needs_choice=needs_choice)
        asked = replace(asked, task=data.task)
        settled, facts = decide(asked, earlier, init, data, device, processes)
        chosen, shape = settled.config, settled.shape
        num_steps = total_steps(chosen, len(data.train))
        check_parts(chosen, processes)

        # The frozen encoder, and the heads with their optimiser: from the checkpoint where there is one.
        torch.manual_seed(chosen.seed)
        classifier = Classifier.from_shape(shape)
        lines = load_encoder(classifier.encoder, init)
        if processes.is_first and lines:
            print("\n".join(lines), flush=True)
        classifier.requires_grad_(False).eval().to(device)
        probes = Probes(shape, len(chosen.base_lr)).to(device)
        groups, peak = head_groups(probes, chosen), max(chosen.base_lr)
        optimizer = LARS(groups, chosen.momentum) if chosen.optimizer == "lars" else sgd(groups, chosen.momentum)
        schedule = cosine(chosen, peak, len(data.train), num_steps)
        encoder_hash = hash_of(init.encoder_weights)
        step = restore(earlier, probes, optimizer, data, encoder_hash)
        if (summary := summary_if_finished(run, step, num_steps, processes)) is not None:
            return summary
        if processes.is_first and facts is not None:
            print(
                "\n".join([*data.told, *probing_lines(settled, data, facts, device, num_steps)]),
                flush=True,
            )
        for warning in earlier.warnings if processes.is_first and earlier else ():
            print(f"warning: {warning}", flush=True)
        check_disk(run, 8 * sum(p.numel() for p in probes.parameters()), chosen.keep)
        encoder = EncoderModel(classifier.encoder, settled.preprocessing, init.description, device, init.report)
        features = functools.partial(features_of, encoder, settled, processes)
        kept = features(data.train, "features to train on") if chosen.augment == "none" else None
        if kept is not None:
            check_readable(kept.bad, len(data.train), chosen.max_bad, "training images")
        reader = make_reader(settled, data, kept, classifier, device, processes, num_steps, stop)
        report = features(data.report, f"features of {data.report_name}")
        choosing = features(data.validation, "features to choose by") if data.validation is not None else report
        processes.wait()  # until all have seen the run folder as it was

        # From here on the run folder exists.
        if processes.is_first:
            begin(chosen, settled.preprocessing, earlier, lock, data.taken)
            write_split(run, chosen, data)
        progress = open_progress(run, chosen, earlier, processes, len(data.train), len(data.train))
        beginning = state_of(data, settings_of(chosen, settled.preprocessing))
        stepped = parallelise(probes.train(), processes, device)

        def evaluated(step: int) -> dict[str, float]:
            found = [named_figures(p) for p in predictions_of(probes, choosing, device, data.scale)]
            best = found[best_of(found, data)]
            return {f"choice_{name}": best[name] for name in (figure_of(data), "held_out_loss") if name in best}

        def save(step: int, state: dict[str, Any]) -> None:
            state = {**beginning, "encoder": encoder_hash, **state}
            description = {"kind": "probes", "rates": chosen.base_lr, "seed": chosen.seed, "step": step}
            save_checkpoint(run, step, probes, optimizer, description, state, chosen.keep)

        def finish() -> dict[str, Any]:
            """The choice, then the final figure on images that decided nothing."""
            probes.eval()
            found = [named_figures(p) for p in predictions_of(probes, choosing, device, data.scale)]
            number = best_of(found, data)
            predictions = replace(predictions_of(probes, report, device, data.scale)[number], bad=report.bad)
            if processes.is_first:
                progress.log.quarantine_of(data.report_name, report.bad)
                write_rates(run / "rates.csv", chosen.base_lr, found)
                probes.put_into(classifier, number)
                description = describe_tuned(shape, settled.preprocessing, data, chosen.recipe, chosen.seed)
                with disk_faults(run), written_aside(run / MODEL) as partial:
                    save_model(partial, classifier, {**description, "step": num_steps})
                title = f"{run.name}, {data.report_name}"
                write_report(run, predictions, data.report, data.classes, settled.preprocessing, title)
                print(rate_lines(chosen.base_lr, found, number, data))
            choice = {"chosen_base_lr": chosen.base_lr[number], "chosen_by": chosen_by(data)}
            return {**named_figures(predictions), **choice, **counts_of(data)}

        training = Training(
            title="probe",
            run=run,
            device=device,
            num_steps=num_steps,
            batch_size=chosen.batch_size,
            micro_batch_size=chosen.micro_batch_size,
            log_every=chosen.log_every,
            save_every=chosen.save_every,
            model=probes,
            optimizer=optimizer,
            schedule=schedule,
            take_step=lambda parts, step: train_step(
                stepped, optimizer, parts, reader.features, data, chosen.batch_size, device, processes
            ),
            read_from=reader.read_from,
            save=save,
            restore=lambda checkpoint: put_back(checkpoint, probes, optimizer),
            names_of_step=lambda step: names_of_step(reader.stream, step, chosen.batch_size),
        )

        def watched() -> list[Evaluator]:
            progress.note_bad({**(facts.bad if facts else {}), **(kept.bad if kept else {})})
            return [Evaluator(chosen.evaluate_every, evaluated)]

        summary = run_loop(training, progress, watched, stop, processes, step, finish)
        progress.log.summary(summary)
        if processes.is_first:
            print(said(summary, data, run))
        processes.wait()
        return summary


def decide(
    config: ProbeConfig,
    earlier: Earlier | None,
    init: Described,
    data: LabelledData,
    device: torch.device,
    processes: Processes,
) -> tuple[SettledProbing, DataFacts | None]:
    """The settings of the run: those of its earlier start, or new ones after a look at the data.

    Raises:
        RequestError: no image of the look can be read, or the settings do not fit.
    """
    encoder, preprocessing = init.encoder_shape, init.preprocessing
    if earlier is not None:
        check_classes(earlier, data)
        settled = SettledProbing.of(earlier.config, encoder, data.num_outputs, earlier.preprocessing)
        return replace(settled, config=replace(settled.config, device=str(device))), None
    try:
        facts = look_at(data.train, beside=data.parts)
    except RequestError as error:
        raise RequestError(f"{config.dataset}: {error}") from None
    machine = Machine.of(device, processes.local_count, facts.largest)
    settled = settle_probe(config, facts, data.num_outputs, machine, encoder, preprocessing)
    return replace(settled, config=replace(settled.config, device=str(device))), facts


def restore(
    earlier: Earlier | None,
    probes: Probes,
    optimizer: torch.optim.Optimizer,
    data: LabelledData,
    encoder_hash: str,
) -> int:
    """Put the newest good checkpoint back; return the step to go on from.

    Raises:
        RequestError: the data or the encoder is not that of the checkpoint.
    """
    if earlier is None or earlier.checkpoint is None:
        return 0
    earlier.check_settings()
    earlier.check_data(data.fingerprint)
    if earlier.state["encoder"] != encoder_hash:
        raise RequestError(
            f"--init {earlier.config.init} is not the encoder that this run began with: restore it, or start a new "
            "run with another --out"
        )
    put_back(earlier.checkpoint, probes, optimizer)
    return int(earlier.state["step"])


def put_back(checkpoint: Checkpoint, probes: Probes, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's heads and optimiser back."""
    weights, _ = read_model(checkpoint.folder / MODEL)
    load_weights(probes, weights, str(checkpoint.folder))
    optimizer.state.clear()
    restore_optimizer(checkpoint.folder, probes, optimizer)
