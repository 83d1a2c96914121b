"""Responses cut into what is shown: text, tags, and the places of imagined frames."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Piece", "bare_question", "pieces_of"]

_CUT = re.compile(r"\[imagined frame (\d{1,9}): (\d{1,9}) latents?\]|(</?(?:reason|answer|think|ans)>)")
_MARKER = re.compile(r"(?:frame_\d+|<image>|<video>)")


@dataclass(frozen=True)
class Piece:
    """A part of a response.

    Attributes:
        kind: ``text``, ``answer`` (text inside answer tags), ``tag`` or ``span``.
        text: what the model wrote; of a span, how the response says it.
        span: number of the span, from 0; None for the other kinds.
        latents: number of its latents; 0 for the other kinds.
    """

    kind: str
    text: str
    span: int | None = None
    latents: int = 0


def pieces_of(response: str, spans: Sequence[int] | None) -> list[Piece]:
    """Cut a response into pieces.

    Words that only look like a span, because the model wrote them, stay text: spans come in order and with the number
    of latents that was counted.

    Args:
        response: with spans as `[imagined frame 1: 4 latents]`.
        spans: number of latents of each span; None where only the response says it.
    """
    pieces: list[Piece] = []
    done, number, in_answer = 0, 0, False
    for found in _CUT.finditer(response):
        is_span = found[3] is None
        latents = int(found[2]) if is_span else 0
        if is_span and (int(found[1]) != number + 1 or not (spans is None or list(spans[number:][:1]) == [latents])):
            continue
        _add_text(pieces, response[done : found.start()], in_answer)
        done = found.end()
        if is_span:
            pieces.append(Piece("span", found[0], number, latents))
            number += 1
        else:
            in_answer = found[3] in ("<answer>", "<ans>")
            pieces.append(Piece("tag", found[0]))
    _add_text(pieces, response[done:], in_answer)
    return pieces


def _add_text(pieces: list[Piece], text: str, in_answer: bool) -> None:
    if text.strip():
        pieces.append(Piece("answer" if in_answer else "text", text))


def bare_question(question: str, options: Mapping[str, str]) -> str:
    """A question without what a page shows beside it: lines that mark pictures, and lines that list the options."""
    listed = {f"{letter}. {text}" for letter, text in options.items()}
    lines = [line for line in question.splitlines() if line.strip() not in listed]
    return "\n".join(line for line in lines if not _MARKER.fullmatch(line.strip())).strip()
