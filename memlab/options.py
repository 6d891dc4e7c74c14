"""What the options of the command line mean: text becomes jobs, or one sentence that says what is wrong.

Everything here happens before anything is measured. Importing this module does not import torch.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from memlab import cards, experiment
from memlab.cards import Card
from memlab.experiment import pick
from memlab.units import format_bytes

if TYPE_CHECKING:
    from memlab.job import Job

STDOUT = "-"
ALL = "all"
LARGEST = (1 << 63) - 1  # that torch takes for a seed or a size


class Wrong(Exception):
    """Wrong use; the text is one sentence that says what is wrong and what to do."""


@contextmanager
def wrong(what: str = "") -> Iterator[None]:
    """Turn a ValueError, whose text is a sentence, into `Wrong`; ``what`` says what it is about."""
    try:
        yield
    except ValueError as error:
        raise Wrong(f"{what}: {error}" if what else str(error)) from None


def choose(known: Mapping[str, object], name: str, what: str) -> None:
    """Raise `Wrong`, with the nearest names, unless ``name`` is known."""
    with wrong():
        pick(known, name, what)


def paths(names: Sequence[str]) -> list[Path]:
    """Return the experiments' files that the names mean, each once."""
    found: dict[str, Path] = {}
    for name in names:
        with wrong():
            meant = list(experiment.files().values()) if name == ALL else [experiment.find(name)]
        for path in meant:
            if found.setdefault(path.stem, path) != path:
                raise Wrong(f"two experiments are called {path.stem}: {found[path.stem]} and {path}; run one at a time")
    return list(found.values())


def number(option: str, text: str, least: int, most: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise Wrong(f"{option} takes a whole number, not {text!r}") from None
    if not least <= value <= most:
        raise Wrong(f"{option} must be {f'at least {least}' if value < least else f'at most {most}'}, not {value}")
    return value


def device(text: str) -> str:
    """Return the device as it is written."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", text):
        raise Wrong(f"there is no device {text!r}; write cpu, cuda or cuda:0")
    return text


def card(text: str | None) -> Card | None:
    with wrong("--card"):
        return cards.find(text) if text is not None else None


def sizes(texts: Sequence[str]) -> dict[str, int]:
    """Return ``{size: value}`` of texts such as ``width=64``."""
    changed = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise Wrong(f"--set takes a size and a whole number, such as --set width=64, not {text!r}")
        changed[name] = number(f"--set {name}", value, 1, LARGEST)
    return changed


def destination(out: str | None, option: str = "--json") -> Path | None:
    """Return the file that ``option`` names; find out now whether it can be written."""
    if out is None or out == STDOUT:
        return None
    path = Path(out)
    if path.is_dir():
        raise Wrong(f"{option} {out}: that is a folder; name a file in it")
    if not path.parent.is_dir():
        raise Wrong(f"{option} {out}: there is no folder {path.parent}; make it first")
    try:
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass
    except OSError as error:
        raise Wrong(f"{option} {out}: cannot write there: {error.strerror}") from None
    return path


@dataclass(frozen=True)
class Plan:
    """What to measure, before the device is known."""

    arms: list[tuple[Path, str]]
    card: int | None = None
    steps: int | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    snapshot: Path | None = None

    def jobs(self, device: str) -> list[Job]:
        from memlab.job import Job

        return [
            Job(path, arm, device, self.card, self.steps, dict(self.sizes), self.seed, self._snapshot(path, arm))
            for path, arm in self.arms
        ]

    def _snapshot(self, path: Path, arm: str) -> Path | None:
        """One arm's file is called as asked for; of several, each has its arm's name in it."""
        if self.snapshot is None or len(self.arms) == 1:
            return self.snapshot
        return self.snapshot.with_name(f"{self.snapshot.stem}.{path.stem}.{arm}{self.snapshot.suffix}")


def arms(files: Sequence[Path], wanted: Sequence[str]) -> list[tuple[Path, str]]:
    """Return (file, arm) of all arms of the experiments, or of the wanted ones."""
    with wrong():
        known = {path: list(experiment.summarise(path).arms) for path in files}
    for path, names in known.items():
        if not names:
            raise Wrong(f"{path} is no experiment: it has no Arm(...)")
    for arm in wanted:
        choose(dict.fromkeys(name for names in known.values() for name in names), arm, "arm")
    return [(path, arm) for path, names in known.items() for arm in names if not wanted or arm in wanted]


def _check_room(job: Job, *, fills: bool) -> None:
    """A simulated card is filled with real tensors: refuse one that this machine could not hold."""
    import psutil

    free = psutil.virtual_memory().available
    if fills and job.device == "cpu" and job.card is not None and job.card > free:
        size, there = format_bytes(job.card), format_bytes(free)
        raise ValueError(f"a simulated card holds real tensors: {size} do not fit into the {there} that are free here")


def complaint(jobs: Sequence[Job]) -> str:
    """Load the experiments and return what is wrong with the jobs' arms and sizes, or nothing.

    Runs in a process of its own. A file that fails to load says so in its findings.
    """
    loaded = {}
    for job in jobs:
        try:
            if job.path not in loaded:
                loaded[job.path] = experiment.load(job.path)
            loaded[job.path].arm(job.arm)
            loaded[job.path].with_sizes(job.sizes, job.device)
            _check_room(job, fills=any(arm.dies for arm in loaded[job.path].arms))
        except ValueError as error:
            return f"{job.path.stem}: {error}"
        except Exception:
            continue
    return ""
