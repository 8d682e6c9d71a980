"""A short run with all its files, made once."""

from pathlib import Path

import pytest
from workbench.report.short_run import QUIET, settings

from slim.workbench import run as stages
from slim.workbench.report import collect
from slim.workbench.report.collect import RunRecords


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run with all its files."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        stages.run_all(stages.Run(stages.ROOT / "whole", settings(name="whole"), QUIET), command="slim-run short.yaml")
    return root / "checkpoints" / "whole"


@pytest.fixture(scope="module")
def run(whole: Path) -> RunRecords:
    """What the page reads of it."""
    return collect(whole)
