"""`openmae pretrain`: masked pre-training from a folder of images to a checkpoint (paper, section 3, table 8)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openmae.config import MAEShape, Preprocessing, PretrainConfig, ResolvedPretrainConfig
from openmae.config.checks import OFF
from openmae.data.batch import Batch
from openmae.data.device_crop import model_input
from openmae.data.preprocess import DataFacts
from openmae.errors import RequestError, quoted
from openmae.inference.mask_sampler import MaskSampler, read_mask, to_device
from openmae.interchange.incoming.conversion import Hints
from openmae.interchange.init import read_init, read_stored_model
from openmae.interchange.load_weights import load_for_pretraining, load_weights
from openmae.interchange.stored import StoredModel
from openmae.interchange.token_models import describe_tokenizer
from openmae.interchange.tokenizers import StoredTokenizer
from openmae.machine.device import autocast
from openmae.machine.parallel import Processes
from openmae.model.mae import MAE
from openmae.planning.decisions import cosine_schedule, total_steps
from openmae.planning.pretrain import PretrainPlan, plan_pretrain
from openmae.planning.summary_lines import checkpoint_bytes, pretrain_lines
from openmae.run.folder import PreviousRun
from openmae.run.model_input import ModelInput, counted_patches
from openmae.run.open_run import Run, open_run
from openmae.run.remembered import remember_no_compile
from openmae.run.step import StepResult, accumulated_step
from openmae.run.step_model import StepModel
from openmae.tasks.pretrain.data import TrainingData, make_stream, open_training_data
from openmae.tasks.pretrain.evaluators import make_evaluators
from openmae.tasks.pretrain.fit_target import fit_target
from openmae.tasks.pretrain.tile_lines import tile_lines
from openmae.tasks.pretrain.tokenizer import attach_tokenizer, has_same_tokens, open_tokenizer
from openmae.tasks.pretrain.watch import open_watch
from openmae.training.checkpoint import MODEL, Checkpoint, restore_optimizer, save_checkpoint
from openmae.training.optim import adamw
from openmae.training.prefetch import StepInputs


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Pre-train a masked autoencoder; all that it leaves behind lies in `config.out`.

    Returns:
        What RUN/summary.json holds.

    Raises:
        RequestError: a wrong setting, unusable data, or too many unreadable files.
        Interrupted: a signal; the run was saved and `--resume auto` continues it.
        Fault: a full disk, a dead reader process, or a loss that stays not finite.

    Example:
        >>> config = openmae.PretrainConfig(data="photos", out="runs/photos", epochs=2)
        >>> openmae.pretrain(config)["status"]
        'complete'
    """
    with open_run("pretrain", config, ResolvedPretrainConfig) as run:
        # The data, and the settings that the user left open.
        requested, device, processes = run.requested, run.device, run.processes
        init = read_initial_model(run)
        tokenizer = open_tokenizer(run, config, init)
        data = open_training_data(requested, None if init is None else init.preprocessing)
        # Printed early: the plan takes seconds, for it imports torch.optim and with it the compiler.
        run.print_lines(*(data.source_lines if run.is_new else ()))
        count = processes.local_count
        plan, facts = plan_pretrain(requested, init, data, device, count, run.previous, tokenizer)
        resolved, preprocessing, shape = plan.config, plan.preprocessing, plan.shape
        mask_sampler, num_steps = make_mask_sampler(resolved, shape), total_steps(resolved, len(data.train))
        run.check_batch_size(resolved.batch_size)
        stream = make_stream(resolved, preprocessing, data.train)

        # The model and its optimiser, from the checkpoint where there is one.
        torch.manual_seed(resolved.seed)
        model = MAE.from_shape(shape)
        run.print_lines(*load_start(model, init, tokenizer))
        attach_tokenizer(model, tokenizer, preprocessing)
        model.to(device)
        model.set_recompute(resolved.recompute)
        model.set_bf16_residual(resolved.bf16_residual)
        optimizer = adamw(model, resolved.weight_decay, resolved.betas)
        schedule = cosine_schedule(resolved, resolved.base_lr, len(data.train), num_steps)
        run.restore(
            data.fingerprint,
            restore_state=lambda checkpoint: restore_state(checkpoint, model, optimizer),
            check=lambda previous: check_mask(previous, mask_sampler),
        )
        if (summary := run.finished_summary(num_steps)) is not None:
            return summary
        fit = fit_target(run, model, stream, init)
        run.print_plan([*new_run_lines(plan, data, facts, device, mask_sampler), *fit.lines])
        run.check_disk(checkpoint_bytes(shape), resolved.keep)
        run.print_lines(*(watch_lines(resolved) if processes.is_first else ()))
        run.begin(
            resolved,
            preprocessing,
            origins=data.origins,
            num_images=len(data.train),
            num_inputs=data.num_images,
            description=describe_model(resolved, shape, preprocessing, mask_sampler, tokenizer) | fit.description,
        )

        # The step, on every batch of the stream.
        step_model = make_step_model(run, model, resolved)
        batches = run.batches(resolved, stream, lambda micro_batch: prepare(micro_batch, plan, mask_sampler, device))
        return run.train(
            model=model,
            optimizer=optimizer,
            schedule=schedule,
            batches=batches,
            take_step=lambda inputs, step: train_step(
                step_model.wrapped, optimizer, inputs, resolved, processes, mask_sampler
            ),
            evaluators=lambda: make_evaluators(
                resolved, plan, data, mask_sampler, model, device, run.progress, run.stop
            ),
            bad=facts.bad if facts else None,
            step_model=step_model,
            save=save_checkpoint,
            final_message=lambda summary: final_line(run.path, model),
        )


def final_line(run: Path, model: MAE) -> str:
    """The last line on the screen: where the model is, and what to do next."""
    use = "reconstruct IMAGE" if model.target.why_no_pictures is None else "attention IMAGE"
    return f"done       {run / MODEL}; look at it: openmae {use} --init {quoted(run)} --out pictures.png"


def read_initial_model(run: Run[ResolvedPretrainConfig]) -> StoredModel | None:
    """The model that `--init` names; None without it, and for a resumed run, whose weights are in its checkpoint."""
    requested = run.requested
    if not run.is_new or requested.init is None:
        return None
    return read_init(
        requested.init, Hints(num_heads=requested.num_heads, decoder_num_heads=requested.decoder_num_heads)
    )


def load_start(model: MAE, init: StoredModel | None, tokenizer: StoredTokenizer | None) -> list[str]:
    """Load the weights of `--init`, if any; return lines to print."""
    if init is None:
        return []
    return load_for_pretraining(model, init, same_tokens=has_same_tokens(init, tokenizer))


def make_step_model(run: Run[ResolvedPretrainConfig], model: MAE, config: ResolvedPretrainConfig) -> StepModel:
    """The model as a training step calls it: compiled where the config says so, wrapped for several processes."""
    return StepModel(
        model.train(),
        run.processes,
        run.device,
        is_compiled=config.compile,
        precision=config.precision,
        loss_fn=loss_fn,
        on_wrong_gradients=lambda: remember_no_compile(run.path) if run.processes.is_first else None,
    )


def new_run_lines(
    plan: PretrainPlan, data: TrainingData, facts: DataFacts | None, device: torch.device, mask_sampler: MaskSampler
) -> list[str]:
    """What is printed about a new run after the lines about its data: tiles and decisions.

    Args:
        facts: about the training images; None for a resumed run, of which nothing is printed.
    """
    if facts is None:
        return []
    held_out = len(data.held_out) if data.held_out is not None else 0
    lines = pretrain_lines(plan, facts, device, mask_sampler.num_visible, held_out)
    return [*tile_lines(plan.config, data, facts), *lines]


def watch_lines(config: ResolvedPretrainConfig) -> list[str]:
    """The printed lines about `--watch-data`. Raises RequestError where the data of `--watch` has no labels."""
    watched_data = open_watch(config)
    if watched_data is None or config.watch_data is None:
        return []
    return [f"watched    {line}" for line in watched_data.source_lines]


def prepare(micro_batch: Batch, plan: PretrainPlan, mask_sampler: MaskSampler, device: torch.device) -> ModelInput:
    """A micro-batch on the device: images cropped (where readers have not done so) and normalised, and their masks."""
    images, masking = model_input(micro_batch, plan.preprocessing, device), mask_sampler(micro_batch.keys)
    counted = counted_patches(micro_batch.is_empty, masking)
    return ModelInput(
        images,
        micro_batch.keys,
        to_device(masking, device),
        is_counted=None if counted is None else counted.float().to(device, non_blocking=True),
        num_counted=0 if counted is None else int(counted.sum()),
    )


def loss_fn(model: nn.Module, inputs: ModelInput, precision: str) -> Tensor:
    """The mean loss of a micro-batch, over the masked patches that are not empty."""
    with autocast(inputs.images.device, precision):
        output = model(inputs.images, inputs.masking)
    if inputs.is_counted is None:
        return output.loss
    return (output.patch_losses * inputs.is_counted).sum() / max(1, inputs.num_counted)


def loss_shares(
    micro_batches: Sequence[Batch],
    mask_sampler: MaskSampler | None,
    config: ResolvedPretrainConfig,
    processes: Processes,
) -> list[float]:
    """The weight of each micro-batch's mean loss in the loss of the step.

    The loss of a step is a mean over all masked patches that are not empty; where no patch of the whole batch is empty,
    images are counted instead. All processes take part. Counted on the CPU, and before the first backward pass:
    the gradient of a micro-batch cannot be re-weighted once it has been added to the others'.
    """
    has_empty = any(micro_batch.is_empty is not None for micro_batch in micro_batches)
    if mask_sampler is None or config.nodata == OFF or not processes.any(has_empty):
        return [len(micro_batch.keys) / config.batch_size for micro_batch in micro_batches]
    counts = []
    for micro_batch in micro_batches:
        masking = mask_sampler(micro_batch.keys)
        counted = counted_patches(micro_batch.is_empty, masking)
        counts.append(masking.masked_ids.numel() if counted is None else int(counted.sum()))
    total = int(processes.sum(torch.tensor(sum(counts))))
    return [count / max(1, total) for count in counts]


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: StepInputs[Batch, ModelInput],
    config: ResolvedPretrainConfig,
    processes: Processes,
    mask_sampler: MaskSampler | None = None,
) -> StepResult:
    """One optimiser step over this process's micro-batches of a global batch.

    A step whose gradients are not finite leaves weights and optimiser as they are.

    Args:
        mask_sampler: None where every masked patch counts, as without nodata.
    """
    shares = iter(loss_shares(inputs.micro_batches, mask_sampler, config, processes))
    return accumulated_step(
        model,
        optimizer,
        inputs,
        lambda micro_batch: loss_fn(model, micro_batch, config.precision) * next(shares),
        processes,
    )


def make_mask_sampler(config: ResolvedPretrainConfig, shape: MAEShape) -> MaskSampler:
    """The sampler of this run's masks. Raises RequestError for a mask file that does not fit the grid of patches."""
    grid = shape.encoder.grid
    given = read_mask(config.mask_file, grid) if config.mask_file else None
    return MaskSampler(config.mask, config.mask_ratio, grid, given)


def check_mask(previous: PreviousRun[ResolvedPretrainConfig], mask_sampler: MaskSampler) -> None:
    """Raise RequestError where the mask of `--mask-file` is not the one that the checkpoint was trained with."""
    if read_stored_model(previous.checkpoint.folder / MODEL).description["masking"] != mask_sampler.describe():
        raise RequestError(f"{previous.config.mask_file} is not the mask that this run began with: restore it")


def restore_state(checkpoint: Checkpoint, model: MAE, optimizer: torch.optim.Optimizer) -> None:
    """Load a checkpoint's weights and its optimiser's state."""
    load_weights(model, read_stored_model(checkpoint.folder / MODEL).weights, str(checkpoint.folder))
    optimizer.state.clear()
    restore_optimizer(checkpoint.folder, model, optimizer)


def describe_model(
    config: ResolvedPretrainConfig,
    shape: MAEShape,
    preprocessing: Preprocessing,
    mask_sampler: MaskSampler,
    tokenizer: StoredTokenizer | None = None,
) -> dict[str, Any]:
    """What determines the weights or their use; no path, host, worker count or time: equal runs, equal bytes."""
    return {
        "kind": "mae",
        "shape": shape.to_dict(),
        "preprocessing": preprocessing.to_dict(),
        "masking": mask_sampler.describe(),
        "recipe": config.recipe,
        "seed": config.seed,
        **describe_tokenizer(tokenizer if shape.tokenizer is not None else None),
    }
