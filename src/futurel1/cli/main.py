"""The command `futurel1`: a Trainer's `fit`, `validate`, `test` and `predict`, and the library's own tools."""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from futurel1.cli.errors import CommandLineError, error_line
from futurel1.cli.interrupts import exit_when_stopped
from futurel1.cli.suggestions import did_you_mean
from futurel1.cli.tools import TOOLS, run_tool
from futurel1.cli.trainer import TRAINER_COMMANDS, run_trainer
from futurel1.version import __version__


def _overview() -> str:
    lines = ["video event prediction by interleaved latent visual reasoning"]
    tools = {name: tool.summary for name, tool in TOOLS.items()}
    for title, commands in (("run a Trainer", TRAINER_COMMANDS), ("tools", tools)):
        lines += ["", f"{title}:", *(f"  {name:<10}{text}" for name, text in commands.items())]
    lines += [
        "",
        "options of every command that runs a Trainer:",
        "  --config FILE       settings, or a name that `futurel1 configs` lists; --print_config prints them all",
        "  --run_name NAME     name of the run folder under --runs_dir (default: config name and time)",
        "  --overwrite         replace a run of that name; without it, a name that exists is refused",
        "  --resume RUN        fit: continue the run in folder RUN where its last checkpoint was taken;",
        "                      predict: go on with the records that have no prediction yet",
        "",
        "options of every command:",
        "  --debug             show tracebacks of errors",
        "  --help              the options of a command, with an example",
    ]
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse prints below its usage."""
        names = (*TRAINER_COMMANDS, *TOOLS)
        chosen = re.search(r"invalid choice: '(.*?)' \(choose from", message)
        if chosen:
            hint = did_you_mean(chosen[1], names)
            message = f"there is no command {chosen[1]!r}; {f'{hint} ' if hint else ''}known: {', '.join(names)}"
        elif message.endswith("required: COMMAND"):
            message = f"which command? {', '.join(names)}; `futurel1 --help` explains them"
        raise CommandLineError(message.removeprefix("argument "))


def _parser() -> argparse.ArgumentParser:
    """Light parser that finds the command; the command's own parser needs imports that take seconds."""
    parser = _Parser(
        "futurel1",
        usage="futurel1 COMMAND [options]      futurel1 COMMAND --help",
        description=_overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"futurel1 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, help=argparse.SUPPRESS)
    for name in (*TRAINER_COMMANDS, *TOOLS):
        command = commands.add_parser(name, add_help=False, allow_abbrev=False)
        command.add_argument("--debug", action="store_true")
        if name in TRAINER_COMMANDS:
            command.add_argument("--resume", metavar="RUN")
    return parser


def _show_own_log() -> None:
    """Show the library's log on standard error, unless the process shows all logs already; Lightning shows its own."""
    logger = logging.getLogger("futurel1")
    if not logger.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def main(args: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        args: command line without the program's name; None: that of the process.

    Raises:
        SystemExit: 1 for an error that a user can act on, after one line on standard error; 2 for an invalid command
            line; 130 after Ctrl-C, 143 after SIGTERM.
    """
    debug = "--debug" in (sys.argv[1:] if args is None else args)
    try:
        options, rest = _parser().parse_known_args(args)
        _show_own_log()
        with exit_when_stopped(options.command):
            if options.command in TOOLS:
                run_tool(options.command, rest)
            else:
                run_trainer(options.command, rest, resume=options.resume, own_process=args is None)
    except Exception as error:
        line = error_line(error)
        if debug or line is None:
            raise
        print(f"futurel1: error: {line}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, CommandLineError) else 1) from None
