from __future__ import annotations

import re

from website.markdown import diagram, for_mkdocs, formula


def test_formulas_become_mathml():
    html = formula(r"\frac{1}{N}\sum_{t} a_t")
    assert "<mfrac>" in html
    assert "\n" not in html  # a line break would end the block of HTML


def test_diagrams_become_pictures():
    html = diagram("stateDiagram-v2\n    [*] --> Text\n    Text --> [*]: end\n")
    assert "<svg" in html
    assert re.search(r">\s*Text\s*<", html)
    assert "\n" not in html
    assert "<script" not in html


def test_bars_of_tables_are_plain():
    text = "| a | b |\n|---|---|\n| `<\\|latent\\|>` | x \\| y |\n"
    assert for_mkdocs(text).splitlines()[2] == "| `<|latent|>` | x \\| y |"


def test_other_text_stays():
    text = "# A title\n\n```python\nmath = 1\n```\n\nText with `code`.\n"
    assert for_mkdocs(text) == text
