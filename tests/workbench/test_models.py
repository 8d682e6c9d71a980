"""slim.workbench.models against closed forms, published counts, torchvision's layers and formulas written out."""

import sys
from collections.abc import Callable, Iterator
from math import prod, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet as peer_resnet
from torchvision.models import vgg as peer_vgg

import slim
from slim.errors import SlimError
from slim.workbench.code import import_object
from slim.workbench.models import arguments, build, names
from slim.workbench.models.densenet import DenseLayer
from slim.workbench.models.resnet import BasicBlock, PreBottleneck

VGG = {
    7: ((32, 32), (64, 64), (128, 128)),
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256, 256, 256), (512,) * 3, (512,) * 3),
    19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}


class Count:
    """Parameters, multiply-adds and output values of convolutions, summed up from the widths."""

    def __init__(self, classes: int) -> None:
        self.classes, self.params, self.macs, self.outputs, self.channels = classes, 0, 0, 0, 0

    def conv(self, inputs: int, outputs: int, kernel: int, side: int) -> int:
        self.params += inputs * outputs * kernel**2
        self.macs += inputs * outputs * kernel**2 * side**2
        self.outputs += outputs * side**2
        return outputs

    def norm(self, channels: int) -> None:
        self.params += 2 * channels
        self.channels += channels

    def last(self, inputs: int) -> "Count":
        self.params += inputs * self.classes + self.classes
        self.macs += inputs * self.classes
        return self


def count_vgg(depth: int, classes: int, side: int = 32, channels: int = 3) -> Count:
    count = Count(classes)
    for widths in VGG[depth]:
        for width in widths:
            channels = count.conv(channels, width, 3, side)
            count.norm(channels)
        side //= 2
    return count.last(channels)


def count_resnet(depth: int, classes: int) -> Count:
    count, side = Count(classes), 32
    channels = count.conv(3, 16, 3, side)
    count.norm(16)
    for width in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            if width != channels:
                side //= 2
                count.conv(channels, width, 1, side)
                count.norm(width)
            for inputs in (channels, width):
                channels = count.conv(inputs, width, 3, side)
                count.norm(width)
    return count.last(channels)


def count_preresnet(classes: int) -> Count:
    count, side = Count(classes), 32
    channels = count.conv(3, 16, 3, side)
    for width in (16, 32, 64):
        for block in range(18):
            out_side = side // 2 if block == 0 and width > 16 else side
            if block == 0:
                count.conv(channels, 4 * width, 1, out_side)
            for norm in (channels, width, width):
                count.norm(norm)
            count.conv(channels, width, 1, side)
            count.conv(width, width, 3, out_side)
            channels, side = count.conv(width, 4 * width, 1, out_side), out_side
    count.norm(channels)
    return count.last(channels)


def count_densenet(classes: int) -> Count:
    count, side = Count(classes), 32
    channels = count.conv(3, 16, 3, side)
    for block in range(3):
        for _ in range(12):
            count.norm(channels)
            channels += count.conv(channels, 12, 3, side)
        count.norm(channels)
        if block < 2:
            count.conv(channels, channels, 1, side)
            side //= 2
    return count.last(channels)


def flops(model: nn.Module, *shape: int) -> int:
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(shape, device="meta"))
    return counter.get_total_flops()


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize(
    ("arch", "counter"),
    [
        *((f"slim:vgg{depth}", lambda classes, depth=depth: count_vgg(depth, classes)) for depth in VGG),
        *((f"slim:resnet{depth}", lambda n, depth=depth: count_resnet(depth, n)) for depth in (20, 56)),
        ("slim:preresnet164", count_preresnet),
        ("slim:densenet40", count_densenet),
    ],
)
def test_counts_follow_from_the_widths(arch: str, counter: Callable[[int], Count], classes: int) -> None:
    with torch.device("meta"):
        model = build(arch, num_classes=classes)
    count = counter(classes)
    assert sum(p.numel() for p in model.parameters()) == count.params
    assert sum(m.num_features for m in model.modules() if isinstance(m, _BatchNorm)) == count.channels
    assert flops(model, 1, 3, 32, 32) == 2 * count.macs


# Network Slimming, Table 1, CIFAR-10 and CIFAR-100 baselines, with the paper's digits.
@pytest.mark.parametrize(
    ("count", "params", "flops"),
    [
        (count_vgg(19, 10), "20.04", "7.97"),
        (count_vgg(19, 100), "20.08", "7.97"),
        (count_preresnet(10), "1.70", "4.99"),
        (count_preresnet(100), "1.73", None),
        (count_densenet(10), "1.02", None),
        (count_densenet(100), "1.06", None),
    ],
)
def test_published_counts(count: Count, params: str, flops: str | None) -> None:
    assert f"{count.params / 1e6:.2f}" == params
    # The convention that the docstrings state: 2 per multiply-add, 1 per output value of a convolution.
    assert flops is None or f"{(2 * count.macs + count.outputs) / 1e8:.2f}" == flops


def test_densenet_flops_are_near_the_paper() -> None:
    count = count_densenet(10)
    assert (2 * count.macs + count.outputs) / 5.33e8 == pytest.approx(1, abs=0.006)


def test_published_counts_of_other_papers() -> None:
    # He et al. 2016, table 6, with the parameters that option B's 1×1 convolutions and their BatchNorms add.
    projections = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    for depth, published in ((20, "0.27"), (56, "0.85")):
        assert f"{(count_resnet(depth, 10).params - projections) / 1e6:.2f}" == published
    # Caffe's LeNet has 431,080; here γ and β stand in place of each hidden bias.
    lenet = build("slim:lenet", num_classes=10, in_channels=1)
    assert sum(p.numel() for p in lenet.parameters()) == 431_080 + 20 + 50 + 500
    mlp = build("slim:mlp", num_classes=10, in_channels=1)
    assert sum(p.numel() for p in mlp.parameters()) == 784 * 500 + 500 * 300 + 300 * 10 + 10 + 2 * 800


@pytest.mark.parametrize("arch", [name for name in names() if name != "slim:fcos"])  # which gives boxes: below
def test_takes_any_channels_classes_and_image_sizes(arch: str) -> None:
    small = 16 if arch == "slim:lenet" else 8
    for shape in ((1, 28, 28), (3, 33, 20), (2, small, small)):
        kwargs: dict[str, Any] = {"image_size": shape[1:]} if "image_size" in arguments(arch) else {}
        with torch.device("meta"):
            model = build(arch, num_classes=7, in_channels=shape[0], **kwargs)
            maps = shape[1:] if arch == "slim:unet" else ()
            assert model(torch.empty(4, *shape)).shape == (4, 7, *maps)


def test_a_small_detector_finds_boxes_and_is_pruned() -> None:
    """In images of any channels and size; half of its FLOPs go, and the boxes are those of the masked network."""
    torch.manual_seed(0)
    for shape in ((1, 32, 32), (3, 48, 40)):
        model = build("slim:fcos", num_classes=4, in_channels=shape[0], image_size=shape[1:], width=8).eval()
        inputs = ([torch.rand(shape), torch.rand(shape)],)
        target = {"boxes": torch.tensor([[4.0, 4, 20, 24]]), "labels": torch.tensor([3])}
        assert all(loss > 0 for loss in model.train()(*inputs, [target, target]).values())
        model.eval()(*inputs)
        plan = slim.plan(model, inputs, slim.Flops(0.5), score=slim.Magnitude(), round_to=1)
        slim.verify(model, plan.apply(model), plan, inputs)
        assert plan.totals["flops"][1] <= 0.5 * plan.totals["flops"][0]
        assert {"head.regression_head.conv.4", "backbone.16"} <= set(plan.removed)


def test_image_size_is_what_networks_take_whose_layers_depend_on_it() -> None:
    assert [arch for arch in names() if "image_size" in arguments(arch)] == ["slim:fcos", "slim:lenet", "slim:mlp"]
    assert [arch for arch in names() if arguments(arch)] == ["slim:fcos", "slim:lenet", "slim:mlp", "slim:unet"]
    assert arguments("slim:unet") == ["width", "depth"]
    assert arguments("slim:mlp") == ["image_size"]
    assert arguments("torchvision:resnet18") == []
    mlp = build("slim:mlp", num_classes=3, in_channels=2, image_size=8)
    assert mlp(torch.ones(5, 2, 8, 8)).shape == (5, 3)
    with pytest.raises(SlimError, match="16×16 pixels, not 8×20"):
        build("slim:lenet", num_classes=10, image_size=[8, 20])
    with pytest.raises(SlimError, match=r"image_size '8': expected pixels"):
        build("slim:mlp", num_classes=10, image_size="8")


@pytest.mark.parametrize("arch", ["slim:vgg7", "slim:mlp", "slim:preresnet164", "torchvision:resnet18"])
def test_gamma_of_every_batchnorm(arch: str) -> None:
    norms = [m for m in build(arch, num_classes=2, gamma=0.25).modules() if isinstance(m, _BatchNorm)]
    assert norms
    assert all((norm.weight == 0.25).all() and (norm.bias == 0).all() for norm in norms)
    chosen = build(arch, num_classes=2, gamma=None)
    assert all((m.weight == 1).all() for m in chosen.modules() if isinstance(m, _BatchNorm))


def test_gamma_of_a_factory_is_its_own(code: str) -> None:
    """It may be trained; a new network of a library starts as the paper's do, but for what isn't BatchNorm."""
    norms = build(f"{code}:norms", num_classes=2, allow_code=f"{code}:norms")
    assert isinstance(norms, nn.Sequential)
    batch, plain, layer, group = (dict(module.named_parameters()) for module in norms)
    assert (batch["weight"] == 1).all() and "weight" not in plain
    assert (layer["weight"] == 1).all() and (group["weight"] == 1).all()
    swin = build("torchvision:swin_t", num_classes=2)
    assert all((module.weight == 1).all() for module in swin.modules() if isinstance(module, nn.LayerNorm))
    assert (build("torchvision:resnet18", num_classes=2).get_parameter("bn1.weight") == 0.5).all()


def test_initial_weights() -> None:
    torch.manual_seed(0)
    vgg = build("slim:vgg16", num_classes=100)
    for layer in vgg.modules():
        if isinstance(layer, nn.Conv2d):
            expected = sqrt(2 / (layer.out_channels * prod(layer.kernel_size)))
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.06)
            assert layer.weight.mean().abs() < 5 * expected / sqrt(layer.weight.numel())
    assert vgg.get_parameter("classifier.weight").std().item() == pytest.approx(0.01, rel=0.02)
    assert (vgg.get_parameter("classifier.bias") == 0).all()
    head = build("slim:unet", width=8).get_parameter("head.weight")  # torch's: uniform within 1 / sqrt(fan-in)
    assert 0.9 / sqrt(8) < head.abs().max().item() <= 1 / sqrt(8)


def test_the_seed_decides_the_weights() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build("slim:vgg7", num_classes=10).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def fitted(model: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with BatchNorms that have something to say."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model.double().eval()


def test_vgg_is_torchvisions_stack_with_a_mean() -> None:
    ours = fitted(build("slim:vgg16", num_classes=10))
    theirs = peer_vgg.make_layers(peer_vgg.cfgs["D"][:-1], batch_norm=True).double().eval()
    for module in theirs.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    layers = [[m for m in net.modules() if isinstance(m, nn.Conv2d | _BatchNorm)] for net in (ours, theirs)]
    for mine, peer in zip(*layers, strict=True):
        peer.load_state_dict(mine.state_dict(), strict=isinstance(mine, _BatchNorm))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(ours(x), ours.get_submodule("classifier")(theirs(x).mean((2, 3))))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_resnet_block_is_torchvisions(stage: int) -> None:
    ours = fitted(build("slim:resnet20", num_classes=10).get_submodule(f"layer{stage}.0"))
    assert isinstance(ours, BasicBlock)
    inputs, outputs = ours.conv1.in_channels, ours.conv1.out_channels
    downsample = ours.shortcut if stage > 1 else None
    theirs = peer_resnet.BasicBlock(inputs, outputs, min(stage, 2), downsample).double().eval()
    state = {key.replace("shortcut", "downsample"): value for key, value in ours.state_dict().items()}
    theirs.load_state_dict(state)
    x = torch.randn(2, inputs, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x.clone()), theirs(x))


def norm(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
    assert layer.running_mean is not None and layer.running_var is not None
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    return ((x - layer.running_mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]).relu()


@pytest.mark.parametrize("stage", [1, 2])
def test_preresnet_block_is_its_formula(stage: int) -> None:
    block = fitted(build("slim:preresnet164", num_classes=10).get_submodule(f"layer{stage}.0"))
    assert isinstance(block, PreBottleneck) and isinstance(block.shortcut, nn.Conv2d)
    x = torch.randn(2, block.conv1.in_channels, 8, 8, dtype=torch.float64)
    out = F.conv2d(norm(block.bn1, x), block.conv1.weight)
    out = F.conv2d(norm(block.bn2, out), block.conv2.weight, stride=stage, padding=1)
    out = F.conv2d(norm(block.bn3, out), block.conv3.weight)
    expected = out + F.conv2d(x, block.shortcut.weight, stride=stage)
    torch.testing.assert_close(block(x.clone()), expected)


def test_densenet_layer_is_its_formula() -> None:
    layer = fitted(build("slim:densenet40", num_classes=10).get_submodule("dense2.3"))
    assert isinstance(layer, DenseLayer)
    x = torch.randn(2, layer.bn.num_features, 8, 8, dtype=torch.float64)
    out = layer(x.clone())
    torch.testing.assert_close(out[:, :-12], x)
    torch.testing.assert_close(out[:, -12:], F.conv2d(norm(layer.bn, x), layer.conv.weight, padding=1))


# torchvision's own default for segmentation and detection is to download a trained backbone.
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18", (2, 3, 32, 32)),
        ("mobilenet_v3_small", (2, 3, 64, 64)),
        ("deeplabv3_mobilenet_v3_large", (1, 3, 64, 64)),
        ("r3d_18", (1, 3, 4, 32, 32)),
    ],
)
def test_torchvision(name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_downloads(monkeypatch)
    with torch.device("meta"):
        out = build(f"torchvision:{name}", num_classes=6).eval()(torch.empty(shape))
    assert (out["out"] if isinstance(out, dict) else out).shape[1] == 6


def test_torchvision_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_downloads(monkeypatch)
    with torch.device("meta"):
        model = build("torchvision:fasterrcnn_mobilenet_v3_large_fpn", num_classes=6)
    scores = model.get_submodule("roi_heads.box_predictor.cls_score")
    assert isinstance(scores, nn.Linear) and scores.out_features == 6
    assert any(isinstance(m, _BatchNorm) for m in model.get_submodule("backbone").modules())


def forbid_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("tried to download weights")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)


def test_timm_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SlimError, match="pip install timm"):
        build("timm:resnet18", num_classes=10)


def test_timm() -> None:
    pytest.importorskip("timm")
    model = build("timm:repvgg_a0", num_classes=5, in_channels=1).eval()
    assert model(torch.ones(2, 1, 32, 32)).shape == (2, 5)
    assert all((m.weight == 0.5).all() for m in model.modules() if isinstance(m, _BatchNorm))
    with pytest.raises(SlimError, match="did you mean 'repvgg_a0'"):
        build("timm:repvgg_a00", num_classes=5)
    with pytest.raises(SlimError, match="takes no 'checkpoint_path'"):
        build("timm:repvgg_a0", num_classes=5, checkpoint_path="evil.pth")


CODE = """
from math import prod
from torch import nn

def head(num_classes, width=4):
    return nn.Linear(width, num_classes)

def anything(**sizes):
    return nn.Linear(sizes["in_channels"], sizes["num_classes"])

def fixed():
    return nn.Linear(2, 2)

def norms():
    norms = nn.BatchNorm3d(4), nn.BatchNorm2d(4, affine=False), nn.LayerNorm(4), nn.GroupNorm(2, 4)
    return nn.Sequential(*norms)

def number():
    return 3
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a new module that can be imported."""
    name = f"user_code_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_code_is_imported_only_where_allowed(code: str) -> None:
    with pytest.raises(SlimError, match="--allow-code"):
        build(f"{code}:fixed", num_classes=2)
    assert code not in sys.modules
    assert build(f"{code}:head", num_classes=7, width=5, allow_code=f"{code}:head").weight.shape == (7, 5)
    assert build(f"{code}:anything", num_classes=7, in_channels=9, allow_code=f"{code}:anything").weight.shape == (7, 9)
    assert build(f"{code}:fixed", num_classes=7, allow_code=f"{code}:fixed").weight.shape == (2, 2)


def test_a_name_leads_to_a_network_or_to_what_its_module_defines(code: str) -> None:
    for name in ("os:system", "os:mkdir", "subprocess:Popen", f"{code}:prod"):  # code imports math.prod
        with pytest.raises(SlimError, match=f"unknown model in {name.partition(':')[0]}"):
            build(name, allow_code=name)
    assert isinstance(build("torch.nn:Flatten", allow_code="torch.nn:Flatten"), nn.Flatten)
    part = import_object("model", "torchvision.models:resnet18", allow_code="torchvision.models:resnet18")
    assert part.__module__ == "torchvision.models.resnet"  # of the package that the name names


def test_a_factory_may_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet.py").write_text(CODE)
    assert build("mynet.py:head", num_classes=7, allow_code="mynet.py:head").weight.shape == (7, 4)


def test_mistakes_in_code(code: str) -> None:
    for name, message in (("heed", "did you mean 'head'"), ("number", "gave int, expected a torch")):
        with pytest.raises(SlimError, match=message):
            build(f"{code}:{name}", num_classes=2, allow_code=f"{code}:{name}")
    with pytest.raises(SlimError, match=r"unexpected keyword argument 'widht'"):
        build(f"{code}:head", num_classes=2, allow_code=f"{code}:head", widht=3)
    with pytest.raises(SlimError, match="No module named 'no_such_module'"):
        build("no_such_module:make", num_classes=2, allow_code="no_such_module:make")


@pytest.mark.parametrize(
    ("arch", "kwargs", "message"),
    [
        ("slim:vg19", {}, "unknown slim model 'vg19': did you mean 'vgg19'?"),
        ("slim:preresnet", {}, "did you mean 'preresnet164'?"),
        ("torchvision:resnet5O", {}, "unknown torchvision model 'resnet5O': did you mean 'resnet50'?"),
        ("torchvision:raft_small", {}, "unknown torchvision model 'raft_small'"),
        ("vgg19", {}, "did you mean 'slim:vgg19'?"),
        ("resnet50", {}, "did you mean 'torchvision:resnet50'?"),
        ("slim:", {}, "unknown model 'slim:'"),
        ("", {}, "expected slim:NAME, torchvision:NAME, timm:NAME, package.module:factory or file.py:factory"),
        ("slim:vgg19", {"depth": 16}, "slim:vgg19 takes no argument 'depth'"),
        ("slim:mlp", {"imagesize": 8}, "argument of slim:mlp 'imagesize': did you mean 'image_size'?"),
        ("torchvision:resnet18", {"wdith": 3}, "unexpected keyword argument 'wdith'"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "takes no 'weights'"),
        ("torchvision:resnet18", {"in_channels": 1}, "reads images of 3 channels, not 1"),
        ("slim:vgg19", {"num_classes": 0}, "num_classes 0: expected a whole number of at least 1"),
    ],
)
def test_mistakes_get_one_line(arch: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(SlimError) as caught:
        build(arch, **({"num_classes": 10} | kwargs))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_factory_that_needs_a_number_of_classes_says_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needs.py").write_text(
        "from torch.nn import Linear\ndef make(num_classes): return Linear(3, num_classes)"
    )
    with pytest.raises(SlimError, match=r"'needs.py:make' needs num_classes, and the data name no classes: expected"):
        build("needs.py:make", allow_code="needs.py:make")
    assert build("needs.py:make", allow_code="needs.py:make", num_classes=2).out_features == 2
