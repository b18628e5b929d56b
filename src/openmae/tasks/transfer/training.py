"""The weights, the optimiser and the record of the held-out images of a run of segment or detect."""

from typing import Any

import torch

from openmae.config import ResolvedTransferConfig
from openmae.data.annotated.divided import Divided
from openmae.interchange.incoming.conversion import Hints
from openmae.interchange.init import read_init, read_stored_model
from openmae.interchange.load_weights import load_encoder, load_weights
from openmae.interchange.stored import StoredModel
from openmae.machine.files import disk_faults, write_json
from openmae.run.open_run import Run
from openmae.training.checkpoint import MODEL, Checkpoint, restore_optimizer
from openmae.training.optim import adamw_from_groups, layer_decay_groups
from openmae.transfer.detection.detector import Detector
from openmae.transfer.segmentation.segmenter import Segmenter


def read_initial_model(run: Run[Any]) -> StoredModel | None:
    """The model that `--init` names; None from scratch, and for a resumed run, whose weights are in its checkpoint."""
    if not run.is_new or run.requested.is_from_scratch:
        return None
    return read_init(run.requested.init, Hints(num_heads=run.requested.num_heads))


def prepare_weights(
    model: Segmenter | Detector, init: StoredModel | None, config: ResolvedTransferConfig, run: Run[Any]
) -> None:
    """Load the encoder of `init`, saying what was resampled, and freeze it where that is asked for."""
    run.print_lines(*(load_encoder(model.encoder, init) if init is not None else ()))
    if config.freeze:
        model.train_only_heads()


def make_optimizer(model: Segmenter | Detector, config: ResolvedTransferConfig) -> torch.optim.Optimizer:
    """AdamW with a learning rate for each layer of the encoder; pyramid and heads have the full rate."""
    groups = layer_decay_groups(
        model,
        depth=model.shape.encoder.depth,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
    )
    return adamw_from_groups(groups, config.betas)


def restore_state(checkpoint: Checkpoint, model: Segmenter | Detector, optimizer: torch.optim.Optimizer) -> None:
    """Load a checkpoint's weights and its optimiser's state. Raises RequestError where they do not fit."""
    folder = checkpoint.folder
    load_weights(model, read_stored_model(folder / MODEL).weights, str(folder))
    optimizer.state.clear()
    restore_optimizer(folder, model, optimizer)


def write_held_out(run: Run[Any], data: Divided) -> None:
    """Write RUN/split.json, the names of the images that were held out of train, where some were."""
    if run.processes.is_first and (names := data.held_out_names()):
        with disk_faults(run.path):
            write_json(run.path / "split.json", {"held_out": names})
