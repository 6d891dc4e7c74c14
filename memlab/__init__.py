"""memlab: what autograd keeps, why memory grows, and tests that keep it from coming back.

Importing memlab imports neither torch nor rich; both come with the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memlab import allocator as allocator
    from memlab.allocator import OutOfMemory as OutOfMemory
    from memlab.billing import Bill as Bill
    from memlab.billing import bill as bill
    from memlab.experiment import Arm as Arm
    from memlab.experiment import Experiment as Experiment
    from memlab.explaining import explain as explain
    from memlab.explaining import on_oom as on_oom
    from memlab.lines import Line as Line
    from memlab.ownership import Owner as Owner
    from memlab.ownership import owners as owners
    from memlab.predicting import predict as predict
    from memlab.prediction import Prediction as Prediction
    from memlab.report import Finding as Finding
    from memlab.report import Report as Report
    from memlab.snapshotting import snapshot as snapshot
    from memlab.stepping import step as step
    from memlab.unavailable import Unavailable as Unavailable
    from memlab.watching import Growth as Growth
    from memlab.watching import Watch as Watch
    from memlab.watching import growth as growth
    from memlab.watching import watch as watch

__version__ = "0.1.0"

_HOMES = {
    "allocator": "memlab.allocator",
    "OutOfMemory": "memlab.allocator",
    "Arm": "memlab.experiment",
    "Experiment": "memlab.experiment",
    "explain": "memlab.explaining",
    "on_oom": "memlab.explaining",
    "Bill": "memlab.billing",
    "bill": "memlab.billing",
    "Line": "memlab.lines",
    "Owner": "memlab.ownership",
    "owners": "memlab.ownership",
    "snapshot": "memlab.snapshotting",
    "step": "memlab.stepping",
    "Unavailable": "memlab.unavailable",
    "predict": "memlab.predicting",
    "Prediction": "memlab.prediction",
    "Finding": "memlab.report",
    "Report": "memlab.report",
    "Growth": "memlab.watching",
    "Watch": "memlab.watching",
    "growth": "memlab.watching",
    "watch": "memlab.watching",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'memlab' has no attribute {name!r}")
    module = importlib.import_module(home)
    return module if name == "allocator" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
