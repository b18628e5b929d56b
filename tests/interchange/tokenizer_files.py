"""Tokenizers as their programs write them: a run of ours, and transformers' image codebook."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from openmae.config import Preprocessing, TokenizerShape
from openmae.model.tokenizer import DiscreteVAE
from openmae.training.checkpoint import save_checkpoint

SHAPE = TokenizerShape(patch_size=8, stride=4, channels=3, codebook=32, width=16, depth=1)
PREPROCESSING = Preprocessing(
    channels=3, value_range=(0, 255), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), image_size=(32, 32)
)
METADATA = {"kind": "tokenizer", "shape": SHAPE.to_dict(), "preprocessing": PREPROCESSING.to_dict(), "seed": 0}


def make_vae() -> DiscreteVAE:
    torch.manual_seed(0)
    return DiscreteVAE(SHAPE)


def save_run(folder: Path, model: nn.Module, step: int = 3, **changes: Any) -> Path:
    metadata = {**METADATA, **changes}
    save_checkpoint(folder, step, model, torch.optim.AdamW(model.parameters()), metadata, {}, keep=2)
    return folder


def save_codebook(folder: Path, **settings: Any) -> FlavaImageCodebook:
    torch.manual_seed(0)
    config = FlavaImageCodebookConfig(**{"hidden_size": 8, "vocab_size": 32, "num_blocks_per_group": 1, **settings})
    model = FlavaImageCodebook(config).eval()
    for parameter in model.parameters():  # an untrained one's logits are 0.02 or less
        parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return model
