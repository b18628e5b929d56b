"""`openmae probe`: a linear classifier, or a linear regression, on a frozen encoder (paper, table 10)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from openmae.config import ProbeConfig, ResolvedProbeConfig
from openmae.data.labels.labelled import LabelledData
from openmae.data.sources.open import Source
from openmae.errors import RequestError
from openmae.inference.features import Features, check_readable
from openmae.inference.models import EncoderModel
from openmae.interchange.init import read_init
from openmae.interchange.load_weights import load_encoder, load_weights
from openmae.interchange.stored import hash_weights
from openmae.machine.files import atomic_write, disk_faults
from openmae.machine.parallel import parallelise
from openmae.model.heads import Classifier
from openmae.model.probe import Probes
from openmae.planning.decisions import cosine_schedule, total_steps
from openmae.planning.probe import ProbePlan, plan_probe
from openmae.planning.summary_lines import probe_lines
from openmae.run.evaluators import Evaluator
from openmae.run.folder import PreviousRun
from openmae.run.lock import check_outside
from openmae.run.open_run import Run, open_run
from openmae.tasks.classification.classification import (
    check_classes,
    data_counts,
    describe_model,
    label_state,
    named_metrics,
    open_data,
    result_text,
    write_split,
)
from openmae.tasks.classification.report import write_report
from openmae.tasks.probe.features import compute_features, head_predictions, make_feature_batches
from openmae.tasks.probe.rates import best_head, choice_metric, chosen_by, rates_text, write_rates
from openmae.tasks.probe.step import make_optimizer, train_step
from openmae.training.checkpoint import MODEL, Checkpoint, read_model, restore_optimizer, save_checkpoint, save_model


def probe(config: ProbeConfig) -> dict[str, Any]:
    """Train linear heads on a frozen encoder, one for each learning rate; keep the best by a split of train.

    Returns:
        What RUN/summary.json holds.

    Raises:
        RequestError: a wrong setting, unusable data or labels, or too many unreadable files.
        Interrupted: a signal; the run was saved and `--resume auto` continues it.
        Fault: a full disk, a dead reader process, or a loss that stays not finite.
    """
    with open_run("probe", config, ResolvedProbeConfig, remembers_micro_batch=False) as run:
        # The data, and the settings that the user left open.
        requested, device, processes = run.requested, run.device, run.processes
        init = read_init(requested.init)
        check_outside(requested.dataset, requested.out)
        needs_validation = requested.base_lr is None or len(requested.base_lr) > 1
        data = open_data(requested, init.preprocessing, needs_validation=needs_validation)
        check_classes(run.previous, data)
        plan, facts = plan_probe(requested, init, data, device, processes.local_count, run.previous)
        resolved, num_steps = plan.config, total_steps(plan.config, len(data.train))
        run.check_batch_size(resolved.batch_size, 2, ": the BatchNorm of a probe needs as many")

        # The frozen encoder, and the heads with their optimiser: from the checkpoint where there is one.
        torch.manual_seed(resolved.seed)
        classifier = Classifier.from_shape(plan.shape)
        run.print_lines(*load_encoder(classifier.encoder, init))
        classifier.requires_grad_(False).eval().to(device)
        probes = Probes(plan.shape, len(resolved.base_lr)).to(device)
        optimizer = make_optimizer(probes, resolved)
        schedule = cosine_schedule(resolved, max(resolved.base_lr), len(data.train), num_steps)
        encoder_hash = hash_weights(init.encoder_weights)
        run.restore(
            data.fingerprint,
            restore_state=lambda checkpoint: restore_state(checkpoint, probes, optimizer),
            check=lambda previous: check_encoder(previous, encoder_hash),
        )
        if (summary := run.finished_summary(num_steps)) is not None:
            return summary
        lines = [] if facts is None else [*data.source_lines, *probe_lines(plan, data, facts, device, num_steps)]
        run.print_plan(lines)
        run.check_disk(8 * sum(p.numel() for p in probes.parameters()), resolved.keep)

        # Features of images that are centre-cropped, never augmented: computed once.
        encoder = EncoderModel(classifier.encoder, plan.preprocessing, init.description, device, init.report)
        features = functools.partial(compute_features, encoder, plan, processes)
        cached = features(data.train, "features to train on") if resolved.augment == "none" else None
        if cached is not None:
            check_readable(cached.bad, len(data.train), resolved.max_bad, "training images")
        batches = make_feature_batches(run, plan, data, cached, classifier)
        evaluation = make_evaluation(features, plan, data, probes, classifier)
        run.begin(
            resolved,
            plan.preprocessing,
            origins=data.origins,
            num_images=len(data.train),
            num_inputs=len(data.train),
            description={"kind": "probes", "rates": resolved.base_lr, "seed": resolved.seed},
            state={**label_state(data), "encoder": encoder_hash},
        )
        if processes.is_first:
            write_split(run.path, resolved, data)

        # The step of all heads; the best of them is chosen at the end.
        wrapped_model = parallelise(probes.train(), processes, device)
        return run.train(
            model=probes,
            optimizer=optimizer,
            schedule=schedule,
            batches=batches.batches,
            take_step=lambda inputs, step: train_step(
                wrapped_model, optimizer, inputs, batches.features, data, resolved, processes
            ),
            evaluators=lambda: [Evaluator(resolved.evaluate_every, evaluation.evaluate)],
            bad={**(facts.bad if facts else {}), **(cached.bad if cached else {})},
            save=save_checkpoint,
            finish=lambda: finish(run, evaluation),
            final_message=lambda summary: result_text(summary, data, run.path),
        )


@dataclass(frozen=True)
class ProbeEvaluation:
    """The heads, and the features of the images that they are chosen and finally measured by.

    Attributes:
        choice: of the images by which a head is chosen.
        final: of the final split.
    """

    plan: ProbePlan
    data: LabelledData
    probes: Probes
    classifier: Classifier
    choice: Features
    final: Features
    device: torch.device

    def head_metrics(self) -> list[dict[str, float]]:
        """The metrics of each head on the images by which one is chosen."""
        return [named_metrics(p) for p in head_predictions(self.probes, self.choice, self.device, self.data.scale)]

    def evaluate(self, step: int) -> dict[str, float]:
        """The metrics of the head that is the best so far, their names after `choice_`."""
        metrics = self.head_metrics()
        best = metrics[best_head(metrics, self.data)]
        return {f"choice_{name}": best[name] for name in (choice_metric(self.data), "held_out_loss") if name in best}


def make_evaluation(
    features: Callable[[Source, str], Features],
    plan: ProbePlan,
    data: LabelledData,
    probes: Probes,
    classifier: Classifier,
) -> ProbeEvaluation:
    """The evaluation of the heads, with the features of its images computed by `features`."""
    final = features(data.final_source, f"features of {data.final_split}")
    choice = features(data.validation, "features to choose by") if data.validation is not None else final
    return ProbeEvaluation(plan, data, probes, classifier, choice, final, next(probes.parameters()).device)


def finish(run: Run[ResolvedProbeConfig], evaluation: ProbeEvaluation) -> dict[str, Any]:
    """Choose a head, measure it on the final split, whose images decided nothing, and write model and report."""
    data, plan, rates = evaluation.data, evaluation.plan, run.config.base_lr
    evaluation.probes.eval()
    metrics = evaluation.head_metrics()
    best = best_head(metrics, data)
    predictions = head_predictions(evaluation.probes, evaluation.final, evaluation.device, data.scale)[best]
    if run.processes.is_first:
        run.progress.log.quarantine.replace_part(data.final_split, evaluation.final.bad)
        write_rates(run.path / "rates.csv", rates, metrics)
        evaluation.probes.copy_into(evaluation.classifier, best)
        description = describe_model(plan.shape, plan.preprocessing, data, run.config.recipe, run.config.seed)
        with disk_faults(run.path), atomic_write(run.path / MODEL) as partial:
            save_model(partial, evaluation.classifier, {**description, "step": run.num_steps})
        title = f"{run.path.name}, {data.final_split}"
        write_report(run.path, predictions, data.final_source, data.classes, plan.preprocessing, title)
        print(rates_text(rates, metrics, best, data))
    choice = {"chosen_base_lr": rates[best], "chosen_by": chosen_by(data)}
    return {**named_metrics(predictions), **choice, **data_counts(data)}


def check_encoder(previous: PreviousRun[ResolvedProbeConfig], encoder_hash: str) -> None:
    """Raise RequestError where the encoder is not that of the checkpoint."""
    if previous.state["encoder"] != encoder_hash:
        raise RequestError(
            f"--init {previous.config.init} is not the encoder that this run began with: restore it, or start a new "
            "run with another --out"
        )


def restore_state(checkpoint: Checkpoint, probes: Probes, optimizer: torch.optim.Optimizer) -> None:
    """Load a checkpoint's heads and its optimiser's state."""
    weights, _ = read_model(checkpoint.folder / MODEL)
    load_weights(probes, weights, str(checkpoint.folder))
    optimizer.state.clear()
    restore_optimizer(checkpoint.folder, probes, optimizer)
