"""Trained weights: from every kind of file, fitted to the network with another head, or refused by name."""

import argparse
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from workbench.commands import Command, contents

import slim
from slim import checkpoint
from slim.errors import SlimError
from slim.workbench import data
from slim.workbench.config import RunConfig
from slim.workbench.models import build
from slim.workbench.models.fitting import fit_weights
from slim.workbench.models.reading import read_weights
from slim.workbench.models.weights import file_and_key

ARCH = "slim:vgg7"
EXACT = ["--round-to", "1"]  # the numbers of channels that follow from the weights alone


def trained(classes: int = 10) -> nn.Module:
    """A network whose γ, β and statistics all differ from their first values."""
    torch.manual_seed(1)
    model = build(ARCH, num_classes=classes, in_channels=1)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1)
    return model


def assert_equal(model: nn.Module, state: dict[str, Tensor], but: str = "-") -> None:
    assert all(
        torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items() if not name.startswith(but)
    )


def shifted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in state.items()}


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


class Own:
    """Something that only a pickle can hold."""


CONTENTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "a state dict": dict,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "ema": lambda state: {"ema": state, "step": torch.tensor(3)},
    "module.": prefixed("module."),
    "_orig_mod.": prefixed("_orig_mod."),
    "compiled and distributed": prefixed("module._orig_mod."),
    "Lightning": lambda state: {"state_dict": prefixed("net.")(state)},
    "without counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "teacher": lambda state: {"teacher": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "a mapping in a mapping": lambda state: {"checkpoint": {"model": prefixed("module.")(state)}},
    "encoder.": prefixed("encoder."),
    "some layers compiled": lambda state: {k.replace("conv2.", "conv2._orig_mod."): v for k, v in state.items()},
    "beside a number": lambda state: {**state, "epoch": 3},
    "with arguments and classes": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1), "best": Own()},
}
BESIDE: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "an average": (
        lambda state: {"model": state, "ema": {"n_averaged": torch.ones(1), **prefixed("module.")(shifted(state))}},
        "weights are those under 'model' in .*, not those under 'ema', which .*w.pth:ema names$",
    ),
    "a loss": (
        lambda state: {"state_dict": {"criterion.weight": torch.ones(3), **prefixed("model.")(state)}},
        "weights are those whose names begin with 'model.', without criterion.weight$",
    ),
    "a teacher": (
        lambda state: prefixed("student.")(state) | prefixed("teacher.")(shifted(state)),
        r"begin with 'student.', without teacher.conv1.weight, .* and \d+ more$",
    ),
}


@pytest.mark.parametrize("kind", [*CONTENTS, *BESIDE])
def test_every_usual_kind_of_file(kind: str, tmp_path: Path) -> None:
    """What lies beside the weights is named, if it could have been meant."""
    state = trained().state_dict()
    content, message = BESIDE.get(kind, (CONTENTS.get(kind), None))
    assert content is not None
    torch.save(content(dict(state)), tmp_path / "w.pth")
    model = build(ARCH, num_classes=10, in_channels=1)
    notes, new = fit_weights(model, read_weights(ARCH, str(tmp_path / "w.pth")), 10)
    assert_equal(model, dict(state))
    assert new == [] and ([re.search(message, note) is not None for note in notes] == [True] if message else not notes)


@pytest.mark.parametrize("key", ["ema", "ema.module", "state_dict.teacher", "emma", ""])
def test_one_set_of_several_by_its_key(key: str, tmp_path: Path) -> None:
    state = dict(trained().state_dict())
    both = prefixed("student.")(shifted(state)) | prefixed("teacher.")(state)
    torch.save({"model": shifted(state), "ema": prefixed("module.")(state), "state_dict": both}, tmp_path / "w.pth")
    model, source = build(ARCH, num_classes=10, in_channels=1), f"{tmp_path / 'w.pth'}:{key}"
    if key in ("emma", ""):
        with pytest.raises(SlimError, match=r"unknown key of tensors in '.*w\.pth' '(emma': did you mean 'ema'|')"):
            read_weights(ARCH, source)
    else:
        assert fit_weights(model, read_weights(ARCH, source), 10) == ([], [])
        assert_equal(model, state)


def test_a_drive_is_no_file_with_a_key() -> None:
    assert [file_and_key(name)[1] for name in ("C:w.pt", r"C:\w.pt", "w.pt:ema", r"C:\w.PT:a.b", "DEFAULT")] == [
        None, None, "ema", "a.b", None,
    ]  # fmt: skip


def test_nothing_in_a_file_of_weights_is_run(tmp_path: Path) -> None:
    """Not by what stands beside the weights, either: its class is never imported."""
    torch.save({"model": trained().state_dict(), "args": Trap(tmp_path / "sprung")}, tmp_path / "w.pt")
    model = build(ARCH, num_classes=10, in_channels=1)
    fit_weights(model, read_weights(ARCH, str(tmp_path / "w.pt")), 10)
    assert_equal(model, dict(trained().state_dict()))
    assert not (tmp_path / "sprung").exists()


def wide() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found |= {f"key{number}": found for number in range(300)}  # 27 million ways through three of them
    return found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wide(), "hold key0, key1, key2: expected a state dict"),
        (
            {"weight": torch.ones(3, 3) / 0 * 0},
            "have NaN, complex, sparse or quantised numbers, or none, in weight: exp",
        ),
        ({"weight": torch.ones(3, 3).to_sparse()}, "sparse or quantised"),
        ({"weight": torch.ones(3, 3, dtype=torch.complex64)}, "sparse or quantised"),
        ({"weight": torch.ones(3, 3, device="meta")}, "sparse or quantised"),
        (bytes(10**7), r"unpack to 10,000,\d+ bytes: expected a file that torch.save wrote"),
    ],
    ids=["wide", "NaN", "sparse", "complex", "meta", "packed"],
)
def test_odd_contents(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    if isinstance(content, bytes):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", content)
    else:
        torch.save(content, path)
    with pytest.raises(SlimError, match=message):
        fit_weights(nn.Linear(3, 3, bias=False), read_weights("slim:vgg7", str(path)), None)


def test_many_classes_are_refused_before_each_is_looked_up(tmp_path: Path) -> None:
    names = b"".join(b"cmod%d\nName\n" % number for number in range(20_000))
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02](" + names + b"e.")
        archive.writestr("a/version", "3\n")
    with pytest.raises(SlimError, match="hold a pickled object"):
        read_weights("slim:vgg7", str(tmp_path / "w.pt"))


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return spring, (self.path,)


def spring(path: Path) -> None:
    path.touch()


def test_safetensors_and_a_new_head(tmp_path: Path) -> None:
    state = trained(1000).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    model = build(ARCH, num_classes=7, in_channels=1)
    head = model.get_parameter("classifier.weight").clone()
    notes, new = fit_weights(model, read_weights(ARCH, str(tmp_path / "w.safetensors")), 7)
    assert new == ["classifier"] and notes == ["classifier: made new for 7 classes (the weights have 1000)"]
    assert_equal(model, dict(state), but="classifier")
    assert torch.equal(model.get_parameter("classifier.weight"), head)


def test_a_network_may_wrap_the_one_that_was_trained(tmp_path: Path) -> None:
    torch.save(trained().state_dict(), tmp_path / "w.pt")
    inner = build(ARCH, num_classes=10, in_channels=1)
    fit_weights(nn.ModuleDict({"inner": inner}), read_weights(ARCH, str(tmp_path / "w.pt")), 10)
    assert_equal(inner, dict(trained().state_dict()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda state: {**state, "extra": torch.ones(1)}, "have too many tensors: extra$"),
        (lambda state: {k: v for k, v in state.items() if k != "conv2.weight"}, "lack conv2.weight$"),
        (lambda state: {**state, "conv2.weight": torch.ones(3, 3)}, "another shape of conv2.weight$"),
        (
            lambda state: {k.replace(".", "/"): v for k, v in state.items()},
            r"lack conv1.weight, bn1.weight, .* and \d+ more$",
        ),
        (lambda _: {"epoch": 3, "lr": 0.1}, r"hold epoch, lr: expected a state dict, or one under state_dict, model"),
        (lambda _: {"model": Own(), "epoch": 3}, "a pickled object, such as a whole model"),
        (lambda _: Own(), "a pickled object, such as a whole model, which can run .* expected tensors alone"),
    ],
)
def test_what_does_not_fit_is_named(content: Callable[[dict[str, Tensor]], Any], message: str, tmp_path: Path) -> None:
    torch.save(content(dict(trained().state_dict())), tmp_path / "w.pt")
    with pytest.raises(SlimError, match=message) as caught:
        fit_weights(build(ARCH, num_classes=10, in_channels=1), read_weights(ARCH, str(tmp_path / "w.pt")), 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "source", "message"),
    [
        (ARCH, "none.pth", "none.pth' can't be read: No such file"),
        (ARCH, "none.safetensors", "can't be read: No such file"),
        (ARCH, "broken.pt", "are broken|pickled object"),
        (ARCH, "half.pt", "can't be read: cut short|are broken"),
        (ARCH, "pointer.pt", "are no file of torch.save"),
        (ARCH, "script.pt", "hold a TorchScript program: expected tensors alone"),
        (ARCH, "DEFAULT", "expected a file that ends in"),
        ("torchvision:resnet18", "IMAGENET1K_V3", "did you mean 'IMAGENET1K_V1'"),
    ],
)
def test_weights_that_are_not_there(
    arch: str, source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.pt").write_bytes(b"PK\x03\x04 no archive")
    torch.save(trained().state_dict(), "whole.pt")
    Path("half.pt").write_bytes(Path("whole.pt").read_bytes()[: Path("whole.pt").stat().st_size // 2])
    Path("pointer.pt").write_text("version https://git-lfs.github.com/spec/v1")
    torch.jit.script(nn.ReLU()).save("script.pt")
    with pytest.raises(SlimError, match=message) as caught:
        read_weights(arch, source)
    assert "\n" not in str(caught.value)


def test_torchvision_finds_its_own_and_what_belongs_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    state = build("torchvision:resnet18").state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    weights = read_weights("torchvision:resnet18", "DEFAULT")
    assert weights.states[""].keys() == state.keys()
    assert weights.mean == (0.485, 0.456, 0.406) and weights.std == (0.229, 0.224, 0.225)
    assert weights.image_size == 224 and weights.classes is not None and weights.classes[0] == "tench"


def test_pruned_without_any_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    """From a file of weights to a thin network, which the next commands take."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = build("torchvision:resnet18", num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 1)
    torch.save({"state_dict": model.state_dict()}, "mine.pth")
    argv = [
        "--arch",
        "torchvision:resnet18",
        "--weights",
        "mine.pth",
        "--data.image-size",
        "32",
        "--ratio",
        "0.5",
        *EXACT,
    ]
    assert "nothing was written" not in command("prune", *argv, "--dry-run") and not Path("checkpoints").exists()
    command("prune", *argv)
    run = Path("checkpoints/resnet18")
    base, thin = slim.load(run / "baseline.safetensors"), slim.load(run / "pruned.safetensors")
    assert_equal(base, dict(model.state_dict()))  # γ too, and the head of 5 classes
    plan = slim.PruningPlan.load(run / "plan.json")
    assert plan.ratio_achieved == pytest.approx(0.5, abs=0.01)
    x = torch.randn(2, 3, 32, 32)
    assert slim.verify(base, thin, plan, x) < 1e-10 and thin(x).shape == (2, 5)
    Path("mine.pth").unlink()  # a later stage needs it no more
    assert "model.onnx" in command("export", str(run / "pruned.safetensors"))


def test_a_network_in_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mynet.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3))\n"
        "        torch.manual_seed(3)\n"
        "        nn.init.uniform_(self[1].weight, 0.2, 0.9)\n"
    )
    command("prune", "--arch", "mynet.py:Net", "--ratio", "0.5", "--data.image_size", "16", *EXACT)
    about = checkpoint.read_metadata("checkpoints/Net/pruned.safetensors")
    assert about["arch"] == "mynet.py:Net" and about["metrics"]["channels"] == 8
    base = slim.load("checkpoints/Net/baseline.safetensors", allow_code="mynet.py:Net")
    gamma = base.get_parameter("1.weight")
    assert ((gamma > 0.2) & (gamma < 0.9)).all()  # its own γ


def test_a_run_begins_with_the_network_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, mistake: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("slim.workbench.run.whole._export_and_measure", lambda *_: [])  # tested elsewhere
    save_file(trained().state_dict(), "w.safetensors")
    options = ["--train.epochs", "1", "--finetune.epochs", "1", "--report.page", "false"]
    command("run", "--model.weights", "w.safetensors", "--name", "given", "--prune.round_to", "1", *options)
    run = Path("checkpoints/given")
    assert_equal(slim.load(run / "baseline.safetensors"), dict(trained().state_dict()))
    assert checkpoint.read_metadata(run / "finetuned.safetensors")["metrics"]["accuracy"] > 0
    before = contents(run)
    assert "--model.weights w.safetensors" in mistake("run", "--name", "given", "--resume")
    assert contents(run) == before


def test_weights_see_images_as_they_were_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, mistake: Command
) -> None:
    """What the user says of mean and standard deviation is what the network is judged with, and what its file says."""
    monkeypatch.chdir(tmp_path)
    save_file(trained().state_dict(), "w.safetensors")
    argv = ["prune", "--arch", ARCH, "--weights", "w.safetensors", "--data.name", "digits", *EXACT]
    command(*argv, "--data.mean", "0.2", "--data.std", "0.7", "--name", "told")
    about = checkpoint.read_metadata(Path("checkpoints/told/baseline.safetensors"))
    test = data.load(RunConfig().data, 0).test
    images = (torch.as_tensor(test.images).float() / 255 - 0.2) / 0.7
    right = (trained().eval()(images).argmax(1) == test.labels).float().mean().item()
    assert (about["mean"], about["std"]) == ([0.2], [0.7])
    assert about["metrics"]["accuracy"] == pytest.approx(right, abs=1e-6)
    for given in (["--data.mean", "0.2"], ["--data.mean", "0,0,0", "--data.std", "1,1,1"]):
        assert "expected 1 numbers of each, or neither" in mistake(*argv, *given)


def test_a_tag_of_timm_names_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Command) -> None:
    monkeypatch.chdir(tmp_path)
    assert "names trained weights" in mistake("train", "--model.arch", "timm:resnet18.a1_in1k")


def test_named_data_are_used_for_a_network_that_no_run_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, mistake: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    images = slim.ImageSpec((1, 8, 8), mean=(0.3,), std=(0.2,))
    slim.save(
        "own/net.safetensors", trained(), arch=ARCH, arch_kwargs={"num_classes": 10, "in_channels": 1}, images=images
    )
    assert "accuracy" not in command("prune", "own/net.safetensors", *EXACT)
    assert "accuracy" in command("prune", "own/net.safetensors", "--data.name", "digits", *EXACT)
    about = checkpoint.read_metadata("own/pruned.safetensors")
    assert about["stage"] == "recovered" and 0 < about["metrics"]["accuracy"] <= 1
    assert (about["mean"], about["std"]) == ([0.3], [0.2])
    command("finetune", "own/pruned.safetensors", "--epochs", "1")
    slim.save("own/net.safetensors", trained(3), arch=ARCH, images=slim.ImageSpec((1, 8, 8), ("a", "b", "c")))
    assert "data.name is 'digits'" in mistake("prune", "own/net.safetensors", "--data.name", "digits")


def test_an_example_of_several_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, mistake: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(1, 16, 3, padding=1)\n"
        "        self.norm, self.out = nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)\n"
        "        nn.init.uniform_(self.norm.weight, 0.2, 0.9)\n"
        "    def forward(self, image, depth):\n"
        "        return self.out(self.norm(self.a(image) + self.b(depth)).relu())\n"
        "def example():\n"
        "    return torch.randn(1, 3, 8, 8), torch.randn(1, 1, 8, 8)\n"
    )
    command("prune", "--arch", "two.py:Net", "--example", "two.py:example", "--ratio", "0.5", *EXACT)
    thin = slim.load("checkpoints/Net/pruned.safetensors", allow_code="two.py:Net")
    assert thin.get_parameter("a.weight").shape == (8, 3, 3, 3) and thin.get_parameter("b.weight").shape == (8, 1, 3, 3)
    argv = ["checkpoints/Net/pruned.safetensors", "--allow-code", "two.py:Net"]
    assert "a factory of an example (--model.example)" in mistake("export", *argv)
    assert "model.onnx" in command("export", *argv, "--model.example", "two.py:example")
    assert "of which network" in mistake("prune", "--example", "two.py:example")


# What libraries know by name


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the Hub: a folder for each repository, in which `hf_hub_download` finds files."""
    errors = pytest.importorskip("huggingface_hub.errors")

    def download(repo_id: str, filename: str, revision: str | None = None) -> str:
        path = tmp_path / "hub" / repo_id / filename
        if not path.is_file():
            raise errors.LocalEntryNotFoundError(f"no {filename} in {repo_id}")
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_a_repository_on_the_hub_says_all_that_is_needed(hub: Path, command: Command, mistake: Command) -> None:
    """Architecture, arguments, classes, normalisation and size come from it; later stages need it no more."""
    pytest.importorskip("timm")
    (hub / "ann/birds").mkdir(parents=True)
    made = build("timm:resnet10t", num_classes=3, gamma=None)
    torch.save(made.state_dict(), hub / "ann/birds/pytorch_model.bin")
    cfg = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.2],
        "input_size": [3, 48, 48],
        "label_names": ["owl", "jay", "kea"],
    }
    about = {"architecture": "resnet10t", "num_classes": 3, "pretrained_cfg": cfg}
    (hub / "ann/birds/config.json").write_text(json.dumps(about))
    command("prune", "--arch", "hf-hub:ann/birds", "--ratio", "0.3", "--name", "birds", *EXACT)
    found = checkpoint.read_metadata("checkpoints/birds/pruned.safetensors")
    assert found["arch"] == "timm:resnet10t" and found["classes"] == ["owl", "jay", "kea"]
    assert (found["mean"], found["input_shape"]) == ([0.5, 0.4, 0.3], [3, 48, 48])
    assert_equal(slim.load("checkpoints/birds/baseline.safetensors"), dict(made.state_dict()))
    weights = read_weights("timm:resnet10t", "hf-hub:ann/birds@main")
    assert weights.image_size == 48 and weights.states[""].keys() == made.state_dict().keys()
    assert "can't get the weights 'hf-hub:ann/none'" in mistake("prune", "--arch", "hf-hub:ann/none")
    (hub / "ann/birds/config.json").write_text("{}")
    assert "names no architecture of timm" in mistake("prune", "--arch", "hf-hub:ann/birds")


def test_what_timm_knows_before_any_download() -> None:
    pytest.importorskip("timm")
    weights = read_weights("timm:resnet18.a1_in1k", "DEFAULT")
    assert weights.image_size == 224 and weights.mean == (0.485, 0.456, 0.406)
    assert weights.classes is not None and len(weights.classes) == 1000 and weights.classes[0].startswith("tench")
    with pytest.raises(SlimError, match=r"unknown weights of timm 'resnet18.a1_in2k': did you mean 'resnet18.a1_in1k'"):
        read_weights("timm:resnet18", "a1_in2k")


def test_data_take_the_size_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    """Where the user names none; what belongs to the weights goes into data and metadata."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        Path("photos", name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (40, 30), (number * 20, 90, 30)).save(f"photos/{name}/{number}.png")
    state = build("torchvision:resnet18").state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    argv = ["--arch", "torchvision:resnet18", "--weights", "DEFAULT", "--data.name", "imagefolder", *EXACT]
    told = command("prune", *argv, "--data.root", "photos", "--ratio", "0.2", "--recover", "false", "--score", "mean")
    assert "images of 224 pixels" in told and "fc: made new for 2 classes" in told
    about = checkpoint.read_metadata("checkpoints/photos-resnet18/pruned.safetensors")
    assert about["input_shape"] == [3, 224, 224] and about["classes"] == ["cat", "dog"]
    assert about["mean"] == [0.485, 0.456, 0.406] and about["config"]["data"]["image_size"] == 224
    argv += ["--data.root", "photos", "--recover", "false", "--score", "mean", "--ratio", "0.2", "--dry-run"]
    assert "holds a run of other settings" not in command("prune", *argv)
    argv += ["--score", "auto", "--data.image_size", "32"]
    assert "ranked by Residual" in command("prune", *argv)  # by images, as without --dry-run
