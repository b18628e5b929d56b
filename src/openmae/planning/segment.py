"""The plan of a segmentation: settings that the user left open, each decided with its reason."""

import math
from dataclasses import replace

import torch

from openmae.config import ResolvedSegmentConfig, SegmentConfig, SegmenterShape, ViTShape, pair
from openmae.data.masks.segmentation import SegmentationData
from openmae.data.preprocess import DataFacts
from openmae.errors import RequestError
from openmae.interchange.init import read_stored_model
from openmae.interchange.stored import StoredModel
from openmae.planning.decisions import (
    Decisions,
    Machine,
    Plan,
    Previous,
    decide_base_lr,
    largest_doubling,
    survey_data_and_machine,
)
from openmae.planning.encoder import encoder_shape
from openmae.planning.image_size import default_patch_size
from openmae.planning.transfer import (
    Start,
    check_draft,
    check_relative_positions,
    decide_by_init,
    decide_encoder_from_scratch,
    decide_fine_tuning,
    decide_rest,
    fit_memory,
    matched_preprocessing,
)
from openmae.recipes import SEGMENT_RECIPES
from openmae.training.checkpoint import MODEL
from openmae.transfer.pyramid import pyramid_blocks
from openmae.transfer.segmentation.segmenter_cost import segmenter_activation_bytes, segmenter_parameters

# Peak rates. The head is new, its classifiers begin at N(0, .01): with a peak of 1e-3 a narrow one learns one class
# after the other, with 4e-3 about four times as fast (docs/results.md).
MIN_SEGMENT_RATE = {"narrow": 4e-3, "medium": 5e-4, "wide": 1e-4}
PAPER_CROP = 512
CPU_CROP = 128  # pixels; on a CPU larger crops take minutes a step
AUXILIARY_WIDTH = 256
NARROW_HEAD = {"cpu": 32, "cuda": 256}
STRIDE_FRACTION = 2 / 3  # of a window: 341 of 512 px
NOTHING_IGNORED = -1


class SegmentPlan(Plan[ResolvedSegmentConfig, SegmenterShape]):
    """A segmentation's config without open settings, and what follows from it."""


def plan_segment(
    config: SegmentConfig,
    init: StoredModel | None,
    data: SegmentationData,
    device: torch.device,
    num_processes: int,
    previous: Previous[ResolvedSegmentConfig] | None,
) -> tuple[SegmentPlan, DataFacts | None]:
    """The plan of the previous run where one is resumed; else a new plan, and the facts about the data behind it.

    Args:
        init: the model to start from; None from scratch.
        num_processes: on this machine, which share it.

    Raises:
        RequestError: none of the sampled images can be read, or the settings do not fit.
    """
    if previous is not None:
        resolved = replace(previous.config, device=str(device))
        shape = read_stored_model(previous.checkpoint.folder / MODEL).shape
        assert isinstance(shape, SegmenterShape), "a checkpoint of this command"
        return SegmentPlan(resolved, shape, previous.preprocessing, {}), None
    facts, machine = survey_data_and_machine(config, data.train, data.parts, device, num_processes)
    start = None if init is None else (init.encoder_shape, init.preprocessing)
    ignored = NOTHING_IGNORED if data.ignore_index is None else data.ignore_index
    return make_segment_plan(config, facts, len(data.classes), machine, start, ignored), facts


def segmenter_shape(config: ResolvedSegmentConfig, num_classes: int, like: ViTShape | None = None) -> SegmenterShape:
    """The shape of the model that a resolved config describes. Raises RequestError where numbers do not fit together.

    Args:
        like: the encoder to start from, for what no setting names (layer scale, …).
    """
    encoder = encoder_shape(config, like)
    own, wanted = encoder.relative_positions, config.relative_positions
    check_relative_positions(own, config, ("bias",))
    if own != wanted and not encoder.class_token:
        raise RequestError("--relative-positions bias is for encoders with a class token, unlike --init: leave it out")
    encoder = replace(encoder, relative_positions=wanted)
    return SegmenterShape(
        encoder=encoder,
        num_classes=num_classes,
        pyramid_blocks=pyramid_blocks(encoder.depth),
        head_width=config.head_width,
        auxiliary_width=min(AUXILIARY_WIDTH, config.head_width),
    )


def make_segment_plan(
    config: SegmentConfig,
    facts: DataFacts,
    num_classes: int,
    machine: Machine,
    init: Start | None,
    ignore_index: int = 255,
) -> SegmentPlan:
    """Decide every open setting.

    Args:
        facts: about the training images.
        init: the encoder's shape and preprocessing; None from scratch.
        ignore_index: the value that the masks ignore, as was decided when they were opened.

    Raises:
        RequestError: the settings do not fit each other or the data.
    """
    decisions = Decisions(config)
    decisions.decide("ignore_index", ignore_index, "by what the masks hold")
    decide_by_init(init, SEGMENT_RECIPES, decisions)
    _decide_crop(facts, machine, decisions, None if init is None else init[0])
    if init is None:
        decide_encoder_from_scratch(facts, machine, decisions)
    _decide_model(machine, decisions)
    _decide_optimisation(config, facts, machine, decisions)
    decide_rest(facts, machine, init, decisions)
    draft = decisions.resolved(ResolvedSegmentConfig)
    shape = segmenter_shape(draft, num_classes, None if init is None else init[0])
    check_draft(draft, facts, init, decisions)

    def bytes_needed(micro_batch_size: int) -> float:
        activations = segmenter_activation_bytes(shape, 2 if draft.precision == "bf16" else 4, frozen=draft.freeze)
        return 16 * segmenter_parameters(shape) + micro_batch_size * activations

    fit_memory(bytes_needed, machine, decisions)
    resolved = decisions.resolved(ResolvedSegmentConfig)
    preprocessing, notes = matched_preprocessing(resolved, facts, init, decisions)
    return SegmentPlan(resolved, shape, preprocessing, decisions.reasons, notes)


def _decide_crop(facts: DataFacts, machine: Machine, decisions: Decisions, encoder: ViTShape | None) -> None:
    """The crop, how it is drawn, and how whole images are segmented."""
    decide = decisions.decide
    own = 0 if encoder is None else min(encoder.image_size)
    largest = min(facts.short_side, max(own, CPU_CROP) if machine.device == "cpu" else PAPER_CROP)
    patch = decisions.get("patch_size") or default_patch_size(largest)
    side = max(patch, largest // patch * patch)
    why = "the images' short side" if side > facts.short_side - patch else f"usual for {machine.device}"
    decide("image_size", side, f"{why}, in whole patches of {patch} px")
    is_rgb, how = facts.channels == 3, "scaled, cropped, flipped"
    decide("augment", "crop-jitter" if is_rgb else "crop", f"table 5's: {how}, distorted" if is_rgb else how)
    is_cropped = decisions.get("augment") != "none"
    decide("resize_range", (0.5, 2.0) if is_cropped else (1.0, 1.0), "table 5's" if is_cropped else "--augment none")
    decide("max_class_share", 0.75 if is_cropped else 1.0, "table 5's" if is_cropped else "--augment none")
    height, width = pair(decisions.get("image_size"))
    decide("inference", "slide", "table 5's: the positions that were trained")
    if decisions.get("inference") == "slide":
        decide("stride", max(1, math.floor(STRIDE_FRACTION * min(height, width))), "two thirds of a crop, as table 5's")


def _decide_model(machine: Machine, decisions: Decisions) -> None:
    decide, width = decisions.decide, decisions.get("width")
    decide("relative_positions", "none", "a quarter less time than with the paper's, --relative-positions bias")
    narrow = min(width, NARROW_HEAD.get(machine.device, 256))
    decide("head_width", narrow, f"narrow, for {machine.device}; the paper's is the encoder's {width}")


def _decide_optimisation(config: SegmentConfig, facts: DataFacts, machine: Machine, decisions: Decisions) -> None:
    decide, count = decisions.decide, facts.count
    decide("batch_size", largest_doubling(1, min(16, max(1, count // 4))), "table 5's, or a quarter of the images")
    if config.steps is None:
        epochs = 50.0 if machine.device == "cpu" or count >= 5000 else 100.0
        decide("epochs", epochs, f"{count:,} images on {machine.device}")
    decide_base_lr(decisions, 1e-4 * 256 / 16, MIN_SEGMENT_RATE, "recipe ade20k-base's")
    decide("min_lr", 0.0, "table 5's")
    decide_fine_tuning(config, count, decisions)


def training_flops(shape: SegmenterShape) -> int:
    """FLOPs to train on one image: 2 × multiply-adds, backward = 2 × forward, counted by running it without numbers."""
    from torch.utils.flop_counter import FlopCounterMode

    from openmae.transfer.segmentation.segmenter import Segmenter

    encoder = shape.encoder
    with torch.device("meta"):
        model = Segmenter.from_shape(shape).train()
        images = torch.empty(2, encoder.channels, *encoder.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return 3 * counter.get_total_flops() // 2
