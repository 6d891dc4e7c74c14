"""How much higher than predicted the peak may be: operators have a bar, in bytes, and a run has those that count.

An operator is exact, if its peak was that of CUDA's kernel in every call that benchmarks/temporaries.py compared; it
has a bound, if that was measured; or it is open: nothing is known of what it takes inside. What kernels take is free
when they return. So bars do not add up: one matters where the memory in use then and the bar are more than the peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple

from memlab.as_cuda.checked import ABOVE, BOUNDS, EXACT
from memlab.as_cuda.composites import RECURRENT
from memlab.as_cuda.scratch import nbytes
from memlab.hooks import tensors_in
from memlab.outputs import LIFTED, PLACED, VIEW, outputs_of

OPEN = {
    "aten.convolution.default": "cuDNN's convolutions",
    "aten.convolution_backward.default": "cuDNN's convolutions",
    "aten.cudnn_batch_norm.default": "cuDNN's batch norm",
    "aten.cudnn_batch_norm_backward.default": "cuDNN's batch norm",
    "aten._scaled_dot_product_cudnn_attention.default": "cuDNN's attention",
    "aten._scaled_dot_product_cudnn_attention_backward.default": "cuDNN's attention",
    **dict.fromkeys(
        ("aten.mkldnn_rnn_layer.default", "aten.mkldnn_rnn_layer_backward.default", *map(str, RECURRENT)),
        "cuDNN's recurrent layers, and how it lays them out",
    ),
}
"""What NVIDIA's libraries take inside is asked of them on a real device only."""


MARGIN = 2  # what was seen is no limit: other shapes lie between the samples


NOTHING_INSIDE = (VIEW, LIFTED, PLACED)
_FILL = "aten.fill_.Tensor"  # x[1:3] = 2.0; no sample reaches it, tests/test_as_cuda.py has what it took
NO_KERNEL = ("prim.", "profiler.")  # namespaces of operators that compute nothing


class Bound(NamedTuple):
    """What an operator may take beside what is predicted: ``times`` its tensors' bytes, and ``fixed`` bytes."""

    times: float
    fixed: int

    def of(self, args: Sequence[Any], out: Any) -> int:
        """Return the bytes for a call."""
        return ceil(self.times * sum(nbytes(each) for each in tensors_in((args, out)))) + self.fixed


def bound_of(operator: Any) -> Bound | None:
    """Return the bound of an operator that has one: twice the most that was seen."""
    given = BOUNDS.get(str(operator))
    return None if given is None else Bound(MARGIN * given[0], MARGIN * given[1])


def open_of(operator: Any) -> str | None:
    """Say of what an operator's inside is not known; None where it is."""
    name = str(operator)
    if name in OPEN:
        return OPEN[name]
    return None if is_exact(operator) or name in BOUNDS else short(operator)


def is_exact(operator: Any) -> bool:
    """Tell whether nothing of the operator differed in any comparison."""
    name = str(operator)
    known = name in EXACT or name == _FILL
    return name not in OPEN and (known or name.startswith(NO_KERNEL) or outputs_of(operator) in NOTHING_INSIDE)


def over_of(operator: Any) -> str:
    """Name the operator if the model was above the kernel in a comparison."""
    return short(operator) if str(operator) in ABOVE else ""


def short(operator: Any) -> str:
    """Return an operator's name as people write it."""
    name = str(operator).split(".")
    return name[1] if len(name) > 1 else name[0]


@dataclass
class Bars:
    """Those of one run: by operator, the memory in use and its bar, at the most."""

    levels: dict[str, int] = field(default_factory=dict)

    def see(self, operator: Any, level: int) -> None:
        name = short(operator)
        self.levels[name] = max(level, self.levels.get(name, 0))

    def above(self, peak: int) -> dict[str, int]:
        """Return by operator how far it may have gone above ``peak``, the farthest first; bytes."""
        found = {name: level - peak for name, level in self.levels.items() if level > peak}
        return dict(sorted(found.items(), key=lambda each: -each[1]))
