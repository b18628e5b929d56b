"""A model and the data that it is given, brought together: by which rule values of another type become the model's."""

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
    """The model with a preprocessing that fits the data, and what to say about it, a line a thing.

    Args:
        sources: the parts of the data; some images of each are looked at.
        value_range: what a person says becomes the model's 0 and 1.
    """
    sources = tuple(sources)
    preprocessing, lines = match_scale(
        model.preprocessing, survey_depths(sources), value_range, stated=stated_range(sources)
    )
    axes = axes_of(sources)
    nodata = next((stored_nodata(setting) for setting in map(nodata_in, sources) if setting is not None), None)
    preprocessing = replace(preprocessing, axes=axes.order or preprocessing.axes, nodata=nodata)
    return replace(model, preprocessing=preprocessing), [*axes.lines, *value_lines(lines)]
