"""The corpus of loops, judged by the pytest plugin under ``limit_growth("0 B")``: a table of labels and verdicts.

python benchmarks/loops.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from corpus import LOOPS, Loop  # noqa: E402
from test_corpus import BODY  # noqa: E402

from memlab.doctor import machine  # noqa: E402


def judge() -> dict[str, dict[str, object]]:
    """Run every loop under the plugin; return each one's record, by name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "test_loops.py").write_text(BODY)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
        options = ["-p", "memlab.pytest_plugin", "-p", "no:cacheprovider", "-q", "--memlab-json", "out.json"]
        environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        command = [sys.executable, "-m", "pytest", *options]
        subprocess.run(command, cwd=path, env=environment, capture_output=True, check=False)
        found = json.loads((path / "out.json").read_text())["tests"]
    return {record["test"].partition("[")[2].rstrip("]"): record for record in found}


def row(loop: Loop, record: dict[str, object]) -> str:
    right = (bool(record["growth"]), bool(record["growth_nodes"])) == (loop.grows, loop.nodes_grow)
    label = "bytes grow" if loop.grows else "nodes grow" if loop.nodes_grow else "clean"
    verdict = "failed" if record["failures"] else "passed, and said so" if record["notes"] else "passed"
    bytes_, nodes = f"{record['growth']:,} B", str(record["growth_nodes"])
    cells = [loop.title.replace("|", "\\|"), label, bytes_, nodes, verdict, "right" if right else "WRONG"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    records = judge()
    print("\n".join(f"- {key}: {value}" for key, value in machine("cpu").items()), end="\n\n")
    for heading, asked in (("The nine", True), ("Others", False)):
        print(f"## {heading}\n")
        print("| loop | label | bytes a run | nodes a run | verdict | |\n|---|---|---:|---:|---|---|")
        print("\n".join(row(loop, records[name]) for name, loop in LOOPS.items() if loop.asked is asked), end="\n\n")


if __name__ == "__main__":
    main()
