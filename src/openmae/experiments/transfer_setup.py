"""How the rows of an experiment are segmented and detect objects: the same size, head, budget and rates for all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from openmae.config import ExperimentConfig, pair
from openmae.errors import RequestError
from openmae.experiments.scales import SCALES
from openmae.experiments.setup import NEVER, GivenModel, Setup, Transfer
from openmae.experiments.transfer_data import DETECT, SEGMENT, TransferData
from openmae.interchange.init import read_init
from openmae.recipes import DETECT_RECIPES, SEGMENT_RECIPES

PAPER_RECIPES = {SEGMENT: ("ade20k-base", "ade20k-large"), DETECT: ("coco-base", "coco-large")}
RECIPES = {SEGMENT: SEGMENT_RECIPES, DETECT: DETECT_RECIPES}


def read_given(config: ExperimentConfig) -> tuple[GivenModel, ...]:
    """The models of `--also`, read once to be checked before anything runs. Raises RequestError where one cannot be."""
    found = []
    for one in config.also_inits:
        try:
            model = read_init(one.init, verbose=False)
        except RequestError as error:
            raise RequestError(f"--also {one.name}: {error}") from None
        found.append(
            GivenModel(name=one.name, init=one.init, encoder=model.encoder_shape, preprocessing=model.preprocessing)
        )
    return tuple(found)


def with_transfers(setup: Setup, config: ExperimentConfig, found: Mapping[str, TransferData]) -> Setup:
    """The setup with what segmentation and detection are given.

    Raises:
        RequestError: a model of `--also` cannot be read, or no size fits the patches of all models.
    """
    if not found:
        return setup
    setup = replace(setup, given=read_given(config))
    is_only = len(found) == 1 and not setup.has_labels  # else `--base-lr` would be of several columns
    rates = config.base_lr if is_only else None
    return replace(setup, transfers={kind: _transfer(kind, setup, data, rates) for kind, data in found.items()})


def _transfer(kind: str, setup: Setup, data: TransferData, rates: tuple[float, ...] | None) -> Transfer:
    protocols = ("miou",) if kind == SEGMENT else ("box_ap", *(["mask_ap"] * data.has_masks))
    if setup.scale == "paper":
        recipes = tuple({**data.settings, "recipe": recipe} for recipe in PAPER_RECIPES[kind])
        own = (RECIPES[kind][PAPER_RECIPES[kind][0]]()["base_lr"],)
        return Transfer(settings=recipes, rates=rates or own, protocols=protocols)
    scale, p = SCALES[setup.scale], setup.pretrain
    patches = [p["patch_size"], *(one.encoder.patch_size for one in setup.given)]
    budget = scale.segment if kind == SEGMENT else scale.detect
    batch = min(budget.batch_size, data.facts.count)
    size = pair(p["image_size"])
    settings: dict[str, Any] = {
        **data.settings,
        "image_size": size_for(size if kind == SEGMENT else (max(size), max(size)), patches),
        "steps": max(1, round(budget.share * setup.steps * p["batch_size"] / batch)),
        "batch_size": batch,
        "head_width": budget.head_width,
        "evaluate_every": NEVER,
    }
    return Transfer(settings=(settings,), rates=rates or budget.rates, protocols=protocols)


def size_for(size: tuple[int, int], patches: Sequence[int]) -> int | tuple[int, int]:
    """The largest crop, or square, within a size whose sides are whole patches of every model.

    Raises:
        RequestError: there is none.
    """
    unit = math.lcm(*patches)
    height, width = (side // unit * unit for side in size)
    if not height or not width:
        raise RequestError(
            f"crops of {size[0]}x{size[1]} px hold no whole patches of all models, which have patches of "
            f"{', '.join(map(str, sorted(set(patches))))} px: give an --image-size of at least {unit}"
        )
    return height if height == width else (height, width)
