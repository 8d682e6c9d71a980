"""What the tests of the workbench share: commands called in this process, and what the chain and slim-run left."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.made_up import MadeUp
from workbench.commands import Command, Shown, call, shown_by
from workbench.report.short_run import SHORT

from slim.deploy import guard
from slim.deploy.guard import Guarded
from slim.deploy.onnx.target import OnnxRuntime


@contextmanager
def made_up_times(cache: Path) -> Iterator[None]:
    """Plans by cost take no measuring: operators take what a formula says, and the first plan is taken as fast enough.
    tests/deploy has the rest."""

    def first(plans: Any, compared: Any) -> Guarded:
        return Guarded(next(iter(plans)), [])

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_CACHE", str(cache))
        patch.setattr(OnnxRuntime, "time", lambda _, kernels: MadeUp().time(kernels))
        patch.setattr(guard, "never_slower", first)
        yield


@pytest.fixture(scope="session")
def made_up_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds these times."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)
def times_here(made_up_cache: Path) -> Iterator[None]:
    """Made-up times in all tests of the workbench, and in none that the same process runs in between."""
    with made_up_times(made_up_cache):
        yield


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process and returns what it printed."""

    def run(name: str, *argv: str) -> str:
        capsys.readouterr()
        call(name, *argv)
        return capsys.readouterr().out

    return run


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command that must fail, and returns the one line that it printed."""

    def run(name: str, *argv: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            call(name, *argv)
        printed = capsys.readouterr().err
        assert stopped.value.code == 2
        assert printed.startswith(f"slim-{name}: error: ") and printed.count("\n") == 1, printed
        return printed

    return run


@pytest.fixture(scope="session")
def chained(tmp_path_factory: pytest.TempPathFactory, made_up_cache: Path) -> tuple[Path, dict[str, Shown]]:
    """A folder in which the chain has run, shortly, and what each command printed. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("chain")
    printed = {}
    with made_up_times(made_up_cache), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, argv in [
            ("train", ["--epochs", "3", "--sparsity.strength", "1e-3", "--data.batch_size", "32"]),
            ("prune", ["--ratio", "0.5"]),
            ("finetune", ["--epochs", "2"]),
            ("export", []),
            ("bench", ["--runs", "3", "--warmup", "1"]),
        ]:
            printed[name] = shown_by(name, *argv)
    return folder, printed


@pytest.fixture
def folder(chained: tuple[Path, dict[str, Shown]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the chain has run, as the working folder."""
    monkeypatch.chdir(chained[0])
    return chained[0]


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory, made_up_cache: Path) -> tuple[Path, Shown]:
    """The folder that a short slim-run left, with all its files, and what it showed. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "short.yaml").write_text(yaml.safe_dump(SHORT | {"name": "whole"}))
    with made_up_times(made_up_cache), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shown = shown_by("run", "short.yaml")
    return folder / "checkpoints" / "whole", shown


@pytest.fixture(scope="session")
def whole(whole_run: tuple[Path, Shown]) -> Path:
    """The folder of a short run with all its files."""
    return whole_run[0]
