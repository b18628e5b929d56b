"""`openmae probe`: a linear classifier, or a linear regression, on a frozen encoder (paper, table 10)."""

import functools
from dataclasses import dataclass
from typing import Any

import torch

from openmae.config import ProbeConfig, ResolvedProbeConfig
from openmae.data.labels.labelled import LabelledData
from openmae.errors import RequestError
from openmae.inference.features import Features, check_readable
from openmae.inference.models import EncoderModel
from openmae.interchange.init import read_init
from openmae.interchange.load_weights import load_encoder, load_weights
from openmae.interchange.stored import hash_of
from openmae.machine.files import disk_faults, written_aside
from openmae.machine.parallel import parallelise
from openmae.model.heads import Classifier
from openmae.model.probe import Probes
from openmae.planning.decisions import cosine, total_steps
from openmae.planning.probe import ProbePlan, plan_probe
from openmae.planning.summary_lines import probe_lines
from openmae.run.evaluators import Evaluator
from openmae.run.folder import PreviousRun, check_outside
from openmae.run.open_run import Run, open_run
from openmae.tasks.classification.classification import (
    check_classes,
    counts_of,
    describe_tuned,
    labels_of_run,
    named_figures,
    open_data,
    said,
    write_split,
)
from openmae.tasks.classification.report import write_report
from openmae.tasks.probe.features import features_of, make_reader, predictions_of
from openmae.tasks.probe.rates import best_of, chosen_by, figure_of, rate_lines, write_rates
from openmae.tasks.probe.step import make_optimizer, train_step
from openmae.training.checkpoint import MODEL, Checkpoint, read_model, restore_optimizer, save_checkpoint, save_model


def probe(config: ProbeConfig) -> dict[str, Any]:
    """Train linear heads on a frozen encoder, one for each rate; keep the best by a split of train.

    Returns:
        What RUN/summary.json holds.

    Raises:
        RequestError: a wrong setting, unusable data or labels, or too many unreadable files.
        Interrupted: a signal; the run was saved and `--resume auto` continues it.
        Fault: a full disk, a dead reader process, or a loss that is not finite.
    """
    with open_run("probe", config, ResolvedProbeConfig, remembers_micro_batch=False) as run:
        # The data, and what the person left open.
        asked, device, processes = run.requested, run.device, run.processes
        init = read_init(asked.init)
        check_outside(asked.dataset, asked.out)
        needs_validation = asked.base_lr is None or len(asked.base_lr) > 1
        data = open_data(asked, init.preprocessing, needs_validation=needs_validation)
        check_classes(run.previous, data)
        plan, facts = plan_probe(asked, init, data, device, processes.local_count, run.previous)
        chosen, num_steps = plan.config, total_steps(plan.config, len(data.train))
        run.check_shares(chosen.batch_size, 2, ": the BatchNorm of a probe needs as many")

        # The frozen encoder, and the heads with their optimiser: from the checkpoint where there is one.
        torch.manual_seed(chosen.seed)
        classifier = Classifier.from_shape(plan.shape)
        run.say(*load_encoder(classifier.encoder, init))
        classifier.requires_grad_(False).eval().to(device)
        probes = Probes(plan.shape, len(chosen.base_lr)).to(device)
        optimizer = make_optimizer(probes, chosen)
        schedule = cosine(chosen, max(chosen.base_lr), len(data.train), num_steps)
        encoder_hash = hash_of(init.encoder_weights)
        run.restore(
            data.fingerprint,
            restore_state=lambda checkpoint: restore_state(checkpoint, probes, optimizer),
            check=lambda previous: check_encoder(previous, encoder_hash),
        )
        if (summary := run.finished(num_steps)) is not None:
            return summary
        lines = [] if facts is None else [*data.source_lines, *probe_lines(plan, data, facts, device, num_steps)]
        run.announce(lines, 8 * sum(p.numel() for p in probes.parameters()), chosen.keep)

        # What the encoder says of images that are looked at as they are: computed once.
        encoder = EncoderModel(classifier.encoder, plan.preprocessing, init.description, device, init.report)
        features = functools.partial(features_of, encoder, plan, processes)
        kept = features(data.train, "features to train on") if chosen.augment == "none" else None
        if kept is not None:
            check_readable(kept.bad, len(data.train), chosen.max_bad, "training images")
        reader = make_reader(run, plan, data, kept, classifier)
        report = features(data.final_source, f"features of {data.final_split}")
        choosing = features(data.validation, "features to choose by") if data.validation is not None else report
        run.begin(
            chosen,
            plan.preprocessing,
            taken=data.origins,
            num_images=len(data.train),
            num_inputs=len(data.train),
            description={"kind": "probes", "rates": chosen.base_lr, "seed": chosen.seed},
            state={**labels_of_run(data), "encoder": encoder_hash},
        )
        if processes.is_first:
            write_split(run.path, chosen, data)

        # The step of all heads; the best of them is chosen in the end.
        wrapped = parallelise(probes.train(), processes, device)
        outcome = Outcome(plan, data, probes, classifier, choosing, report, device)
        return run.train(
            model=probes,
            optimizer=optimizer,
            schedule=schedule,
            batches=reader.batches,
            take_step=lambda parts, step: train_step(
                wrapped, optimizer, parts, reader.features, data, chosen.batch_size, len(chosen.base_lr), processes
            ),
            evaluators=lambda: [Evaluator(chosen.evaluate_every, outcome.evaluated)],
            bad={**(facts.bad if facts else {}), **(kept.bad if kept else {})},
            save=save_checkpoint,
            finish=lambda: finish(run, outcome),
            closing=lambda summary: said(summary, data, run.path),
        )


@dataclass(frozen=True)
class Outcome:
    """What the heads say of the images they are chosen by, and of those that are reported."""

    plan: ProbePlan
    data: LabelledData
    probes: Probes
    classifier: Classifier
    choosing: Features
    report: Features
    device: torch.device

    def found(self) -> list[dict[str, float]]:
        """The figures of each head."""
        return [named_figures(p) for p in predictions_of(self.probes, self.choosing, self.device, self.data.scale)]

    def evaluated(self, step: int) -> dict[str, float]:
        found = self.found()
        best = found[best_of(found, self.data)]
        return {f"choice_{name}": best[name] for name in (figure_of(self.data), "held_out_loss") if name in best}


def finish(run: Run[ResolvedProbeConfig], outcome: Outcome) -> dict[str, Any]:
    """The choice, then the final figure on images that decided nothing."""
    data, plan, rates = outcome.data, outcome.plan, run.config.base_lr
    outcome.probes.eval()
    found = outcome.found()
    number = best_of(found, data)
    predictions = predictions_of(outcome.probes, outcome.report, outcome.device, data.scale)[number]
    if run.processes.is_first:
        run.progress.log.quarantine.replace_part(data.final_split, outcome.report.bad)
        write_rates(run.path / "rates.csv", rates, found)
        outcome.probes.put_into(outcome.classifier, number)
        description = describe_tuned(plan.shape, plan.preprocessing, data, run.config.recipe, run.config.seed)
        with disk_faults(run.path), written_aside(run.path / MODEL) as partial:
            save_model(partial, outcome.classifier, {**description, "step": run.num_steps})
        title = f"{run.path.name}, {data.final_split}"
        write_report(run.path, predictions, data.final_source, data.classes, plan.preprocessing, title)
        print(rate_lines(rates, found, number, data))
    choice = {"chosen_base_lr": rates[number], "chosen_by": chosen_by(data)}
    return {**named_figures(predictions), **choice, **counts_of(data)}


def check_encoder(previous: PreviousRun[ResolvedProbeConfig], encoder_hash: str) -> None:
    """Raise RequestError where the encoder is not that of the checkpoint."""
    if previous.state["encoder"] != encoder_hash:
        raise RequestError(
            f"--init {previous.config.init} is not the encoder that this run began with: restore it, or start a new "
            "run with another --out"
        )


def restore_state(checkpoint: Checkpoint, probes: Probes, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's heads and optimiser back."""
    weights, _ = read_model(checkpoint.folder / MODEL)
    load_weights(probes, weights, str(checkpoint.folder))
    optimizer.state.clear()
    restore_optimizer(checkpoint.folder, probes, optimizer)
