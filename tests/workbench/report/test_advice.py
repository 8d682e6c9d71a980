"""What to do next follows from the run's numbers."""

from pathlib import Path

import pytest

from slim.workbench.report import advice
from slim.workbench.report.collect import RunRecords


def sweep(*values: float, chosen: float = 0.5, images: int = 1000) -> RunRecords:
    """A run whose accuracy on validation images is `values` after removing 0, 25, 50 and 75 % of the channels."""
    points = [{"ratio": 0.25 * i, "accuracy": value, "flops": 1, "params": 1} for i, value in enumerate(values)]
    known = {"points": points, "chosen": chosen, "images": images, "split": "validation"}
    return RunRecords(Path("x"), evidence={"tradeoff": known})


@pytest.mark.parametrize(
    ("values", "said", "command"),
    [  # of 1,000 images, 95.0 % and 94.0 % are the same, 95 % and 90 % aren't
        ((0.95, 0.95, 0.95, 0.94), "a cut of 75%", "slim-prune --ratio 0.75"),
        ((0.95, 0.95, 0.94, 0.90), "a cut of 50%", ""),
        ((0.95, 0.94, 0.90, 0.60), "rests on its fine-tuning", ""),
        ((0.95, 0.90, 0.80, 0.60), "no cut holds", ""),
        ((0.95,), "", ""),
    ],
)
def test_the_next_cut_is_the_largest_that_holds(values: tuple[float, ...], said: str, command: str) -> None:
    found = advice.how_far(sweep(*values))
    assert said in found[0] and found[1] == command


@pytest.mark.parametrize(
    ("intervals", "file"),
    [
        ({"onnx": (1.5, 1.7)}, "model.onnx"),
        ({"onnx": (0.9, 1.2)}, "model.onnx"),
        ({"onnx": (0.5, 0.7)}, "baseline.onnx"),
        ({"onnx": (1.5, 1.7), "int8": (2.0, 2.2)}, "model.int8.onnx"),
        ({"onnx": (1.5, 2.1), "int8": (2.0, 2.2)}, "model.onnx"),
        ({}, "model.onnx"),
    ],
)
def test_the_file_to_deploy_follows_from_the_benchmark(intervals: dict[str, tuple[float, float]], file: str) -> None:
    rows = [
        {"model": name, "batch_size": 1, "speedup": (low + high) / 2, "speedup_low": low, "speedup_high": high}
        for name, (low, high) in intervals.items()
    ]
    run = RunRecords(Path("x"), summary={"onnx": {"params": 1, "flops": 1, "bench": {"rows": rows}}})
    found = advice.deployment(run)
    assert found is not None and found.file == file
    assert advice.deployment(RunRecords(Path("x"))) is None
