"""Checkpoints: a network comes back bit for bit from its file alone, and no bad file gets in."""

import json
import os
import resource
import struct
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import slim
from slim import checkpoint, files
from slim.errors import SlimError
from slim.workbench import models


def untrained(arch: str = "slim:vgg7", **kwargs: Any) -> nn.Module:
    """A network whose γ, β and statistics all differ from their first values."""
    torch.manual_seed(1)
    model = models.build(arch, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.1, 1.0)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.get_buffer("running_mean"))
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2.0)
    return model


def assert_same(a: nn.Module, b: nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor.view(-1), second[name].view(-1)), name


DIGITS: dict[str, Any] = {"num_classes": 10, "in_channels": 1}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return slim.save(tmp_path / "net.safetensors", untrained(**DIGITS), arch="slim:vgg7", arch_kwargs=DIGITS)


@pytest.mark.parametrize(
    ("arch", "kwargs", "shape"),
    [
        ("slim:vgg7", DIGITS, (2, 1, 8, 8)),
        ("slim:preresnet164", {"num_classes": 10}, (1, 3, 16, 16)),
        ("slim:mlp", DIGITS | {"image_size": 28}, (2, 1, 28, 28)),
        ("torchvision:mobilenet_v3_small", {"num_classes": 7}, (1, 3, 64, 64)),
    ],
)
@pytest.mark.parametrize("mode", ["couple", "select"])
def test_a_pruned_network_comes_back_from_its_file(
    arch: str, kwargs: dict[str, Any], shape: tuple[int, ...], mode: Literal["couple", "select"], tmp_path: Path
) -> None:
    model, x = untrained(arch, **kwargs), torch.randn(*shape)
    plan = slim.plan(model, x, ratio=0.4, mode=mode)
    thin = plan.apply(model)
    assert sum(p.numel() for p in thin.parameters()) < sum(p.numel() for p in model.parameters())
    back = slim.load(slim.save(tmp_path / "thin.safetensors", thin, plan, arch=arch, arch_kwargs=kwargs))
    assert_same(thin, back)
    with torch.no_grad():
        assert torch.equal(thin(x), back(x))


def test_plans_apply_in_turn(tmp_path: Path) -> None:
    x = torch.randn(2, 1, 8, 8)
    model = untrained(**DIGITS)
    first = slim.plan(model, x, ratio=0.3)
    thin = first.apply(model)
    second = slim.plan(thin, x, ratio=0.3)
    thinner = second.apply(thin)
    path = slim.save(tmp_path / "thin.safetensors", thinner, [first, second], arch="slim:vgg7", arch_kwargs=DIGITS)
    assert_same(thinner, slim.load(path))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_stay(dtype: torch.dtype, tmp_path: Path) -> None:
    model = untrained(**DIGITS).to(dtype)
    back = slim.load(slim.save(tmp_path / "x.safetensors", model, arch="slim:vgg7", arch_kwargs=DIGITS))
    assert_same(model, back)
    assert not back.training


class Tied(nn.Module):
    """Two names for one weight, a buffer that isn't saved, one without elements, and mixed dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("fine", torch.randn(4, dtype=torch.float16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)) + self.table + self.fine


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model, x = Tied(), torch.randn(3, 4)
    path = slim.save(tmp_path / "tied.safetensors", model)
    fresh = Tied()
    was = fresh.first.weight.clone()
    back: Any = slim.load(path, model=fresh)
    assert_same(model, back)
    assert back.first.weight is back.second.weight
    assert torch.equal(model(x), back(x))
    assert torch.equal(fresh.first.weight, was), "the given model stays as it is"
    with pytest.raises(SlimError, match="no architecture"):
        slim.load(path)


def test_layout_in_memory_does_not_matter(tmp_path: Path) -> None:
    model = untrained(**DIGITS).to(memory_format=torch.channels_last)
    values = {k: v.clone() for k, v in model.state_dict().items()}
    back = slim.load(slim.save(tmp_path / "x.safetensors", model, arch="slim:vgg7", arch_kwargs=DIGITS))
    assert all(torch.equal(v, values[k]) for k, v in back.state_dict().items())


def test_metadata(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "arch": "slim:vgg7",
        "arch_kwargs": DIGITS,
        "stage": "sparse",
        "metrics": {"accuracy": 0.5},
        "config": {"seed": 3},
    }
    images = slim.ImageSpec((1, 8, 8), ("null", "eins"), (0.1,), (0.2,))
    path = slim.save(tmp_path / "x.safetensors", untrained(**DIGITS), images=images, **given)
    about = checkpoint.read_metadata(path)
    assert slim.ImageSpec.of(about) == images
    assert {key: about[key] for key in given} == given
    assert about["slim"] == slim.__version__ and about["plans"] == []


def test_loading_draws_no_random_number(saved: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    slim.load(saved)
    assert torch.equal(torch.get_rng_state(), state)


class Turning(nn.Module):
    """A network with a complex buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.register_buffer("turn", torch.full((3,), 1j))
        self.register_buffer("left_out", torch.full((3,), 1j), persistent=False)


@pytest.mark.skipif(torch.complex64 not in checkpoint._STORED, reason="this safetensors knows no complex numbers")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_complex_buffers_stay_complex(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Turning()
    model.fc.to(dtype)
    loaded = slim.load(slim.save(tmp_path / "x.safetensors", model), Turning())
    assert loaded.fc.weight.dtype == dtype  # type: ignore[union-attr]
    assert torch.equal(loaded.get_buffer("turn"), model.get_buffer("turn"))
    assert torch.equal(loaded.get_buffer("left_out"), model.get_buffer("left_out"))


def test_what_safetensors_has_no_name_for(tmp_path: Path) -> None:
    model = Turning()
    model.turn = model.get_buffer("turn").to(torch.complex128)
    with pytest.raises(SlimError, match=r"'turn' has dtype torch\.complex128"):
        slim.save(tmp_path / "x.safetensors", model)


def test_swapped_arguments(tmp_path: Path) -> None:
    with pytest.raises(SlimError, match=r"expected save\(path, model\)"):
        slim.save(Turning(), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(SlimError, match=r"expected load\(path, model\)"):
        slim.load(Turning(), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(SlimError, match=r"expected export_onnx\(model, example_inputs, path\)"):
        slim.export_onnx(Turning(), tmp_path, torch.zeros(1, 3))  # type: ignore[arg-type]


# -- files that must not get in ------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999999])
def test_truncated(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SlimError, match=r"truncated|altered"):
        slim.load(saved)


def test_every_altered_byte_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    header = struct.unpack("<Q", content[:8])[0]
    places = [0, 3, 8, 9, header // 2, header + 7, header + 8, len(content) // 2, len(content) - 1]
    for place in places:
        altered = bytearray(content)
        altered[place] ^= 1
        saved.write_bytes(bytes(altered))
        with pytest.raises(SlimError) as caught:
            slim.load(saved)
        assert "\n" not in str(caught.value)


def test_renamed_tensors_and_other_formats(saved: Path, tmp_path: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(saved)
    swapped = {**tensors, "conv3.weight": tensors["conv4.weight"][:, :32].contiguous()}
    save_file(swapped, tmp_path / "swapped.safetensors", metadata=metadata)
    with pytest.raises(SlimError, match="altered"):
        slim.load(tmp_path / "swapped.safetensors")

    about = json.loads(metadata["slim"]) | {"format": 99}
    save_file(tensors, tmp_path / "newer.safetensors", metadata=metadata | {"slim": json.dumps(about)})
    with pytest.raises(SlimError, match="format 99"):
        slim.load(tmp_path / "newer.safetensors")

    save_file(tensors, tmp_path / "plain.safetensors")
    with pytest.raises(SlimError, match="wasn't saved by slim"):
        slim.load(tmp_path / "plain.safetensors")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_is_not_opened(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "evil.safetensors"

    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"weights": Evil()}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(SlimError, match="pickle"):
        slim.load(path)
    assert not (tmp_path / "ran").exists()


def test_a_file_imports_no_code_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef net(num_classes=2):\n    return nn.Sequential(nn.Linear(3, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = slim.save(
        tmp_path / "x.safetensors",
        nn.Sequential(nn.Linear(3, 2)),
        arch="mine:net",
        arch_kwargs={"num_classes": 2},
    )
    with pytest.raises(SlimError, match="only you can allow"):
        slim.load(path)
    assert "mine" not in sys.modules
    assert slim.load(path, allow_code="mine:net")(torch.zeros(1, 3)).shape == (1, 2)


def test_a_network_that_does_not_fit(saved: Path) -> None:
    with pytest.raises(SlimError, match="doesn't fit"):
        slim.load(saved, model=models.build("slim:vgg7", num_classes=11, in_channels=1))
    with pytest.raises(SlimError, match="doesn't fit"):
        slim.load(saved, model=nn.Linear(2, 2))


def test_integers_in_the_place_of_weights(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        text = file.metadata()["slim"]
    tensors = load_file(saved)
    tensors["conv1.weight"] = tensors["conv1.weight"].to(torch.int8)
    save_file(tensors, saved, metadata={"slim": text, "sha256": checkpoint._digest(text, tensors)})
    with pytest.raises(SlimError, match=r"doesn't fit slim:vgg7: see 'conv1\.weight'"):
        slim.load(saved)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(SlimError, match="can't be read"):
        slim.load(tmp_path / "none.safetensors")


def rewritten(path: Path, **changes: Any) -> Path:
    """The file with other metadata, and a hash that is right."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["slim"])
    tensors, text = load_file(path), json.dumps(about | changes)
    save_file(tensors, path, metadata={"slim": text, "sha256": checkpoint._digest(text, tensors)})
    return path


ODD: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("stage", "arch"), (3, [], {})),
    **dict.fromkeys(("arch_kwargs", "metrics"), (None, 3, ["a"])),
    "shared": (None, 3, ["a"], {"a": 3}, {"fc.weight": "nowhere"}),
    "plans": (None, {}, [3], [{}], [{"format": "slim-plan"}]),
    "config": ("x", 3, [1]),
    "classes": ("ab", [1], {"a": 1}),
    "mean": ("0", [None], ["0.5"], [True], [10**400]),
    "std": ([0], [-1.0], [[1]]),
    "input_shape": ([], [0], [1.5], [-3, 8, 8], [True], "3", [3, 10**9, 10**9]),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in ODD.items() for value in values])
def test_odd_metadata_is_one_line(key: str, value: Any, saved: Path) -> None:
    with pytest.raises(SlimError) as caught:
        slim.load(rewritten(saved, **{key: value}))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("arch", ["slim:vgg7", "slim:mlp", "torchvision:resnet18", "greedy:net"])
def test_a_small_file_takes_little_memory_whatever_it_names(
    arch: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`greedy` looks at a value before it makes its layers, so that its shapes aren't known beforehand."""
    (tmp_path / "greedy.py").write_text(
        "import torch\ndef net(num_classes):\n"
        "    torch.linspace(0, 1, 3)[1].item()\n    return torch.nn.Linear(10**6, num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(checkpoint, "free_memory", lambda: 1e9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SlimError, match=r"doesn't fit|more memory than there is"):
        slim.load(rewritten(saved, arch=arch, arch_kwargs={"num_classes": 10**8}), allow_code="greedy:net")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


# -- writing -------------------------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(SlimError, match="JSON"):
        slim.save(saved, untrained(**DIGITS), arch="slim:vgg7", metrics={"loss": float("nan")})
    with pytest.raises(KeyboardInterrupt), files.replacing(saved) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved], "no temporary file is left"
