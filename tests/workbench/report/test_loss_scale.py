"""The axis of the losses: as many numbers as there is room for."""

import pytest

from slim.workbench.report.figures.training import _decades, _scale
from slim.workbench.tasks import Classification


@pytest.mark.parametrize(
    ("losses", "dtick"),
    [([(2.0, 2.1), (0.5, 0.7)], "D2"), ([(2.3, 4.0), (0.002, 0.01)], 1), ([(0.0, None)], "D2"), ([], "D2")],
)
def test_numbers_of_the_losses(losses: list[tuple[float, float | None]], dtick: object) -> None:
    records = [{"train_loss": train, "val_loss": val} for train, val in losses]
    assert _scale("loss", Classification().metric, _decades(records))["dtick"] == dtick
