"""Links between the documents, and to files, lead somewhere; nothing outside of the repository is cited as its part."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, ROOT, anchors, blocks, links, prose

ELSEWHERE = ("http://", "https://", "mailto:")


def leads_somewhere(target: Path, anchor: str) -> bool:
    if not target.exists() or not target.resolve().is_relative_to(ROOT):
        return False
    return not anchor or (target.suffix == ".md" and anchor in anchors(target.read_text(encoding="utf-8")))


def broken(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    found = []
    for link in links(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not link.startswith(ELSEWHERE) and not leads_somewhere(target, anchor):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_and_anchors_resolve(page):
    assert broken(page) == []


def test_pages_are_linked_from_the_readme_or_a_page():
    """A page that nothing leads to is not found."""
    reached = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in links(page.read_text(encoding="utf-8"))
        if not link.startswith((*ELSEWHERE, "#"))
    }
    assert [page.name for page in PAGES if page.name != "README.md" and page.resolve() not in reached] == []


def test_a_broken_link_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    page = tmp_path / "page.md"
    other = tmp_path / "other.md"
    other.write_text("# The `one` title!\n\n## Twice\n\n## Twice\n\n```bash\n# no title\n```\n")
    page.write_text(
        "[a](other.md) [b](other.md#the-one-title) [c](other.md#twice-1) [`d`](#here) [e](https://x.org/#y)\n"
        "[f](missing.md) [g](other.md#no-title) ![h](h.png) `[i](code.md)` [j](../../outside.md)\n\n# Here\n"
    )
    assert broken(page) == ["missing.md", "other.md#no-title", "h.png", "../../outside.md"]


def test_the_index_of_decisions_is_complete():
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    index, _, records = text.partition("\n## Index\n")[2].partition("\n## ")
    names = re.findall(r"^### (.*)$", records, re.MULTILINE)
    assert re.findall(r"^\* \[(.*)\]\(#.*\)$", index, re.MULTILINE) == names
    assert len(set(names)) == len(names) > 50


def test_every_decision_is_dated_and_has_three_parts():
    records = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8").split("\n### ")[1:]
    parts = "".join(rf"\n\* \*\*{part}\.\*\* .+" for part in ("Context", "Decision", "Consequence"))
    pattern = rf"[^\n]+\n\n\*\d{{4}}-\d{{2}}-\d{{2}}\*\n{parts}"
    assert [record.partition("\n")[0] for record in records if not re.match(pattern, record, re.DOTALL)] == []


def tracked() -> list[Path]:
    """Files of the repository: those that git knows, or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


def test_no_document_outside_of_the_repository_is_cited():
    """`docs/method.md` is one of ours, and so are links to it; other pages of that name are not."""
    design = re.compile(r"formats\.md|(?<!docs/)(?<!\]\()(?<!\.\./)(?<!      - )\bmethod\.md|shared/design")
    found = []
    for file in tracked():
        if file == Path(__file__) or file.suffix not in (".md", ".py", ".yaml", ".yml", ".toml", ".txt", ".jinja"):
            continue
        text = file.read_text(encoding="utf-8")
        allowed = text.replace("[method.md](", "](")
        found += [f"{file.relative_to(ROOT)}: {match[0]}" for match in design.finditer(allowed)]
    assert found == []


def test_prose_has_the_terms_of_the_field():
    """Words that the project once had of its own."""
    words = re.compile(r"\brooms?\b|\bheld back\b|\bholds? back\b|\*draw\*", re.IGNORECASE)
    found = {page.name: words.findall(prose(page.read_text(encoding="utf-8"))) for page in PAGES}
    assert {name: matches for name, matches in found.items() if matches} == {}


def test_mermaid_and_math_blocks_are_closed():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    assert len(blocks(text, "mermaid")) == 1
    assert len(blocks(text, "math")) >= 6
    assert text.count("```") % 2 == 0
