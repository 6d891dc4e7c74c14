"""Predict, without a GPU, whether a script fits a card: both peaks, the line where it dies, the largest batch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from memlab import options
from memlab.allocator.settings import Settings
from memlab.cards import Card
from memlab.commands import HOLDS, NOT_ALL_HOLD
from memlab.options import Wrong
from memlab.prediction import UNKNOWN, Prediction


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("script", metavar="SCRIPT", help="a training script; its arguments follow after --")
    parser.add_argument(
        "--card", metavar="CARD", default="24 GiB", help="'24 GiB', rtx4090, FILE.json (default: 24 GiB)"
    )
    parser.add_argument("--fake", action="store_true", help="on fake tensors: no memory, no arithmetic, any size")
    parser.add_argument("--batch-from", metavar="N", help="look for the largest batch that fits, from N on")
    parser.add_argument(
        "--batch-arg", metavar="NAME", default="batch", help="the script's option for it, no dashes (default: batch)"
    )
    parser.add_argument(
        "--conf", metavar="CONF", default="", help="the allocator's settings, as PYTORCH_CUDA_ALLOC_CONF"
    )
    parser.add_argument("--timeout", metavar="S", default="600", help="seconds that one run may take (default: 600)")
    parser.add_argument("--json", metavar="OUT", help="save the prediction here; - is stdout, with nothing else on it")
    parser.set_defaults(takes_rest=True, rest=[])


def command(given: argparse.Namespace) -> int:
    from memlab.show import _prediction

    script, destination = Path(given.script), options.destination(given.json)
    if not script.is_file():
        raise Wrong(f"there is no script {given.script}")
    card = options.card(given.card)
    assert card is not None
    with options.wrong("--conf"):
        Settings(sets_reserve=True).update(given.conf)  # which of them this torch has is known where it runs
    timeout = options.number("--timeout", given.timeout, 1, 10**9)
    start = None if given.batch_from is None else options.number("--batch-from", given.batch_from, 1, options.LARGEST)
    found = _predict(script, given, card, start, timeout)
    if destination is not None:
        found.save(destination)
    if given.json == options.STDOUT:
        sys.stdout.write(found.to_json())
    else:
        _prediction.show(found, sys.stdout)
    return HOLDS if found.fits else NOT_ALL_HOLD


def _predict(script: Path, given: argparse.Namespace, card: Card, start: int | None, timeout: float) -> Prediction:
    """Run the script in a process of its own, once, or once for every batch that is tried."""
    from memlab import doctor, isolate, predicting

    isolate.prepare()

    option = f"--{given.batch_arg.lstrip('-')}"

    def run(batch: int | None) -> Prediction:
        arguments = [*given.rest, *([] if batch is None else [option, str(batch)])]
        asked = (_in_child, script, arguments, card, given.fake, given.conf)
        try:
            found: Prediction = isolate.ask(*asked, timeout=timeout)
        except isolate.Lost as error:
            raise Wrong(f"{script.name} could not be run: {str(error).removeprefix('RuntimeError: ')}") from None
        if found.verdict == UNKNOWN:
            raise Wrong(f"{found.died}: {found.reason}")
        tried[batch] = found
        return found

    tried: dict[int | None, Prediction] = {}
    if start is None:
        found = run(None)
    else:
        try:
            largest, batches = predicting.largest_batch(run, start)
        except ValueError as error:
            raise Wrong(f"{script.name}: {error}; does it read its batch from {option}? (see --batch-arg)") from None
        found = tried[largest or start]
        found.largest, found.batches = largest, batches
    found.machine = isolate.ask(doctor.machine, "cpu")
    return found


def _in_child(script: Path, arguments: list[str], card: Card, fake: bool, conf: str) -> Prediction:
    from memlab import predicting

    return predicting.predict_script(script, arguments, card, fake=fake, conf=conf)
