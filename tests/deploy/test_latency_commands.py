"""Latency on the command line."""

from pathlib import Path
from typing import Any

import pytest
from deploy.made_up import MadeUp

import slim


def test_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_place_of_onnxruntime: MadeUp
) -> None:
    from slim.workbench.cli.prune import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["--arch", "slim:vgg7", "--dry-run", "--latency", "soon"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and "'soon'" in said
    with pytest.raises(SystemExit) as stop:
        main(["--arch", "slim:vgg7", "--dry-run", "--round_to", "auto", "--bench.provider", "abacus"])
    assert stop.value.code == 2 and "provider 'abacus'" in capsys.readouterr().err
    main(["--arch", "slim:vgg7", "--dry-run", "--round_to", "auto", "--ratio", "0.3"])
    assert "nothing was written" in capsys.readouterr().out
    assert {kernel.shape[0] for kernel, *_ in in_place_of_onnxruntime.asked} == {1, 32}
    main(["--arch", "slim:vgg7", "--dry-run", "--latency", "0.5", "--bench.batch_sizes", "[3]"])
    said = " ".join(capsys.readouterr().out.split())
    assert "timing operators, then whole networks in onnxruntime, CPU" in said and "batch 3" in said
    settings = ["--bench.batch_sizes", "[1, 3]", "--bench.threads", "1"]
    main(["--arch", "slim:vgg7", "--dry-run", "--latency", "0.5", "--latency_of", "worst", *settings])
    said = " ".join(capsys.readouterr().out.split())
    assert "CPU, 1 thread, batch 1 and 3" in said and said.count("→") >= 5  # what was measured in each


def test_a_network_that_the_runtime_cannot_time_is_pruned_all_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from slim.workbench.cli.prune import main

    def refuse(*_: Any) -> Any:
        raise slim.SlimError("onnxruntime can't run this graph: no such operator")

    monkeypatch.setattr(slim.OnnxRuntime, "time", refuse)
    monkeypatch.chdir(tmp_path)
    main(["--arch", "slim:vgg7", "--dry-run", "--ratio", "0.5"])
    said = " ".join(capsys.readouterr().out.split())
    assert "sizes don't follow from times: onnxruntime can't run this graph" in said and "a multiple of 8" in said


@pytest.mark.parametrize(
    "given, words",
    [
        (["--latency", "4 parsecs"], "'4 parsecs': expected a share"),
        (["--latency", "0"], "latency 0.0: expected a share"),
        (["--latency", "-1"], "latency -1.0: expected a share"),
        (["--latency", "-2ms"], "latency '-2ms': expected a share"),
        (["--latency", "1.5"], "latency 1.5: expected a share"),
        (["--latency", "99999ms"], "ms as it is"),
        (["--ratio", "0.5", "--bench.weights", "[1, 2]"], "bench.weights has 2 numbers: expected 4"),
        (["--latency", "0.5", "--bench.provider", "abacus"], "provider 'abacus' isn't in this onnxruntime"),
        (["--latency", "0.5", "--bench.provider", "cuda"], "provider 'cuda' isn't in this onnxruntime"),
    ],
)
def test_mistakes_on_the_command_line(
    given: Any,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    in_place_of_onnxruntime: MadeUp,
) -> None:
    from slim.workbench.cli.prune import main

    if "cuda" in given:
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["--arch", "slim:vgg7", "--dry-run", *given])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and words in said
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize(
    "given",
    [["--prune.latency", "soon"], ["--prune.latency", "0.5", "--bench.provider", "abacus"], ["--export.batch", "n"]],
)
def test_a_whole_run_refuses_before_it_trains(
    given: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from slim.workbench.cli.run import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["--name", "x", *given])
    assert stop.value.code == 2 and given[-1] in capsys.readouterr().err and not list(tmp_path.iterdir())
