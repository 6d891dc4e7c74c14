"""What stands below the lines of an experiment: the card's story and the reasons."""

from __future__ import annotations

from memlab.report import Finding
from memlab.show import _card, _reasons
from memlab.show._columns import Block


def blocks(findings: list[Finding], width: int | None = None) -> list[Block]:
    """Return the blocks of one experiment's findings; bars are drawn to suit a terminal's ``width``."""
    stories = [_card.story(finding, width) for finding in findings]
    return [each for each in (*stories, *_reasons.blocks(findings)) if each is not None]
