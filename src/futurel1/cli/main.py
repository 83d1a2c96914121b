"""The command `futurel1`: a Trainer's `fit`, `validate`, `test`, `predict`, and the library's own subcommands."""

import logging
import sys
from collections.abc import Callable, Sequence

from futurel1.cli.errors import one_line, own_error
from futurel1.cli.run_folder import resume_arguments
from futurel1.cli.trainer import TRAINER_COMMANDS, make_cli
from futurel1.errors import ConfigError, FutureL1Error
from futurel1.version import __version__

OWN_COMMANDS = {
    "ask": "ask a question about one video: futurel1 ask clip.mp4 'Imagine the zones after 2 steps.'",
    "world": "write procedural videos with questions about what happens next",
    "curves": "draw the curves of a run as a PNG",
    "curate": "choose the records whose future frames help a model to answer",
}


def _own_command(name: str) -> Callable[..., None]:
    if name == "world":
        from futurel1.worlds.command import world

        return world
    if name == "curate":
        from futurel1.curation.command import curate

        return curate
    from futurel1.curves import curves

    return curves


def overview() -> str:
    """What `futurel1 --help` prints."""
    lines = [f"futurel1 {__version__}: video event prediction by interleaved latent visual reasoning", ""]
    lines += ["usage: futurel1 COMMAND [options]      futurel1 COMMAND --help", ""]
    for title, commands in (("run a Trainer", TRAINER_COMMANDS), ("tools", OWN_COMMANDS)):
        lines += [f"{title}:", *(f"  {name:<10}{text}" for name, text in commands.items()), ""]
    lines += [
        "options of every command that runs a Trainer:",
        "  --config FILE       settings; print all of them with --print_config",
        "  --run_name NAME     name of the run folder under --runs_dir (default: config name and time)",
        "  --resume RUN        fit: continue the run in folder RUN where its last checkpoint was taken;",
        "                      predict: go on with the records that have no prediction yet",
        "  --debug             show tracebacks of errors",
    ]
    return "\n".join(lines)


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
        args: command line without the program's name; None: the process's own.

    Raises:
        SystemExit: 1 for an error that a user can act on, after one line on standard error.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    _show_own_log()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return
    if arguments[0] == "--version":
        print(f"futurel1 {__version__}")
        return
    try:
        if arguments[0] == "ask":
            from futurel1.ask import ask

            ask(arguments[1:])
        elif arguments[0] in OWN_COMMANDS:
            from jsonargparse import auto_cli

            auto_cli(
                _own_command(arguments[0]), args=arguments[1:], as_positional=False, prog=f"futurel1 {arguments[0]}"
            )
        elif arguments[0] in TRAINER_COMMANDS:
            from futurel1.cli.flat_keys import refuse_flat_keys

            arguments = resume_arguments(arguments)
            refuse_flat_keys(arguments)
            if args is None:
                # Processes that a Trainer starts for other devices run this process's command line again.
                sys.argv[1:] = arguments
            make_cli(None if args is None else arguments)
        else:
            raise ConfigError(f"no command {arguments[0]!r}; there are {', '.join((*TRAINER_COMMANDS, *OWN_COMMANDS))}")
    except (FutureL1Error, ValueError, TypeError) as error:
        own = own_error(error)
        if debug or own is None:
            raise
        print(f"futurel1: error: {one_line(own)}", file=sys.stderr)
        raise SystemExit(1) from None
