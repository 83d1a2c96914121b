"""Pages as text: templates filled in, with everything that a page needs inside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

from futurel1.report.pictures import data_uri
from futurel1.report.texts import pieces_of
from futurel1.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL import Image
    from torch import Tensor

    from futurel1.report.contents import Contents
    from futurel1.report.plots import Panel
    from futurel1.report.runs import RunContents

__all__ = ["ShownAnswer", "ShownSpan", "card_page", "report_page"]

CARD_PICTURE = 320
"""Most pixels of the longer side of a picture on a card."""
FIRST_PANELS = 12
"""Curves that are drawn at once; a page folds the rest away."""


class ShownSpan(Protocol):
    """An imagined frame: its latents (L, H), and the place of its first token in the response."""

    @property
    def latents(self) -> Tensor: ...  # noqa: D102

    @property
    def position(self) -> int: ...  # noqa: D102


class ShownAnswer(Protocol):
    """What a card shows of an answer; `futurel1.predictor.Answer` is one."""

    @property
    def question(self) -> str: ...  # noqa: D102

    @property
    def options(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def answer(self) -> str: ...  # noqa: D102

    @property
    def text(self) -> str: ...  # noqa: D102

    @property
    def votes(self) -> Mapping[str, float]: ...  # noqa: D102

    @property
    def spans(self) -> Sequence[ShownSpan]: ...  # noqa: D102

    @property
    def frames(self) -> Sequence[Image.Image]: ...  # noqa: D102

    @property
    def tokens(self) -> int: ...  # noqa: D102

    @property
    def finish_reason(self) -> str: ...  # noqa: D102

    @property
    def seconds(self) -> float: ...  # noqa: D102


def report_page(run: RunContents, contents: Contents, panels: Sequence[Panel], curves_of: str) -> bytes:
    """The page of a run, as UTF-8.

    Args:
        run: the run.
        contents: what the page shows of its samples.
        panels: its curves.
        curves_of: name of the run that the curves are of; "" without curves.
    """
    script = _asset("report.js")
    shown = {name: value for name, value in asdict(contents).items() if name in ("frames", "samples", "groups")}
    kinds = list(dict.fromkeys(kind for sample in contents.samples for kind in sample.told))
    return _filled(
        "report.html.jinja",
        run=run,
        contents=contents,
        panels=panels,
        first_panels=FIRST_PANELS,
        curves_of=curves_of,
        shown={**shown, "kinds": kinds},
        splits=sorted({sample.split for sample in contents.samples}),
        kinds=[kind for kind in kinds if kind != "none"],
        script=script,
        script_hash=_policy_hash(script),
    )


def card_page(answer: ShownAnswer) -> str:
    """One answer as a page of its own: what was shown, what was asked, the reasoning with its spans, the votes.

    The page needs neither a network nor JavaScript.

    Args:
        answer: the answer.

    Returns:
        HTML. Half a surrogate pair, which UTF-8 cannot hold, is a character reference.
    """
    from torch.nn.functional import cosine_similarity

    means = [span.latents.float().mean(dim=0) if len(span.latents) else None for span in answer.spans]
    spans = []
    for number, span in enumerate(answer.spans):
        before, own = means[number - 1] if number else None, means[number]
        spans.append(
            {
                "latents": len(span.latents),
                "width": int(span.latents.shape[-1]),
                "position": int(span.position),
                "norm": None if own is None else float(span.latents.float().norm(dim=-1).mean()),
                "before": None if before is None or own is None else float(cosine_similarity(before, own, dim=0)),
            }
        )
    pieces = pieces_of(answer.text, [len(span.latents) for span in answer.spans])
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return _filled(
        "card.html.jinja",
        answer=answer,
        options=dict(zip(letters, answer.options, strict=False)),
        votes=[(choice, 100 * share) for choice, share in answer.votes.items()],
        lines=[list(line) for _, line in groupby(pieces, key=lambda piece: piece.span)],
        spans=spans,
        frames=[data_uri(frame, CARD_PICTURE) for frame in answer.frames],
    ).decode()


def _filled(name: str, **values: Any) -> bytes:
    text = _environment().get_template(name).render(style=_asset("style.css"), version=__version__, **values)
    return text.encode("utf-8", "xmlcharrefreplace")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("futurel1.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Order says something: of reward parts, of options. And a browser reads no NaN.
    made.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}
    return made


@cache
def _asset(name: str) -> str:
    return (files("futurel1.report") / "templates" / name).read_text(encoding="utf-8")


def _policy_hash(script: str) -> str:
    """What a content security policy calls a script, so that a browser runs this one and no other."""
    return f"sha256-{base64.b64encode(sha256(script.encode()).digest()).decode()}"
