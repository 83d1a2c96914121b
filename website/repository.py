"""Files of the repository as pages of the site, and links between them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

FRONT = {
    "README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}  # fmt: skip
"""Documents outside of `docs/` that are pages of the site, and the names of those pages."""

_FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"\[([\w./]+\.md)\](?=\(([^()\s#]+\.md)\))")
"""A link whose text is the name of a file."""
_TARGET = re.compile(r"\]\((?![a-z]+:|#|/)([^()\s#]+)(#[^()\s]*)?\)")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json"}


def page_of(path: str) -> str:
    """Name of the page, or of the file on the site, that shows a file of the repository.

    Args:
        path: from the root of the repository, with slashes.
    """
    if path in FRONT:
        return FRONT[path]
    if path.startswith("docs/"):
        inside = path.removeprefix("docs/")
        return inside.removesuffix(".ipynb") + ".md" if inside.endswith(".ipynb") else inside
    return f"files/{path}" if path.endswith(".md") else f"files/{path}.md"


def linked_files(text: str, origin: str) -> set[str]:
    """Files and folders of the repository that a document links to.

    Args:
        text: the document, in Markdown.
        origin: its path from the root of the repository.
    """
    found = (_resolve(target[1], origin) for part in _prose(text) for target in _TARGET.finditer(part))
    return {path for path in found if path is not None}


def with_site_links(text: str, origin: str) -> str:
    """The document with links as they are on the site.

    A link whose text is the name of a page shows the page's title. Links that lead nowhere stay: MkDocs reports them.

    Args:
        text: the document, in Markdown.
        origin: its path from the root of the repository.
    """
    here = posixpath.dirname(page_of(origin)) or "."

    def target(found: re.Match[str]) -> str:
        path = _resolve(found[1], origin)
        return found[0] if path is None else f"]({posixpath.relpath(page_of(path), here)}{found[2] or ''})"

    def titled(found: re.Match[str]) -> str:
        path = _resolve(found[2], origin)
        return found[0] if path is None else f"[{title_of(path)}]"

    parts = _FENCED.split(text)
    parts[::2] = [_TARGET.sub(target, _NAMED.sub(titled, part)) for part in parts[::2]]
    return "".join(parts)


def title_of(path: str) -> str:
    """Title of a document: its first heading.

    Args:
        path: from the root of the repository.
    """
    return (ROOT / path).read_text(encoding="utf-8").partition("# ")[2].partition("\n")[0]


def file_page(path: str) -> str:
    """Markdown that shows a file of the repository, or lists a folder.

    Args:
        path: from the root of the repository.
    """
    place = ROOT / path
    if path.endswith(".md"):
        return place.read_text(encoding="utf-8")
    if place.is_dir():
        names = sorted(child.name + "/" * child.is_dir() for child in place.iterdir() if child.name != "__pycache__")
        return f"# `{path}`\n\n" + "\n".join(f"* `{name}`" for name in names) + "\n"
    text = place.read_text(encoding="utf-8").rstrip()
    return f"# `{path}`\n\n````{_LANGUAGES.get(place.suffix, 'text')}\n{text}\n````\n"


def _prose(text: str) -> list[str]:
    return _FENCED.split(text)[::2]


def _resolve(target: str, origin: str) -> str | None:
    """Path from the root that a link of a document means; None: there is no such file in the repository."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    return path if not path.startswith("..") and (ROOT / path).exists() else None
