"""How the rows of an experiment are segmented: the same crop, head, budget and rates for all of them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from openmae.config import ExperimentConfig, pair
from openmae.errors import RequestError
from openmae.experiments.masks import MaskedData
from openmae.experiments.scales import SCALES
from openmae.experiments.setup import NEVER, GivenModel, Setup
from openmae.interchange.init import read_init
from openmae.recipes import SEGMENT_RECIPES

PAPER_RECIPES = ("ade20k-base", "ade20k-large")


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


def with_segmentation(setup: Setup, config: ExperimentConfig, masked: MaskedData, *, is_only: bool) -> Setup:
    """The setup with what segmentation is given.

    Args:
        is_only: nothing else is measured, so that `--base-lr` is segmentation's.

    Raises:
        RequestError: a model of `--also` cannot be read, or no crop fits the patches of all models.
    """
    given = read_given(config)
    rates = config.base_lr if is_only else None
    if setup.scale == "paper":
        recipes = [{**masked.settings, "recipe": recipe} for recipe in PAPER_RECIPES]
        own = (SEGMENT_RECIPES[PAPER_RECIPES[0]]()["base_lr"],)
        return replace(setup, given=given, segment=tuple(recipes), segment_rates=rates or own)
    scale, p = SCALES[setup.scale], setup.pretrain
    batch = min(scale.segment_batch, masked.facts.count)
    settings: dict[str, Any] = {
        **masked.settings,
        "image_size": crop_for(pair(p["image_size"]), [p["patch_size"], *(one.encoder.patch_size for one in given)]),
        "steps": max(1, round(scale.segment_share * setup.steps * p["batch_size"] / batch)),
        "batch_size": batch,
        "head_width": scale.head_width,
        "evaluate_every": NEVER,
    }
    return replace(setup, given=given, segment=(settings,), segment_rates=rates or scale.segment_rates)


def crop_for(size: tuple[int, int], patches: Sequence[int]) -> int | tuple[int, int]:
    """The largest crop within a size whose sides are whole patches of every model.

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
