"""What a test may cost: markers and ini defaults, read once at collection. Importing this does not import torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from memlab import cards
from memlab.cards import Card
from memlab.units import format_exact, parse_size


@dataclass(frozen=True)
class Size:
    """A number of bytes as somebody wrote it."""

    bytes: int
    text: str

    def __str__(self) -> str:
        exact = format_exact(self.bytes)
        return exact if self.text == exact or not self.text.strip("0123456789_") else f"{self.text} ({exact})"


@dataclass(frozen=True)
class Saved:
    """`limit_saved`: bytes saved for backward in the body at its peak; with ``exact`` these and no fewer."""

    size: Size
    exact: bool = False


@dataclass(frozen=True)
class Peak:
    """`limit_peak`: bytes of live tensor storages, or of torch.cuda on ``device``, at the peak of the body."""

    size: Size
    device: str | None = None


@dataclass(frozen=True)
class Growth:
    """`limit_growth`: bytes that each run of the body may leave pinned."""

    size: Size
    steps: int = 5
    warmup: int = 2


@dataclass(frozen=True)
class Limits:
    """Everything that is asked of one test; with nothing asked it is only measured."""

    saved: Saved | None = None
    peak: Peak | None = None
    growth: Growth | None = None
    no_graph_left: bool = False
    card: Card | None = None

    def told(self) -> dict[str, str]:
        """Return ``{marker: what it allows}`` in words, for reports."""
        found = {}
        if self.saved:
            found["limit_saved"] = f"{'exactly ' if self.saved.exact else ''}{self.saved.size}"
        if self.peak:
            found["limit_peak"] = str(self.peak.size) + (f" on {self.peak.device}" if self.peak.device else "")
        if self.growth:
            found["limit_growth"] = f"{self.growth.size} a run"
        if self.no_graph_left:
            found["no_graph_left"] = "yes"
        if self.card:
            found["card"] = self.card.describe()
        return found


def _size(value: Any) -> Size:
    return Size(parse_size(value), value.strip() if isinstance(value, str) else "")


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    return value


def _yes(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is True or False, not {value!r}")
    return value


def limit_saved(size: Any, *, exact: Any = False) -> Saved | None:
    return None if size is None else Saved(_size(size), _yes("exact", exact))


def limit_peak(size: Any, device: Any = None) -> Peak | None:
    kind, _, index = device.partition(":") if isinstance(device, str) else ("", "", "")
    if device is not None and not (device == "cpu" or (kind == "cuda" and (index.isdecimal() or device == "cuda"))):
        raise ValueError(f"there is no device {device!r}; write 'cpu', 'cuda' or 'cuda:0'")
    return None if size is None else Peak(_size(size), device)


def limit_growth(size: Any, *, steps: Any = 5, warmup: Any = 2) -> Growth | None:
    steps, warmup = _count("steps", steps, 2), _count("warmup", warmup, 0)
    return None if size is None else Growth(_size(size), steps, warmup)


def no_graph_left(wanted: Any = True) -> bool:
    return _yes("wanted", wanted)


def card(what: Any) -> Card | None:
    return None if what is None else cards.find(what)


MARKERS: dict[str, tuple[str, Callable[..., Any], str]] = {
    "limit_saved": (
        "saved",
        limit_saved,
        "limit_saved(size, *, exact=False): fail if the body saves more bytes for backward; 'exact' for equality.",
    ),
    "limit_peak": (
        "peak",
        limit_peak,
        "limit_peak(size, device=None): fail if the body's live tensor storages (on CUDA, torch.cuda's allocated "
        "bytes) are more at their peak.",
    ),
    "limit_growth": (
        "growth",
        limit_growth,
        "limit_growth(size, *, steps=5, warmup=2): run the body again and again and fail if each run leaves more bytes "
        "pinned by tensors and graphs.",
    ),
    "no_graph_left": (
        "no_graph_left",
        no_graph_left,
        "no_graph_left(wanted=True): fail if an autograd graph that the test made outlives it.",
    ),
    "card": (
        "card",
        card,
        "card(what): run the body on a simulated GPU ('24 GiB', 'rtx4090'); it raises torch.OutOfMemoryError where "
        "that would.",
    ),
}
"""``{marker: (field of Limits, what reads its arguments, its line in pytest --markers)}``."""

SIZES = ("limit_saved", "limit_peak", "limit_growth", "card")  # have an ini default that is a size
NONE = Limits()


def add_ini(parser: pytest.Parser) -> None:
    """Add ``memlab_limit_saved`` and its kin: defaults for every test, which a marker overrides."""
    for name in SIZES:
        parser.addini(f"memlab_{name}", f"default size of {name} for every test", default="")
    parser.addini("memlab_no_graph_left", "whether no_graph_left holds for every test", type="bool", default=False)


def from_ini(config: pytest.Config) -> Limits:
    """Return the suite's defaults. Raises pytest.UsageError with a sentence."""
    found = NONE
    for name in SIZES:
        text = str(config.getini(f"memlab_{name}") or "").strip()
        if text:
            field, read, _ = MARKERS[name]
            try:
                found = replace(found, **{field: read(text)})
            except ValueError as error:
                raise pytest.UsageError(f"memlab_{name} in the ini file: {error}") from None
    return replace(found, no_graph_left=bool(config.getini("memlab_no_graph_left")))


def of(item: pytest.Item, defaults: Limits) -> Limits:
    """Return what is asked of ``item``: its closest markers over the suite's defaults.

    Raises:
        pytest.UsageError: a marker that cannot be read; the sentence names the test and the marker.
    """
    limits, seen = defaults, set()
    for marker in item.iter_markers():  # closest first
        if marker.name in MARKERS and marker.name not in seen:
            seen.add(marker.name)
            limits = replace(limits, **{MARKERS[marker.name][0]: _read(item, marker)})
    return limits


def _read(item: pytest.Item, marker: pytest.Mark) -> Any:
    _, read, _ = MARKERS[marker.name]
    try:
        bound = _bound(read, marker)
        return read(*bound.args, **bound.kwargs)
    except ValueError as error:
        raise pytest.UsageError(f"{item.nodeid}: {marker.name}: {error}") from None


def _bound(read: Callable[..., Any], marker: pytest.Mark) -> inspect.BoundArguments:
    signature = inspect.signature(read)
    takes = ", ".join(signature.parameters) or "no arguments"
    unknown = [name for name in marker.kwargs if name not in signature.parameters]
    if unknown:
        raise ValueError(f"there is no {unknown[0]!r}; it takes {takes}")
    if "size" in signature.parameters and not marker.args and "size" not in marker.kwargs:
        raise ValueError(f"it needs a size, such as {marker.name}('6 MiB')")
    try:
        return signature.bind(*marker.args, **marker.kwargs)
    except TypeError as error:
        raise ValueError(f"{error}; it takes {takes}") from None
