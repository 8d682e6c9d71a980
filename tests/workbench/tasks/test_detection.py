"""Detection by torchvision's conventions: boxes of rendered shapes, mean average precision, and a small detector."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slim
from slim.errors import SlimError, SlimWarning
from slim.images import ImageSpec
from slim.workbench import tasks
from slim.workbench.config import ComputeConfig, DataConfig, OptimConfig, PruneConfig, RunConfig
from slim.workbench.data import Dataset, Loaders, Split, batches, load
from slim.workbench.data.shapes import CLASSES, render_shapes
from slim.workbench.nested import Samples
from slim.workbench.run.pruning import recovered_on
from slim.workbench.tasks import Detection
from slim.workbench.train import evaluate, fit

pytest.importorskip("torchmetrics")
pytest.importorskip("pycocotools")
detection = pytest.importorskip("torchvision.models.detection")

ON_CPU = ComputeConfig(device="cpu", precision="32-true")


def test_boxes_are_where_the_shapes_are() -> None:
    """Of an image with one shape: where its map isn't background."""
    made = render_shapes(60, size=32)
    assert made.boxes.shape == (60, 3, 5)
    singles = [i for i in range(60) if len(made.maps[i].unique()) == 2 and (made.boxes[i, :, 4] > 0).sum() == 1]
    assert len(singles) > 5
    exact = 0
    for i in singles:
        rows, columns = made.maps[i].nonzero().T
        extent = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        box, kind = made.boxes[i, 0, :4], made.boxes[i, 0, 4]
        assert (box[:2] >= extent[:2]).all() and (box[2:] <= extent[2:]).all() and kind == made.maps[i].max()
        exact += int(torch.equal(box, extent))
    assert exact > 0.8 * len(singles)  # beside others lies a second shape of the same class, hidden but for a sliver


def test_boxes_move_with_their_images() -> None:
    """A white rectangle stays where its box says, however the image is cropped and mirrored."""
    boxes = torch.tensor([[[4.0, 6, 13, 16, 2], [0, 0, 0, 0, 0]], [[0.0, 0, 2, 24, 1], [0, 0, 0, 0, 0]]]).repeat(
        16, 1, 1
    )
    images = torch.zeros(32, 1, 24, 24, dtype=torch.uint8)
    for image, (box, _) in zip(images, boxes.int()):
        image[:, box[1] : box[3], box[0] : box[2]] = 255
    split = Split(images, boxes)
    data = Dataset("painted", ImageSpec((1, 24, 24), CLASSES, (0.0,), (1.0,)), split, split, split, "crop+flip")
    moved = 0
    for pixels, found in batches(data.train, data, 8, shuffle_seed=3, augment=True):
        for image, (box, none) in zip(pixels[:, 0], found):
            assert not none.any()
            if not box[4]:  # it was cropped away but for less than a pixel
                assert not image.any()
                continue
            x1, y1, x2, y2 = box[:4].int().tolist()
            assert image[y1:y2, x1:x2].min() == 1 and image.sum() == (y2 - y1) * (x2 - x1)
            moved += [x1, y1, x2, y2] not in ([4, 6, 13, 16], [0, 0, 2, 24])
    assert moved > 10


def found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels), "scores": torch.tensor(scores)}


@pytest.mark.parametrize(
    ("box", "label", "expected"),
    [
        ([0.0, 0, 10, 10], 1, 1.0),
        ([0.0, 0, 10, 7.6], 1, 0.6),  # an intersection over union of 0.76: six of the ten from 0.5 to 0.95
        ([0.0, 0, 10, 10], 2, 0.0),
        ([20.0, 20, 30, 30], 1, 0.0),
    ],
)
def test_mean_average_precision_of_one_box(box: list[float], label: int, expected: float) -> None:
    """Targets in a tensor and in dicts mean the same, and batches add up to the same as one."""
    task, tensor = Detection(3), torch.tensor([[[0.0, 0, 10, 10, 1], [0, 0, 0, 0, 0]]])
    dicts = Samples([{"boxes": tensor[0, :1, :4], "labels": torch.tensor([1])}])
    outputs = [found([box], [label], [0.9])]
    for targets in (tensor, dicts):
        tally = task.tally(outputs, targets)
        assert tally is not None
        assert task.value(tally + tally) == pytest.approx(expected, abs=1e-6)
    assert task.loss(outputs, tensor) is None and task.tally({"a": torch.ones(1)}, tensor) is None


def test_one_process_of_several_counts_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first evaluates alone, while the others wait for it at another place."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    boxes = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([1])}
    assert Detection().value([({**boxes, "scores": torch.tensor([0.9])}, boxes)]) == pytest.approx(1)


def test_losses_and_samples_of_their_own_sizes() -> None:
    task = Detection()
    assert task.loss({"a": torch.tensor(1.0), "b": torch.tensor(2.5)}, None) == 3.5
    sizes = [(torch.zeros(3, 4, 5), {"boxes": torch.zeros(0, 4)}), (torch.zeros(3, 6, 5), {"boxes": torch.zeros(1, 4)})]
    inputs, targets = task.collate(sizes)
    assert isinstance(inputs, Samples) and isinstance(targets, Samples) and len(inputs) == len(targets) == 2
    assert task.collate([sizes[0], sizes[0]])[0].shape == (2, 3, 4, 5)
    with pytest.raises(SlimError, match="expected a list of dicts of boxes, labels and scores"):
        task.check(torch.zeros(2, 3), None)
    with pytest.warns(SlimWarning, match="boxes have labels below 1: expected classes from 1"):
        task.check([{"boxes": 0}], Samples([{"boxes": torch.tensor([[0.0, 0, 1, 1]]), "labels": torch.tensor([0])}]))


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slim.workbench.tasks.detection.find_spec", lambda name: None)
    with pytest.raises(
        SlimError, match=r"counts with torchmetrics and pycocotools: expected pip install .*\[detection\]"
    ):
        tasks.build_task("detection", classes=4)


def backbone_of_three() -> Any:
    torch.manual_seed(0)
    widths = [3, 16, 24, 32]
    layers = [
        layer
        for a, b in pairwise(widths)
        for layer in (nn.Conv2d(a, b, 3, 2 if a > 3 else 1, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
    ]
    backbone: Any = nn.Sequential(*layers)
    backbone.out_channels = 32
    return backbone


def small() -> nn.Module:
    """A Faster R-CNN of a thousandth of the usual size."""
    backbone = backbone_of_three()
    anchors = detection.anchor_utils.AnchorGenerator(((8, 16),), ((1.0,),))
    sizes = {"min_size": 32, "max_size": 32, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    return detection.FasterRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        box_head=detection.faster_rcnn.TwoMLPHead(32 * 49, 32),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(32, 4),
        rpn_post_nms_top_n_test=20,
        box_score_thresh=0.3,
        **sizes,
    )


@pytest.fixture(scope="module")
def trained() -> Iterator[tuple[nn.Module, Dataset, list[dict[str, Any]]]]:
    made = render_shapes(160, size=32)
    split = Split(made.images, made.boxes)
    spec = ImageSpec((3, 32, 32), CLASSES, (0.0,) * 3, (1.0,) * 3)
    data = Dataset("shapes", spec, split[:128], split[128:], split[128:], "flip", batch_size=16, task=Detection(4))
    model = small()
    yield model, data, fit(model, data, OptimConfig(epochs=4, lr=0.02), compute=ON_CPU)


def test_a_detector_trains(trained: tuple[nn.Module, Dataset, list[dict[str, Any]]]) -> None:
    model, data, records = trained
    assert records[-1]["train_loss"] < 0.8 * records[0]["train_loss"]
    assert records[0]["train_mAP"] is None and records[0]["val_loss"] is None and 0 <= records[-1]["val_mAP"] <= 1
    assert evaluate(model, data.test, data, compute=ON_CPU).keys() == {"mAP"}
    as_loaders = Loaders(list(batches(data.train, data, 16)), task=Detection(4))
    assert fit(small(), as_loaders, OptimConfig(epochs=1, lr=0.02), compute=ON_CPU)[0]["train_loss"] > 0


def test_a_pruned_detector_comes_nearer_at_every_place(
    trained: tuple[nn.Module, Dataset, list[dict[str, Any]]],
) -> None:
    """Recovery compares what the heads say of all places, as the boxes left of them aren't the same boxes."""
    model, data, _ = trained
    images = next(batches(data.train, data, 64))[0]
    plan = slim.plan(model, images[:1], ratio=0.4, score=slim.Residual(images))
    thin = plan.apply(model)
    assert slim.verify(model, thin, plan, images[:1]) < 1e-10
    settings = RunConfig(compute=ON_CPU, prune=PruneConfig())
    found = recovered_on(images, model, thin, plan, Detection(4), settings)
    assert found.chosen == "regression" and found.distance["regression"] < 0.7 * found.distance["none"]
    assert isinstance(found.model(images[:2]), list)


def one_stage(kind: str) -> nn.Module:
    backbone = backbone_of_three()
    sizes = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "num_classes": 4}
    if kind == "ssd":
        backbone.out_channels = [32]
        boxes = detection.anchor_utils.DefaultBoxGenerator([[2]])
        return detection.ssd.SSD(backbone, boxes, (32, 32), **sizes).eval()
    anchors = detection.anchor_utils.AnchorGenerator(((8,),), ((1.0,),))
    network = {"retinanet": detection.RetinaNet, "fcos": detection.FCOS}[kind]
    return network(backbone, anchor_generator=anchors, min_size=32, max_size=32, **sizes).eval()


@pytest.mark.parametrize("kind", ["ssd", "retinanet", "fcos"])
def test_networks_of_one_stage_are_compared_at_every_place(kind: str) -> None:
    """They have a forward of their own, which selects boxes as well. Their feature maps may lose channels."""
    model: Any = one_stage(kind)
    images = torch.rand(64, 3, 32, 32)
    for module in model.head.modules():  # they begin so small that all places look alike
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    forward = type(model).forward
    with Detection(4).dense(model):
        head = model(images[:3])
    assert head["cls_logits"].shape[:2] == (3, head["bbox_regression"].shape[1]) and head["cls_logits"].shape[1] >= 64
    assert type(model).forward is forward and isinstance(model(images)[0]["boxes"], Tensor)
    plan = slim.plan(model, images[:1], ratio=0.5, score=slim.Magnitude(), round_to=1)
    thin: Any = plan.apply(model)
    assert thin.backbone(images[:1]).shape[1] < 32
    found = recovered_on(images, model, thin, plan, Detection(4), RunConfig(compute=ON_CPU, prune=PruneConfig()))
    assert found.chosen == "regression" and found.distance["regression"] < found.distance["none"]


def test_shapes_come_with_what_the_task_is_about() -> None:
    for task, shape in (("detection", (3, 5)), ("segmentation", (16, 16)), ("multilabel", (3,)), ("regression", ())):
        data = load(DataConfig(name="shapes", image_size=16), 0, task=task)
        assert data.test.labels.shape[1:] == shape
