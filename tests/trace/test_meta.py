"""Operators on tensors without data give what torch gives, and are worked out once."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from slim.trace.meta import META, _results, run_on_meta

aten = torch.ops.aten


def _tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


X = _tensor(2, 8, 5, 5)
CASES: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (aten.hardswish.default, (X,), {}),
    (aten.hardswish.default, (X.to(memory_format=torch.channels_last),), {}),
    (aten.native_layer_norm.default, (X, [5], _tensor(5), _tensor(5), 1e-5), {}),
    (aten.cat.default, ([X, X], 1), {}),
    (aten.add.Tensor, (_tensor(3, dtype=torch.int64), 1), {}),
    (aten.add.Tensor, (_tensor(3, dtype=torch.int64), 1.0), {}),  # equal to the one before, and gives another type
    (aten.mul.Tensor, (X.expand(4, 2, 8, 5, 5)[0], X.half()), {}),
    (aten.mean.dim, (X, [2, 3]), {"dtype": torch.float64}),
    (aten.topk.default, (X, 2), {}),
    (aten.view.default, (X, [2, -1]), {}),
    (aten.relu_.default, (X,), {}),
]


@pytest.mark.parametrize(("func", "args", "kwargs"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_equal_to_torch_the_first_time_and_again(func: Any, args: Any, kwargs: Any) -> None:
    expected = [(t.shape, t.stride(), t.dtype) for t in tree_leaves(func(*args, **kwargs))]
    for _ in range(2):
        given = tree_leaves(run_on_meta(func, args, kwargs))
        assert [(t.shape, t.stride(), t.dtype) for t in given] == expected


def test_tensors_are_new_where_torch_makes_new_ones_and_shared_where_it_shares_them() -> None:
    assert run_on_meta(aten.relu.default, (X,), {}) is not run_on_meta(aten.relu.default, (X,), {})
    assert run_on_meta(aten.relu_.default, (X,), {}) is X
    assert run_on_meta(aten.view.default, (X, [-1]), {})._base is X


def test_what_fails_fails_again() -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError):
            run_on_meta(aten.cat.default, ([X, _tensor(2, 8, 5, 6)], 1), {})


def test_worked_out_once() -> None:
    x = _tensor(3, 7, 11, 13)
    run_on_meta(aten.gelu.default, (x,), {})
    before = _results.cache_info()
    run_on_meta(aten.gelu.default, (x.clone(),), {})
    assert _results.cache_info().misses == before.misses and _results.cache_info().hits == before.hits + 1
