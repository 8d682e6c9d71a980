"""What a model returns is kept and compared, whatever object it comes in."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

import slim
from slim.trace.outputs import find_tensors

A, B = torch.tensor([1.0]), torch.tensor([2, 3])


@dataclasses.dataclass
class Plain:
    logits: Any
    more: Any = None


@dataclasses.dataclass(slots=True)
class Slotted:
    logits: Any
    more: Any = None


class Private:
    __slots__ = "__hidden"

    def __init__(self, hidden: Any) -> None:
        self.__hidden = hidden


class EasyDict(dict[str, Any]):
    """Items that are attributes too; an attribute that isn't there is a KeyError."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        self.__dict__.update(items)

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Named(list[Any]):
    name: Any


def named_list(*items: Any, name: Any) -> Named:
    made = Named(items)
    made.name = name
    return made


def circle() -> Plain:
    made = Plain(A)
    made.more = [made, B]
    return made


def later() -> Iterator[Tensor]:
    yield A
    yield B


Pair = collections.namedtuple("Pair", "x y")

FOUND: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "a tensor": (lambda: A, ["output"]),
    "a tuple in a list": (lambda: [(A, None), B], ["output[0][0]", "output[1]"]),
    "a named tuple": (lambda: Pair(A, B), ["output.x", "output.y"]),
    "a dataclass": (lambda: Plain(A, {"b": B}), ["output.logits", "output.more['b']"]),
    "slots": (lambda: Slotted(A, B), ["output.logits", "output.more"]),
    "a private slot": (lambda: Private(A), ["output.__hidden"]),
    "a namespace": (lambda: SimpleNamespace(x=SimpleNamespace(y=A)), ["output.x.y"]),
    "an EasyDict": (lambda: EasyDict(x=A, y=B), ["output['x']", "output['y']"]),
    "a list with an attribute": (lambda: named_list(A, name=B), ["output[0]", "output.name"]),
    "a UserDict": (lambda: collections.UserDict(x=A), ["output['x']"]),
    "the values of a dict": (lambda: {"x": A}.values(), ["output[0]"]),
    "a deque": (lambda: collections.deque([A, B]), ["output[0]", "output[1]"]),
    "a generator": (later, ["output[0]", "output[1]"]),
    "a distribution": (lambda: torch.distributions.Normal(A, 2 * A), ["output.loc", "output.scale"]),
    "an ImageList": (lambda: ImageList(A, [(1, 1)]), ["output.tensors"]),
    "an array": (lambda: {"x": np.ones(3)}, ["output['x']"]),
    "one tensor twice": (lambda: [A, A], ["output[0]"]),
    "a circle": (circle, ["output.logits", "output.more[1]"]),
    "an iterator": (lambda: {"x": iter([A, B])}, ["output['x'][0]", "output['x'][1]"]),
    "what functions hold": (
        lambda: [nn.Linear(2, 2), lambda x=A: x, (lambda y: lambda: y)(B), functools.partial(torch.add, other=2 * A)],
        ["output[1].0", "output[2].y", "output[3].keywords['other']"],
    ),
    "nothing": (lambda: Plain("logits", 3), []),
}


@pytest.mark.parametrize("case", FOUND)
def test_tensors_are_found_wherever_they_are(case: str) -> None:
    made, paths = FOUND[case]
    assert list(find_tensors(made(), result=True)) == paths


class Returning(nn.Module):
    """Features of eight channels, the body's, and scores of two, in an object."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.neck = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 2, 1)
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        features = self.body(x)
        return self.pack(self.head(self.neck(features)), features)


PACKS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a dataclass": lambda scores, features: Plain(scores, features),
    "slots": lambda scores, features: Slotted(scores, [features]),
    "an EasyDict": lambda scores, features: EasyDict(scores=scores, features=features),
    "a distribution": lambda scores, features: (torch.distributions.Normal(features, 1.0, validate_args=False), scores),
    "an ImageList": lambda scores, features: [ImageList(features, [(6, 6)]), scores],
    "a generator": lambda scores, features: (t for t in (scores, features)),
    "numpy's mean over channels": lambda scores, features: [scores, features.detach().numpy().mean(1)],
    "an array": lambda scores, features: Plain(scores, features.detach().numpy()),
    "a function": lambda scores, features: [scores, lambda: features],
    "lists of numbers": lambda scores, features: [scores, features.mean((2, 3)).tolist()],
    "numpy's mean over everything": lambda scores, features: [scores, features.mean().detach().numpy()],
}
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(pack: Callable[[Tensor, Tensor], Any]) -> nn.Module:
    torch.manual_seed(0)
    made = Returning(pack)
    for norm in (made.body[1], made.neck[1]):
        nn.init.uniform_(norm.weight, 0.1, 1)  # type: ignore[arg-type]
    return made.eval()


@pytest.mark.parametrize("case", PACKS)
def test_what_is_returned_in_an_object_stays_and_is_compared(case: str) -> None:
    model = network(PACKS[case])
    plan = slim.plan(model, X, ratio=0.25)
    assert set(plan.removed) == {"neck.1"}, "the features are returned"
    thin = plan.apply(model)
    before, after = (find_tensors(net(X), result=True) for net in (model, thin))
    assert [(path, t.shape) for path, t in before.items()] == [(path, t.shape) for path, t in after.items()]
    assert slim.verify(model, thin, plan, X) < 1e-10
    recovered = slim.recover(model, thin, plan, X.repeat(16, 1, 1, 1) + torch.randn(64, 3, 8, 8))
    assert recovered.distance["none"] > 0


NUMBERS: dict[str, Callable[[Tensor], Any]] = {
    "the width, in a tensor": lambda features: torch.tensor(features.shape),
    "the width itself": lambda features: features.shape[1],
    "made of the width": lambda features: torch.arange(3) * features.shape[1],
}


@pytest.mark.parametrize("case", NUMBERS)
def test_a_number_that_is_returned_and_follows_a_width_holds_it(case: str) -> None:
    model = network(lambda scores, features: {"scores": scores, "number": NUMBERS[case](features)})
    with pytest.raises(slim.SlimError, match=r"output\['number'\] is a constant that follows a size"):
        slim.plan(model, X, ratio=0.25)


@pytest.mark.parametrize("case", ["a dataclass", "an EasyDict", "an ImageList"])
def test_a_difference_in_an_object_is_seen(case: str) -> None:
    """The output alone is wrong: no layer is."""
    model: Any = network(PACKS[case])
    plan = slim.plan(model, X, ratio=0.25)
    thin: Any = plan.apply(model)
    thin.pack = lambda scores, features: model.pack(scores, 1.001 * features)
    with pytest.raises(slim.SlimError, match=r"first in output\W.*relative error 1.0e-03"):
        slim.verify(model, thin, plan, X)


def test_an_output_without_a_tensor_is_refused() -> None:
    silent = network(lambda scores, features: Plain("logits"))
    speaking = network(PACKS["a dataclass"])
    plan = slim.plan(speaking, X, ratio=0.25)
    thin = plan.apply(speaking)
    tries: list[Callable[[], Any]] = [
        lambda: slim.plan(silent, X),
        lambda: slim.verify(silent, plan.apply(silent), plan, X),
        lambda: slim.recover(silent, thin, plan, torch.randn(64, 3, 8, 8)),
    ]
    for refused in tries:
        with pytest.raises(slim.SlimError, match="returns an object of type Plain in which there is no tensor"):
            refused()
