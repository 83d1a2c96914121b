"""The commands besides the Trainer's: functions of the library, called from the command line."""

import inspect
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib import import_module


@dataclass(frozen=True)
class Tool:
    """A function as a command: jsonargparse derives the options from its signature and docstring.

    Args:
        function: its location, as `module:name`; nothing is imported before the command is called. The function returns
            a dataclass, which is printed; `--json` prints its fields, or what its `to_dict` returns. If it has an
            `ok` that is False, the exit status is 1.
        summary: what the command does, for the overview of commands.
        example: an example command line.
        waiting: status shown while the function works, if it has no progress bar.
        leading: option that may be given without its name, as the first value; jsonargparse has no optional positional
            argument.
        about_run: whether `--config` is the configuration of a run. Options `--model`, `--data` and `--trainer` change
            it; the function gets them as `settings`.
    """

    function: str
    summary: str
    example: str
    waiting: str = ""
    leading: str = ""
    about_run: bool = False


TOOLS = {
    "ask": Tool(
        "futurel1.ask:ask",
        "ask a question about one video",
        "futurel1 ask clip.mp4 'Where is the ball next?' --options '[left, right]' --model runs/sft --branches 8",
        "imagining and answering ...",
    ),
    "check": Tool(
        "futurel1.checking:check",
        "read the records of a run and their media, and say what is wrong with them",
        "futurel1 check configs/tiny/sft.yaml --sample 1000",
    ),
    "pack": Tool(
        "futurel1.pack:pack",
        "write records and their media as tar shards, which are read one after the other",
        "futurel1 pack train.jsonl --out runs/packed --shard_size 512",
    ),
    "world": Tool(
        "futurel1.worlds:world",
        "write procedural videos with questions about what happens next",
        "futurel1 world --out runs/world --train 256 --test 64 --kinds '[zone]'",
    ),
    "curves": Tool(
        "futurel1.curves:curves", "draw the curves of a run as a PNG", "futurel1 curves runs/sft", "drawing ..."
    ),
    "scores": Tool(
        "futurel1.scores:scores",
        "count right answers of a run, before and after",
        "futurel1 scores runs/after --baseline runs/before",
    ),
    "report": Tool(
        "futurel1.report:report",
        "write a page about a run: curves, scores, and what it imagined, sample by sample",
        "futurel1 report runs/base --interventions '[runs/zero, runs/other]'",
    ),
    "diagnose": Tool(
        "futurel1.diagnosis:diagnose",
        "find out whether a model uses its latents, and whether they follow what it saw",
        "futurel1 diagnose runs/sft --count 100",
    ),
    "export": Tool(
        "futurel1.export:export",
        "write a checkpoint of a run as a Hugging Face folder, also of a run that was killed",
        "futurel1 export runs/sft --out models/sft --dtype bfloat16",
    ),
    "curate": Tool(
        "futurel1.curation:curate",
        "choose the records whose future frames help a model to answer",
        "futurel1 curate train.jsonl --out runs/curated --model runs/sft --thresholds.min_gain 3",
    ),
    "plan": Tool(
        "futurel1.planning:plan",
        "predict memory and time of a configured run, without a GPU",
        "futurel1 plan --config qwen3_vl_8b/sft --devices 8 --memory 80",
        "running the configured run on shapes alone ...",
        leading="config",
        about_run=True,
    ),
    "configs": Tool(
        "futurel1.shipped_configs:configs",
        "list the configurations that come with futurel1, print or copy one",
        "futurel1 configs tiny/sft --out my.yaml",
        leading="name",
    ),
}


def run_tool(name: str, args: Sequence[str]) -> None:
    """Call a tool with command-line options, and print its result.

    Args:
        name: key of `TOOLS`.
        args: the rest of the command line.

    Raises:
        CommandLineError: options that cannot be read.
    """
    from argparse import ArgumentError

    from jsonargparse import ArgumentParser
    from rich.console import Console

    from futurel1.cli.config_places import check_config_files
    from futurel1.cli.parsing_errors import Command, explain
    from futurel1.cli.suggestions import names_in
    from futurel1.shipped_configs import resolve_config_options

    tool = TOOLS[name]
    module, _, function_name = tool.function.partition(":")
    function = getattr(import_module(module), function_name)
    description = function.__doc__.partition("Args:")[0].strip()
    parser = ArgumentParser(
        prog=f"futurel1 {name}",
        description=description,
        epilog=f"Example: {tool.example}",
        exit_on_error=False,
        allow_abbrev=False,
    )
    if not tool.about_run:
        parser.add_argument("--config", action="config", help="YAML file with options; --print_config prints one")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_function_arguments(function, as_group=False, as_positional=True)
    if tool.leading and args and not args[0].startswith("-"):
        args = [f"--{tool.leading}", *args]
    settings: list[str] = []
    if tool.about_run:
        args, settings = _without_settings(resolve_config_options(args))
    check_config_files(args)
    try:
        config = parser.instantiate(parser.parse_args(list(args)))
    except ArgumentError as error:
        known = [*names_in(parser), *inspect.signature(function).parameters]
        raise explain(str(error), Command(name, args, known, tool.example)) from error
    as_json = config.pop("json")
    if tool.about_run:
        config["settings"] = [*config["settings"], *settings]
    else:
        config.pop("config", None)
    with Console(stderr=True).status(tool.waiting) if tool.waiting else nullcontext():
        result = function(**config)
    if as_json:
        fields = result.to_dict() if hasattr(result, "to_dict") else asdict(result)
        print(json.dumps(fields, default=str, ensure_ascii=False))
    else:
        print(result)
    if not getattr(result, "ok", True):
        raise SystemExit(1)


def _without_settings(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line without the settings of a run, and these settings."""
    own: list[str] = []
    settings: list[str] = []
    target = own
    for arg in args:
        if arg.startswith("--"):
            target = settings if arg.removeprefix("--").partition(".")[0] in ("model", "data", "trainer") else own
        target.append(arg)
    return own, settings
