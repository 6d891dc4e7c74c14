"""Small experiments and findings to test the faces with."""

import io
import textwrap
from pathlib import Path

from memlab.report import FAILED, HOLDS, REFUTED, SKIPPED, Finding, Report


class Terminal(io.StringIO):
    """Takes what is written, as a terminal would."""

    def isatty(self):
        return True


HEAD = '''
"""A sample says what it keeps.

Nobody needs to read this.
"""
import ctypes, os, signal, sys, time
import torch
from memlab.experiment import Arm, Experiment, nothing


def setup(s):
    return (torch.randn(8, s.width, requires_grad=True),)


def keeps(x):
    """Each output leads to its graph."""
    kept = []
    while True:
        kept.append(x.exp())
        yield


def output(s, k):
    return {"output": (k, 4 * 8 * s.width)}


def half(s, k):
    return {"half the output": (k, 2 * 8 * s.width), "a line too many": 4}

'''

TAIL = """
experiment = Experiment(setup=setup, sizes={"width": 64}, steps=3, arms=[
    Arm(keeps, saved=output, allocated=output),
    ARMS
])
"""


def write(folder: Path, arms: str = "", registered: str = "", name: str = "sample") -> Path:
    """Write an experiment with the arm ``keeps``, which holds, and further arms; return its file."""
    path = folder / f"{name}.py"
    path.write_text((HEAD + textwrap.dedent(arms) + TAIL.replace("ARMS", registered)).lstrip(), encoding="utf-8")
    return path


def arm(name: str, *body: str) -> str:
    """Return the code of an arm that does ``body`` in its first step and nothing in the others."""
    lines = [
        f"def {name}(x):",
        f'    """{name}"""',
        *(f"    {line}" for line in body),
        "    while True:",
        "        yield",
    ]
    return "\n".join([*lines, "\n"])


def registered(*names: str) -> str:
    """Return the registration of arms that expect nothing."""
    return ", ".join(f"Arm({name}, saved=nothing, allocated=nothing)" for name in names)


def finding(arm: str = "kept", status: str = HOLDS, **changed) -> Finding:
    """Return a finding of five steps that saves 6 KiB each, on the CPU."""
    rows = [
        {"step": k, "saved": 6144 * k, "storages": 6148 * k, "allocated": 6656 * k, "reserved": 0} for k in range(1, 6)
    ]
    known = {
        "experiment": "sample",
        "arm": arm,
        "title": "Each loss leads to its graph.",
        "claim": "A graph lives as long as something leads to it.",
        "status": status,
        "steps": 5,
        "rows": rows,
        "expected": [{key: row[key] for key in ("saved", "storages", "allocated")} for row in rows],
        "bill": {"saved": {"tanh": [5, 6144]}, "allocated": {"tanh": [5, 6144], "losses": [5, 4]}},
        "sources": {"saved": "measured", "storages": "measured", "allocated": "simulated", "reserved": "simulated"},
        "base": {"workspaces": 0, "allocated": 4096, "reserved": 1 << 21},
    }
    return Finding(**(known | changed))


def refuted() -> Finding:
    """Return a finding whose closed form says 4 KiB a step instead of 6."""
    expected = [{"saved": 4096 * k, "storages": 6148 * k, "allocated": 6656 * k} for k in range(1, 6)]
    bill = {"saved": {"tanh": [5, 4096]}, "allocated": {"tanh": [5, 6144], "losses": [5, 4]}}
    why = "step 1: saved 6,144 B, expected 4,096 B (+2,048 B)"
    return finding("wrong", REFUTED, expected=expected, bill=bill, reason=why)


def skipped() -> Finding:
    return Finding("sample", "no_card", "It needs a card.", "A claim.", SKIPPED, "this torch is built without CUDA")


def failed() -> Finding:
    return Finding("sample", "killed", "It is killed.", "A claim.", FAILED, "could not be measured: ended by SIGKILL")


def dead() -> Finding:
    """Return the finding of an arm that filled a card of 40 KiB and died at step 6, as it must."""
    oom = "CUDA out of memory. Tried to allocate 2.00 KiB. GPU 0 has a total capacity of 40.00 KiB."
    held = {
        "filled": {"train.py:12": 30720, "train.py:14": 2560},
        "held": "losses (local of train(), train.py:9) -> list",
    }
    return finding("dies", card=40960, predicted=6, died=6, oom=oom, **held)


def on_cuda() -> Finding:
    """Return a finding measured on a device, with NVML's bytes."""
    one = finding("on_card", device="cuda")
    one.sources = dict.fromkeys([*one.sources, "nvml_process"], "measured")
    one.base = {"workspaces": 8192, "allocated": 12288, "reserved": 1 << 21}
    for row in one.rows:
        row |= {"nvml_process": (1 << 29) + (1 << 21), "unsplit": 0}
    return one


def report(*findings: Finding) -> Report:
    machine = {"memlab": "0.1.0", "torch": "2.13.0", "python": "3.12.1", "processor": "A CPU", "device": "cpu"}
    return Report(machine, list(findings))
