"""The command line: it finds the command in `memlab.commands`, parses and calls it, and answers wrong use.

Importing this module imports neither torch nor rich; ``list`` and ``--help`` need neither.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import memlab
from memlab import options
from memlab.commands import INTERRUPTED, NOBODY_READS, WRONG_USE, Interrupted, stream_errors, tell
from memlab.commands import commands as found_commands
from memlab.commands._help import Formatter
from memlab.options import Wrong

EXIT_CODES = (
    "exit codes: 0 all claims hold; 1 a claim is refuted or could not be measured; 2 wrong use; 130 interrupted"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; without ``argv`` it is this process's own."""
    _settle_streams()
    try:
        code = _run(sys.argv[1:] if argv is None else list(argv))
        if stream_errors:  # else Python flushes what a script has left, and says what goes wrong, as without memlab
            sys.stdout.flush()
        return code
    except Interrupted:
        if argv is not None:
            return INTERRUPTED
        sys.excepthook = lambda kind, error, traceback: None
        raise KeyboardInterrupt from None  # the process dies of the signal, as a shell's loop needs to know
    except KeyboardInterrupt:
        if argv is None:  # what Python does at its end would tell a second Ctrl-C with a traceback
            signal.signal(signal.SIGINT, signal.SIG_IGN)
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
            stream_errors[name] = getattr(sys, name).errors
            reconfigure(errors="replace")


def _discard_stdout() -> None:
    """Let Python's own flush at the end go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(sentence: str, code: int) -> int:
    tell(sentence)
    return code


def _run(argv: list[str]) -> int:
    top, commands = _parsers()
    if not argv:
        top.print_help(sys.stderr)
        return WRONG_USE
    if not argv[0].startswith("-"):
        options.choose(commands, argv[0], "command")
    after: list[str] = []
    if argv[0] in commands and commands[argv[0]].get_default("takes_rest") and "--" in argv:
        argv, after = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    try:
        given, rest = top.parse_known_args(argv)
    except SystemExit as end:  # of --help and --version
        return int(end.code or 0)
    given.rest = after
    if rest and (not hasattr(given, "names") or any(each.startswith("-") for each in rest)):
        raise Wrong(f"{rest[0]!r} means nothing here; see memlab {argv[0]} --help")
    if rest:
        given.names += rest  # argparse gives up on names that follow an option
    command: Callable[[argparse.Namespace], int] = given.command
    return command(given)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        option = re.fullmatch(r"argument (?:.*/)?(--\S+): expected one argument", message)
        dash = f"; one that begins with a dash is written as {option[1]}=..." if option else ""
        raise Wrong(f"{message}{dash}; see {self.prog} --help")


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    about = (memlab.__doc__ or "").split("\n")[0]
    top = _Parser(prog="memlab", description=about, epilog=EXIT_CODES, allow_abbrev=False, formatter_class=Formatter)
    top.add_argument("--version", action="version", version=f"memlab {memlab.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module in found_commands().items():
        text = module.__doc__ or ""
        parser = commands.add_parser(
            name, help=text.split("\n")[0], description=text, allow_abbrev=False, formatter_class=Formatter
        )
        parser.set_defaults(command=module.command)
        module.add_options(parser)
    return top, dict(commands.choices)
