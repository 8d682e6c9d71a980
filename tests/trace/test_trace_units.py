"""Small functions of a trace, each by itself against values worked out by hand."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import weight_norm as old_weight_norm

from slim.errors import SlimError
from slim.trace import check
from slim.trace.attributes import (
    KeptSizes,
    fields_of,
    for_building,
    kind_of,
    own_sizes,
    size_in,
    sizes_within,
    with_size,
    words_in,
)
from slim.trace.branches import _common
from slim.trace.classes import Classes
from slim.trace.constants import SMALL, Table, _indices, is_small, same
from slim.trace.copy import named_modules, named_tensors, unwrapped
from slim.trace.inputs import call, cannot_follow, cannot_run, check_inputs
from slim.trace.lengths import owner_of, stated_anew
from slim.trace.meta import run_on_meta
from slim.trace.readers import readers, weight_of
from slim.trace.rules.folding import _dims
from slim.trace.rules.gathering import _taken
from slim.trace.rules.moving import _blocks, _carried
from slim.trace.size import channels, network_size
from slim.trace.traced import Trace, trace
from slim.trace.tracer import ForwardPass, tracing_mode

# -- moving ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "blocks", "carried"),
    [
        ((2, 3), (2, 3), [([0], [0]), ([1], [1])], {0: 0, 1: 1}),
        ((2, 6), (2, 2, 3), [([0], [0]), ([1], [1, 2])], {0: 0}),
        ((2, 3, 4), (2, 12), [([0], [0]), ([1, 2], [1])], {0: 0}),
        ((4, 6), (3, 8), [([0, 1], [0, 1])], {}),
        ((6,), (2, 3), [([0], [0, 1])], {}),
        ((2, 1, 3), (2, 3), [([0], [0]), ([1, 2], [1])], {0: 0, 1: 2}),
        ((2, 3), (2, 3, 1), [([0], [0]), ([1], [1]), ([], [2])], {0: 0, 1: 1}),
        ((2, 3, 1), (2, 3), [([0], [0]), ([1], [1]), ([2], [])], {0: 0, 1: 1}),
        ((2, 3, 4, 5), (6, 20), [([0, 1], [0]), ([2, 3], [1])], {}),
    ],
)
def test_runs_of_dimensions_that_hold_the_same(old: Any, new: Any, blocks: Any, carried: dict[int, int]) -> None:
    assert _blocks(old, new) == blocks and _carried(old, new) == carried


@pytest.mark.parametrize(
    ("given", "dims"), [(None, [0, 1, 2]), ([], [0, 1, 2]), (1, [1]), (-1, [2]), ([0, -1], [0, 2]), ((1,), [1])]
)
def test_dimensions_of_a_reduction(given: Any, dims: list[int]) -> None:
    assert _dims(given, 3) == dims and _dims(0, 0) == []


NUMBERS, MASK, WIDE = torch.tensor([0, 1]), torch.tensor([True, False]), torch.ones(2, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("indices", "taken"),
    [
        ([NUMBERS], [0]),
        ([None, NUMBERS], [1]),
        ([NUMBERS, NUMBERS], [0, 1]),
        ([NUMBERS, None, NUMBERS], None),
        ([None, MASK], [1]),
        ([None, WIDE], [1, 2]),
        ([WIDE, NUMBERS], [0, 1, 2]),
        ([WIDE, None, NUMBERS], None),
    ],
)
def test_dimensions_that_indices_take(indices: Any, taken: list[int] | None) -> None:
    assert _taken(indices) == taken


# -- numbers -----------------------------------------------------------------------------------------------------------


TABLE = torch.linspace(-1, 1, 100)


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        (TABLE.clone(), True),
        (TABLE * (1 + 1e-6), True),
        (TABLE * 1.01, False),
        (TABLE.flip(0), False),
        (TABLE + 0.01, False),
        (TABLE.view(10, 10), True),
        (TABLE[:99], True),  # of another size: for the rules to judge
        (TABLE.roll(1), False),
    ],
)
def test_large_tables_are_compared_by_sums(other: Tensor, alike: bool) -> None:
    assert (Table(TABLE) == Table(other)) is alike and (Table(TABLE) != Table(other)) is not alike
    assert same([1.0, Table(TABLE)], [1.0, Table(other)]) is alike and Table(TABLE) != 3
    turned = torch.complex(TABLE, other.reshape(-1)[:100]) if other.numel() == 100 else None
    assert turned is None or (Table(turned) == Table(torch.complex(TABLE, TABLE))) is alike


@pytest.mark.parametrize(
    ("a", "b", "alike"),
    [
        ([1.0], [1.00009], True),
        ([1.0], [1.00011], False),
        ([1], [1.00001], False),
        ([(1.0, 2.0)], [(1.0, 2.0001)], True),
        ([(1.0, 2.0)], [(1.0,)], False),
        ([1.0, 2.0], [1.0], False),
        ([math.nan], [math.nan], True),
        ([math.inf], [math.inf], True),
        ([math.inf], [-math.inf], False),
        ([1j], [1j], True),
        ([None], [None], True),
        ([2], [(2,)], False),
    ],
)
def test_numbers_of_two_runs(a: Any, b: Any, alike: bool) -> None:
    assert same(a, b) is alike


@pytest.mark.parametrize(
    ("size", "small"),
    [((SMALL,), True), ((SMALL + 1,), False), ((8, 8), True), ([8, 9], False), ((), True), ((0, 99), True)],
)
def test_small_tensors_keep_their_values(size: Any, small: bool) -> None:
    assert is_small(size) is small


def test_lists_in_an_index_hold_data() -> None:
    found = _indices((slice(None), [1, 2], None, 3, []))
    assert found[0] == slice(None) and found[1].tolist() == [1, 2] and found[2:] == (None, 3, [])
    tensors = [torch.tensor([0])]
    assert _indices(tensors) is tensors and _indices([0, 4]).tolist() == [0, 4]


# -- what modules keep -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (3, 3),
        (np.int64(3), 3),
        (True, None),
        (3.0, None),
        ("3", None),
        ([], None),
        ([1, 2], [1, 2]),
        ((1, np.int32(2)), (1, 2)),
        (torch.Size([4, 5]), (4, 5)),
        ([1, 2.0], None),
        ([1, [2]], None),
        ({1: 2}, None),
        ((0,), (0,)),
    ],
)
def test_sizes_in_attributes(value: Any, size: Any) -> None:
    found = size_in(value)
    assert found == size and type(found) is type(size)


class Building(nn.Module):
    """Keeps sizes in several forms; one serves only while it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.so_far, self.flag, self.rate = 8, 4, True, 0.5
        self.sizes, self.names = [1, 2], ["x"]
        self.config = {"deep": {"deeper": {"deepest": {"lost": 5}, "kept": 7}}, 3: 9, "list": [4, "x", 6]}
        self.more = SimpleNamespace(heads=2, inner=SimpleNamespace(dim=16))
        self.long = list(range(17))
        self._build()

    def _build(self) -> None:
        self.so_far += 1

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.width]


def test_sizes_that_modules_keep() -> None:
    model = nn.Sequential(Building(), nn.Conv2d(3, 8, 3))
    kept = KeptSizes(named_modules(model))
    assert dict(kept) == {"0.width": 8, "0.sizes": [1, 2], "0.long": list(range(17))} and len(kept) == 3
    assert for_building(Building) == {"so_far"} and kept.read == set()
    with kept.noting():
        model[0](torch.zeros(1, 9))
        assert type(model[0]) is not Building
    assert kept.read == {"0.width"} and type(model[0]) is Building
    assert {"in_channels", "kernel_size"} <= own_sizes(nn.Conv2d) and not own_sizes(Building)


def test_sizes_within_what_modules_keep() -> None:
    found = dict(sizes_within(Building()))
    assert {name: found[name] for name in found if name not in ("width", "so_far", "long")} == {
        **{"sizes": [1, 2], "sizes.0": 1, "sizes.1": 2, "config.deep.deeper.kept": 7},
        **{"config.list.0": 4, "config.list.2": 6, "more.heads": 2, "more.inner.dim": 16},
    }
    assert fields_of([1] * 16).keys() == {str(i) for i in range(16)} and fields_of([1] * 17) == {}
    assert fields_of(nn.Linear(1, 1)) == fields_of(torch.zeros(1)) == fields_of(int) == fields_of(len) == {}


def test_a_size_within_is_changed_in_a_copy() -> None:
    module = Building()
    for path, read in (
        (["deep", "deeper", "kept"], lambda config: config["deep"]["deeper"]["kept"]),
        (["list", "2"], lambda config: config["list"][2]),
    ):
        made = with_size(module.config, path, 11)
        assert read(made) == 11 and read(module.config) != 11 and made.keys() == module.config.keys()
    made = with_size(module.more, ["inner", "dim"], 5)
    assert (made.inner.dim, made.heads, module.more.inner.dim) == (5, 2, 16)
    assert with_size((1, 2), [], [3, 4]) == (3, 4) and with_size(np.int64(3), [], 4) == 4
    assert with_size((1, 2), ["1"], 7) == (1, 7)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blocks.0.width", "blocks.#.width"),
        ("a.1.b.22.c", "a.#.b.#.c"),
        ("width", None),
        ("a.b", None),
        ("sizes.0", None),
        ("blocks.1.sizes.0", None),
    ],
)
def test_kinds_of_names(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


def _helper(x: Any) -> Any:
    return x["from_helper"]


def test_words_of_code() -> None:
    def speaks(argument: Any) -> Any:
        inner = lambda each: each.within  # noqa: E731
        return argument.attribute, "text", inner, _helper(argument)

    assert {"argument", "attribute", "text", "within", "inner", "from_helper"} <= words_in(speaks)
    assert "from_helper" not in words_in(speaks.__code__) and words_in(len) == set() and words_in(None) == set()


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("a.b.weight", "a.b"),
        ("weight", ""),
        ("a.parametrizations.weight.original0", "a"),
        ("parametrizations.weight.0._u", ""),
        ("a.b.parametrizations.weight.original", "a.b"),
    ],
)
def test_owners_of_tensors(name: str, owner: str) -> None:
    assert owner_of(name) == owner


@pytest.mark.parametrize(
    ("names", "common"),
    [
        (["a.b", "a.c"], "a"),
        (["a.b.c", "a.b.d", "a.b"], "a.b"),
        (["a", "b"], "a"),
        (["x.y"], "x.y"),
        (["ab", "ac"], "ab"),
    ],
)
def test_what_names_have_in_common(names: list[str], common: str) -> None:
    assert _common(names) == common


def test_weights_that_are_stated_anew() -> None:
    model = nn.Sequential(
        old_weight_norm(nn.Linear(2, 2)), parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2)
    )
    assert stated_anew(named_modules(model)) == {
        *("0.weight_g", "0.weight_v"),
        *("1.parametrizations.weight.original0", "1.parametrizations.weight.original1"),
    }


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Same(nn.Linear):
    pass


def test_layers_whose_bias_takes_up_constants() -> None:
    model: Any = nn.ModuleDict(
        {
            "line": nn.Linear(2, 2), "same": Same(2, 2), "own": Own(2, 2), "one": nn.Conv2d(2, 2, 1),
            "zeros": nn.Conv2d(2, 2, 3, padding=1), "edges": nn.Conv2d(2, 2, 3, padding=1, padding_mode="replicate"),
            "valid": nn.Conv2d(2, 2, 3, padding="valid"), "alike": nn.Conv2d(2, 2, 3, padding="same"),
            "some": nn.Conv2d(2, 2, 3, padding=(0, 1)), "up": nn.ConvTranspose2d(2, 2, 1), "norm": nn.BatchNorm2d(2),
            "tied": nn.Linear(2, 2), "twin": nn.Linear(2, 2), "changed": nn.Linear(2, 2),
            "short": parametrizations.spectral_norm(nn.Linear(2, 2)),
        }
    )  # fmt: skip
    model.twin.weight = model.tied.weight
    model.changed.forward = lambda x: x
    assert readers(named_modules(model)).keys() == {"line", "same", "one", "edges", "valid"}
    assert weight_of(model.line) == "weight" and weight_of(model.own) is None and weight_of(model.short) is None


# -- inputs and errors -------------------------------------------------------------------------------------------------


class Takes(nn.Module):
    def forward(self, x: Any, y: Any = 0) -> Any:
        if isinstance(x, list):
            x.append(1)
            return len(x)
        return x + y


def test_inputs_in_every_form() -> None:
    given = [1, 2]
    assert [call(Takes(), inputs) for inputs in (3, (3, 4), [3, 4], {"y": 5, "x": 3})] == [3, 7, 7, 8]
    assert call(Takes(), (given,)) == 3 and given == [1, 2]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (3, "example_inputs is a int: expected a tensor, a tuple or a dict"),
        (torch.zeros(0, 3), "example_inputs is an empty batch: expected at least one sample"),
        ([torch.zeros(0), {"x": torch.zeros(0, 2)}], "example_inputs is an empty batch: expected at least one sample"),
    ],
)
def test_inputs_that_show_nothing(inputs: Any, said: str) -> None:
    with pytest.raises(SlimError) as error:
        check_inputs(inputs)
    assert str(error.value) == said
    check_inputs([torch.zeros(0), torch.zeros(1)])
    check_inputs((3, "x"))


@pytest.mark.parametrize("length", [300, 301])
def test_errors_in_one_line(length: int) -> None:
    error = ValueError("x" * (length - 4) + "\n  y\tz")
    said = f"ValueError: {'x' * (length - 4)} y z" if length == 300 else f"ValueError: {'x' * 297} y…"
    assert str(cannot_run(error)) == f"the model can't be run on example_inputs: {said}"
    assert str(cannot_follow(error)).startswith(
        "slim can't follow this model, which runs on example_inputs by itself: "
    )
    assert str(cannot_follow(error)).endswith(f"{said}; expected to trace any forward code, so please report it")


def test_what_is_no_model() -> None:
    with pytest.raises(SlimError, match=r"^model is a int: expected a torch\.nn\.Module$"):
        unwrapped(3)  # type: ignore[arg-type]
    model = nn.Linear(1, 1)
    compiled: Any = torch.compile(model, backend="eager")
    assert unwrapped(model) is model and unwrapped(compiled) is model


def test_names_of_modules_and_tensors() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
    model.add_module("none", None)
    model.add_module("again", model[1])
    assert [name for name, _ in named_modules(model)] == ["", "0.", "1.", "again."]
    assert [name for name, _ in named_tensors(model)] == [
        *("0.weight", "0.bias", "0.running_mean", "0.running_var", "0.num_batches_tracked"),
        *("1.weight", "again.weight"),
    ]


# -- shapes without data -----------------------------------------------------------------------------------------------


def test_operators_without_data() -> None:
    x = torch.empty(2, 3, device="meta")
    once = run_on_meta(torch.ops.aten.mul.Tensor, (x, x), {})
    again = run_on_meta(torch.ops.aten.mul.Tensor, (x, x), {})
    assert once.shape == again.shape == (2, 3) and once is not again
    assert run_on_meta(torch.ops.aten.mul.Tensor, (x.T, x.T), {}).stride() == (1, 3)
    whole, real = (run_on_meta(torch.ops.aten.mul.Scalar, (x.long(), n), {}).dtype for n in (1, 1.0))
    assert (whole, real) == (torch.int64, torch.float32)
    view = run_on_meta(torch.ops.aten.view.default, (x, [6]), {})
    assert (view.shape == (6,) and view._base is x) or view.untyped_storage()._cdata == x.untyped_storage()._cdata
    values, places = run_on_meta(torch.ops.aten.max.dim, (x, 1), {})
    assert (values.shape, places.shape, places.dtype) == ((2,), (2,), torch.int64)


def test_sizes_of_networks() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False), nn.Flatten(), nn.Linear(32, 2)
    )
    model[4].bias.requires_grad_(False)
    size = network_size(model, torch.zeros(1, 3, 4, 4))
    assert (size.params, size.flops, size.channels) == (8 * 27 + 8 + 16 + 66, 2 * (8 * 27 * 4 + 64), 8)
    assert channels(nn.Linear(1, 1)) == 0 and model.training


def test_classes_keep_the_first_reason_and_the_smallest_label() -> None:
    classes = Classes()
    labels = classes.fresh(5000)  # more than were made room for
    assert labels[0] == 1 and len(classes) == 5001
    classes.unite(labels[4000:4003], labels[:3], "why")
    assert classes.roots(labels[4000:4003]).tolist() == [1, 2, 3] and not classes.frozen(labels).any()
    classes.freeze(labels[4001:4002], "first")
    classes.freeze(labels[1:2], "second")
    classes.freeze(labels[:0], "nothing")
    assert classes.reasons == ["first"] and classes.reason(2) == classes.reason(4002) == "first"
    classes.unite(labels[10:11], labels[1:2], "meets one that is frozen")
    assert classes.reason(11) == "first" and classes.reason(1) is None and classes.reason(0) == "fixed size"
    assert classes.frozen(np.array([0, 1, 2, 11])).tolist() == [True, False, True, True]


def test_layers_that_inputs_lead_past_have_no_part_in_a_trace() -> None:
    traced = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), torch.zeros(1, 3, 2, 2))
    assert list(traced.passed_by) == [] and [*traced.made] == ["0", "1"]


def test_the_masked_network_runs_once_for_each_choice_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), torch.zeros(1, 3, 2, 2))
    made: list[Any] = []

    def masked(traced: Trace, kept: Any, run: ForwardPass) -> ForwardPass:
        made.append(kept)
        return run

    monkeypatch.setattr(check, "_masked_run", masked)
    kept, fewer = np.ones(9, bool), np.arange(9) > 2
    for asked, count in ((kept, 1), (kept.copy(), 1), (fewer, 2), (fewer, 2), (kept, 3)):
        assert [*check._masked_runs(traced, asked)] == traced.runs and len(made) == count


class Told(nn.Module):
    """Notes the modes that it is put into, as modules do that drop what they keep for inference."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []
        self.line, self.dropout = nn.Linear(2, 2), nn.Dropout()

    def train(self, mode: bool = True) -> "Told":
        self.modes.append(mode)
        return super().train(mode)


@pytest.mark.parametrize("training", [True, False])
def test_modules_are_told_of_the_mode_of_a_run_and_noise_stays_off(training: bool) -> None:
    model, grad = nn.Sequential(Told(), nn.BatchNorm1d(2)), torch.is_grad_enabled()
    told: Any = model[0]
    with tracing_mode(named_modules(model), training=training):
        assert told.modes == [True, training] and torch.is_grad_enabled() is training
        assert [told.training, told.line.training, model[1].training] == [training] * 3
        assert not told.dropout.training
    assert torch.is_grad_enabled() is grad
