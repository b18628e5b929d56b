"""The plan of a detection: settings that the user left open, each decided with its reason."""

from dataclasses import replace

import torch

from openmae.config import (
    Conventions,
    DetectConfig,
    DetectorShape,
    ResolvedDetectConfig,
    ViTShape,
    pair,
)
from openmae.config.detector_shape import BOX_CELLS, MASK_CELLS, POSITIVE_SHARE
from openmae.data.coco.detection_data import DetectionData
from openmae.data.preprocess import DataFacts
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
    AS_INIT,
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
from openmae.recipes import DETECT_RECIPES
from openmae.training.checkpoint import MODEL
from openmae.transfer.detection.detector_cost import detector_activation_bytes, detector_parameters
from openmae.transfer.pyramid import quarter_blocks

# Peak rates. For narrow encoders 5e-4, 1e-3 and 2e-3 were compared (docs/results.md); the others are not measured.
MIN_DETECT_RATE = {"narrow": 1e-3, "medium": 3e-4, "wide": 1e-4}
TABLE_4_RATE = 8e-5 * 256 / 64
PAPER_SIDE, GPU_SIDE, CPU_SIDE = 1024, 640, 320  # pixels
PAPER_WINDOW = 14
FEW_IMAGES = 5000
NARROW_HEAD, PAPER_HEAD = {"cpu": 64, "cuda": 96}, 256
NARROW_BOX, PAPER_BOX = 256, 1024
FEW_ROIS, PAPER_ROIS = 64, 512
FEW_PROPOSALS = 300


class DetectPlan(Plan[ResolvedDetectConfig, DetectorShape]):
    """A detection's config without open settings, and what follows from it."""


def plan_detect(
    config: DetectConfig,
    init: StoredModel | None,
    data: DetectionData,
    device: torch.device,
    num_processes: int,
    previous: Previous[ResolvedDetectConfig] | None,
) -> tuple[DetectPlan, DataFacts | None]:
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
        assert isinstance(shape, DetectorShape), "a checkpoint of this command"
        return DetectPlan(resolved, shape, previous.preprocessing, {}), None
    facts, machine = survey_data_and_machine(config, data.train, data.parts, device, num_processes)
    start = None if init is None else (init.encoder_shape, init.preprocessing)
    return make_detect_plan(config, facts, len(data.classes), data.has_masks, machine, start), facts


def detector_shape(
    config: ResolvedDetectConfig, num_classes: int, has_masks: bool, like: ViTShape | None = None
) -> DetectorShape:
    """The shape of the model that a resolved config describes. Raises RequestError where numbers do not fit together.

    A class token has no place in windows and beside decomposed positions: there it is left out.

    Args:
        like: the encoder to start from, for what no setting names (layer scale, …).
    """
    encoder = encoder_shape(config, like)
    own, wanted = encoder.relative_positions, config.relative_positions
    check_relative_positions(own, config, ("bias", "decomposed"))
    has_token = encoder.class_token and not config.window_size and wanted != "decomposed"
    ends = quarter_blocks(encoder.depth)
    encoder = replace(
        encoder,
        class_token=has_token,
        window_size=config.window_size,
        global_blocks=encoder.global_blocks or (tuple(sorted(set(ends))) if config.window_size else ()),
        relative_positions=wanted,
        shares_relative_positions=wanted == "bias" and (own == "none" or encoder.shares_relative_positions),
    )
    is_simple = config.pyramid == "simple"
    is_narrow = config.head_width < PAPER_HEAD
    return DetectorShape(
        encoder=encoder,
        num_classes=num_classes,
        has_masks=has_masks,
        pyramid=config.pyramid,
        pyramid_blocks=(encoder.depth - 1,) if is_simple else ends,
        head_width=config.head_width,
        box_width=NARROW_BOX if is_narrow else PAPER_BOX,
        roi_samples=config.roi_samples,
        conventions=Conventions(
            head_norm="layer" if is_simple else "batch", test_proposals=FEW_PROPOSALS if is_narrow else 1000
        ),
    )


def make_detect_plan(
    config: DetectConfig,
    facts: DataFacts,
    num_classes: int,
    has_masks: bool,
    machine: Machine,
    init: Start | None,
) -> DetectPlan:
    """Decide every open setting.

    Args:
        facts: about the training images.
        init: the encoder's shape and preprocessing; None from scratch.

    Raises:
        RequestError: the settings do not fit each other or the data.
    """
    decisions = Decisions(config)
    decide_by_init(init, DETECT_RECIPES, decisions)
    _decide_square(facts, machine, decisions)
    if init is None:
        decide_encoder_from_scratch(facts, machine, decisions)
    _decide_model(facts, machine, decisions, None if init is None else init[0])
    _decide_optimisation(config, facts, machine, decisions)
    decide_rest(facts, machine, init, decisions)
    draft = decisions.resolved(ResolvedDetectConfig)
    shape = detector_shape(draft, num_classes, has_masks, None if init is None else init[0])
    check_draft(draft, facts, init, decisions)

    def bytes_needed(micro_batch_size: int) -> float:
        activations = detector_activation_bytes(shape, 2 if draft.precision == "bf16" else 4, frozen=draft.freeze)
        return 16 * detector_parameters(shape) + micro_batch_size * activations

    fit_memory(bytes_needed, machine, decisions)
    resolved = decisions.resolved(ResolvedDetectConfig)
    preprocessing, notes = matched_preprocessing(resolved, facts, init, decisions)
    return DetectPlan(resolved, shape, preprocessing, decisions.reasons, notes)


def _decide_square(facts: DataFacts, machine: Machine, decisions: Decisions) -> None:
    """The square, and how images are scaled into it."""
    decide = decisions.decide
    long_side = round(facts.short_side * max(facts.aspect, 1 / facts.aspect))
    usual = CPU_SIDE if machine.device == "cpu" else GPU_SIDE
    largest = min(long_side, usual)
    patch = decisions.get("patch_size") or default_patch_size(largest)
    side = max(patch, largest // patch * patch)
    why = "the images' long side" if long_side <= usual else f"usual for {machine.device}, table 4's is {PAPER_SIDE}"
    decide("image_size", side, f"{why}, in whole patches of {patch} px")
    decide("augment", "jitter", "large-scale jitter and flips, as table 4's")
    is_jittered = decisions.get("augment") != "none"
    decide("resize_range", (0.5, 2.0) if is_jittered else (1.0, 1.0), "table 4's .1 to 2 is for many images")


def _decide_model(facts: DataFacts, machine: Machine, decisions: Decisions, encoder: ViTShape | None) -> None:
    decide, get = decisions.decide, decisions.get
    few = facts.count < FEW_IMAGES
    is_small = few or machine.device == "cpu"
    why = f"{facts.count:,} images" if few else f"training on a {machine.device.upper()}"
    decide("pyramid", "table-4", "the paper's")
    if encoder is not None and encoder.window_size:
        decide("window_size", encoder.window_size, AS_INIT)
    grid = pair(get("image_size"))[0] // get("patch_size")
    if get("depth") <= 4:
        decide("window_size", 0, f"each of {get('depth')} blocks is the last of a quarter, which sees the whole image")
    elif grid > 2 * PAPER_WINDOW:
        decide("window_size", PAPER_WINDOW, "the paper's; the last block of each quarter sees the whole image")
    else:
        decide("window_size", 0, f"{grid} x {grid} patches are few enough to attend to all of them")
    decide("relative_positions", "none", "a quarter less time than with the paper's, --relative-positions bias")
    narrow = min(NARROW_HEAD.get(machine.device, 96), get("width"))
    decide("head_width", narrow if is_small else PAPER_HEAD, f"{why}; the paper's is {PAPER_HEAD}")
    decide("roi_samples", FEW_ROIS if is_small else PAPER_ROIS, f"{why}; the paper's are {PAPER_ROIS}")


def _decide_optimisation(config: DetectConfig, facts: DataFacts, machine: Machine, decisions: Decisions) -> None:
    decide, count = decisions.decide, facts.count
    most = 4 if machine.device == "cpu" else 16
    decide("batch_size", largest_doubling(1, min(most, max(1, count // 4))), f"usual for {machine.device}")
    if config.steps is None:
        epochs = 25.0 if machine.device == "cpu" or count >= FEW_IMAGES else 100.0
        decide("epochs", epochs, f"{count:,} images on {machine.device}")
    decide_base_lr(decisions, TABLE_4_RATE, MIN_DETECT_RATE, "table 4's")
    decide("schedule", "cosine", "table 4's")
    decide("min_lr", 0.0, "table 4's")
    decide_fine_tuning(config, count, decisions)


def training_flops(shape: DetectorShape) -> int:
    """FLOPs to train on one image: 2 × multiply-adds, backward = 2 × forward, counted by running it without numbers.

    As many regions go through the heads as are drawn, a quarter of them through the mask head.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from openmae.transfer.detection.detector import Detector

    encoder, width, count = shape.encoder, shape.head_width, shape.roi_samples
    with torch.device("meta"):
        model = Detector.from_shape(shape).train()
        images = torch.empty(1, encoder.channels, *encoder.image_size)
        boxes = torch.empty(max(2, count), width, BOX_CELLS, BOX_CELLS)
        masks = torch.empty(max(2, round(count * POSITIVE_SHARE)), width, MASK_CELLS, MASK_CELLS)
    regions = model.head.regions
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.head.rpn.head(model.maps(images))
        regions.box_predictor(regions.box_head(boxes))
        if shape.has_masks:
            regions.mask_predictor(regions.mask_head(masks))
    return 3 * counter.get_total_flops()
