"""The default row of an experiment on a person's data: the settings that every row shares, whatever it changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openmae.config import ExperimentConfig, Preprocessing, PretrainConfig, ViTShape, pair
from openmae.data.preprocess import DataFacts
from openmae.errors import RequestError
from openmae.experiments.scales import DECODER_DEPTH, SCALES
from openmae.machine.device import num_cores
from openmae.planning.decisions import Machine, largest_doubling
from openmae.planning.encoder import heads_for
from openmae.planning.image_size import image_size_for
from openmae.planning.pretrain import make_pretrain_plan

SHARED = ("data", "train", "val", "test", "value_range", "axes", "nodata")
LABEL_SETTINGS = ("label_file", "held_out")
SCRATCH_STEPS = 4  # times those of fine-tuning, as in the paper: 200 epochs of ViT-L from scratch, 50 of fine-tuning
NEIGHBOURS = 10
MIN_GRID = 4  # patches along the short side: of fewer, 90 % cannot be hidden
NEVER = 10**9  # steps between evaluations: all but the last would only cost time


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model size that stands for one of the paper's, and how it is trained on labels.

    Attributes:
        model: encoder and decoder, as settings of pre-training.
        pretrain: what else differs from the default row in the model that is compared over sizes (table 3).
        finetune, rates: of fine-tuning, as of `Setup`.
        scratch, scratch_rates: of training from scratch.
    """

    model: dict[str, Any]
    pretrain: dict[str, Any]
    finetune: dict[str, Any]
    rates: tuple[float, ...]
    scratch: dict[str, Any]
    scratch_rates: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class GivenModel:
    """A model of `--also`: a row that is not pre-trained here."""

    name: str
    init: str
    encoder: ViTShape
    preprocessing: Preprocessing


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """How rows are segmented, or detect objects.

    Attributes:
        settings: of the command; at the paper's scale of B and of L.
        rates: base rates that it chooses from, by a split of train or DATA's val part.
        protocols: what it measures.
    """

    settings: tuple[dict[str, Any], ...]
    rates: tuple[float, ...]
    protocols: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The settings of each command for the default row; a row changes some of `pretrain`'s.

    Attributes:
        scale: its name.
        count: training images.
        rates: base rates that fine-tuning chooses from, by a split of train or DATA's val part.
        token_settings: further settings of rows that predict tokens: a tokenizer that there is; empty: one is trained.
        sizes: those that stand for ViT-B, L and H.
        transfers: of segmentation ("segment") and of detection ("detect"), where they are measured.
        given: the models of `--also`.
        has_labels: there is labelled data, so that fine-tuning can be measured.
        timed_steps: of a row whose time is measured.
        default_seeds, threads: see `Scale`.
    """

    scale: str
    count: int
    pretrain: dict[str, Any]
    finetune: dict[str, Any]
    rates: tuple[float, ...]
    probe: dict[str, Any]
    knn: dict[str, Any]
    tokenizer: dict[str, Any]
    token_settings: dict[str, Any]
    sizes: tuple[Size, ...]
    timed_steps: int
    default_seeds: int
    threads: int
    transfers: Mapping[str, Transfer] = field(default_factory=dict)
    given: tuple[GivenModel, ...] = ()
    has_labels: bool = True

    @property
    def width(self) -> int:
        """The encoder's."""
        return self.pretrain["width"]

    @property
    def decoder_depth(self) -> int:
        """The decoder's blocks."""
        return self.pretrain["decoder_depth"]

    @property
    def patch_values(self) -> int:
        """Values of a patch, over its channels."""
        return self.pretrain["channels"] * self.pretrain["patch_size"] ** 2

    @property
    def steps(self) -> int:
        """Optimiser steps of pre-training."""
        return self.pretrain["steps"]


def width_of_decoder(width: int, eighths: int) -> int:
    """So many eighths of the encoder's width, as nearly as positions allow, which need a multiple of 4."""
    return max(4, round(width * eighths / 32) * 4)


def model_of(width: int, depth: int) -> dict[str, Any]:
    """The settings of an encoder, and of a decoder half as wide and as deep as ViT-L's."""
    decoder_width = width_of_decoder(width, 4)
    return {
        "width": width,
        "depth": depth,
        "num_heads": heads_for(width, 64 if width >= 128 else 32),
        "decoder_width": decoder_width,
        "decoder_depth": DECODER_DEPTH,
        "decoder_num_heads": heads_for(decoder_width, 32),
    }


def shared_settings(config: ExperimentConfig) -> dict[str, Any]:
    """What every command of a trial is given as it was typed."""
    given = {} if config.max_bad is None else {"max_bad": config.max_bad}
    return {**{name: getattr(config, name) for name in SHARED}, **given}


def label_settings(config: ExperimentConfig) -> dict[str, Any]:
    """What commands that read labels are given besides."""
    labels = config.labels[0] if config.labels else None
    return {**shared_settings(config), **{name: getattr(config, name) for name in LABEL_SETTINGS}, "labels": labels}


def make_setup(config: ExperimentConfig, scale_name: str, facts: DataFacts, machine: Machine) -> Setup:
    """The default row at a scale; settings that the person gave win.

    Args:
        facts: about the training images.

    Raises:
        RequestError: settings do not fit each other or the data.
    """
    scale = SCALES[scale_name]
    batch = config.batch_size or min(scale.batch_size, facts.count, largest_doubling(8, facts.count // 8))
    if batch > facts.count:
        raise RequestError(f"--batch-size got {batch}, and there are {facts.count} training images: give a smaller one")
    steps = config.steps or scale.steps
    if config.epochs is not None:
        steps = max(1, round(config.epochs[0] * facts.count / batch))
    images = {"image_size": config.image_size, "patch_size": config.patch_size}
    if config.image_size is None:
        patch, size, _ = image_size_for(facts, scale.max_side, config.patch_size, is_huge=False, device="cpu")
        while config.patch_size is None and patch > 1 and min(pair(size)) // patch < MIN_GRID:
            patch //= 2
        images = {"image_size": size, "patch_size": patch}
    shared, labelled = shared_settings(config), label_settings(config)
    pretrain = {
        **shared,
        **model_of(config.width or scale.width, config.depth or scale.depth),
        **images,
        "target": "pixel",
        "mask": "random",  # with the default ratio, which is not named: masks of a fixed ratio refuse one
        "augment": "crop",
        "steps": steps,
        "batch_size": batch,
        "evaluate_every": NEVER,
        "picture_every": NEVER,
        "compile": False,
    }
    plan = make_pretrain_plan(PretrainConfig(**pretrain, out=config.out), facts, machine)
    pretrain |= {name: getattr(plan.config, name) for name in ("image_size", "patch_size", "channels", "base_lr")}
    finetune_batch = min(scale.finetune_batch, batch)
    finetune = {
        **labelled,
        "steps": max(1, round(scale.finetune_share * steps * batch / finetune_batch)),
        "batch_size": finetune_batch,
        "evaluate_every": NEVER,
        "report": "held-out",
    }
    rates = config.base_lr or scale.rates
    return Setup(
        scale=scale_name,
        count=facts.count,
        pretrain=pretrain,
        finetune=finetune,
        rates=rates,
        probe={**labelled, **scale.probe, "evaluate_every": NEVER},
        knn={**labelled, "k": (min(NEIGHBOURS, facts.count),)},
        tokenizer={
            **shared,
            **{name: pretrain[name] for name in ("image_size", "patch_size", "steps")},
            **scale.tokenizer,
        },
        token_settings={},
        sizes=tuple(
            Size(
                model=model_of(width, depth),
                pretrain={},
                finetune=finetune,
                rates=rates,
                scratch={**finetune, "steps": SCRATCH_STEPS * finetune["steps"]},
                scratch_rates=config.base_lr or scale.scratch_rates,
            )
            for width, depth in scale.sizes
        ),
        default_seeds=scale.default_seeds,
        timed_steps=config.steps or scale.timed_steps,
        threads=config.threads or (num_cores() if config.is_timed and machine.device == "cpu" else scale.threads),
    )
