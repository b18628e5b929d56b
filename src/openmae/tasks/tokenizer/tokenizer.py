"""`openmae tokenizer`: from a folder of images to a discrete VAE whose tokens `pretrain --target token` predicts."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from openmae.config import Preprocessing, ResolvedTokenizerConfig, TokenizerConfig
from openmae.data.augment import Augmentation
from openmae.data.batch import Batch
from openmae.data.device_crop import model_input
from openmae.data.loader import Stream
from openmae.data.preprocess import DataFacts
from openmae.data.randomness import seeds
from openmae.data.sources.views import PermutedSubset
from openmae.errors import quoted
from openmae.machine.device import autocast
from openmae.machine.parallel import Processes, parallelise
from openmae.model.tokenizer import DiscreteVAE, gumbel_noise
from openmae.planning.decisions import cosine_schedule, survey_data_and_machine, total_steps
from openmae.planning.tokenizer import TokenizerPlan, checkpoint_bytes, make_tokenizer_plan, tokenizer_lines
from openmae.run.evaluators import Evaluator
from openmae.run.model_input import ModelInput
from openmae.run.open_run import Run, open_run
from openmae.run.step import StepResult, accumulated_step
from openmae.tasks.pretrain.data import TrainingData, open_training_data
from openmae.tasks.tokenizer.held_out import NUM_PICTURED, HeldOut, collapse_line
from openmae.training.checkpoint import MODEL, Checkpoint, restore_optimizer
from openmae.training.optim import adamw
from openmae.training.prefetch import StepInputs

ANNEALED_AT = 0.7  # of the steps; from there on the temperature stays


def tokenizer(config: TokenizerConfig) -> dict[str, Any]:
    """Train a tokenizer; all that it leaves behind lies in `config.out`.

    Returns:
        What RUN/summary.json holds.

    Raises:
        RequestError: a wrong setting, unusable data, or too many unreadable files.
        Interrupted: a signal; the run was saved and `--resume auto` continues it.
        Fault: a full disk, a dead reader process, or a loss that stays not finite.
    """
    with open_run("tokenizer", config, ResolvedTokenizerConfig) as run:
        # The data, and the settings that the user left open.
        device, processes = run.device, run.processes
        data = open_training_data(run.requested)
        run.print_lines(*(data.source_lines if run.is_new else ()))
        plan, facts = plan_tokenizer(run, data)
        resolved, num_steps = plan.config, total_steps(plan.config, len(data.train))
        run.check_batch_size(resolved.batch_size)

        # The model and its optimiser, from the checkpoint where there is one.
        torch.manual_seed(resolved.seed)
        model = DiscreteVAE(plan.shape).to(device)
        optimizer = adamw(model, resolved.weight_decay, resolved.betas)
        run.restore(data.fingerprint, lambda checkpoint: restore_state(checkpoint, model, optimizer))
        if (summary := run.finished_summary(num_steps)) is not None:
            return summary
        held_out = len(data.held_out) if data.held_out is not None else 0
        run.print_plan([] if facts is None else tokenizer_lines(plan, facts, device, held_out))
        run.check_disk(checkpoint_bytes(plan.shape), resolved.keep)
        run.begin(
            resolved,
            plan.preprocessing,
            origins=data.origins,
            num_images=len(data.train),
            num_inputs=data.num_images,
            description=describe_tokenizer(plan),
        )

        # The step, on every batch of the stream.
        wrapped = parallelise(model.train(), processes, device)
        stream = make_stream(plan, data)
        return run.train(
            model=model,
            optimizer=optimizer,
            schedule=cosine_schedule(resolved, resolved.base_lr, len(data.train), num_steps),
            batches=run.batches(resolved, stream, lambda batch: prepare(batch, plan.preprocessing, device)),
            take_step=lambda inputs, step: train_step(
                wrapped, model, optimizer, inputs, plan, processes, temperature_at(step / num_steps, resolved)
            ),
            evaluators=lambda: make_evaluators(run, plan, data, model, num_steps),
            bad=facts.bad if facts else None,
            final_message=lambda summary: (
                f"done       {run.path / MODEL}; use it: openmae pretrain DATA --target token "
                f"--tokenizer {quoted(run.path)} --out RUN"
            ),
        )


def plan_tokenizer(run: Run[ResolvedTokenizerConfig], data: TrainingData) -> tuple[TokenizerPlan, DataFacts | None]:
    """The plan of a new run, with facts about its data; or that of a resumed one, and None."""
    if run.previous is not None:
        saved = replace(run.previous.config, device=str(run.device))
        return TokenizerPlan(saved, saved.shape, run.previous.preprocessing, {}), None
    others = () if data.held_out is None else [data.held_out]
    requested, count = run.requested, run.processes.local_count
    facts, machine = survey_data_and_machine(requested, data.train, others, run.device, count)
    return make_tokenizer_plan(requested, facts, machine, data.num_held_out), facts


def make_stream(plan: TokenizerPlan, data: TrainingData) -> Stream:
    """The endless stream of the run's training samples, of the size that the tokenizer sees."""
    c = plan.config
    augmentation = Augmentation(kind=c.augment, crop_aspect=c.crop_aspect)
    return Stream(data.train, plan.preprocessing, augmentation, c.seed, patch_size=c.stride)


def prepare(micro_batch: Batch, preprocessing: Preprocessing, device: torch.device) -> ModelInput:
    """A micro-batch on the device, normalised."""
    return ModelInput(model_input(micro_batch, preprocessing, device), micro_batch.keys)


def temperature_at(share_done: float, config: ResolvedTokenizerConfig) -> float:
    """The temperature of the Gumbel softmax: from the first to the second along a geometric series, then constant."""
    first, last = config.temperature
    return first * math.exp(math.log(last / first) * min(1.0, share_done / ANNEALED_AT))


def train_step(
    wrapped: nn.Module,
    model: DiscreteVAE,
    optimizer: torch.optim.Optimizer,
    inputs: StepInputs[Batch, ModelInput],
    plan: TokenizerPlan,
    processes: Processes,
    temperature: float,
) -> StepResult:
    """One optimiser step over this process's micro-batches of a global batch, and the codes' usage with it."""
    c, usage = plan.config, list[Tensor]()
    places = plan.grid[0] * plan.grid[1]

    def loss_fn(micro_batch: ModelInput) -> Tensor:
        images = micro_batch.images
        noise = gumbel_noise(seeds(micro_batch.keys.numpy(), "gumbel").tolist(), places, c.codebook, images.device)
        with autocast(images.device, c.precision):
            output = wrapped(images, noise, temperature)
        usage.append(output.usage)
        return (output.image_losses + c.balance * output.balance_losses).sum() / c.batch_size

    loss, norm, is_skipped = accumulated_step(wrapped, optimizer, inputs, loss_fn, processes)
    model.record_usage(processes.sum(torch.stack(usage).sum(dim=0)), is_skipped)
    return loss, norm, is_skipped


def make_evaluators(
    run: Run[ResolvedTokenizerConfig], plan: TokenizerPlan, data: TrainingData, model: DiscreteVAE, num_steps: int
) -> list[Evaluator]:
    """Measures of held-out images, and pictures; the latter of some training images where none are held out."""
    source = data.held_out or PermutedSubset(data.train, 0, min(NUM_PICTURED, len(data.train)))
    held_out = HeldOut(source, plan)
    run.progress.bad_inputs.note(held_out.bad)
    if len(held_out.images) == 0:
        return []

    def picture(step: int) -> dict[str, float]:
        run.progress.log.picture(held_out.picture(model, run.device), step)
        return {}

    evaluators = [Evaluator(plan.config.picture_every, picture)]
    if data.held_out is not None:
        measure = measure_and_warn(held_out, model, run, num_steps)
        evaluators.append(Evaluator(plan.config.evaluate_every, measure))
    return evaluators


def measure_and_warn(
    held_out: HeldOut, model: DiscreteVAE, run: Run[ResolvedTokenizerConfig], num_steps: int
) -> Callable[[int], dict[str, float]]:
    """An evaluation of the held-out images that warns when the codebook collapses, and again at the end."""
    has_warned = False

    def measure(step: int) -> dict[str, float]:
        nonlocal has_warned
        metrics = held_out.measure(model, run.device, run.stop)
        line = collapse_line(metrics, held_out.config, held_out.num_tokens, step, num_steps)
        if line is not None and (not has_warned or step == num_steps):
            print(line, flush=True)
        has_warned = line is not None
        return metrics

    return measure


def restore_state(checkpoint: Checkpoint, model: DiscreteVAE, optimizer: torch.optim.Optimizer) -> None:
    """Load a checkpoint's weights and its optimiser's state."""
    model.load_state_dict(load_file(checkpoint.folder / MODEL))
    optimizer.state.clear()
    restore_optimizer(checkpoint.folder, model, optimizer)


def describe_tokenizer(plan: TokenizerPlan) -> dict[str, Any]:
    """What determines the weights or their use; no path, host, worker count or time: equal runs, equal bytes."""
    return {
        "kind": "tokenizer",
        "shape": plan.shape.to_dict(),
        "preprocessing": plan.preprocessing.to_dict(),
        "seed": plan.config.seed,
    }
