"""From an experiment to its trials: every row with each of its seeds, and what each command of it costs."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from openmae.config import ClassifierShape, MAEShape, PretrainConfig, TokenizerConfig, TokenizerShape
from openmae.data.preprocess import DataFacts
from openmae.errors import RequestError
from openmae.experiments.setup import SHARED, Setup
from openmae.experiments.studies.study import Row, Study
from openmae.experiments.transfer_data import TransferData
from openmae.experiments.trials.transfer_stage import transfer_stage
from openmae.experiments.trials.trial import OWN_MODEL, Stage, Trial
from openmae.experiments.trials.unseen import NUM_DRAWN
from openmae.model import cost
from openmae.model.tokenizer_cost import tokens_flops
from openmae.planning.decisions import Machine
from openmae.planning.pretrain import make_pretrain_plan, planned_memory
from openmae.planning.tokenizer import make_tokenizer_plan

# DALL-E's encoder, as the published files have it.
DALLE = TokenizerShape(kind="dalle", patch_size=None, stride=8, channels=3, codebook=8192, width=256, depth=2)
PROCESS_BYTES = 700_000_000  # of a process with torch, before it has a model


def row_settings(row: Row, setup: Setup) -> dict[str, Any]:
    """The settings of a row's pre-training."""
    settings = {**setup.pretrain, **row.changes}
    return settings | setup.token_settings if settings["target"] == "token" else settings


def stored_row(row: Row, setup: Setup) -> dict[str, Any]:
    """The settings of a row that results.json names it by: of its pre-training, or what it starts from."""
    if setup.transfers and not row.is_pretrained_here:
        transfer = next(iter(setup.transfers.values()))
        return {**transfer.settings[row.size or 0], "init": row.init or "none"}
    return row_settings(row, setup)


def row_shape(row: Row, setup: Setup, facts: DataFacts, machine: Machine, out: str) -> tuple[MAEShape, int, int]:
    """The shape of a row's model, the patches of an image that it sees, and the memory of its pre-training in bytes.

    Raises:
        RequestError: the row's settings do not fit the data.
    """
    settings = row_settings(row, setup)
    has_tokens = settings["target"] == "token"
    if has_tokens:  # its tokenizer is not at hand yet, only its shape
        settings |= {"target": "pixel", "tokenizer": None}
    plan = make_pretrain_plan(PretrainConfig(**settings, out=out), facts, machine)
    shape, config = plan.shape, plan.config
    encoder = shape.encoder
    if has_tokens:
        shape = replace(shape, target="token", tokenizer=_tokenizer_shape(setup, facts, machine, out))
    coefficients, patches = shape.pca_coefficients, facts.count * encoder.num_patches
    if coefficients is not None and coefficients > patches:
        raise RequestError(
            f"{row.label} needs at least as many patches to fit on, and {facts.count} images have {patches}: "
            "give more images"
        )
    visible = max(1, int(encoder.num_patches * (1 - config.mask_ratio)))
    return shape, visible, planned_memory(shape, config, config.micro_batch_size)


def _tokenizer_shape(setup: Setup, facts: DataFacts, machine: Machine, out: str) -> TokenizerShape:
    """The shape of the tokenizer that is trained, or of DALL-E's."""
    if setup.token_settings:
        return DALLE
    return make_tokenizer_plan(TokenizerConfig(**setup.tokenizer, out=out), facts, machine, 0).shape


def image_flops(shape: MAEShape, visible: int) -> float:
    """To pre-train on an image, with what a tokenizer takes to give its patches their tokens."""
    tokens = 0 if shape.tokenizer is None else tokens_flops(shape.tokenizer, shape.encoder.grid)
    return float(cost.training_flops(shape, visible) + tokens)


def make_trials(
    study: Study,
    setup: Setup,
    facts: DataFacts,
    machine: Machine,
    *,
    seeds: int,
    num_classes: int,
    out: str,
    transfers: Mapping[str, TransferData],
) -> tuple[list[Trial], int, dict[str, float]]:
    """Every row with each of its seeds: first one of each row, then the others.

    Args:
        num_classes: of the labels; 0 where there are none.
        transfers: what is segmented, and detected in.

    Returns:
        The trials; the bytes of memory that the largest of them needs; and the FLOPs of each row's pre-training for an
        image, by the row's name, but of those that are not pre-trained here.

    Raises:
        RequestError: a row's settings do not fit the data.
    """
    by_row, flops, memory = dict[str, tuple[Stage, ...]](), dict[str, float](), 0.0
    for row in study.rows:
        protocols, transferred = study.protocols_of(row), list[Stage]()
        for kind, data in transfers.items():
            settings = row_settings(row, setup)
            stage, transfer_memory = transfer_stage(kind, row, setup, settings, data, machine, out)
            transferred.append(stage)
            memory = max(memory, transfer_memory)
        if transferred and not row.is_pretrained_here:
            by_row[row.name] = tuple(transferred)
            continue
        shape, visible, row_memory = row_shape(row, setup, facts, machine, out)
        flops[row.name] = image_flops(shape, visible)
        by_row[row.name] = _stages(row, protocols, setup, shape, flops[row.name], num_classes) + tuple(transferred)
        classifier = ClassifierShape(encoder=shape.encoder, num_classes=max(2, num_classes), pool="mean")
        tuned = setup.finetune["batch_size"] * cost.classifier_activation_bytes(classifier, None, 4)
        memory = max(memory, row_memory, tuned + 16 * cost.classifier_parameters(classifier))
    counts = {row.name: max(seeds, setup.default_seeds if study.is_repeated(row) else 1) for row in study.rows}
    trials = [
        Trial(row=row.name, seed=seed, stages=by_row[row.name])
        for seed in range(max(counts.values()))
        for row in study.rows
        if seed < counts[row.name]
    ]
    return trials, PROCESS_BYTES + math.ceil(memory), flops


def _stages(
    row: Row, protocols: tuple[str, ...], setup: Setup, shape: MAEShape, flops: float, num_classes: int
) -> tuple[Stage, ...]:
    settings = row_settings(row, setup)
    work = flops * settings["steps"] * settings["batch_size"]
    classifier = ClassifierShape(encoder=shape.encoder, num_classes=max(2, num_classes), pool="mean")
    tuning = float(cost.classifier_flops(classifier, None))
    if "speed" in protocols:
        return (Stage(kind="speed", settings=settings, work=work),)
    stages = []
    if settings["target"] == "token" and not setup.token_settings:
        stages.append(Stage(kind="tokenizer", settings=setup.tokenizer, work=0.2 * work))
    if not row.is_scratch:
        stages.append(Stage(kind="pretrain", settings=settings, work=work))
    if "psnr" in protocols:
        shared = {name: settings[name] for name in SHARED}
        stages.append(Stage(kind="reconstruct", settings={**shared, "init": OWN_MODEL}, work=flops * NUM_DRAWN))
    if "finetune" in protocols:
        tuned, rates = _supervised(row, setup, settings)
        images = tuned["steps"] * tuned["batch_size"] * len(rates)
        stages.append(Stage(kind="finetune", settings=tuned, rates=rates, work=tuning * images))
    look = tuning / 3 * 1.5 * setup.count  # forward, over the training images and the others
    if "linear" in protocols:
        stages.append(Stage(kind="probe", settings={**setup.probe, "init": OWN_MODEL}, work=look))
    if "knn" in protocols:
        stages.append(Stage(kind="knn", settings={**setup.knn, "init": OWN_MODEL}, work=look))
    return tuple(stages)


def _supervised(row: Row, setup: Setup, settings: dict[str, Any]) -> tuple[dict[str, Any], tuple[float, ...]]:
    """The settings and base rates with which a row is trained on labels.

    Args:
        settings: of its pre-training, for the shape of a model from scratch.
    """
    if row.size is None:
        return {**setup.finetune, "init": OWN_MODEL}, setup.rates
    size = setup.sizes[row.size]
    if not row.is_scratch:
        return {**size.finetune, "init": OWN_MODEL}, size.rates
    model = {name: settings[name] for name in ("width", "depth", "num_heads", "patch_size", "image_size", "channels")}
    return {**size.scratch, "init": "none", **model}, size.scratch_rates
