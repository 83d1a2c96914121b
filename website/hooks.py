"""Hook of MkDocs (`mkdocs.yml`): pages that are made while the site is built, and the pages' Markdown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # MkDocs loads a hook by its path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from website.commands import command_names, command_pages
from website.markdown import for_mkdocs
from website.notebooks import notebook_page
from website.reference import PACKAGES, page_name, reference_pages
from website.repository import FRONT, ROOT, file_page, linked_files, page_of, with_site_links

_ORIGINS: dict[str, str] = {}
"""Pages of the site that are documents of the repository, and the paths of those."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the parts of the navigation that follow from the code."""
    commands: list[Any] = [
        "commands/index.md",
        *({f"futurel1 {name}": f"commands/{name}.md"} for name in command_names()),
    ]
    commands += [{"Models": "commands/models.md"}, {"Data modules": "commands/datamodules.md"}]
    reference: list[Any] = ["reference/index.md", *({package: page_name(package)} for package in PACKAGES)]
    made = {"Commands": commands, "Reference": reference}
    assert config.nav is not None
    config.nav = [{name: made.get(name, rest)} for entry in config.nav for name, rest in entry.items()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in `docs/`, and replace notebooks by pages."""
    _ORIGINS.clear()
    for file in list(files):
        if file.src_uri.endswith(".md"):
            _ORIGINS[file.src_uri] = f"docs/{file.src_uri}"
        elif file.src_uri.endswith(".ipynb"):
            files.remove(file)
            text, pictures = notebook_page(ROOT / "docs" / file.src_uri)
            _add(files, config, page_of(f"docs/{file.src_uri}"), text)
            _ORIGINS[page_of(f"docs/{file.src_uri}")] = f"docs/{file.src_uri}"
            folder = file.src_uri.rpartition("/")[0]
            for name, picture in pictures.items():
                files.append(File.generated(config, f"{folder}/{name}", content=picture))
    for path, name in FRONT.items():
        _add(files, config, name, file_page(path))
        _ORIGINS[name] = path
    for name, text in {**reference_pages(), **command_pages(ROOT / "build" / "site-cache")}.items():
        _add(files, config, name, text)
    _add_linked(files, config)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Give a page the formulas and diagrams of the site, and a document of the repository its links."""
    origin = _ORIGINS.get(page.file.src_uri)
    return for_mkdocs(markdown if origin is None else with_site_links(markdown, origin))


def _add(files: Files, config: MkDocsConfig, name: str, text: str) -> None:
    files.append(File.generated(config, name, content=text))


def _add_linked(files: Files, config: MkDocsConfig) -> None:
    """Pages for the files that documents link to, and for those that these link to in turn."""
    waiting = list(_ORIGINS.values())
    while waiting:
        origin = waiting.pop()
        text = notebook_page(ROOT / origin)[0] if origin.endswith(".ipynb") else file_page(origin)
        for path in sorted(linked_files(text, origin)):
            name = page_of(path)
            if files.get_file_from_path(name) is None:
                _add(files, config, name, file_page(path))
                if path.endswith(".md"):
                    _ORIGINS[name] = path
                    waiting.append(path)
