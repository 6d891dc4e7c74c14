"""What was measured of one test, as plain data that travels between processes. Importing this does not import torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Record:
    """One test.

    Attributes:
        test, file, line: the test's id; where it stands, relative to the root directory.
        limits: ``{marker: what it allows}`` in words.
        given: bytes of tensors that fixtures handed to the body; they are not the body's.
        saved_peak: bytes saved for backward in the body, at its peak.
        storages_peak: bytes of tensor storages that the body created, at their peak.
        cuda_peak: bytes that torch.cuda allocated in the body at their peak; None where that was not measured.
        card: what the simulated card's allocator says of the body (`memlab.probes.simulated.Simulated.read`), in bytes;
            None without a card.
        runs: how often the body ran.
        growth: bytes that each run left behind (the median slope), with ``growth_nodes`` and the readings ``series``,
            ``nodes``; None where the body was not run again.
        nodes_left: autograd nodes that outlived the test; None where nobody asked.
        checks: what the fixture's ``check`` compared or recorded: name, outcome and the entry for the baseline.
        failures: the texts of limits that do not hold.
        not_checked: sentences: what was asked for and could not be made, and why.
        notes: sentences about what was met and not seen, or seen and not judged.
        raised: the body raised or skipped, so nothing was judged.
        wrong_use: a failure is wrong use of memlab, not memory.
    """

    test: str
    file: str = ""
    line: int = 0
    limits: dict[str, str] = field(default_factory=dict)
    given: int = 0
    saved_peak: int | None = None
    storages_peak: int | None = None
    cuda_peak: int | None = None
    card: dict[str, int] | None = None
    runs: int = 0
    growth: int | None = None
    growth_nodes: int | None = None
    series: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    nodes_left: int | None = None
    checks: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    raised: bool = False
    wrong_use: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def properties(self) -> list[tuple[str, object]]:
        """Return what JUnit reports carry: one property a number."""
        names = ("given", "saved_peak", "storages_peak", "cuda_peak", "growth", "growth_nodes", "nodes_left")
        found: list[tuple[str, object]] = [
            (f"memlab_{name}", getattr(self, name)) for name in names if getattr(self, name) is not None
        ]
        found += [(f"memlab_card_{name}", nbytes) for name, nbytes in (self.card or {}).items()]
        return found + [("memlab_not_checked", reason) for reason in self.not_checked]

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)
