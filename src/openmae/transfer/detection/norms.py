"""The norms of pyramid and heads by their names in `Conventions`."""

from collections.abc import Callable

import torch
from torch import nn

from openmae.model.sync_batch_norm import SyncBatchNorm
from openmae.transfer.channel_norm import ChannelNorm

NORMS: dict[str, Callable[[int], nn.Module] | None] = {"batch": SyncBatchNorm, "layer": ChannelNorm, "none": None}


@torch.no_grad()
def init_norms(module: nn.Module) -> None:
    """Weights and running variances 1, biases and running means 0."""
    for part in module.modules():
        if isinstance(part, SyncBatchNorm):
            part.init_weights()
        elif isinstance(part, nn.LayerNorm | nn.GroupNorm):
            part.reset_parameters()
