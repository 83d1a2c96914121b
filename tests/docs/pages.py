"""Reads the project's Markdown: prose without code, headings as GitHub names them, links."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES = [*FRONT, *sorted((ROOT / "docs").rglob("*.md"))]
"""Documents for readers of the project."""

_FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)|!\[[^\]]*\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.*?) *#*$", re.MULTILINE)


def without_blocks(text: str) -> str:
    """The text without fenced blocks of code."""
    return _FENCE.sub("", text)


def prose(text: str) -> str:
    """The text without code, in blocks and in lines."""
    return _CODE.sub("", without_blocks(text))


def links(text: str) -> list[str]:
    """Targets of links and pictures; code may be in the text of a link, but holds none."""
    return [found[1] or found[2] for found in _LINK.finditer(_CODE.sub("code", without_blocks(text)))]


def anchors(text: str) -> set[str]:
    """What a link to a heading of the document may end with, by GitHub's rule."""
    found: set[str] = set()
    for heading in _HEADING.findall(without_blocks(text)):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        name = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        numbered = (name if number == 0 else f"{name}-{number}" for number in range(100))
        found.add(next(anchor for anchor in numbered if anchor not in found))
    return found


def blocks(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
