"""The model beside torch's own allocator, operation by operation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.cuda
@pytest.mark.parametrize(
    "configuration", ["default", "non_split_rounding", "collector", "expandable", "expandable_reserve", "changing"]
)
def test_random_operations_give_torchs_numbers(configuration: str) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: torch's own allocator cannot run beside the model")
    needed = (2, 15) if configuration == "expandable_reserve" else (2, 13)
    if tuple(map(int, torch.__version__.split(".")[:2])) < needed:
        pytest.skip(f"the model is that of torch {needed[0]}.{needed[1]} and newer; this is {torch.__version__}")
    script = ROOT / "benchmarks" / "fuzz_allocator.py"
    command = [sys.executable, str(script), "--operations", "4000", "--seed", "7", "--only", configuration]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compared with torch" in done.stdout, done.stdout
