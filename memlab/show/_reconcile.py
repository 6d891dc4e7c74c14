"""Where a card's bytes are: three accounts of the same memory, and what lies between them."""

from __future__ import annotations

from memlab.report import Finding
from memlab.show._columns import Block
from memlab.show._words import clean
from memlab.units import format_bytes


def block(findings: list[Finding]) -> Block | None:
    """Return the sums of the arm that holds most on the card; None off CUDA."""
    known = [each for each in findings if _known(each)]
    if not known:
        return None
    fullest = max(known, key=lambda each: each.rows[-1]["allocated"])
    step = fullest.rows[-1].get("step", len(fullest.rows))
    return Block(f"Where the card's bytes are at step {step} of {clean(fullest.name)}", sums(fullest), right=(1,))


def _known(finding: Finding) -> bool:
    return bool(
        finding.sources.get("allocated") == "measured"
        and finding.rows
        and finding.base.keys() >= {"allocated", "reserved"}
        and finding.rows[-1].keys() >= {"allocated", "reserved", "storages"}
    )


def sums(finding: Finding) -> list[tuple[str, ...]]:
    """Return the sums that lead from NVML's bytes down to live tensors, at the last step, as an indented account."""
    row, base = finding.rows[-1], finding.base
    allocated, reserved = base["allocated"] + row["allocated"], base["reserved"] + row["reserved"]
    workspaces, process = base.get("workspaces", 0), row.get("nvml_process")
    parts = [
        (0, "reserved", reserved, "= cached + allocated"),
        (1, "cached", reserved - allocated, "kept by torch for reuse"),
        (1, "allocated", allocated, "= workspaces + setup + live tensors + rounding"),
        (2, "workspaces", workspaces, "held by libraries before the setup"),
        (2, "setup", base["allocated"] - workspaces, "tensors that were there before step 1"),
        (2, "live tensors", row["storages"], "storages that the arm has made"),
        (2, "rounding", row["allocated"] - row["storages"], "up to 512 B each, and rests too small to split"),
    ]
    if process is not None:
        above = [
            (0, "NVML, this process", process, "= context + reserved"),
            (1, "context", process - reserved, "what CUDA itself takes"),
        ]
        parts = [*above, *((depth + 1, name, nbytes, words) for depth, name, nbytes, words in parts)]
    return [("  " * depth + name, format_bytes(nbytes), words) for depth, name, nbytes, words in parts]
