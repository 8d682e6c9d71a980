"""Mistakes on the command line, in files and by signals: one line each, and earlier files as they were."""

import json
import os
import signal
import time
import warnings
from pathlib import Path

import onnx
import pytest
from PIL import Image
from workbench.commands import Command, call, contents

import slim
from slim.errors import SlimWarning
from slim.workbench import config
from slim.workbench.cli.command import ParsedCommand
from slim.workbench.cli.errors import report_user_errors
from slim.workbench.config import RunConfig
from slim.workbench.run import Run, export_stage, finetune_stage, prune_stage, run_all


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["train", "--train.lrr", "1"], ["'--train.lrr'", "--train.lr"]),
        (["prune", "--ratoi", "0.5"], ["'--ratoi'", "did you mean --ratio"]),
        (["prune", "--lr", "1"], ["--train.lr or --finetune.lr"]),
        (["prune", "--ratio", "1.5"], ["prune.ratio", "1.5", "[0, 1)"]),
        (["prune", "--ratio", "half"], ["prune.ratio", "'half'", "a number"]),
        (["prune", "--ratio"], ["--ratio", "argument"]),
        (["train", "--schedule", "cosin"], ["'cosin'", "cosine"]),
        (["train", "extra"], ["'extra'"]),
        (["train", "--config", "none.yaml"], ["none.yaml", "No such file"]),
        (["train", "--data.name", "digit"], ["'digit'", "digits"]),
        (["train", "--data.name", "imagefolder", "--data.root", "nowhere"], ["nowhere"]),
        (["train", "--data.name", "cifar10", "--data.root", "nowhere"], ["nowhere", "download"]),
        (["train", "--model.arch", "slim:vgg8"], ["'vgg8'", "vgg7"]),
        (["train", "--model.arch", "nosuch:net"], ["nosuch"]),
        (["train", "--model.kwargs", "{depth: 3}"], ["'depth'"]),
        (["train", "--sparsity.targets", "none*"], ["none*"]),
        (["prune"], ["sparse.safetensors", "slim-train"]),
        (["finetune"], ["pruned.safetensors", "slim-prune"]),
        (["finetune", "."], ["no pruned.safetensors", "slim-prune"]),
        (["export"], ["finetuned.safetensors", "slim-finetune"]),
        (["bench"], ["model.onnx", "slim-export"]),
        (["prune", "none.safetensors"], ["none.safetensors", "No such file"]),
        (["prune", "text.txt"], ["text.txt", "safetensors"]),
        (["bench", "none.onnx"], ["none.onnx"]),
        (["predict", "none.onnx", "x.png"], ["none.onnx"]),
        (["predict", "none.onnx"], ["IMAGE"]),
        (["predict", "none.onnx", "x.png", "--threads", "two"], ["--threads", "'two'"]),
        (["predict", "none.onnx", "x.png", "--tpo", "1"], ["'--tpo'", "--top"]),
        (["prune", "--arch", "torchvision:resnet18"], ["untrained", "--weights", "--dry-run"]),
        (["prune", "--weights", "x.pth"], ["x.pth", "--arch"]),
        (["prune", "--arch", "slim:vgg7", "--weights", "none.pth"], ["none.pth", "No such file"]),
        (["prune", "--arch", "slim:vgg7", "x.safetensors"], ["x.safetensors", "one of them"]),
        (["prune", "--arch", "torchvision:resnet81", "--dry-run"], ["resnet81", "resnet"]),
        (["prune", "--arch", "slim:vgg7", "--weights", "none.pth", "--latency", "4"], ["latency 4.0", "4.0ms"]),
        (["prune", "net.pth"], ["expected --arch NETWORK --weights net.pth"]),
        (["run", "none.yaml"], ["none.yaml"]),
        (["train", "digits", "cifar10"], ["'cifar10'", "one CONFIG"]),
    ],
    ids=" ".join,
)
def test_a_mistake_gets_one_line(
    argv: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("no checkpoint")
    line = mistake(*argv)
    assert all(part in line for part in parts), line
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["train", "--epochs", "1", "--lr", "1e9"], "lr"),
        (["prune", "--ratio", "1e-9"], "nothing"),
        (["prune", "--seed", "1"], "seed"),
        (["finetune", "--model.arch", "slim:resnet20"], "slim:vgg7"),
        (["finetune", "--data.name", "cifar10", "--data.root", "nowhere"], "nowhere"),
        (["export", "--opset", "5"], "[18, 25]"),
        (["export", "BROKEN"], "truncated"),
        (["predict", "checkpoints/digits-vgg7/model.onnx", "checkpoints/digits-vgg7/plan.json"], "plan.json"),
        (["predict", "checkpoints/digits-vgg7/pruned.safetensors", "x.png"], "which slim-export makes of it"),
        (["bench", "--provider", "tpu"], "tpu"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_a_mistake_leaves_earlier_files_untouched(
    argv: list[str], part: str, folder: Path, tmp_path: Path, mistake: Command
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((folder / "checkpoints/digits-vgg7/sparse.safetensors").read_bytes()[:1000])
    before = contents(folder)
    assert part in mistake(*[str(broken) if word == "BROKEN" else word for word in argv])
    assert contents(folder) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("name", "stage", "following"),
    [
        ("train", "training.train_stage", "slim-train --seed 1 --resume"),
        ("run", "whole.run_all", "slim-run --seed 1 --resume"),
        ("prune", "pruning.prune_stage", "slim-prune x.safetensors --seed 1"),
    ],
)
def test_a_signal_names_the_line_to_go_on_with(
    name: str,
    stage: str,
    following: str,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def signalled(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr(f"slim.workbench.run.{stage}", signalled)
    monkeypatch.setattr(ParsedCommand, "run_after", lambda self, _: (None, Path("x.safetensors")))
    with pytest.raises(SystemExit) as stopped:
        call(name, *following.split()[1:4] if name == "prune" else following.split()[1:3])
    assert stopped.value.code == 128 + number
    told = capsys.readouterr().err.strip()
    assert "\n" not in told and told.startswith(f"slim-{name}: ") and told.endswith(f"go on with: {following}")


@pytest.mark.parametrize(
    "name, text", [("summary.json", "{"), ("summary.json", "[]"), ("metrics.jsonl", "3"), ("metrics.jsonl", "{}")]
)
def test_broken_records_are_one_line_before_any_work(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    for stage in (prune_stage, finetune_stage, export_stage):
        with pytest.raises(slim.SlimError, match="is broken"):
            stage(Run(tmp_path, RunConfig()), tmp_path / "sparse.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == [name]


BARE = """
from torch import nn
flat = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
class Sorts(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(288, 10)
    def forward(self, x):
        return self.last(self.norm(self.conv(x)).sort(1)[0].flatten(1))
"""


@pytest.mark.parametrize(
    ("network", "path", "expected"),
    [
        ("flat", "auto", "nothing to prune: all channels are frozen"),
        ("flat", "direct", "nothing to prune: all channels are frozen"),
        ("flat", "sparse", "there is nothing to penalise"),
        ("Sorts", "auto", r"nothing to prune: all channels are frozen \(sort after norm"),
        ("Sorts", "sparse", "nothing to prune: all channels are frozen"),
    ],
)
def test_a_network_with_nothing_to_prune_is_refused_before_it_is_trained(
    network: str, path: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare.py").write_text(BARE)
    monkeypatch.syspath_prepend(tmp_path)
    told = {"model": {"arch": f"bare:{network}"}, "train": {"epochs": 1}, "run": {"path": path}}
    folder = tmp_path / "checkpoints" / "bare"
    with pytest.raises(slim.SlimError, match=expected):
        run_all(Run(folder, config.updated(RunConfig(), told), allow_code=(f"bare:{network}",)))
    assert not list(folder.glob("*.safetensors"))


@pytest.mark.parametrize("name", ["..", ".", "a/b", ""])
def test_a_run_stays_in_its_folder(name: str) -> None:
    with pytest.raises(slim.SlimError, match="plain folder name"):
        config.updated(RunConfig(), {"name": name})


EVIL = "\x1b[31mred\x07"


def test_names_in_files_reach_the_terminal_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class and an image that predict names, and a layer that a warning names."""
    monkeypatch.chdir(tmp_path)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1, 1, 2])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Flatten", ["x"], ["y"])], "g", [x], [y])
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)])
    facts = {"classes": [EVIL, "b"], "mean": [0.0], "std": [1.0], "input_shape": [1, 1, 2]}
    onnx.helper.set_model_props(model, {f"slim.{key}": json.dumps(value) for key, value in facts.items()})
    onnx.save(model, "x.onnx")
    Image.new("L", (2, 1)).save(f"{EVIL}.png")
    said = command("predict", "x.onnx", ".")
    assert said == "\\x1b[31mred\\x07.png: \\x1b[31mred\\x07 (50.0%), b (50.0%)\n"
    with warnings.catch_warnings(action="always"), report_user_errors("slim-prune"):
        warnings.warn(SlimWarning(f"layer {EVIL} is odd"), stacklevel=1)
    assert capsys.readouterr().err == "slim-prune: warning: layer \\x1b[31mred\\x07 is odd\n"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("digitz", "no settings 'digitz': did you mean digits?"),
        ("foo", "unexpected argument 'foo': expected slim-train"),
    ],
)
def test_settings_that_there_are_not_name_the_nearest(word: str, said: str, mistake: Command) -> None:
    assert said in mistake("train", word)
