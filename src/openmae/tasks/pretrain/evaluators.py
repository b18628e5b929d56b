"""What is evaluated while pre-training: reconstructions, the held-out loss and, with `--watch`, labelled images."""

from collections.abc import Callable

import torch

from openmae.config import ResolvedPretrainConfig
from openmae.data.sources.views import PermutedSubset
from openmae.inference.mask_sampler import MaskSampler
from openmae.machine.signals import StopRequest
from openmae.model.mae import MAE
from openmae.planning.decisions import total_steps
from openmae.planning.pretrain import PretrainPlan
from openmae.run.evaluators import Evaluator
from openmae.run.health import MIN_IMAGES, TOO_EARLY, Health, effective_rank, trivial_loss
from openmae.run.progress import Progress
from openmae.tasks.pretrain.data import TrainingData
from openmae.tasks.pretrain.held_out import NUM_PICTURED, HeldOut
from openmae.tasks.pretrain.watch import Watch, open_watch
from openmae.training.telemetry import read_lines


def make_evaluators(
    config: ResolvedPretrainConfig,
    plan: PretrainPlan,
    data: TrainingData,
    mask_sampler: MaskSampler,
    model: MAE,
    device: torch.device,
    progress: Progress,
    stop: StopRequest,
) -> list[Evaluator]:
    """The evaluators of a run: pictures of reconstructions, the held-out loss with a health check, and `--watch`.

    Raises:
        RequestError: the data of `--watch` cannot be used.
    """
    # Pictures are of training images where none are held out.
    source = data.held_out or PermutedSubset(data.train, 0, min(NUM_PICTURED, len(data.train)))
    held_out = HeldOut(source, config, plan.preprocessing, mask_sampler)
    progress.bad_inputs.note(held_out.bad)
    if len(held_out.images) == 0:
        return []

    def picture(step: int) -> dict[str, float]:
        progress.log.picture(held_out.picture(model, device), step)
        return {}

    evaluators = [Evaluator(config.picture_every, picture)] if model.target.why_no_pictures is None else []
    if data.held_out is not None:
        evaluators.append(
            Evaluator(config.evaluate_every, health_check(config, data, held_out, model, device, progress, stop))
        )
    if progress.processes.is_first and (watch_data := open_watch(config)) is not None:
        watch = Watch(watch_data, config, plan.preprocessing)
        for name, reason in watch.bad.items():
            print(f"warning: --watch leaves out {name!r} ({reason})", flush=True)
        evaluators.append(Evaluator(watch.every, lambda step: watch.measure(model, device, stop)))
    return evaluators


def health_check(
    config: ResolvedPretrainConfig,
    data: TrainingData,
    held_out: HeldOut,
    model: MAE,
    device: torch.device,
    progress: Progress,
    stop: StopRequest,
) -> Callable[[int], dict[str, float]]:
    """An evaluation of the held-out loss and the effective rank of the features; a new verdict on them is printed."""
    num_steps = total_steps(config, len(data.train))
    trivial = trivial_loss(model.target, lambda: held_out.samples(device))
    health = Health(
        num_steps=num_steps,
        warmup_steps=config.warmup_epochs * len(data.train) / config.batch_size,
        trivial_loss=trivial,
        target=config.target,
        lines=read_lines(progress.log.metrics_path),  # of a resumed run: only those before the step it goes on from
    )
    if health.points:
        progress.notes["health"] = health.verdict().word

    def check(step: int) -> dict[str, float]:
        results = {"held_out_loss": held_out.loss(model, device, stop)}
        if len(held_out.images) >= MIN_IMAGES:
            results["effective_rank"] = effective_rank(held_out.features(model, device, stop))
        results["trivial_loss"] = trivial
        health.record(step, results["held_out_loss"], results.get("effective_rank"))
        verdict = health.verdict()
        is_new = verdict.word not in (TOO_EARLY, progress.notes.get("health"))
        if is_new or step == num_steps:
            print(f"health     {verdict.word}: {verdict.reason}", flush=True)
        progress.notes["health"] = verdict.word
        return results

    return check
