"""What the page reads of a short run."""

from pathlib import Path

import pytest

from slim.workbench.report import collect
from slim.workbench.report.collect import RunRecords


@pytest.fixture(scope="module")
def run(whole: Path) -> RunRecords:
    """What the page reads of it."""
    return collect(whole)
