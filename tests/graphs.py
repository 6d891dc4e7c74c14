"""Random autograd graphs: a program of small instructions, the same every time it runs."""

import torch
from hypothesis import strategies as st
from torch.nn import functional as F

SIDE = 6

UNARY = {
    "sin": torch.sin,
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "square": lambda x: x * x,
    "softmax": lambda x: F.softmax(x, dim=1),
    "layer_norm": lambda x: F.layer_norm(x, (SIDE,)),
    "dropout": lambda x: F.dropout(x, 0.5),
    "transpose": lambda x: x.t(),
    "row": lambda x: x[1].expand(SIDE, SIDE),
    "reshape": lambda x: x.reshape(-1).view(SIDE, SIDE),
    "sum": lambda x: x.sum(dim=0).expand(SIDE, SIDE),
    "detach": torch.Tensor.detach,
    "clone": torch.clone,
    "contiguous": lambda x: x.t().contiguous(),
}
BINARY = {
    "add": torch.add,
    "mul": torch.mul,
    "matmul": torch.matmul,
    "div": torch.div,
    "maximum": torch.maximum,
    "cat": lambda x, y: torch.cat([x, y])[:SIDE],
    "stack": lambda x, y: torch.stack([x, y])[0],
    "where": lambda x, y: torch.where(x > 0, x, y),
    "linear": lambda x, y: F.linear(x, y, y[0]),
}
IN_PLACE = {"add_": torch.Tensor.add_, "mul_": torch.Tensor.mul_, "copy_": torch.Tensor.copy_}

instructions = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(sorted(UNARY)), st.integers(0, 30), st.just(0)),
        st.tuples(st.sampled_from(sorted(BINARY)), st.integers(0, 30), st.integers(0, 30)),
        st.tuples(st.sampled_from(sorted(IN_PLACE)), st.integers(0, 30), st.integers(0, 30)),
    ),
    min_size=1,
    max_size=25,
)
leaves = st.lists(st.booleans(), min_size=1, max_size=3)


def make_leaves(requires_grad):
    torch.manual_seed(0)
    return [torch.randn(SIDE, SIDE, requires_grad=needed) for needed in requires_grad]


def run(program, given):
    """Run ``program`` on the leaves ``given`` and return the last tensor that it made; nothing else is kept."""
    torch.manual_seed(1)
    made = []
    for name, first, second in program:
        pool = [*given, *made]
        x, y = pool[first % len(pool)], pool[second % len(pool)]
        if name in UNARY:
            made.append(UNARY[name](x))
        elif name in BINARY:
            made.append(BINARY[name](x, y))
        elif made:
            _change(made, name, first, y)
    return made[-1] if made else given[0].clone()


def _change(made, name, index, other):
    target = made[index % len(made)].clone()
    IN_PLACE[name](target, other)
    made.append(target)
