"""A YOLO of Ultralytics, trained on with a penalty, pruned, and trained, validated and exported on as it is used to.

    python docs/recipes/ultralytics_yolo.py yolov8n.pt data.yaml 30 640    # epochs, pixels

works for detection, segmentation, pose and classification, YOLO v8 to 26. Ultralytics is AGPL-3.0, and so may be what
you make with it: this file only imports it, and is no part of slim's package.

Three things need care, and a line each below:
- `YOLO.train` builds the network anew, at full size, from its YAML: a trainer whose `get_model` gives the thin one.
- After a training all parameters have `requires_grad` off, and validation fuses BatchNorms into convolutions, in place:
  there is no γ left to prune then. So the network is pruned before it is validated, and validated as a copy.
- A thin network can't come from its YAML: `slim.save` keeps weights and plans, and `load` builds the whole one first.
"""

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.utils.callbacks import get_default_callbacks

import slim
from slim.prune.plan import PruningPlan


def press(yolo: YOLO, strength: float = 1e-3) -> None:
    """Let the next `yolo.train(…)` train with a penalty on γ, by Ultralytics' own callbacks."""
    at_work: list[slim.Sparsity] = []

    def begin(trainer: Any) -> None:
        at_work.append(slim.sparsify(trainer.model, trainer.optimizer, slim.L1(strength), method="proximal"))

    yolo.add_callback("on_train_start", begin)
    yolo.add_callback("on_train_end", lambda trainer: [sparsity.remove() for sparsity in at_work])


def prune(yolo: YOLO, budget: slim.Budget, images: Tensor, **rules: Any) -> tuple[YOLO, PruningPlan]:
    """Return a YOLO with the thin network, and the plan. `images`: [N, 3, H, W], 0 to 1, some hundred, no labels."""
    network = yolo.model.float().requires_grad_()
    example = images[:2]
    plan = slim.plan(network, example, budget, score=slim.Auto(images), **rules)
    thin = plan.apply(network)
    slim.verify(network, thin, plan, example)
    return with_network(yolo, slim.recover(network, thin, plan, images).model), plan


def with_network(yolo: YOLO, thin: nn.Module) -> YOLO:
    """Return a YOLO around another network, which trains, validates and exports it."""
    other = copy.copy(yolo)
    other._modules = dict(yolo._modules)  # a YOLO is a module, and a shallow copy shares those within
    other.model, other.predictor = thin.requires_grad_(), None
    other.ckpt = {"model": thin}  # not None: the trainer is to begin with it
    other.callbacks = {event: list(calls) for event, calls in yolo.callbacks.items()}
    return other


def trainer_of(yolo: YOLO) -> type:
    """Return the trainer of its task that trains the network as it is: `yolo.train(trainer=trainer_of(yolo))`."""
    network = yolo.model

    class ThinTrainer(yolo._smart_load("trainer")):  # type: ignore[misc]
        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
            return network.requires_grad_()

    return ThinTrainer


def finetune(yolo: YOLO, **settings: Any) -> YOLO:
    """Train a thin YOLO on, by Ultralytics' settings, and return it with what it learnt."""
    plain = with_network(yolo, copy.deepcopy(yolo.model))
    plain.callbacks = get_default_callbacks()  # without those of `press`
    trainer = trainer_of(plain)
    plain.train(trainer=trainer, **settings)
    return with_network(plain, plain.model.float())


def validate(yolo: YOLO, **settings: Any) -> Any:
    """Return the metrics of a copy: validation fuses layers in place."""
    return with_network(yolo, copy.deepcopy(yolo.model)).val(**settings)


def save(path: str | Path, yolo: YOLO, plans: Sequence[PruningPlan]) -> None:
    """Write weights and plans, no pickle. The thin network's class names and strides come from the whole one."""
    slim.save(path, yolo.model, list(plans))


def load(path: str | Path, whole: YOLO) -> YOLO:
    """Return the thin YOLO that `save` wrote, from the whole one, such as `YOLO("yolov8n.yaml")` with your classes."""
    return with_network(whole, slim.load(path, whole.model.float()))


def milliseconds(yolo: YOLO, images: Tensor, runs: int = 30) -> float:
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
    thin = finetune(thin, data=data, epochs=epochs, imgsz=size)
    end = validate(thin, data=data, imgsz=size)
    print({"before": before.fitness, "pruned": after.fitness, "fine-tuned": end.fitness})
    print({"before, ms": milliseconds(yolo, images[:1]), "thin, ms": milliseconds(thin, images[:1])})
    save("thin.safetensors", thin, [plan])
    print(with_network(thin, copy.deepcopy(thin.model)).export(format="onnx", imgsz=size))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
