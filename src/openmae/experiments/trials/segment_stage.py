"""The stage of a row that segments: what it is given, and what it costs."""

from typing import Any

from openmae.config import SegmentConfig
from openmae.experiments.masks import MaskedData
from openmae.experiments.setup import Setup
from openmae.experiments.studies.study import Row
from openmae.experiments.trials.trial import OWN_MODEL, Stage
from openmae.planning.decisions import Machine
from openmae.planning.segment import make_segment_plan, training_flops
from openmae.transfer.segmenter_cost import segmenter_activation_bytes, segmenter_parameters

MODEL_SETTINGS = ("width", "depth", "num_heads", "patch_size", "channels")


def segment_stage(
    row: Row, setup: Setup, pretrain: dict[str, Any], masked: MaskedData, machine: Machine, out: str
) -> tuple[Stage, float]:
    """The stage, and the bytes of memory that it needs.

    Args:
        pretrain: the settings of the row's pre-training, for the shape of a model from scratch.

    Raises:
        RequestError: the row's model does not fit the data or the crops.
    """
    settings = setup.segment[row.size or 0]
    own = {"init": "none", **{name: pretrain[name] for name in MODEL_SETTINGS}}
    given = next((one for one in setup.given if one.name == row.name), None)
    if given is None:  # what is pre-trained has the shape that it has from scratch, and is not at hand yet
        planned, start = {**settings, **own}, None
    else:
        planned, start = {**settings, "init": given.init}, (given.encoder, given.preprocessing)
    config = SegmentConfig(**planned, base_lr=setup.segment_rates[0], out=out)
    plan = make_segment_plan(config, masked.facts, masked.num_classes, machine, start)
    steps = plan.config.steps or round((plan.config.epochs or 0) * masked.facts.count / plan.config.batch_size)
    work = float(training_flops(plan.shape)) * steps * plan.config.batch_size * len(setup.segment_rates)
    memory = 16 * segmenter_parameters(plan.shape)
    memory += (plan.config.micro_batch_size or 1) * segmenter_activation_bytes(plan.shape, 4)
    begins = own if row.is_scratch else {"init": row.init or OWN_MODEL}
    return Stage(kind="segment", settings={**settings, **begins}, rates=setup.segment_rates, work=work), memory
