"""Markdown as the repository host shows it, made into Markdown that MkDocs shows without scripts from elsewhere."""

from __future__ import annotations

import re

import mermaidx
from latex2mathml.converter import convert

_BLOCK = re.compile(r"^```(math|mermaid)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\|.*\|$", re.MULTILINE)
_CODE = re.compile(r"`[^`\n]+`")


def for_mkdocs(text: str) -> str:
    r"""Formulas become MathML and diagrams SVG, and `\|` of code in tables is a plain bar.

    Args:
        text: a page, in the Markdown of the repository host.
    """
    text = _BLOCK.sub(lambda found: {"math": formula, "mermaid": diagram}[found[1]](found[2]), text)
    return _ROW.sub(lambda row: _CODE.sub(lambda code: code[0].replace(r"\|", "|"), row[0]), text)


def formula(latex: str) -> str:
    """A displayed formula as MathML, which browsers draw themselves."""
    return f'<div class="formula">{convert(" ".join(latex.split()), display="block")}</div>'


def diagram(mermaid: str) -> str:
    """A Mermaid diagram as a picture, drawn now: no script is loaded when the page is read."""
    svg = re.sub(r"\s*\n\s*", " ", mermaidx.render(mermaid).svg())
    return f'<div class="diagram">{svg}</div>'
