"""The command line: ``memlab list``, ``run``, ``show`` and ``doctor``. It parses, calls and shows.

Importing this module imports neither torch nor rich; ``list`` and ``--help`` need neither.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import memlab
from memlab import experiment, options, show
from memlab.options import Wrong

if TYPE_CHECKING:
    from memlab.report import Report
    from memlab.show._live import View

HOLDS, NOT_ALL_HOLD, WRONG_USE, INTERRUPTED, NOBODY_READS = 0, 1, 2, 130, 141
EXIT_CODES = (
    "exit codes: 0 all claims hold; 1 a claim is refuted or could not be measured; 2 wrong use; 130 interrupted"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    _settle_streams()
    try:
        code = _run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _say("interrupted; nothing was reported", INTERRUPTED)
    except Wrong as error:
        return _say(str(error), WRONG_USE)
    except BrokenPipeError:
        _discard_stdout()
        return NOBODY_READS
    except OSError as error:
        _discard_stdout()
        return _say(f"cannot write the output: {error.strerror or error}", WRONG_USE)


def _settle_streams() -> None:
    """Let neither a closed stream nor a character that the terminal lacks become a traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        reconfigure = getattr(getattr(sys, name), "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _discard_stdout() -> None:
    """Let Python's own flush at the end go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(sentence: str, code: int) -> int:
    print(f"memlab: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def _run(argv: list[str]) -> int:
    top, commands = _parsers()
    if not argv:
        top.print_help(sys.stderr)
        return WRONG_USE
    if not argv[0].startswith("-"):
        options.choose(commands, argv[0], "command")
    try:
        given, rest = top.parse_known_args(argv)
    except SystemExit as end:  # of --help and --version
        return int(end.code or 0)
    if rest and (given.command is not run or any(each.startswith("-") for each in rest)):
        raise Wrong(f"{rest[0]!r} means nothing here; see memlab {argv[0]} --help")
    if rest:
        given.names += rest  # argparse gives up on names that follow an option
    command: Callable[[argparse.Namespace], int] = given.command
    return command(given)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Wrong(f"{message}; see {self.prog} --help")


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    about = (memlab.__doc__ or "").split("\n")[0]
    top = _Parser(prog="memlab", description=about, epilog=EXIT_CODES, allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"memlab {memlab.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for function, add in ((list_, _list_options), (run, _run_options), (show_, _show_options), (doctor, None)):
        text, name = function.__doc__ or "", function.__name__.rstrip("_")
        parser = commands.add_parser(name, help=text.split("\n")[0], description=text, allow_abbrev=False)
        parser.set_defaults(command=function)
        if add is not None:
            add(parser)
    return top, dict(commands.choices)


def _list_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="an experiment, its file, or all: show its arms too")


def list_(given: argparse.Namespace) -> int:
    """List the experiments and what each claims."""
    from memlab.show import _list

    found = options.paths(given.names or [options.ALL])
    _list.show({path.stem: _summary(path) for path in found}, sys.stdout, arms=bool(given.names))
    return HOLDS


def _summary(path: Path) -> experiment.Summary | str:
    try:
        return experiment.summarise(path)
    except ValueError as error:
        return str(error)


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="an experiment, its file, or all")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: cuda if torch can use it, else cpu)")
    parser.add_argument("--card", metavar="SIZE", help="the GPU memory to respect, such as '64 MiB'")
    parser.add_argument("--steps", metavar="N", help="steps of each arm (default: the experiment's own)")
    parser.add_argument("--set", metavar="SIZE=N", action="append", default=[], help="change a size (repeatable)")
    parser.add_argument("--arm", metavar="ARM", action="append", default=[], help="only this arm (repeatable)")
    parser.add_argument("--seed", metavar="N", default="0", help="for torch.manual_seed (default: 0)")
    parser.add_argument("--timeout", metavar="S", default="300", help="seconds that one arm may take (default: 300)")
    parser.add_argument("--json", metavar="OUT", help="save the report here; - is stdout, with nothing else on it")
    _way_option(parser)


def run(given: argparse.Namespace) -> int:
    """Measure experiments: every arm in a process of its own, against its closed form."""
    from memlab.show import _live

    way, destination = _way(given), options.destination(given.json)
    timeout = options.number("--timeout", given.timeout, 1, 10**9)
    device = None if given.device is None else options.device(given.device)
    plan = options.Plan(
        arms=options.arms(options.paths(given.names), given.arm),
        card=options.card(given.card),
        steps=None if given.steps is None else options.number("--steps", given.steps, 1, 10**9),
        sizes=options.sizes(given.set),
        seed=options.number("--seed", given.seed, 0, options.LARGEST),
    )
    with _live.watching(sys.stderr) as view:
        report = _measure(plan, device, timeout, view)
    try:
        _save(report, destination)
    finally:  # a full disk must not take the findings with it
        (show.way("json") if given.json == options.STDOUT else way)(report, sys.stdout)
    return HOLDS if report.holds else NOT_ALL_HOLD


def _measure(plan: options.Plan, device: str | None, timeout: float, view: View) -> Report:
    """Measure what is planned; torch is looked at in another process, so that no context of ours is on the card."""
    from memlab import doctor, isolate
    from memlab.report import Report

    view.say("loading torch")
    isolate.prepare()
    try:
        device = device or isolate.ask(doctor.best_device)
        machine = isolate.ask(doctor.machine, device)
    except isolate.Lost as error:
        raise Wrong(f"torch does not work here: {error}; see memlab doctor") from None
    jobs = plan.jobs(device)
    with contextlib.suppress(isolate.Lost):  # a file that kills its process says so in its findings
        if complaint := isolate.ask(options.complaint, jobs):
            raise Wrong(complaint)
    view.begin(jobs)
    with options.wrong():
        return Report(machine, isolate.run(jobs, view.row, view.finding, view.text, timeout=timeout))


def _save(report: Report, path: Path | None) -> None:
    if path is not None:
        try:
            report.save(path)
        except OSError as error:
            raise Wrong(f"--json {path}: cannot write it: {error.strerror}") from None


def _show_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("report", metavar="REPORT", help="a file that run --json has saved")
    _way_option(parser)


def show_(given: argparse.Namespace) -> int:
    """Show a saved report again, without measuring."""
    from memlab import report

    way, path = _way(given), Path(given.report)
    try:
        with options.wrong(f"cannot show {path}"):
            found = report.load(path)
    except OSError as error:
        raise Wrong(f"cannot read {path}: {error.strerror}; memlab run --json saves reports") from None
    way(found, sys.stdout)
    return HOLDS if found.holds else NOT_ALL_HOLD


def _way_option(parser: argparse.ArgumentParser) -> None:
    ways = ", ".join(show.ways())
    parser.add_argument("--show", metavar="HOW", help=f"{ways} (default: table at a terminal, plain in a pipe)")


def _way(given: argparse.Namespace) -> show.Show:
    with options.wrong():
        return show.way(given.show or show.default(sys.stdout))


def doctor(given: argparse.Namespace) -> int:
    """Say what is installed here, and what can be measured with it."""
    from memlab import doctor
    from memlab.show import _doctor

    examination = doctor.examine()
    _doctor.show(examination, sys.stdout)
    return HOLDS if any(each.how == doctor.MEASURED for each in examination.abilities) else NOT_ALL_HOLD
