"""An operator run by its Python binding is the same operator, with the same arguments, as run by its overload."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from memlab.bindings import BINDINGS, call_of

aten = torch.ops.aten


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


X, W, CUBE, BATCH = normal(3, 4), normal(4, 3), normal(2, 3, 4), normal(2, 4, 5)
WHOLE = torch.arange(1, 7).view(2, 3)
BOTH: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((X, X), {}),
    ((CUBE, X), {}),
    ((X, torch.tensor(2.0)), {}),
    ((WHOLE, WHOLE), {}),
    ((X.to_sparse(), X.to_sparse()), {}),
]
SAMPLES: dict[Any, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    aten.detach.default: [((X,), {}), ((X.t(),), {}), ((X.to_sparse(),), {})],
    aten.view.default: [
        ((X, [12]), {}),
        ((X, [2, -1]), {}),
        ((torch.tensor(1.0), []), {}),
        ((normal(0, 4), [4, 0]), {}),
    ],
    aten.t.default: [((X,), {}), ((normal(3),), {}), ((torch.tensor(1.0),), {})],
    aten.transpose.int: [((CUBE, 0, 2), {}), ((CUBE, -1, 0), {})],
    aten.permute.default: [((CUBE, [2, 0, 1]), {}), ((torch.tensor(1.0), []), {})],
    aten.select.int: [((CUBE, 1, 2), {}), ((CUBE, -1, -2), {})],
    aten.unsqueeze.default: [((X, 0), {}), ((X, -1), {})],
    aten.squeeze.dim: [((normal(3, 1), 1), {}), ((X, 0), {})],
    aten.expand.default: [((normal(1, 4), [3, 4]), {}), ((X, [2, -1, -1]), {}), ((X, [3, 4]), {"implicit": True})],
    aten.clone.default: [((X,), {}), ((X.t(),), {"memory_format": torch.contiguous_format}), ((X.to_sparse(),), {})],
    aten.mm.default: [((X, W), {}), ((W.t(), X.t()), {}), ((X.to_sparse(), W), {})],
    aten.bmm.default: [((CUBE, BATCH), {})],
    aten.addmm.default: [((normal(3), X, W), {}), ((X @ W, X, W), {"beta": 0.5, "alpha": 2})],
    aten.add.Tensor: [*BOTH, ((X, X), {"alpha": 2}), ((WHOLE, torch.tensor(True)), {})],
    aten.sub.Tensor: [*BOTH, ((X, X), {"alpha": -1})],
    aten.mul.Tensor: BOTH,
    aten.div.Tensor: BOTH[:-1],
    aten.sum.dim_IntList: [
        ((X, [0]), {}),
        ((X, [0, 1], True), {}),
        ((X, []), {}),
        ((X, None), {}),
        ((WHOLE, [-1]), {"dtype": torch.float64}),
    ],
    aten.relu.default: [((X,), {}), ((WHOLE,), {})],
    aten._softmax.default: [((X, -1, False), {})],
    aten.native_layer_norm.default: [
        ((X, [4], normal(4), normal(4), 1e-5), {}),
        ((CUBE, [3, 4], None, None, 0.1), {}),
    ],
}


class Record(TorchDispatchMode):
    """Records what runs: the operator, and its arguments; of the tensors, which of the given it is."""

    def __init__(self, given: tuple[Any, ...]) -> None:
        super().__init__()
        self.given = [id(each) for each in given]
        self.seen: list[tuple[Any, list[Any], Any]] = []

    def _described(self, each: Any) -> Any:
        if not isinstance(each, Tensor):
            return each
        return self.given.index(id(each)) if id(each) in self.given else (each.dtype, each.shape)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        flat, spec = tree_flatten((args, kwargs or {}))
        self.seen.append((func, [self._described(each) for each in flat], spec))
        return func(*args, **(kwargs or {}))


def run(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    with Record(args) as record:
        out = call(*args, **kwargs)
    return record.seen, out


def facts(out: Any) -> list[Any]:
    return [
        (type(each), each.dtype, each.layout, each.shape, each.layout is torch.strided and each.stride())
        for each in tree_flatten(out)[0]
    ]


def dense(out: Any) -> list[Tensor]:
    return [each.to_dense() for each in tree_flatten(out)[0]]


def test_every_binding_has_samples():
    assert set(SAMPLES) == set(BINDINGS)
    assert all(call_of(operator) is not operator._op for operator in SAMPLES)


@pytest.mark.parametrize("operator", SAMPLES, ids=str)
def test_a_binding_runs_the_same_operator_with_the_same_arguments(operator):
    for args, kwargs in SAMPLES[operator]:
        seen, out = run(call_of(operator), args, kwargs)
        expected, same = run(operator, args, kwargs)
        assert seen[0][0] is operator
        assert seen == expected
        assert facts(out) == facts(same)
        assert all(map(torch.equal, dense(out), dense(same)))


@pytest.mark.parametrize("operator", SAMPLES, ids=str)
def test_a_binding_takes_fake_and_subclassed_tensors(operator):
    args, kwargs = SAMPLES[operator][0]
    with FakeTensorMode() as mode:
        fake = tuple(mode.from_tensor(each) if isinstance(each, Tensor) else each for each in args)
        assert facts(call_of(operator)(*fake, **kwargs)) == facts(operator(*fake, **kwargs))
    given = tuple(torch.nn.Parameter(each) if isinstance(each, Tensor) else each for each in args)
    assert facts(call_of(operator)(*given, **kwargs)) == facts(operator(*given, **kwargs))


def test_errors_are_the_operators_own():
    for args in ((X, X), (X, normal(2))):
        with pytest.raises(RuntimeError) as expected:
            aten.mm.default(*args)
        with pytest.raises(RuntimeError) as found:
            call_of(aten.mm.default)(*args)
        assert str(found.value) == str(expected.value)


def test_what_is_no_operator_overload_is_called_itself():
    assert call_of(len) is len
    assert call_of(aten.exp.default) == aten.exp.default._op
