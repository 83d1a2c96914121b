from __future__ import annotations

import pytest

from website.repository import file_page, linked_files, page_of, with_site_links


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("README.md", "index.md"),
        ("CONTRIBUTING.md", "contributing.md"),
        ("docs/data.md", "data.md"),
        ("docs/recipes/README.md", "recipes/README.md"),
        ("docs/tutorials/rewards.ipynb", "tutorials/rewards.md"),
        ("docs/miniature/spans.png", "miniature/spans.png"),
        ("configs/tiny/sft.yaml", "files/configs/tiny/sft.yaml.md"),
        ("tests/golden/README.md", "files/tests/golden/README.md"),
    ],
)
def test_files_have_pages(path, page):
    assert page_of(path) == page


@pytest.mark.parametrize(
    ("origin", "link", "on_site"),
    [
        ("README.md", "docs/data.md#videos-and-images", "data.md#videos-and-images"),
        ("README.md", "configs/tiny/sft.yaml", "files/configs/tiny/sft.yaml.md"),
        ("docs/data.md", "../README.md", "index.md"),
        ("docs/data.md", "rewards.md", "rewards.md"),
        ("docs/recipes/README.md", "../../configs/tiny/sft.yaml", "../files/configs/tiny/sft.yaml.md"),
        ("tests/golden/README.md", "../../docs/data.md", "../../../data.md"),
        ("docs/data.md", "#here", "#here"),
        ("docs/data.md", "https://arxiv.org/abs/2606.05769", "https://arxiv.org/abs/2606.05769"),
        ("docs/data.md", "missing.md", "missing.md"),  # MkDocs reports it
        ("docs/data.md", "../../outside.md", "../../outside.md"),
    ],
)
def test_links_lead_to_pages(origin, link, on_site):
    assert with_site_links(f"See [`a`]({link}).", origin) == f"See [`a`]({on_site})."


def test_links_named_after_files_show_titles():
    text = "Records: [docs/data.md](docs/data.md); [`docs/data.md`](docs/data.md#x), [lost.md](lost.md)."
    expected = "Records: [Training records](data.md); [`docs/data.md`](data.md#x), [lost.md](lost.md)."
    assert with_site_links(text, "README.md") == expected


def test_code_keeps_its_links():
    text = "```md\n[a](docs/data.md)\n```\n[b](docs/data.md)\n"
    assert with_site_links(text, "README.md") == "```md\n[a](docs/data.md)\n```\n[b](data.md)\n"
    assert linked_files("```md\n[a](LICENSE)\n```\n", "README.md") == set()


def test_linked_files_are_found():
    text = "[a](docs/data.md#x) ![b](docs/miniature/spans.png) [c](configs/qwen3_vl_8b) [d](https://x.org/a.md)"
    assert linked_files(text, "README.md") == {"docs/data.md", "docs/miniature/spans.png", "configs/qwen3_vl_8b"}


def test_files_are_shown():
    assert "````yaml\n# Latent SFT" in file_page("configs/tiny/sft.yaml")
    assert "* `la_dapo.yaml`" in file_page("configs/qwen3_vl_8b")
    assert file_page("CONTRIBUTING.md").startswith("# Contributing")
