"""Parsing of tagged responses: the first answer, the reasoning without tags, and a normal form of answers."""

import re

import regex

__all__ = ["extract_answer", "plain_answer", "sanitize_response"]


def _tag(name: str, slash: str = "") -> str:
    # ASCII flag for the name only: other letters that case-fold to those of a tag name do not make a tag.
    return rf"<\s*{slash}(?ai:{name})\s*>"


_OPEN = {name: re.compile(_tag(name)) for name in ("answer", "ans")}
_CLOSE = {name: re.compile(_tag(name, r"/\s*")) for name in ("answer", "ans")}
_SPECIAL_TOKEN = re.compile(r"<\|\w{1,64}\|>")
_OPEN_REASON, _CLOSE_REASON = re.compile(_tag("reason")), re.compile(_tag("reason", r"/\s*"))
_TAG = re.compile(_tag("(?:reason|answer|ans)", r"(?:/\s*)?") + "|" + _SPECIAL_TOKEN.pattern)

_FULL_WIDTH = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {0x3000: " "}
_BLANK = regex.compile(r"[\s\p{Cf}]")  # including zero-width characters (direction marks)
_BRACKET = regex.compile(r"(?P<opening>\p{Ps})|\p{Pe}")
_CLOSE_BRACKET = regex.compile(r"\p{Pe}")
# Quotes of all scripts by Unicode category (except those that Unicode calls brackets, like "\u201e"); ASCII's marks.
_QUOTE = regex.compile(r"[\p{Pi}\p{Pf}\u201a\u201e\u301d-\u301f]")
_SAME_MARK = frozenset("\"'`*")
_STOP = regex.compile(r"[\p{Terminal_Punctuation}\u2025\u2026]")
_INVERTED = frozenset("\u00a1\u00bf")


def extract_answer(text: str) -> str:
    """Content of the first complete answer block, by the rules of TwiFF-Bench.

    Args:
        text: a response; ``<answer>..</answer>`` and the older ``<ans>..</ans>`` both count, in upper or lower case and
            with blanks inside the tags, as in ``< answer >``.

    Returns:
        The content without surrounding blanks but with any tags inside; ``""`` without a complete block.
    """
    block = _first_block(text)
    return "" if block is None else text[block[1] : block[2]].strip()


def plain_answer(answer: str) -> str:
    """Normal form of an answer for comparisons: two answers are the same if their plain forms are.

    Args:
        answer: the content of an answer block, a ground truth, or the text of an option.

    Returns:
        The answer with case, blanks (also around ``<``, ``>`` and ``/``) and full-width characters normalised, and
        without surrounding quotes, ``*``, full stops and the like (``,:;!?``) and pairs of brackets, in any script.
        Signs that change a value stay, as in ``-5``, ``.5``, ``5%``, ``5!``, ``6'``, ``C*`` and ``[0,1)``.

    Example:
        >>> plain_answer("（Ｂ）。"), plain_answer("**The gate  opens.**"), plain_answer("-5 %")
        ('b', 'the gate opens', '-5 %')
    """
    text = answer.translate(_FULL_WIDTH)
    start, end = _bare_span(text)
    text = text[start:end]
    return re.sub(" ?([<>/]) ?", r"\1", " ".join(text.casefold().split()))


def sanitize_response(text: str) -> str:
    """A response in the form for a judge of TwiFF-Bench: the reasoning, then one ``<answer>`` line.

    Latent and chat tokens are removed. The contents of the reason blocks come first, separated by blank lines; then,
    after another blank line, the text outside reason blocks and the first answer, on one line. A response without a
    complete reason block keeps its lines. The only remaining tags are those around the first answer. A model cannot
    smuggle in others: removal repeats until no tag is left, so ``<rea<reason>son>`` leaves none either. Sanitizing
    twice changes nothing.

    Args:
        text: a decoded response, with or without special tokens.

    Returns:
        ``"{reasoning}\\n<answer>{answer}</answer>"``, without empty parts.

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
    # Joined pieces can form a new tag.
    reasoning = _remove(_TAG, "\n\n".join([*paragraphs, rest.strip()])).strip()
    answer = _remove(_TAG, inside).strip()
    return "\n".join(filter(None, [reasoning, f"<answer>{answer}</answer>" if answer else ""]))


def _bare_span(text: str) -> tuple[int, int]:
    """Start and end of a text without surrounding blanks, quotes, stops and brackets; linear in its length."""
    partners = _bracket_pairs(text)
    start, end = 0, len(text)
    while start < end:
        if text[start].isalnum() and text[end - 1].isalnum():
            break
        first, last = text[start], text[end - 1]
        paired = end - start > 1 and (
            (first == last and first in _SAME_MARK) or bool(_QUOTE.match(first) and _QUOTE.match(last))
        )
        if _BLANK.match(last):
            end -= 1
        elif _BLANK.match(first) or first in _INVERTED or _is_leading_stop(text, start, end):
            start += 1
        elif paired or partners.get(start) == end - 1:
            start, end = start + 1, end - 1
        elif (kept := _trailing_marks(text, start, end)) < end:
            end = kept
        elif first in _SAME_MARK or _QUOTE.match(first):
            start += 1
        else:
            break
    return start, end


def _bracket_pairs(text: str) -> dict[int, int]:
    """Index of each opening bracket that a bracket of the same kind closes, to the index of that bracket."""
    pairs, waiting = {}, []
    for bracket in _BRACKET.finditer(text):
        if bracket["opening"]:
            waiting.append(bracket)
        elif waiting:
            # A bracket of any kind closes the last open one: ([0,1)) is a pair around an interval.
            opening = waiting.pop()
            # In Unicode, the code point of a closing bracket is at most two after that of its opening one.
            if 0 < ord(bracket[0]) - ord(opening[0]) <= 2:
                pairs[opening.start()] = bracket.start()
    return pairs


def _is_leading_stop(text: str, start: int, end: int) -> bool:
    # A decimal point before a digit is part of the number.
    return _STOP.match(text[start]) is not None and not (start + 1 < end and text[start + 1].isdecimal())


def _trailing_marks(text: str, start: int, end: int) -> int:
    """End of a text without its trailing stops or quotes, or without the bracket of a label such as "B)"."""
    last = text[end - 1]
    if last == "!" or last in _SAME_MARK or _QUOTE.match(last):
        # After a digit or a single letter, these marks are part of the value: 5!, 6', f'', C*.
        run = end - 1
        while run > start and text[run - 1] == last:
            run -= 1
        if run == start:
            return start
        base = text[run - 1]
        # Only characters with upper and lower case count as letters: in other scripts, one character can be a word.
        is_letter = base.upper() != base.lower() and not (run - 2 >= start and text[run - 2].isalnum())
        is_option = last == "!" and run - start == 1 and base.upper() in "ABCD"
        return end if (base.isdecimal() or is_letter) and not is_option else run
    if _STOP.match(last):
        return end - 1
    return end - 1 if _CLOSE_BRACKET.match(last) and end - start == 2 and text[start].isalpha() else end


def ordinary_text(text: str) -> str:
    """The text without latent and chat tokens, with ordinary instead of full-width characters."""
    return _remove(_SPECIAL_TOKEN, text).translate(_FULL_WIDTH)


def _split_reasons(text: str) -> tuple[list[str], str]:
    """Contents of the complete reason blocks, and the text outside them; linear in the text's length."""
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
        # Any later block also needs a closing tag after the first opening one, so the first opening tag decides.
        end = None if start is None else _CLOSE[name].search(text, start.end())
        if start is not None and end is not None:
            blocks.append((start.start(), start.end(), end.start(), end.end()))
    return min(blocks, default=None)


def _remove(pattern: re.Pattern[str], text: str) -> str:
    """Remove matches until none is left, because a removal can join the halves of another match."""
    found = 1
    while found:
        text, found = pattern.subn("", text)
    return text
