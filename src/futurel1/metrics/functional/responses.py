"""What a tagged response says: its first answer, its reasoning without tags, and when two answers are the same."""

import re

import regex

__all__ = ["extract_answer", "plain_answer", "sanitize_response"]


def _tag(name: str, slash: str = "") -> str:
    # ASCII for the name alone: letters that merely fold to the letters of a tag name make no tag.
    return rf"<\s*{slash}(?ai:{name})\s*>"


_OPEN = {name: re.compile(_tag(name)) for name in ("answer", "ans")}
_CLOSE = {name: re.compile(_tag(name, r"/\s*")) for name in ("answer", "ans")}
_SPECIAL_TOKEN = re.compile(r"<\|\w{1,64}\|>")
_OPEN_REASON, _CLOSE_REASON = re.compile(_tag("reason")), re.compile(_tag("reason", r"/\s*"))
_TAG = re.compile(_tag("(?:reason|answer|ans)", r"(?:/\s*)?") + "|" + _SPECIAL_TOKEN.pattern)

_FULL_WIDTH = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {0x3000: " "}
# Brackets and quotes of all scripts by their Unicode categories, the quotes and the emphasis of ASCII, and characters
# without width (direction marks).
_AROUND = r"\s\p{Ps}\p{Pe}\p{Pi}\p{Pf}\p{Cf}\"'`*"
_STOP = r"\p{Terminal_Punctuation}\u2025\u2026"
# A point before a digit is part of the number.
_LEADING = regex.compile(rf"(?:[{_AROUND}\u00a1\u00bf]|[{_STOP}](?!\p{{Nd}}))*+")
_TRAILING = regex.compile(rf"[{_AROUND}{_STOP}]*+")


def extract_answer(text: str) -> str:
    """Content of the first complete answer block, as TwiFF-Bench reads it.

    Args:
        text: a response; ``<answer>..</answer>`` and the older ``<ans>..</ans>`` both count, in any case and with
            blanks inside the tags, as in ``< answer >``.

    Returns:
        The content without surrounding blanks, tags inside it kept; ``""`` without a complete block.
    """
    block = _first_block(text)
    return "" if block is None else text[block[1] : block[2]].strip()


def plain_answer(answer: str) -> str:
    """An answer as it is compared with others: two answers are the same when their plain forms are.

    Args:
        answer: the content of an answer block, a ground truth, or the text of an option.

    Returns:
        The answer without differences of case, of blanks (also around ``<``, ``>`` and ``/``) and of full-width and
        ordinary characters, and without brackets, quotes, ``*``, full stops and the like (``,:;!?``) around it,
        whatever their script. Signs that change a value stay, as in ``-5``, ``.5`` and ``5%``.

    Example:
        >>> plain_answer("（Ｂ）。"), plain_answer("**The gate  opens.**"), plain_answer("-5 %")
        ('b', 'the gate opens', '-5 %')
    """
    text = _LEADING.sub("", answer.translate(_FULL_WIDTH), count=1)
    text = _TRAILING.sub("", text[::-1], count=1)[::-1]
    return re.sub(" ?([<>/]) ?", r"\1", " ".join(text.casefold().split()))


def sanitize_response(text: str) -> str:
    """A response as a judge of TwiFF-Bench sees it: the reasoning, then one ``<answer>`` line.

    Latent and chat tokens are removed. The contents of the reason blocks come first, joined by a blank line; behind
    them, after another blank line, whatever stands outside of them and of the first answer, on one line. A response
    without a complete reason block keeps its lines. The only tags left are those around the first answer. Nothing that
    a model writes can add another: removal repeats until no tag is left, so ``<rea<reason>son>`` leaves none either.
    Sanitizing twice changes nothing.

    Args:
        text: a decoded response, special tokens included or not.

    Returns:
        ``"{reasoning}\\n<answer>{answer}</answer>"``; a part that is empty is left out.

    Example:
        >>> sanitize_response("<reason>a</reason> first <reason>b</reason>\\n then <answer>x</answer>")
        'a\\n\\nb\\n\\nfirst then\\n<answer>x</answer>'
    """
    text = _remove(_SPECIAL_TOKEN, text)
    block = _first_block(text)
    outside, inside = (text, "") if block is None else (text[: block[0]] + text[block[3] :], text[block[1] : block[2]])
    reasons, rest = _split_reasons(outside)
    paragraphs = [clean for reason in reasons if (clean := _remove(_TAG, reason).strip())]
    rest = _remove(_TAG, rest)
    if reasons:
        rest = " ".join(line.strip() for line in rest.splitlines() if line.strip())
    # Pieces that were apart can make a tag where they meet.
    reasoning = _remove(_TAG, "\n\n".join([*paragraphs, rest.strip()])).strip()
    answer = _remove(_TAG, inside).strip()
    return "\n".join(filter(None, [reasoning, f"<answer>{answer}</answer>" if answer else ""]))


def ordinary_text(text: str) -> str:
    """The text without latent and chat tokens, its full-width characters replaced by the ordinary ones."""
    return _remove(_SPECIAL_TOKEN, text).translate(_FULL_WIDTH)


def _split_reasons(text: str) -> tuple[list[str], str]:
    """Contents of the complete reason blocks, and what stands outside of them; linear in the text's length."""
    reasons, rest, done = [], [], 0
    while (opening := _OPEN_REASON.search(text, done)) and (closing := _CLOSE_REASON.search(text, opening.end())):
        reasons.append(text[opening.end() : closing.start()])
        rest.append(text[done : opening.start()])
        done = closing.end()
    return reasons, "".join([*rest, text[done:]])


def _first_block(text: str) -> tuple[int, int, int, int] | None:
    """Start of the opening tag, start and end of the content, end of the closing tag; linear in the text's length."""
    blocks = []
    for name, opening in _OPEN.items():
        start = opening.search(text)
        # A block that begins later would need a closing tag behind this one too, so the first opening decides.
        end = None if start is None else _CLOSE[name].search(text, start.end())
        if start is not None and end is not None:
            blocks.append((start.start(), start.end(), end.start(), end.end()))
    return min(blocks, default=None)


def _remove(pattern: re.Pattern[str], text: str) -> str:
    """Remove matches until none is left: a removal can join the halves of another match."""
    found = 1
    while found:
        text, found = pattern.subn("", text)
    return text
