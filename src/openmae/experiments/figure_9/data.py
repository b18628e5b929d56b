"""The data of figure 9, and what is decided once from all splits and not from a share of the labels."""

from dataclasses import dataclass
from typing import Any

from openmae.config import ExperimentConfig, FinetuneConfig, Preprocessing
from openmae.data.decoding.nodata import resolve_nodata
from openmae.data.depths import survey_depths
from openmae.data.labels.labelled import LabelledData, open_labelled
from openmae.data.sources.views import axes_of
from openmae.data.value_scale import match_scale, stated_range, stored_value_range, value_lines
from openmae.experiments.data import ADVICE, check_measurable
from openmae.run.lock import check_outside


@dataclass(frozen=True, kw_only=True)
class Figure9Data:
    """The labelled splits of DATA.

    Attributes:
        held_out: images of train to choose by; None where DATA has a val split for that.
        value_range: the setting of every run but those from scratch.
        own_range: the setting of runs from scratch.
        axes: of `.npy` images.
        counts: training images, by the share of the labels.
    """

    labelled: LabelledData
    held_out: int | None
    value_range: tuple[float, float] | None
    own_range: tuple[float, float]
    axes: str | None
    counts: dict[str, int]

    @property
    def chosen_by(self) -> str:
        return "val" if self.held_out is None else f"{self.held_out:,} images held out of train"


def open_figure_9_data(config: ExperimentConfig, p: Preprocessing) -> Figure9Data:
    """Open DATA, and say how the images' values are taken.

    Args:
        p: the model's.

    Raises:
        RequestError: DATA or its labels cannot be used.
    """
    check_outside(config.dataset, config.out)
    data = _open(config, p)
    check_measurable(config, data)
    held_out = None
    if data.validation is None:  # else DATA's own val part chooses
        held_out = config.held_out or len(_parts_to_choose(config, p).held_out_names())
    labels = config.labels or ()
    counts = {share: len(_open(config, p, labels=share, held_out=held_out).train) for share in labels}
    depths = survey_depths(data.parts)
    matched, lines = match_scale(p, depths, config.value_range, stated=stated_range(data.parts))
    axes = axes_of(data.parts)
    for line in [*axes.lines, *value_lines(lines)]:
        print(line, flush=True)
    value_range = config.value_range or (stored_value_range(matched) if matched.source_dtype in depths.counts else None)
    most_common = max(depths.counts, key=lambda kind: depths.counts[kind], default=None)
    own_range = value_range if value_range and matched.source_dtype == most_common else p.value_range
    return Figure9Data(
        labelled=data,
        held_out=held_out,
        value_range=value_range,
        own_range=own_range,
        axes=axes.order,
        counts=counts,
    )


def _parts_to_choose(config: ExperimentConfig, p: Preprocessing) -> LabelledData:
    return _open(config, p, needs_validation=True)


def _open(config: ExperimentConfig, p: Preprocessing, **which: Any) -> LabelledData:
    return open_labelled(
        config.dataset,
        **{"labels": None, "held_out": None, **which},
        label_file=None,
        advice=ADVICE,
        background=p.background,
        max_pixels=FinetuneConfig.max_pixels,
        axes=config.axes,
        default_axes=p.axes,
        nodata=resolve_nodata(config.nodata, p),
    )
