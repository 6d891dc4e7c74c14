"""What of a prediction is exact, what is modelled and what is missing, in sentences about the run that was made."""

from __future__ import annotations

from memlab import versions
from memlab.as_cuda.bars import is_exact, open_of, over_of
from memlab.as_cuda.gpu import ASSUMED, ASSUMED_SMS
from memlab.as_cuda.mode import CudaMode
from memlab.cards import Card
from memlab.units import format_bytes

NAMED = 8  # operators in one sentence


def exact(mode: CudaMode) -> list[str]:
    """Say what was compared with CUDA's own kernels without a difference."""
    good, ran = sum(map(is_exact, mode.ran)), len(mode.ran)
    which = f"{good} of the {ran} operators" if good < ran else f"all {ran} operators" if ran > 1 else "the operator"
    does = "return, save and take" if good > 1 else "returns, saves and takes"
    return [
        *([f"what {which} that ran {does} inside"] if good else []),
        "torch's caching allocator: rounding, blocks, segments, retries, its error",
        "cuBLAS workspaces",
        f"all this as checked on {versions.checked()}, not yet on a GPU",
    ]


def modelled(card: Card, mode: CudaMode, peak: int) -> list[str]:
    """Say what is a model: operators with an error bar, and what was assumed of the card."""
    found = []
    above = mode.bars.above(peak)
    if above:
        bars = _named([f"{name} {format_bytes(size)}" for name, size in above.items()])
        found.append(f"what is taken inside may add to the peak at most: {bars}")
    if quiet := sorted(name for name in mode.bars.levels if name not in above):
        found.append(f"{_named(quiet)}: {'its bar stays' if len(quiet) == 1 else 'their bars stay'} below the peak")
    if names := high(mode):
        found.append(f"{_named(names)}: counted a little too high, if {'it is' if len(names) == 1 else 'they are'} off")
    found.append("all tensors that the code makes on the CPU count as on the card, but for an optimizer's own scalars")
    if card.capability is None:
        capability = ".".join(map(str, ASSUMED))
        found.append(f"a size is no device: kernels are chosen for compute capability {capability}, {ASSUMED_SMS} SMs")
    elif not card.sms:
        found.append(f"the card does not say how many SMs it has: {ASSUMED_SMS} are assumed, reductions depend on it")
    if card.context:
        found.append(f"{format_bytes(card.context)} for the CUDA context is one figure for all cards")
    return found


def unknown(mode: CudaMode) -> list[str]:
    """Name the operators of which it is not known what they take inside: with them the peak has no bar."""
    return sorted({name for each in mode.ran if (name := open_of(each)) is not None})


def high(mode: CudaMode) -> list[str]:
    """Name what may be counted too high."""
    found = sorted({over_of(each) for each in mode.ran} - {""})
    return [*found, "autocast"] if mode.casts else found


def missing(mode: CudaMode) -> list[str]:
    """Say what is not counted at all."""
    found = [f"what is taken inside {_named(names)}"] if (names := unknown(mode)) else []
    return [*found, "streams, CUDA graphs, NCCL, torch.compile, child processes, and kernels that are not torch's own"]


def _named(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
