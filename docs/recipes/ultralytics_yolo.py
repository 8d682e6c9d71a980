"""A YOLO of Ultralytics, trained on with a penalty, pruned, and trained, validated and exported on as it is used to.

    python docs/recipes/ultralytics_yolo.py yolov8n.pt data.yaml 30 640    # epochs, pixels

works for detection, segmentation, pose, oriented boxes and classification, YOLO v8 to 26. Ultralytics is AGPL-3.0, and
so may be what you make with it: this file only imports it, and is no part of slim's package.

Three things need care, and some lines each below:
- `YOLO.train` builds the network anew, at full size, from its YAML: a trainer whose `get_model` gives the thin one.
- After a training all parameters have `requires_grad` off, and older versions of Ultralytics fuse the network in place
  when they validate it: so it is validated as a copy.
- A thin network can't come from its YAML: `save` keeps weights, YAML and plans, and `load` prunes what the YAML says.
"""

import copy
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics import YOLO

import slim
from slim.checkpoint import read_metadata
from slim.prune.plan import PruningPlan


def press(yolo: Any, strength: float = 1e-3) -> None:
    """Let the next `yolo.train(…)` train with a penalty on γ, by Ultralytics' own callbacks."""
    at_work: list[slim.Sparsity] = []

    def begin(trainer: Any) -> None:
        at_work.append(slim.sparsify(trainer.model, trainer.optimizer, slim.L1(strength), method="auto"))

    def end(trainer: Any) -> None:
        at_work.pop().remove()
        for event, call in calls.items():
            yolo.callbacks[event] = [each for each in yolo.callbacks[event] if each is not call]

    calls = {"on_train_start": begin, "on_train_end": end}
    for event, call in calls.items():
        yolo.add_callback(event, call)


def prune(yolo: Any, budget: slim.Budget, images: Tensor, **rules: Any) -> tuple[Any, PruningPlan]:
    """Return a YOLO with the thin network, and the plan. `images`: [N, 3, H, W], 0 to 1, some hundred, no labels."""
    network = yolo.model.float().requires_grad_()
    example = images[:2]
    plan = slim.plan(network, example, budget, score=slim.Auto(images), **rules)
    thin = plan.apply(network)
    slim.verify(network, thin, plan, example)
    return with_network(yolo, slim.recover(network, thin, plan, images).model), plan


def with_network(yolo: Any, network: nn.Module) -> Any:
    """Return a YOLO around another network, which trains, validates, predicts with and exports that."""
    other = copy.copy(yolo)
    other._modules = dict(yolo._modules)  # a YOLO is a module, and a shallow copy shares those within
    other.model, other.predictor = network.requires_grad_(), None
    other.ckpt = {"model": network}  # not None: the trainer is to begin with it
    other.callbacks = {event: list(calls) for event, calls in yolo.callbacks.items()}

    class ThinTrainer(yolo._smart_load("trainer")):  # type: ignore[misc]
        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
            return weights.float().requires_grad_()  # as it is, also one that a training is resumed with

    other.train = functools.partial(type(yolo).train, other, trainer=ThinTrainer)
    return other


def validate(yolo: Any, **settings: Any) -> Any:
    """Return the metrics of a copy."""
    return with_network(yolo, copy.deepcopy(yolo.model)).val(**settings)


def save(path: str | Path, yolo: Any, plans: Sequence[PruningPlan]) -> None:
    """Write weights, plans, and what builds the whole network, no pickle."""
    names = [str(yolo.names[number]) for number in sorted(yolo.names)]
    cfg = {"cfg": yolo.model.yaml}
    slim.save(path, yolo.model, plans, arch_kwargs=cfg, images=slim.ImageSpec(classes=names))


def load(path: str | Path, yolo: Any) -> Any:
    """Return the thin YOLO that `save` wrote. `yolo`: any of its task, such as YOLO("yolov8n-seg.yaml")."""
    about = read_metadata(path)
    whole = type(yolo.model)(about["arch_kwargs"]["cfg"], verbose=False)
    whole.names, whole.args, whole.task = dict(enumerate(about["classes"])), yolo.model.args, yolo.task
    return with_network(yolo, slim.load(path, whole))


def milliseconds(yolo: Any, images: Tensor, runs: int = 30) -> float:
    """Return the median time of a forward pass on the CPU."""
    import statistics
    import time

    network = copy.deepcopy(yolo.model).eval()
    times = []
    with torch.no_grad():
        for _ in range(runs + 3):
            started = time.perf_counter()
            network(images)
            times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[3:])


def main(weights: str, data: str, epochs: int = 30, size: int = 640) -> None:
    """Press, prune to half of the FLOPs, fine-tune, export."""
    yolo = YOLO(weights)
    press(yolo)
    yolo.train(data=data, epochs=epochs, imgsz=size)
    images = torch.cat([batch["img"].float() / 255 for batch, _ in zip(yolo.trainer.test_loader, range(8))])
    before = validate(yolo, data=data, imgsz=size)
    thin, plan = prune(yolo, slim.Flops(0.5), images)
    print(plan.summary())
    after = validate(thin, data=data, imgsz=size)
    thin.train(data=data, epochs=epochs, imgsz=size)  # a thin training that was cut off goes on by resume="…/last.pt"
    end = validate(thin, data=data, imgsz=size)
    print({"before": before.fitness, "pruned": after.fitness, "fine-tuned": end.fitness})
    print({"before, ms": milliseconds(yolo, images[:1]), "thin, ms": milliseconds(thin, images[:1])})
    save("thin.safetensors", thin, [plan])
    print(thin.export(format="onnx", imgsz=size))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
