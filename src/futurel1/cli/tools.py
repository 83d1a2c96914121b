"""The commands beside the Trainer's: functions of the library, called from a command line."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib import import_module


@dataclass(frozen=True)
class Tool:
    """A function as a command: jsonargparse reads its options from its signature and its docstring.

    Args:
        function: where it is, as `module:name`; nothing is imported before the command is called. It returns a
            dataclass, which is printed.
        summary: what it does, for the overview of commands.
        example: a command line.
        waiting: shown while the function works, if it has no progress bar of its own.
    """

    function: str
    summary: str
    example: str
    waiting: str = ""


TOOLS = {
    "ask": Tool(
        "futurel1.ask:ask",
        "ask a question about one video",
        "futurel1 ask clip.mp4 'Where is the ball next?' --options '[left, right]' --model runs/sft --branches 8",
        "imagining and answering ...",
    ),
    "world": Tool(
        "futurel1.worlds:world",
        "write procedural videos with questions about what happens next",
        "futurel1 world --out runs/world --train 256 --test 64 --kinds '[zone]'",
    ),
    "curves": Tool(
        "futurel1.curves:curves", "draw the curves of a run as a PNG", "futurel1 curves runs/sft", "drawing ..."
    ),
    "report": Tool(
        "futurel1.report:report",
        "write a page about a run: curves, scores, and what it imagined, sample by sample",
        "futurel1 report runs/base --interventions '[runs/zero, runs/other]'",
    ),
    "curate": Tool(
        "futurel1.curation:curate",
        "choose the records whose future frames help a model to answer",
        "futurel1 curate train.jsonl --out runs/curated --model runs/sft --thresholds.min_gain 3",
    ),
}


def run_tool(name: str, args: Sequence[str]) -> None:
    """Call a tool with options of the command line, and print what it returns.

    Args:
        name: key of `TOOLS`.
        args: the rest of the command line.
    """
    from jsonargparse import ArgumentParser
    from rich.console import Console

    tool = TOOLS[name]
    module, _, function_name = tool.function.partition(":")
    function = getattr(import_module(module), function_name)
    description = function.__doc__.partition("Args:")[0].strip()
    parser = ArgumentParser(prog=f"futurel1 {name}", description=description, epilog=f"Example: {tool.example}")
    parser.add_argument("--config", action="config", help="YAML file with options; --print_config prints one")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_function_arguments(function, as_group=False, as_positional=True)
    config = parser.instantiate(parser.parse_args(list(args)))
    as_json = config.pop("json")
    config.pop("config", None)
    with Console(stderr=True).status(tool.waiting) if tool.waiting else nullcontext():
        result = function(**config)
    print(json.dumps(asdict(result), default=str, ensure_ascii=False) if as_json else result)
