"""Checkpoints of a model with, perhaps, an exponential moving average (EMA) of its weights.

With an EMA, `model.safetensors` holds the averaged weights, with which the model is evaluated and used. The raw
weights, from which training continues, are then in `optimizer.safetensors` as `weight/NAME`, beside the optimiser's
tensors.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from openmae.interchange.init import read_stored_model
from openmae.interchange.load_weights import load_weights
from openmae.training.checkpoint import MODEL, OPTIMIZER, Checkpoint, restore_optimizer, save_checkpoint
from openmae.training.model_ema import ModelEMA

RAW_WEIGHT = "weight"  # optimizer.safetensors: `weight/NAME`, as the optimiser's are `exp_avg/NAME`


def ema_weights(model: nn.Module, ema: ModelEMA | None) -> AbstractContextManager[None]:
    """Within the context the model has its averaged weights; without an EMA nothing changes."""
    return ema.applied(model) if ema else nullcontext()


def save_with_ema(
    run: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    metadata: dict[str, Any],
    state: dict[str, Any],
    keep: int,
    *,
    ema: ModelEMA | None,
) -> None:
    """`save_checkpoint` with the averaged weights as the model's, and the raw ones beside the optimiser's tensors."""
    raw = {}
    if ema is not None:
        raw = {f"{RAW_WEIGHT}/{name}": value.detach().cpu().clone() for name, value in model.named_parameters()}
    with ema_weights(model, ema):
        save_checkpoint(run, step, model, optimizer, metadata, state, keep, raw)


def restore_state(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, ema: ModelEMA | None
) -> None:
    """Load a checkpoint into the model, its EMA and the optimiser, as `save_with_ema` wrote it.

    Raises:
        RequestError: a tensor is missing or does not fit the model.
    """
    folder = checkpoint.folder
    load_weights(model, read_stored_model(folder / MODEL).weights, str(folder))
    if ema is not None:  # the weights just loaded are the averaged ones
        ema.restore({name: parameter.detach() for name, parameter in model.named_parameters()})
        prefix = f"{RAW_WEIGHT}/"
        tensors = load_file(folder / OPTIMIZER)
        raw = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        # Buffers are in no EMA: they are those of `model.safetensors` already.
        load_weights(model, {name: raw.get(name, value) for name, value in model.state_dict().items()}, str(folder))
    optimizer.state.clear()
    restore_optimizer(folder, model, optimizer, ignored=RAW_WEIGHT)
