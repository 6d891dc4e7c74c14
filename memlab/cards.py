"""Cards by name: how much memory their drivers report, and what of it torch cannot have. Plain data, no torch.

`find` reads what a user may write wherever a card is named: a size, a name of this table, or a JSON file.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlab.units import format_bytes, parse_size

if TYPE_CHECKING:
    from memlab.allocator import Allocator

MIB, GIB = 1 << 20, 1 << 30
# One figure for all cards, seen on an RTX 6000 Ada with torch 2.10 (unslothai/unsloth-zoo, pull request 1053).
CONTEXT = 426 * MIB
# Properties(...): total_memory as torch prints it, in MiB; text: the capacity in an out-of-memory text, to 0.01 GiB.
PROPERTIES, TEXT, NOMINAL = "printed by torch", "read from torch's out-of-memory text", "nominal"
# cudaDevAttrMaxThreadsPerMultiProcessor by compute capability (CUDA C++ Programming Guide, technical specifications).
THREADS_PER_SM = {(7, 0): 2048, (7, 5): 1024, (8, 0): 2048, (8, 6): 1536, (8, 9): 1536, (9, 0): 2048, (10, 0): 2048}
THREADS_PER_SM |= {(12, 0): 1536}
LARGEST_FILE = 1 << 20  # bytes of a card's file
_EXAMPLE = '{"total": "24 GiB"}'


@dataclass(frozen=True)
class Card:
    """A simulated card. All sizes in bytes.

    Attributes:
        name: as it is asked for.
        total: what the driver reports (cudaDeviceProp::totalGlobalMem), or the size that was asked for.
        source: where ``total`` is from, in words; ``nominal`` where no driver's figure is known.
        capability: compute capability; None for a card that is a size only.
        sms: streaming multiprocessors; 0 where not known.
        context: what the CUDA context and loaded kernels take before torch allocates anything.
        other: what other processes take.
    """

    name: str
    total: int
    source: str = "as asked for"
    capability: tuple[int, int] | None = None
    sms: int = 0
    context: int = 0
    other: int = 0

    @property
    def usable(self) -> int:
        """Bytes that torch's allocator can reserve."""
        return self.total - self.context - self.other

    @property
    def threads_per_sm(self) -> int:
        """Resident threads of one multiprocessor; 2048 where the capability is not in the table."""
        return THREADS_PER_SM.get(self.capability or (9, 0), 2048)

    def allocator(self, conf: str = "", tie_break: str = "segment", sets_reserve: bool = False) -> Allocator:
        """Return torch's caching allocator on this card, with settings as in PYTORCH_CUDA_ALLOC_CONF.

        The others are as of `memlab.allocator.Allocator`; `memlab.versions.allocator` has those of this torch.
        """
        from memlab.allocator import Allocator

        other = self.context + self.other
        return Allocator(self.total, conf, other=other, tie_break=tie_break, sets_reserve=sets_reserve)

    def describe(self) -> str:
        """Say in one line what the card has and what of it is taken, so that neither is hidden."""
        size = format_bytes(self.total)
        parts = [f"{size if self.name == size else f'{self.name}: {size}'} ({self.source})"]
        if self.context or self.other:
            parts.append(
                f"less {format_bytes(self.context)} for the CUDA context and {format_bytes(self.other)} of others: "
                f"{format_bytes(self.usable)} for torch"
            )
        return ", ".join(parts)


def _mib(name: str, mib: int, capability: tuple[int, int], sms: int) -> Card:
    return Card(name, mib * MIB, f"{PROPERTIES}, to the MiB", capability, sms, CONTEXT)


def _gib(name: str, gib: float, capability: tuple[int, int], sms: int, source: str = TEXT) -> Card:
    total = int(gib * GIB) // MIB * MIB
    return Card(name, total, f"{source}, to 0.01 GiB" if source == TEXT else source, capability, sms, CONTEXT)


# The figures of torch.cuda.get_device_properties() and of error texts are from public issues and notebooks; another
# driver, ECC, or Windows gives a little more or less. Multiprocessors: NVIDIA's data sheets, and the same properties.
_TABLE = (
    _mib("t4", 15102, (7, 5), 40),
    _mib("v100-16gb", 16160, (7, 0), 80),
    _gib("v100-32gb", 32, (7, 0), 80, NOMINAL),
    _mib("rtx2080ti", 11019, (7, 5), 68),
    _mib("rtx3060", 11931, (8, 6), 28),
    _gib("rtx3080", 9.78, (8, 6), 68),
    _mib("rtx3090", 24259, (8, 6), 82),
    _mib("rtx4080", 16049, (8, 9), 76),
    _gib("rtx4090", 23.64, (8, 9), 128),
    _gib("rtx5090", 31.37, (12, 0), 170),
    _mib("a10g", 22587, (8, 6), 80),
    _mib("a6000", 48676, (8, 6), 84),
    _gib("l4", 24, (8, 9), 58, NOMINAL),
    _gib("l40", 44.40, (8, 9), 142),
    _mib("l40s", 45589, (8, 9), 142),
    _mib("a100-40gb", 40326, (8, 0), 108),
    _gib("a100-80gb", 79.25, (8, 0), 108),
    _mib("h100-pcie", 81008, (9, 0), 114),
    _mib("h100-80gb", 81082, (9, 0), 132),
    _mib("h200", 143156, (9, 0), 132),
    _mib("b200", 182631, (10, 0), 148),
)
CARDS: dict[str, Card] = {card.name: card for card in _TABLE}
_ALIASES = {"v100": "v100-16gb", "a100": "a100-80gb", "h100": "h100-80gb", "h100-sxm": "h100-80gb"}
_ALIASES |= {"a10080gb": "a100-80gb", "a10040gb": "a100-40gb", "h10080gb": "h100-80gb"}
# As drivers call them, without NVIDIA and spaces.
_ALIASES |= {"teslat4": "t4", "teslav100-sxm2-16gb": "v100-16gb", "teslav100-sxm2-32gb": "v100-32gb"}
_ALIASES |= {"a100-sxm4-40gb": "a100-40gb", "a100-sxm4-80gb": "a100-80gb", "rtxa6000": "a6000"}
_ALIASES |= {"h10080gbhbm3": "h100-80gb", "h100pcie": "h100-pcie"}


def find(what: str | int | Card) -> Card:
    """Return the card that ``what`` names: ``"24 GiB"``, bytes, a name such as ``"rtx4090"``, or a JSON file.

    A size alone has no context and no capability; nothing is subtracted from it. A file is an object with ``total``
    and, if known, ``name``, ``capability`` (``[8, 9]``), ``sms``, ``context``, ``other`` and ``source``; sizes may be
    texts.

    Raises:
        ValueError: a sentence that says what is wrong, with the nearest names for an unknown one.
    """
    if isinstance(what, Card):
        return what
    if isinstance(what, str):
        if what.lower().endswith(".json"):
            return load(Path(what))
        plain = what.strip().lower().replace(" ", "").replace("_", "-").replace("geforce", "")
        for key in (plain, plain.replace("nvidia", "").strip("-")):
            if (name := _ALIASES.get(key, key)) in CARDS:
                return CARDS[name]
        if not what.strip()[:1].isdigit() and not what.strip().startswith("-"):
            raise ValueError(_unknown(what, plain))
    total = parse_size(what, whole=False)
    if total == 0:
        raise ValueError("a card of 0 bytes holds nothing; give a larger one")
    return Card(format_bytes(total), total)


def _unknown(what: str, plain: str) -> str:
    near = difflib.get_close_matches(plain, [*CARDS, *_ALIASES], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(CARDS)}"
    return f"there is no card {what!r}, {hint} (a size such as '24 GiB' and a JSON file are cards too)"


def load(path: Path) -> Card:
    """Return the card in a JSON file. Raises ValueError with a sentence for anything that is not one."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(LARGEST_FILE))
    except OSError as error:
        raise ValueError(f"cannot read the card {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"the card {path} is not JSON") from None
    if not isinstance(content, dict) or "total" not in content:
        raise ValueError(f"the card {path} is no object with a total, such as {_EXAMPLE}")
    unknown = set(content) - {each.name for each in fields(Card)}
    if unknown:
        known = ", ".join(each.name for each in fields(Card))
        raise ValueError(f"the card {path} has unknown fields {sorted(unknown)}; known: {known}")
    try:
        return _checked({"name": path.stem, "source": f"from {path.name}"} | content)
    except ValueError as error:
        raise ValueError(f"the card {path}: {error}") from None


def _checked(content: dict[str, Any]) -> Card:
    sizes = {name: parse_size(content.get(name, 0), whole=False) for name in ("total", "context", "other")}
    capability, sms = content.get("capability"), content.get("sms", 0)
    if capability is not None and not (
        isinstance(capability, list)
        and len(capability) == 2
        and all(type(each) is int and each >= 0 for each in capability)
    ):
        raise ValueError(f"capability is two whole numbers such as [8, 9], not {capability!r}")
    if type(sms) is not int or sms < 0:
        raise ValueError(f"sms is a whole number, not {sms!r}")
    if sizes["total"] <= sizes["context"] + sizes["other"]:
        raise ValueError("context and other leave nothing of total")
    pair = (capability[0], capability[1]) if capability is not None else None
    return Card(str(content["name"]), source=str(content["source"]), capability=pair, sms=sms, **sizes)
