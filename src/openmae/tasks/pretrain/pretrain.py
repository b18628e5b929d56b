"""`openmae pretrain`: masked pre-training from a folder of images to a checkpoint (paper, section 3, table 8)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openmae.config import MAEShape, Preprocessing, PretrainConfig, ResolvedPretrainConfig
from openmae.config.checks import OFF
from openmae.data.batch import Batch
from openmae.data.device_crop import model_input
from openmae.data.preprocess import DataFacts
from openmae.errors import RequestError
from openmae.inference.mask_sampler import MaskSampler, read_mask, to_device
from openmae.interchange.incoming.reading import Hints
from openmae.interchange.init import read_init, read_stored_model
from openmae.interchange.load_weights import load_for_pretraining, load_weights
from openmae.machine.device import autocast
from openmae.machine.parallel import Processes
from openmae.model.mae import MAE
from openmae.planning.decisions import cosine, total_steps
from openmae.planning.pretrain import PretrainPlan, plan_pretrain
from openmae.planning.summary_lines import checkpoint_bytes, plan_lines
from openmae.run.folder import PreviousRun
from openmae.run.model_input import ModelInput, counted_patches
from openmae.run.open_run import open_run
from openmae.run.remembered import remember_no_compile
from openmae.run.step import StepResult, accumulated_step
from openmae.run.step_model import StepModel
from openmae.tasks.pretrain.data import TrainingData, make_stream, open_training_data
from openmae.tasks.pretrain.evaluators import make_evaluators
from openmae.tasks.pretrain.tile_lines import tile_lines
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
        Fault: a full disk, a dead reader process, or a loss that is not finite.
    """
    with open_run("pretrain", config, ResolvedPretrainConfig) as run:
        # The data, and what the person left open.
        asked, device, processes = run.requested, run.device, run.processes
        init = None
        if run.is_new and asked.init is not None:
            init = read_init(asked.init, Hints(num_heads=asked.num_heads, decoder_num_heads=asked.decoder_num_heads))
        data = open_training_data(asked, None if init is None else init.preprocessing)
        plan, facts = plan_pretrain(asked, init, data, device, processes.local_count, run.previous)
        chosen, preprocessing, shape = plan.config, plan.preprocessing, plan.shape
        masks, num_steps = mask_sampler(chosen, shape), total_steps(chosen, len(data.train))
        run.check_shares(chosen.batch_size)
        stream = make_stream(chosen, preprocessing, data.train)

        # The model and its optimiser, from the checkpoint where there is one.
        torch.manual_seed(chosen.seed)
        model = MAE.from_shape(shape)
        run.print_lines(*(load_for_pretraining(model, init) if init is not None else ()))
        model.to(device)
        model.set_recompute(chosen.recompute)
        model.set_bf16_residual(chosen.bf16_residual)
        optimizer = adamw(model, chosen.weight_decay, chosen.betas)
        schedule = cosine(chosen, chosen.base_lr, len(data.train), num_steps)
        run.restore(
            data.fingerprint,
            restore_state=lambda checkpoint: restore_state(checkpoint, model, optimizer),
            check=lambda previous: check_mask(previous, masks),
        )
        if (summary := run.finished(num_steps)) is not None:
            return summary
        lines = [] if facts is None else new_lines(plan, data, facts, device, masks)
        run.announce(lines, checkpoint_bytes(shape), chosen.keep)
        run.print_lines(*(watch_lines(chosen) if processes.is_first else ()))
        description = describe_model(chosen, shape, preprocessing, masks)
        run.begin(
            chosen,
            preprocessing,
            split_sources=data.taken,
            num_images=len(data.train),
            num_inputs=data.count,
            description=description,
        )

        # The step, on every batch of the stream.
        step_model = StepModel(
            model.train(),
            processes,
            device,
            is_compiled=chosen.compile,
            precision=chosen.precision,
            loss_fn=loss_fn,
            on_wrong_gradients=lambda: remember_no_compile(run.path) if processes.is_first else None,
        )
        batches = run.batches(chosen, stream, lambda micro_batch: prepare(micro_batch, plan, masks, device))
        return run.train(
            model=model,
            optimizer=optimizer,
            schedule=schedule,
            batches=batches,
            take_step=lambda inputs, step: train_step(step_model.wrapped, optimizer, inputs, chosen, processes, masks),
            evaluators=lambda: make_evaluators(chosen, plan, data, masks, model, device, run.progress, run.stop),
            bad=facts.bad if facts else None,
            step_model=step_model,
            save=save_checkpoint,
            final_message=lambda summary: (
                f"done       {run.path / MODEL}; look at it: openmae reconstruct IMAGE --init {run.path} "
                "--out pictures.png"
            ),
        )


def new_lines(
    plan: PretrainPlan, data: TrainingData, facts: DataFacts, device: torch.device, masks: MaskSampler
) -> list[str]:
    """What is said of a run that begins: the data, and what was decided."""
    held_out = len(data.held_out) if data.held_out is not None else 0
    lines = plan_lines(plan, facts, device, masks.num_visible, held_out)
    return [*data.told, *tile_lines(plan.config, data, facts), *lines]


def watch_lines(config: ResolvedPretrainConfig) -> list[str]:
    """What `--watch` looks at. Raises RequestError now, where its labels are missing."""
    watched_data = open_watch(config)
    if watched_data is None or config.watch_data is None:
        return []
    return [f"watched    {line}" for line in watched_data.told]


def prepare(micro_batch: Batch, settled: PretrainPlan, masks: MaskSampler, device: torch.device) -> ModelInput:
    """A micro-batch on the device: images normalised, cropped there if they are not yet, and what of them to hide."""
    images, masking = model_input(micro_batch, settled.preprocessing, device), masks(micro_batch.keys)
    counted = counted_patches(micro_batch.empty, masking)
    return ModelInput(
        images,
        micro_batch.keys,
        to_device(masking, device),
        is_counted=None if counted is None else counted.float().to(device, non_blocking=True),
        num_counted=0 if counted is None else int(counted.sum()),
    )


def loss_fn(model: nn.Module, micro_batch: ModelInput, precision: str) -> Tensor:
    """The mean loss of a micro-batch, over the masked patches that are not empty."""
    with autocast(micro_batch.images.device, precision):
        output = model(micro_batch.images, micro_batch.masking)
    if micro_batch.is_counted is None:
        return output.loss
    return (output.patch_losses * micro_batch.is_counted).sum() / max(1, micro_batch.num_counted)


def loss_shares(
    micro_batches: Sequence[Batch], masks: MaskSampler | None, config: ResolvedPretrainConfig, processes: Processes
) -> list[float]:
    """What the mean loss of each micro-batch counts in that of the step, a mean over all patches that count.

    Where no patch of the whole batch is empty, by images. All processes take part. Counted on the CPU, and before the
    first backward pass: gradients of patches that do not count cannot be taken back.
    """
    has_empty = any(micro_batch.empty is not None for micro_batch in micro_batches)
    if masks is None or config.nodata == OFF or not processes.any(has_empty):
        return [len(micro_batch.keys) / config.batch_size for micro_batch in micro_batches]
    counts = []
    for micro_batch in micro_batches:
        masking = masks(micro_batch.keys)
        counted = counted_patches(micro_batch.empty, masking)
        counts.append(masking.masked_ids.numel() if counted is None else int(counted.sum()))
    total = int(processes.sum(torch.tensor(sum(counts))))
    return [count / max(1, total) for count in counts]


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: StepInputs[Batch, ModelInput],
    config: ResolvedPretrainConfig,
    processes: Processes,
    masks: MaskSampler | None = None,
) -> StepResult:
    """One optimiser step over this process's micro-batches of a global batch.

    A step whose gradients are not finite leaves weights and optimiser as they are.

    Args:
        masks: of the run; None takes every patch as counted.
    """
    shares = iter(loss_shares(micro_batches.micro_batches, masks, config, processes))
    return accumulated_step(
        model,
        optimizer,
        micro_batches,
        lambda micro_batch: loss_fn(model, micro_batch, config.precision) * next(shares),
        processes,
    )


def mask_sampler(config: ResolvedPretrainConfig, shape: MAEShape) -> MaskSampler:
    """What hides patches in this run. Raises RequestError for a mask file that does not fit."""
    grid = shape.encoder.grid
    given = read_mask(config.mask_file, grid) if config.mask_file else None
    return MaskSampler(config.mask, config.mask_ratio, grid, given)


def check_mask(previous: PreviousRun[ResolvedPretrainConfig], masks: MaskSampler) -> None:
    """Raise RequestError where the given mask is not that of the checkpoint."""
    assert previous.checkpoint is not None
    if read_stored_model(previous.checkpoint.folder / MODEL).description["masking"] != masks.describe():
        raise RequestError(f"{previous.config.mask_file} is not the mask that this run began with: restore it")


def restore_state(checkpoint: Checkpoint, model: MAE, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and optimiser back."""
    load_weights(model, read_stored_model(checkpoint.folder / MODEL).weights, str(checkpoint.folder))
    optimizer.state.clear()
    restore_optimizer(checkpoint.folder, model, optimizer)


def describe_model(
    config: ResolvedPretrainConfig, shape: MAEShape, preprocessing: Preprocessing, masks: MaskSampler
) -> dict[str, Any]:
    """What determines the weights or their use; no path, host, worker count or time: equal runs, equal bytes."""
    return {
        "kind": "mae",
        "shape": shape.to_dict(),
        "preprocessing": preprocessing.to_dict(),
        "masking": masks.describe(),
        "recipe": config.recipe,
        "seed": config.seed,
    }
