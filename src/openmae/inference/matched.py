"""A model matched to its data: how values of another number type become the model's, the axes, the nodata value."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from openmae.data.decoding.nodata import stored_nodata
from openmae.data.depths import survey_depths
from openmae.data.sources.open import Source
from openmae.data.sources.views import axes_of, nodata_in
from openmae.data.value_scale import match_scale, stated_range, value_lines
from openmae.inference.models import EncoderModel

M = TypeVar("M", bound=EncoderModel)


def matched_model(model: M, sources: Iterable[Source], value_range: tuple[float, float] | None) -> tuple[M, list[str]]:
    """The model with a preprocessing that fits the data, and lines for a user that say how it fits.

    Args:
        sources: the splits of the data; some images of each are surveyed.
        value_range: the raw values that become the model's 0 and 1, where a user gave them.
    """
    sources = tuple(sources)
    preprocessing, lines = match_scale(
        model.preprocessing, survey_depths(sources), value_range, stated=stated_range(sources)
    )
    axes = axes_of(sources)
    nodata = next((stored_nodata(setting) for setting in map(nodata_in, sources) if setting is not None), None)
    preprocessing = replace(preprocessing, axes=axes.order or preprocessing.axes, nodata=nodata)
    return replace(model, preprocessing=preprocessing), [*axes.lines, *value_lines(lines)]
