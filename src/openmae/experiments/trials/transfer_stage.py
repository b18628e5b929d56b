"""The stage of a row that segments or detects objects: what it is given, and what it costs."""

from typing import Any

from openmae.config import DetectConfig, SegmentConfig
from openmae.experiments.setup import Setup, Transfer
from openmae.experiments.studies.study import Row
from openmae.experiments.transfer_data import SEGMENT, TransferData
from openmae.experiments.trials.trial import OWN_MODEL, Stage
from openmae.planning.decisions import Machine
from openmae.planning.detect import make_detect_plan
from openmae.planning.detect import training_flops as detector_flops
from openmae.planning.segment import make_segment_plan
from openmae.planning.segment import training_flops as segmenter_flops
from openmae.planning.transfer import Start
from openmae.transfer.detection.detector_cost import detector_activation_bytes, detector_parameters
from openmae.transfer.segmentation.segmenter_cost import segmenter_activation_bytes, segmenter_parameters

MODEL_SETTINGS = ("width", "depth", "num_heads", "patch_size", "channels")


def transfer_stage(
    kind: str, row: Row, setup: Setup, pretrain: dict[str, Any], data: TransferData, machine: Machine, out: str
) -> tuple[Stage, float]:
    """The stage, and the bytes of memory that it needs.

    Args:
        kind: segment or detect.
        pretrain: the settings of the row's pre-training, for the shape of a model from scratch.

    Raises:
        RequestError: the row's model does not fit the data or the crops.
    """
    transfer: Transfer = setup.transfers[kind]
    settings = transfer.settings[row.size or 0]
    own = {"init": "none", **{name: pretrain[name] for name in MODEL_SETTINGS}}
    given = next((one for one in setup.given if one.name == row.name), None)
    if given is None:  # what is pre-trained has the shape that it has from scratch, and is not at hand yet
        planned, start = {**settings, **own}, None
    else:
        planned, start = {**settings, "init": given.init}, (given.encoder, given.preprocessing)
    planned = {**planned, "base_lr": transfer.rates[0], "out": out}
    num_images, flops, memory = (_segmentation if kind == SEGMENT else _detection)(planned, data, machine, start)
    begins = own if row.is_scratch else {"init": row.init or OWN_MODEL}
    work = flops * num_images * len(transfer.rates)
    return Stage(kind=kind, settings={**settings, **begins}, rates=transfer.rates, work=work), memory


def _segmentation(
    settings: dict[str, Any], data: TransferData, machine: Machine, start: Start | None
) -> tuple[float, float, float]:
    """The images of a run, the FLOPs for each, and the bytes of memory."""
    plan = make_segment_plan(SegmentConfig(**settings), data.facts, data.num_classes, machine, start)
    memory = plan.config.micro_batch_size * segmenter_activation_bytes(plan.shape, 4)
    images = _num_images(plan.config, data.facts.count)
    return images, float(segmenter_flops(plan.shape)), 16 * segmenter_parameters(plan.shape) + memory


def _detection(
    settings: dict[str, Any], data: TransferData, machine: Machine, start: Start | None
) -> tuple[float, float, float]:
    """As `_segmentation`."""
    plan = make_detect_plan(DetectConfig(**settings), data.facts, data.num_classes, data.has_masks, machine, start)
    memory = plan.config.micro_batch_size * detector_activation_bytes(plan.shape, 4)
    images = _num_images(plan.config, data.facts.count)
    return images, float(detector_flops(plan.shape)), 16 * detector_parameters(plan.shape) + memory


def _num_images(config: Any, count: int) -> float:
    return config.steps * config.batch_size if config.steps else config.epochs * count
