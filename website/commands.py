"""Pages of the commands, from their own help.

The help comes from the parsers, which import PyTorch and Lightning. So one process prints the help of all commands
(`python -m website.commands`), and the site keeps what it printed until a source or a library changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from futurel1.cli.tools import TOOLS
from futurel1.cli.trainer import TRAINER_COMMANDS
from website.repository import ROOT

COLUMNS = "98"
"""Width of the help, as wide as a page shows without scrolling."""

SETTINGS = {"model": "futurel1.modules", "data": "futurel1.datamodules"}
"""Options that take a class, and the package of the classes that are shown."""


def command_names() -> list[str]:
    """All commands, in the order of `futurel1 --help`."""
    return [*TRAINER_COMMANDS, *TOOLS]


def command_pages(cache: Path) -> dict[str, str]:
    """Markdown of the pages of the commands, by name.

    Args:
        cache: folder that keeps what the commands printed.
    """
    printed = _printed(cache)
    summaries = {**TRAINER_COMMANDS, **{name: tool.summary for name, tool in TOOLS.items()}}
    rows = [f"| [`futurel1 {name}`]({name}.md) | {text} |" for name, text in summaries.items()]
    overview = [
        "# Commands",
        "Every page shows what `--help` prints, made from the code when this site is built.",
        "| command | what it does |\n|---|---|\n" + "\n".join(rows),
        "The classes that `fit`, `validate`, `test` and `predict` run, with all their settings: [models](models.md) "
        "and [data](datamodules.md).",
        _block(printed["futurel1"]),
    ]
    pages = {"commands/index.md": overview}
    for name, text in summaries.items():
        title = f"# `futurel1 {name}`"
        if name in TOOLS:
            example = f"```bash\n{TOOLS[name].example}\n```"
            pages[f"commands/{name}.md"] = [title, _sentence(text), example, _block(printed[name])]
        else:
            pages[f"commands/{name}.md"] = [title, _sentence(text), *_trainer_page(name, printed)]
    for option, file in (("model", "models"), ("data", "datamodules")):
        pages[f"commands/{file}.md"] = _classes_page(option, printed)
    return {name: "\n\n".join(parts) + "\n" for name, parts in pages.items()}


def _trainer_page(name: str, printed: dict[str, str]) -> list[str]:
    usage, *groups = re.split(r"\n\n(?=\S)", printed[name].rstrip())
    trainer = [group for group in groups if group.startswith("Customize every aspect")]
    classes = [group for group in groups if "\n  --model.help" in group or "\n  --data.help" in group]
    own = [group for group in groups if group not in (*trainer, *classes)]
    listed = [
        f"* `--{option}` takes one of {_links(option, printed)} ([settings]({page}.md)), or a class of your own by its "
        "path"
        for option, page in (("model", "models"), ("data", "datamodules"))
    ]
    return [
        "## Options of its own",
        _block("\n\n".join(own)),
        "## Classes",
        "\n".join(listed),
        f"`futurel1 {name} --model.help CLASS` prints the settings of one class.",
        "## Options of the Trainer",
        f"Those of Lightning's `Trainer`, here without their texts; `futurel1 {name} --help` prints all of them.",
        _block("\n".join(re.findall(r"^  (--trainer\.[a-z_]+)[ ,]", trainer[0], re.MULTILINE))),
        "The usage line:",
        _block(usage),
    ]


def _classes_page(option: str, printed: dict[str, str]) -> list[str]:
    title = {"model": "# Models, and their settings", "data": "# Data modules, and their settings"}[option]
    parts = [
        title,
        f"What `futurel1 fit --{option}.help CLASS` prints. In YAML a setting stands under `{option}.init_args`, on "
        f"the command line it is `--{option}.init_args.NAME`.",
    ]
    for path in _paths(option, printed):
        text = printed[path].partition("\n\n")[2]
        text = re.sub(r"^Help for .*\n+", "", text).replace(f"--{option}.", "")
        parts += [f"## {path.rpartition('.')[2]}", f"[`{path}`][{path}]", _block(text)]
    return parts


def _paths(option: str, printed: dict[str, str]) -> list[str]:
    return [path for path in printed if path.startswith(SETTINGS[option] + ".")]


def _links(option: str, printed: dict[str, str]) -> str:
    return ", ".join(f"[`{path.rpartition('.')[2]}`][{path}]" for path in _paths(option, printed))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _block(text: str) -> str:
    return f"````text\n{text.rstrip()}\n````"


def _printed(cache: Path) -> dict[str, str]:
    file = cache / f"commands-{digest()}.json"
    if not file.is_file():
        environment = {**os.environ, "COLUMNS": COLUMNS, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "website.commands"]
        text = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if text.returncode:
            raise RuntimeError(f"the help of the commands could not be printed:\n{text.stderr}")
        cache.mkdir(parents=True, exist_ok=True)
        for old in cache.glob("commands-*.json"):
            old.unlink()
        file.write_text(text.stdout, encoding="utf-8")
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return found


def digest() -> str:
    """What the printed help depends on."""
    read = hashlib.sha256()
    for name in ("lightning", "jsonargparse", "torch", "transformers"):
        read.update(f"{name} {version(name)}\n".encode())
    for file in sorted([*(ROOT / "src").rglob("*.py"), Path(__file__)]):
        read.update(file.read_bytes())
    return read.hexdigest()[:16]


def help_of(*args: str) -> str:
    """What a command line with ``--help`` prints."""
    from futurel1.cli import main

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main(list(args))
    return "".join(sign for sign in text.getvalue() if sign.isprintable() or sign == "\n")


def print_help() -> None:
    """Print the help of all commands, and of the classes they run, as one JSON object."""
    printed = {"futurel1": help_of("--help"), **{name: help_of(name, "--help") for name in command_names()}}
    from lightning import LightningDataModule, LightningModule

    for option, package in SETTINGS.items():
        base: type[Any] = {"model": LightningModule, "data": LightningDataModule}[option]
        module = import_module(package)
        for name in module.__all__:
            if isinstance(getattr(module, name), type) and issubclass(getattr(module, name), base):
                printed[f"{package}.{name}"] = help_of("fit", f"--{option}.help", f"{package}.{name}")
    print(json.dumps(printed, indent=1))


if __name__ == "__main__":
    print_help()
