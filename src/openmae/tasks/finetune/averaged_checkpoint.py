"""Checkpoints of a model that may have a moving average, which is then what model.safetensors holds."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from openmae.interchange.init import read_stored_model
from openmae.interchange.load_weights import load_weights
from openmae.training.average import ModelEMA
from openmae.training.checkpoint import MODEL, OPTIMIZER, Checkpoint, restore_optimizer, save_checkpoint

RAW_WEIGHT = "weight"  # prefix, in optimizer.safetensors, of the weights that training goes on with


def averaged(model: nn.Module, average: ModelEMA | None) -> AbstractContextManager[None]:
    """Within the block the model has its averaged weights; without an average nothing changes."""
    return average.applied(model) if average else nullcontext()


def save_averaged(
    run: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    metadata: dict[str, Any],
    state: dict[str, Any],
    keep: int,
    *,
    average: ModelEMA | None,
) -> None:
    """`save_checkpoint` of the average; the weights that training goes on with lie beside the optimiser's tensors."""
    raw = {f"{RAW_WEIGHT}/{n}": p.detach().cpu().clone() for n, p in model.named_parameters()} if average else {}
    with averaged(model, average):
        save_checkpoint(run, step, model, optimizer, metadata, state, keep, raw)


def restore_state(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, average: ModelEMA | None
) -> None:
    """Load a checkpoint's weights, their moving average and the optimiser's state."""
    folder = checkpoint.folder
    load_weights(model, read_stored_model(folder / MODEL).weights, str(folder))
    if average is not None:
        average.restore({name: parameter.detach() for name, parameter in model.named_parameters()})
        raw = {k.removeprefix(f"{RAW_WEIGHT}/"): v for k, v in load_file(folder / OPTIMIZER).items()}
        load_weights(model, {name: raw.get(name, value) for name, value in model.state_dict().items()}, str(folder))
    optimizer.state.clear()
    restore_optimizer(folder, model, optimizer, ignored=RAW_WEIGHT)
