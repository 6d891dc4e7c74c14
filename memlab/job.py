"""One arm to measure, as plain data. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from memlab.experiment import summarise
from memlab.report import SKIPPED, Finding


@dataclass(frozen=True)
class Job:
    """One arm to measure, as plain data.

    Attributes:
        path: the experiment's file.
        arm: the arm's name.
        device: ``"cpu"`` or ``"cuda[:index]"``.
        card: bytes of the card, None for the experiment's own.
        steps: how many, None for the experiment's own.
        sizes: sizes that differ from the experiment's own.
        seed: for ``torch.manual_seed``.
        snapshot: where to write the allocator's history and segments; None for nowhere.
    """

    path: Path
    arm: str
    device: str = "cpu"
    card: int | None = None
    steps: int | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    snapshot: Path | None = None

    def finding(self, status: str = SKIPPED, reason: str = "") -> Finding:
        """Return a finding that knows only what the job knows."""
        summary = summarise(self.path)
        return Finding(
            experiment=self.path.stem,
            arm=self.arm,
            title=summary.arms.get(self.arm, self.arm),
            claim=summary.claim,
            status=status,
            reason=reason,
            device=self.device,
            sizes=dict(self.sizes),
            seed=self.seed,
        )
