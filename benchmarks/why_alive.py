"""Is it judged right, is the right variable named, and the line that gave birth? Over a corpus of loops.

    python benchmarks/why_alive.py [NAME ...] [--out results/why_alive.md]

Every loop of ``tests/corpus.py`` and ``tests/owner_loops.py``, leaking and clean, is run by `memlab.growth` as it is,
with no argument. Right is: the verdict on bytes or nodes, the owner that grew most, the source line where its tensors
were born, and the known pattern, each against the label that a person has put there. Where nodes alone grow, no bytes
are born, and no birth is asked for.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from corpus import LOOPS, Loop  # noqa: E402
from owner_loops import OWNER_LOOPS  # noqa: E402

import memlab  # noqa: E402
from memlab.doctor import machine  # noqa: E402
from memlab.patterns import recognise  # noqa: E402
from memlab.tracing.holders import clue_of  # noqa: E402

WRONG = "**wrong**"
# The gradient's graph keeps what exp() made one line before: the line that saved it first is as right.
ALSO = {"create_graph_and_kept_grads": 1}


@dataclass
class Row:
    """One loop: label and answer of each question, and whether they agree."""

    loop: Loop
    verdict: str
    owner: str
    born: str
    pattern: str
    right: bool


def measure(loop: Loop) -> Row:
    gc.collect()
    found = memlab.growth(loop.make())
    verdict = "grows" if found.grows else "nodes grow" if found.nodes_grow else "flat"
    verdict_right = (found.grows or found.nodes_grow) == (loop.grows or loop.nodes_grow)
    leader = found.owners[0] if found.owners else None
    name = leader.name if leader else ""
    owner_right = is_owner(name, loop.owner)
    born, born_right = birth(loop, leader.born if leader else "")
    known = recognise(clue_of(leader, grows=True, piles=leader.elements_per_step > 0)) if leader else None
    pattern = known.name if known else ""
    pattern_right = pattern == (loop.pattern or "")
    return Row(
        loop,
        verdict if verdict_right else f"{verdict} {WRONG}",
        name if owner_right else f"{name or 'none'} {WRONG}, not {loop.owner}",
        born if born_right else f"{born} {WRONG}",
        pattern if pattern_right else f"{pattern or 'none'} {WRONG}, not {loop.pattern}",
        verdict_right and owner_right and born_right and pattern_right,
    )


def is_owner(name: str, wanted: str | None) -> bool:
    """The variable itself or an attribute of it, which says more: ``meter.sum``; ``f`` may read ``g.<locals>.f``."""
    if wanted is None:
        return not name
    bare = re.sub(r"^.*<locals>\.", "", name)
    return bare == wanted or bare.startswith((f"{wanted}.", f"{wanted}["))


def birth(loop: Loop, born: str) -> tuple[str, bool]:
    if loop.born is None or (born in ("", "unknown") and not loop.grows):
        return "", True
    file, line = loop.born
    where = f"{Path(born.rpartition(':')[0]).name}:{born.rpartition(':')[2]}"
    wanted = {f"{Path(file).name}:{line - each}" for each in (0, ALSO.get(loop.name, 0))}
    return where, where in wanted


def table(rows: list[Row]) -> str:
    lines = ["| loop | verdict | owner | born at | pattern |", "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (row.loop.owner is None, row.right)):
        title = row.loop.title.replace("|", "\\|")
        lines.append(f"| {title} | {row.verdict} | {row.owner} | {row.born} | {row.pattern} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these loops")
    parser.add_argument("--out", help="write the table to this file, too")
    given = parser.parse_args()
    loops = {**LOOPS, **OWNER_LOOPS}
    rows = []
    for name, loop in loops.items():
        if not given.names or name in given.names:
            rows.append(measure(loop))
            print(f"{'right' if rows[-1].right else 'WRONG'}  {name}", file=sys.stderr)
    leaking = [row for row in rows if row.loop.owner]
    facts = "".join(f"- {name}: {value}\n" for name, value in machine("cpu").items())
    patterns = Counter(row.loop.pattern for row in leaking)
    wrong = Counter(row.loop.pattern for row in leaking if WRONG in row.pattern)
    counts = "".join(f"| {name} | {count} | {count - wrong[name]} |\n" for name, count in patterns.most_common())
    text = (
        "# Why is it alive? Verdict, owner, birth and pattern over a corpus of loops\n\n"
        f"`python benchmarks/why_alive.py`: {len(leaking)} leaking loops and {len(rows) - len(leaking)} clean ones, "
        f"labelled by hand;\n{sum(row.right for row in rows)} of {len(rows)} are right in all that is asked.\n\n"
        f"{facts}\n| pattern | loops | right |\n|---|---|---|\n{counts}\n{table(rows)}\n"
    )
    print(text, end="")
    if given.out:
        Path(given.out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
