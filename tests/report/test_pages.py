"""Pages as text, and in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from report_runs import HOSTILE, plain_picture

from browsing import Visit
from futurel1.curves import Curve
from futurel1.report.contents import Contents, SampleView, SpanView, Told, groups_of
from futurel1.report.gallery import ShownFrame
from futurel1.report.neighbours import Near, SpanNeighbours, TrueFrame
from futurel1.report.pages import card_page, report_page
from futurel1.report.pictures import data_uri
from futurel1.report.plots import panels_of
from futurel1.report.runs import RunContents
from futurel1.report.scenes import SeenShape
from futurel1.report.scores import Effect, Score
from futurel1.report.texts import pieces_of

LONG = "x" * 3000
RIGHT_TO_LEFT = "\u202eevil\u202c מה קורה אחר כך?"


# ---------------------------------------------------------------- what is shown


def told(answer: str, right: bool | None, text: str = "It moves.") -> Told:
    response = f"<reason>{text}</reason>[imagined frame 1: 2 latents]<answer>{answer}</answer>"
    return Told(answer, right, pieces_of(response, [2]), {answer: 0.75, "D": 0.25}, 20, "eos", 0.5, "")


def sample(number: int, right: bool, zero_right: bool) -> SampleView:
    near = [Near(place, f"frame {place}", f"clip-{number}.mp4", 0.9 - place / 10) for place in range(3)]
    true = TrueFrame(near[1], rank=2, of=40, own_rank=1, own_of=4, latents=(0.9, 0.4))
    shape = (SeenShape(0.25, 0.75, "#e23636"),)
    return SampleView(
        id=f"test.jsonl:{number}",
        record_id=f"clip {number}",
        split=f"hop{number % 2}",
        question=f"Where is shape {number}?",
        options={"A": "left", "B": "right"},
        expected="A",
        shown=(ShownFrame(0, "frame 1"), ShownFrame(1, "frame 2")),
        note="",
        told={
            "none": told("A" if right else "B", right),
            "zero": told("A" if zero_right else "B", zero_right, "It stays."),
            "oracle": told("A", True, "It is there."),
        },
        flipped=("zero",) if right != zero_right else (),
        spans=[SpanView(2, SpanNeighbours(true, tuple(near), tuple(near), False, 0.1), shape, shape)],
    )


def contents_of(samples: list[SampleView]) -> Contents:
    frames = [data_uri(plain_picture(colour), 32) for colour in ("red", "green", "blue")]
    rollout = {"prompt": "Where?", "id": "rl:1", "answer": "A", "finish_reason": "eos", "prompt_index": 0}
    lines = [
        {
            **rollout,
            "rollout_batch": batch,
            "response": f"<answer>{number}</answer>",
            "reward": number,
            "advantage": sign,
        }
        for batch in (0, 10)
        for number, sign in ((1.5, 1.0), (0.5, -1.0))
    ]
    return Contents(
        frames=frames,
        samples=samples,
        scores=[Score("all", 2, 3, 20.8, 93.9)],
        effects=[Effect("zero", "zero-run", 3, 1, 6.1, 79.2, 2, 1, 0.5)],
        groups=groups_of(lines),
        all_groups=2,
        answered=len(samples),
    )


def page_of(folder: Path, samples: list[SampleView], config: str = "a: 1\n") -> bytes:
    (folder / "config.yaml").write_text(config)
    panels = panels_of({"loss": {"train": Curve([0.0, 1.0], [2.0, 1.0]), "val": Curve([1.0], [1.5])}})
    return report_page(RunContents(folder), contents_of(samples), panels, "trained")


def hostile(number: int) -> SampleView:
    made = sample(number, True, False)
    return replace(
        made,
        id=HOSTILE,
        record_id=HOSTILE,
        split=HOSTILE,
        question=f"{HOSTILE} {LONG} {RIGHT_TO_LEFT} \ud800",
        options={"A": HOSTILE, "B": LONG},
        told={"none": told(HOSTILE, True, f"{HOSTILE} {LONG}"), "zero": told("", False, RIGHT_TO_LEFT)},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def _made(folder: Path) -> None:
    folder.mkdir()


# ---------------------------------------------------------------- as text


def test_a_page_holds_all_it_needs_and_each_frame_once(folder: Path) -> None:
    text = page_of(folder, [sample(1, True, False)]).decode()
    assert [text.count(uri) for uri in contents_of([]).frames] == [1, 1, 1]
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*", text)
    assert "url(" not in text
    assert "@import" not in text


def test_hostile_text_stays_text(folder: Path) -> None:
    text = page_of(folder, [hostile(1)], config=f"# {HOSTILE}\n").decode()
    assert "<img src=x" not in text
    assert text.count("</script>") == 2  # the data and the code
    assert "document.title=&#39;owned&#39;" in text


@dataclass
class Answer:
    question: str = "What next?"
    options: tuple[str, ...] = ("left", "right")
    answer: str = "B"
    text: str = "It moves. [imagined frame 1: 2 latents] [imagined frame 2: 1 latent]<answer>B</answer>"
    votes: Any = None
    spans: tuple[Any, ...] = ()
    frames: tuple[Image.Image, ...] = ()
    tokens: int = 20
    finish_reason: str = "eos"
    seconds: float = 0.34


def answer_of(**changes: Any) -> Answer:
    spans = (
        SimpleNamespace(latents=torch.tensor([[3.0, 0.0], [0.0, 3.0]]), position=7),
        SimpleNamespace(latents=torch.tensor([[1.0, 1.0]]), position=12),
    )
    shown = {"spans": spans, "votes": {"B": 0.75, "": 0.25}, "frames": (plain_picture("red"), plain_picture("blue"))}
    return Answer(**{**shown, **changes})


def test_a_card_shows_the_answer_and_its_spans() -> None:
    page = card_page(answer_of())
    for part in (
        "What next?", "<b>2</b> latents of 2 numbers", "at token <b>7</b>", "mean norm <b>3</b>",
        "cosine with the frame before <b>1.000</b>", "75%", "25%", "no answer", "<b>B</b>: right", "<b>20</b> tokens",
    ):  # fmt: skip
        assert part in page
    assert page.count("<figure>") == 2
    assert page.index("Imagined frame 1") < page.index("Imagined frame 2")
    assert "<script" not in page


def test_a_card_of_little_and_of_hostile_text() -> None:
    empty = SimpleNamespace(latents=torch.zeros(0, 2), position=3)
    page = card_page(
        answer_of(
            question=HOSTILE, options=(), answer="", votes={HOSTILE: 1.0}, frames=(), spans=(empty,),
            text=f"{HOSTILE}[imagined frame 1: 0 latents]\ud800", finish_reason=HOSTILE,
        )
    )  # fmt: skip
    assert "<img" not in page
    assert "<script" not in page
    assert "<b>0</b> latents of 2 numbers" in page
    assert "&#55296;" in page
    assert "no answer" in page


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def visit(browser: Any, folder: Path) -> Iterator[Visit]:
    file = folder / "report.html"
    file.write_bytes(page_of(folder, [sample(1, True, False), sample(2, False, False), sample(3, False, True)]))
    made = Visit(browser, file, viewport={"width": 1280, "height": 800})
    yield made
    made.close()


def test_the_switch_changes_the_answer(visit: Visit) -> None:
    assert visit.text("#sample h2") == "clip 1"
    assert visit.page.get_attribute("[data-verdict]", "data-verdict") == "right"
    assert "It moves." in visit.text("[data-told]")
    assert "rank 2 of 40" in visit.text("[data-told]")
    visit.page.check("input[value=zero]", force=True)
    assert visit.page.get_attribute("[data-verdict]", "data-verdict") == "wrong"
    assert "It stays." in visit.text("[data-told]")
    assert "zeros were fed here" in visit.text("[data-told]")
    assert "rank" not in visit.text("[data-told]")  # neighbours are those of the model's own latents
    visit.page.check("input[value=oracle]", force=True)
    assert visit.page.get_attribute("[data-verdict]", "data-verdict") == "right"
    assert "the features of the true frame were fed here" in visit.text("[data-told]")
    assert visit.page.get_attribute("[data-told] .span img", "alt") == "True future frame"
    assert "rank" not in visit.text("[data-told]")
    visit.page.check("input[value=zero]", force=True)
    visit.page.keyboard.press("ArrowLeft")  # of the radio buttons, not to another sample
    assert "It moves." in visit.text("[data-told]")
    assert visit.text("#sample h2") == "clip 1"


def test_filters_and_the_search_box(visit: Visit) -> None:
    assert visit.names() == ["clip 1", "clip 2", "clip 3"]
    visit.page.select_option("#split", "hop1")
    assert visit.names() == ["clip 1", "clip 3"]
    visit.page.select_option("#verdict", "wrong")
    assert visit.names() == ["clip 3"]
    assert visit.text("#sample h2") == "clip 3"
    visit.page.select_option("#split", "")
    visit.page.select_option("#flipped", "zero")
    assert visit.names() == ["clip 3"]
    visit.page.select_option("#flipped", "none")
    assert visit.names() == ["clip 2"]
    visit.page.select_option("#verdict", "")
    visit.page.select_option("#flipped", "")
    visit.page.keyboard.press("Escape")
    visit.page.keyboard.press("/")
    visit.page.keyboard.type("SHAPE 2")
    assert visit.names() == ["clip 2"]
    assert "1 of 3 samples" in visit.text(".filters")
    visit.page.fill("#search", "nothing like it")
    assert visit.text("#list") == "No sample matches."


def test_keys_step_through_the_samples(visit: Visit) -> None:
    def after(key: str) -> str:
        visit.page.keyboard.press(key)
        return visit.text("#sample h2")

    assert [after(key) for key in ("j", "ArrowRight", "j", "k", "ArrowLeft", "k")] == [
        "clip 2", "clip 3", "clip 3", "clip 2", "clip 1", "clip 1",
    ]  # fmt: skip
    visit.page.keyboard.press("j")
    assert visit.page.evaluate("location.hash") == "#sample-1"
    assert visit.page.locator("#list [aria-current]").inner_text().startswith("✗")
    visit.page.reload()
    assert visit.text("#sample h2") == "clip 2"
    visit.asked.pop()  # the page itself, once more


def test_rollouts_side_by_side(visit: Visit) -> None:
    visit.page.click("[data-tab=rollouts]")
    assert visit.page.locator(".rollout").count() == 2
    assert "rollout batch 0" in visit.text("#rollouts")
    assert [row.split() for row in visit.page.locator(".rollout >> nth=1 >> tr").all_inner_texts()] == [
        ["reward", "0.50"], ["advantage", "-1.00"],
    ]  # fmt: skip
    visit.page.keyboard.press("j")
    assert "rollout batch 10" in visit.text("#rollouts")
    visit.page.click("[data-tab=scores]")
    assert "66.7%" in visit.text("[data-panel=scores]")
    assert visit.page.locator(".panel svg[role=img]").get_attribute("aria-label").startswith("loss over steps 0 to 1")


def test_themes_follow_the_system_and_the_button(browser: Any, folder: Path) -> None:
    file = folder / "report.html"
    file.write_bytes(page_of(folder, [sample(1, True, False)]))
    colours = {}
    for scheme in ("light", "dark"):
        visit = Visit(browser, file, color_scheme=scheme)
        colours[scheme] = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        visit.page.click("#theme")
        visit.page.click("#theme")
        assert visit.text("#theme") == "Theme: dark"
        assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 19, 26)"
        visit.close()
    assert colours == {"light": "rgb(244, 245, 248)", "dark": "rgb(16, 19, 26)"}


def test_hostile_text_in_a_browser_and_on_a_phone(browser: Any, folder: Path) -> None:
    file = folder / "report.html"
    file.write_bytes(page_of(folder, [hostile(1), sample(2, True, True)]))
    visit = Visit(browser, file, viewport={"width": 390, "height": 800})
    assert visit.page.title() == "run · futurel1 report"
    assert visit.page.locator("img[src=x]").count() == 0
    assert visit.text("#sample h2") == HOSTILE
    assert "מה קורה אחר כך?" in visit.text("#sample")
    assert LONG in visit.text("#sample").replace("\n", "")
    # Nothing is wider than the phone, long words included.
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 390
    assert visit.page.evaluate("document.getElementById('sample').scrollWidth") == 390
    visit.close()


def test_the_focus_stays_on_the_button(visit: Visit) -> None:
    visit.page.focus("#after")
    visit.page.keyboard.press("Enter")
    assert visit.page.evaluate("document.activeElement.id") == "after"
    visit.page.keyboard.press("Enter")
    assert visit.text("#sample h2") == "clip 3"
    assert visit.page.evaluate("document.activeElement.id") == "before"  # there is no next one


def test_answers_named_like_parts_of_javascript(browser: Any, folder: Path) -> None:
    made = replace(sample(1, True, False), told={"none": told("constructor", None)}, expected="toString", options={})
    judged = replace(made.told["none"], judge="[3, 4]: <b>good</b>")
    file = folder / "report.html"
    file.write_bytes(page_of(folder, [made, replace(made, told={"none": judged})]))
    visit = Visit(browser, file)
    assert "counted answer: constructor" in visit.text("#sample")
    assert "true answer: toString" in visit.text("#sample")
    assert "votes: constructor 75%, D 25%" in visit.text("#sample")
    visit.page.keyboard.press("j")
    assert "judge: [3, 4]: <b>good</b>" in visit.text("#sample")
    visit.close()


def test_all_pictures_are_described_and_all_controls_named(visit: Visit) -> None:
    unnamed = """[...document.querySelectorAll('img, button, input, select, svg')].filter((node) =>
        !(node.alt || node.getAttribute('aria-label') || node.textContent.trim() || node.labels && node.labels.length))
        .map((node) => node.outerHTML)"""
    assert visit.page.evaluate(unnamed) == []
    assert visit.page.locator("#sample img").count() == 2 + 7
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.className") == "skip"


def test_a_card_needs_no_script(browser: Any, folder: Path) -> None:
    file = folder / "card.html"
    file.write_text(card_page(answer_of(text=f"{HOSTILE}[imagined frame 1: 2 latents]")))
    visit = Visit(browser, file, viewport={"width": 390, "height": 800}, java_script_enabled=False)
    assert "Imagined frame 1" in visit.text("main")
    assert HOSTILE.split()[0] in visit.text("main")
    visit.close()
