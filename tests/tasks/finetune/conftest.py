"""Reports with a few small pictures: those are most of what a tiny run costs."""

import pytest

from openmae.tasks.classification import regression_report, report_pictures


@pytest.fixture(autouse=True)
def few_wrong_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three most wrong images in a report instead of 24; the tests of reports have them all."""
    for module in (report_pictures, regression_report):
        monkeypatch.setattr(module, "MAX_WRONG", 3)
