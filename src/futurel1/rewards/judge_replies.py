"""Read one verdict from a judge's reply, outside of its reasoning and in its own words; or refuse the reply.

Judges reason before they answer, quote what they judge, and change their minds. Only text outside of the reasoning is
read. A reply that can be read in two ways has no verdict: it raises `ReplyError`, and nothing is guessed.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from futurel1.endpoints.failures import ReplyError

__all__ = [
    "READING",
    "ReplyError",
    "VerdictKind",
    "VerdictValue",
    "checked_value",
    "parse_scores",
    "parse_yes_no",
    "read_verdict",
]

VerdictKind = Literal["answer", "response"]
VerdictValue = bool | tuple[int, int]

MIN_SCORE, MAX_SCORE = 0, 5
READING = 3
"""Version of the rules for reading replies, part of cache keys; raise it when a rule changes."""

_TEXT_PARTS = ("text", "output_text")
_CUT_OFF = ("length", "max_tokens", "model_length", "content_filter")
"""Finish reasons of an incomplete reply."""
_Value = TypeVar("_Value")

_NAME = (
    r"(?:(?:ant)?think(?:ing)?|thoughts?|reason(?:ing)?(?:_content)?|rationale|cot|chain_of_thought"
    r"|inner_monologue|analysis|reflection|scratchpad)"
)
# gpt-oss: <|channel|>analysis<|message|>.., including the end of the message before it
_CHANNEL = (
    r"(?:<\|(?:end|return)\|>\s*)?(?:<\|start\|>\s*assistant\s*)?"
    r"<\|channel\|>\s*{}\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
)
_OPENINGS = (
    rf"<\s?\|?\s?(?:\w+:)?{_NAME}\b[^<>\n]*(?<!/)>",  # <think>, <Reasoning effort="low">, <seed:think>
    r"\[\s*think(?:ing)?\s*\]",
    r"◁\s*think\s*▷",
    rf"<\|(?:begin|start)_(?:of_)?{_NAME}\|>",
    r"<\|channel>\s*(?:thought|analysis)?",
    _CHANNEL.format("(?:analysis|commentary)"),
    # The same when the server has removed the special tokens: analysisThe answer .. assistantfinalyes
    r"(?-i:\A\s*(?:assistant)?(?:analysis|commentary)(?=[^\W_]|[\"'{\[]))",
)
_ENDS = (
    rf"<\s?\|?\s?/\s?\|?\s?(?:\w+:)?{_NAME}\b[^<>\n]*>",
    r"\[\s*/\s*think(?:ing)?\s*\]",
    r"◁\s*/\s*think\s*▷",
    rf"<\|end_(?:of_)?{_NAME}\|>",
    r"<channel\|>",
    _CHANNEL.format("final"),
    r"(?-i:assistantfinal)",
)
_MARK = re.compile(f"(?P<end>{'|'.join(_ENDS)})|(?P<opening>{'|'.join(_OPENINGS)})", re.IGNORECASE)
# Tokens with which models end a turn: <|im_end|>, </s>, <end_of_turn>, <eos>
_SPECIAL = re.compile(r"<(?:\|\w+\|?|/s|end_of_(?:turn|text|sentence)|eos|eot|\uff5c[^<>\n]{1,40}\uff5c)>\s*")
_FULL_WIDTH_LETTERS = {
    wide: wide - 0xFEE0 for wide in (*range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))
}  # as in \uff59\uff45\uff53
_MOST_BROKEN_OBJECTS = 64
"""Each broken object costs a pass over the text after it."""
_OBJECT = re.compile(r"\{(?=\s*[\"}])")
# '"No" is right.' or 'yes. is what it says': the word is more likely the candidate's than the judge's
_FIRST_WORD_GOES_ON = re.compile(
    r"[\W_]*?(?P<quote>[\"'`\u201c\u2018\xab]?)(?:yes|no)"
    r"(?:[\"'`\u201d\u2019\xbb*_]*[ \t]+[^\W_]|\.[\"'`\u201d\u2019\xbb*_]*[ \t]+(?-i:[a-z]))",
    re.IGNORECASE,
)
_BEGINS_WITH_A_VERDICT = re.compile(r"\W*(yes|no)\s*[,:\u2013\u2014]", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n+|[.!?;]+(?!\w)")
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")

# A sentence or line that holds yes or no and otherwise only these words is a verdict: "So, no.", "Final answer: yes".
_AROUND_A_VERDICT = {
    "yes", "no", "a", "actually", "again", "and", "answer", "be", "but", "conclusion", "correction", "decision",
    "final", "finally", "hence", "hmm", "i", "is", "it", "it's", "judgement", "judgment", "mean", "my", "of", "on",
    "or", "overall", "rather", "reflection", "result", "second", "should", "so", "sorry", "the", "then",
    "therefore", "thought", "thoughts", "thus", "verdict", "wait",
}  # fmt: skip
_FEWEST_ECHOED_WORDS = 2
_ECHOED_WORDS = 4
"""With this many words in common with the beginning of the candidate's text, a reply is quoting the candidate."""


def read_verdict(kind: VerdictKind, body: str, *candidate: str) -> tuple[VerdictValue, str]:
    """Read the verdict from the body of a chat completion.

    Args:
        kind: the kind of verdict that was asked for.
        body: the body of the endpoint's response.
        candidate: the texts that were judged.

    Returns:
        (value, the judge's words: its whole reply for an answer, its reasoning for a response).

    Raises:
        ReplyError: there is no verdict; see :func:`parse_yes_no` and :func:`parse_scores`.
    """
    reply, complete = _reply_of(body)
    # A cut-off reply may end inside a quotation, or be the beginning of reasoning whose opening tag is in the template.
    # A single word is neither.
    if not complete and (kind == "response" or len(reply.split()) > 1):
        raise ReplyError("cut off at the endpoint's token limit (raise max_tokens)")
    if kind == "answer":
        return parse_yes_no(reply, *candidate), reply
    return parse_scores(reply, *candidate)


def checked_value(kind: VerdictKind, value: Any) -> VerdictValue:
    """Check a stored verdict value.

    Raises:
        ValueError, TypeError: the value cannot be a verdict of this kind.
    """
    if kind == "answer":
        if not isinstance(value, bool):
            raise ValueError(f"the verdict is {value!r}")
        return value
    first, second = value
    if not all(type(score) is int and MIN_SCORE <= score <= MAX_SCORE for score in (first, second)):
        raise ValueError(f"the scores are {value!r}")
    return first, second


def _reply_of(body: str) -> tuple[str, bool]:
    """Extract the judge's text from the body of a chat completion, and whether the judge could finish it."""
    try:
        choice = json.loads(body)["choices"][0]
        content, finish_reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, RecursionError):
        raise ReplyError("the body is not JSON") from None
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ReplyError("no choices[0].message.content") from None
    if isinstance(content, list):
        # Parts of other types hold reasoning; so do other fields of the message, which are never read.
        parts = [part for part in content if isinstance(part, Mapping) and part.get("type", "text") in _TEXT_PARTS]
        content = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    if not isinstance(content, str) or not content.strip():
        raise ReplyError(f"an empty reply (finish_reason {finish_reason!r})")
    return content, finish_reason not in _CUT_OFF


def parse_yes_no(reply: str, *candidate: str) -> bool:
    """The verdict in a yes/no reply: its first word outside of reasoning, ignoring case and punctuation.

    Reasoning is text inside `<think>`, `<thinking>`, `<thought>`, `<reasoning>` and the like, and every channel of
    gpt-oss but the final one. The opening tag may be missing, because some chat templates write it; then all text
    before the closing tag is reasoning.

    Args:
        reply: what the judge said.
        candidate: the judged texts, if known; they help to tell quotations from the judge's own words.

    Raises:
        ReplyError: the first word is neither yes nor no, the reasoning does not end, the reply begins with the
            candidate's own words, it states both yes and no, or it holds more than 64 broken JSON objects.
    """
    return _read(reply, candidate, _yes_or_no)


def parse_scores(reply: str, *candidate: str) -> tuple[tuple[int, int], str]:
    """The scores in a reply's JSON object with a `score`, fenced or bare, outside of reasoning.

    The first two numbers of `score` count, depth first; numeric strings are numbers, other strings are skipped, and
    fractions are rounded as Python rounds. Several objects with the same scores are one verdict. See
    :func:`parse_yes_no` on reasoning.

    Args:
        reply: what the judge said.
        candidate: the judged texts, if known; they help to tell quotations from the judge's own words.

    Returns:
        ((reasoning, answer), the `reasoning` of its last such object).

    Raises:
        ReplyError: no such object, or only one that the candidate wrote; no two numbers, a boolean, a score outside
            0-5; objects with different scores, or a score in broken JSON, which may be a quotation; a reply that begins
            with the candidate's own text; reasoning that does not end; more than 64 broken JSON objects.
    """
    return _read(reply, candidate, _scores)


def _read(reply: str, candidate: Sequence[str], read: Callable[[str, Sequence[str]], _Value]) -> _Value:
    """Read the text outside of reasoning; other possible ways to delimit the reasoning must give the same verdict."""
    if _echoes(reply, [own for own in candidate if _MARK.search(own)], None):
        raise ReplyError("it begins with the candidate's own words")
    text, others = _outside_of_reasoning(reply, candidate)
    verdict = read(text, candidate)
    for other in others:
        try:
            value = read(other, candidate)
        except ReplyError:
            continue
        if _plain(value) != _plain(verdict):
            raise ReplyError("different verdicts before and behind an end of reasoning")
    return verdict


def _plain(verdict: Any) -> Any:
    return verdict[0] if isinstance(verdict, tuple) else verdict


# ------------------------------------------------------------------ reasoning and verdict


def _outside_of_reasoning(reply: str, candidate: Sequence[str]) -> tuple[str, list[str]]:
    """Return the text outside of reasoning, and alternatives in case an end of reasoning is a quotation."""
    hidden = [(found.start, found.end) for found in _objects(reply)] + _quotations(reply, candidate)
    marks = [mark for mark in _MARK.finditer(reply) if not any(a <= mark.start() < b for a, b in hidden)]
    outside: list[str] = []
    others: list[str] = []
    start, inside = 0, False
    for number, mark in enumerate(marks):
        if mark["opening"]:
            if not inside:
                outside.append(reply[start : mark.start()])
            inside = True
            continue
        if not inside:
            # The opening tag is in the chat template, so all text so far is reasoning.
            before = "\n".join([*outside, reply[start : mark.start()]])
            if number or not _is_the_judges(mark, before, candidate):
                others.append(before)
                if _is_followed_by_the_candidates_word(mark, candidate):
                    raise ReplyError("the end of its reasoning may be a quotation of the candidate")
            outside = []
        start, inside = mark.end(), False
    if inside:
        raise ReplyError("the reasoning does not end (raise max_tokens)")
    outside.append(reply[start:])
    return "\n".join(outside), others


def _is_the_judges(mark: re.Match[str], before: str, candidate: Sequence[str]) -> bool:
    """Whether an end of reasoning that has no beginning is surely not a quotation (only for the first mark)."""
    if candidate:
        return not any(_MARK.search(text) for text in candidate)
    # Without the candidate's texts: if the text before the mark begins like a verdict, and the mark stands within a
    # line, as quotations do, then the text is a verdict and not reasoning.
    first, *_ = _SENTENCE_END.split(before.strip(), maxsplit=1)
    within_a_line = _WORD.match(mark.string[mark.end() :].lstrip(" \t\"'`*_{")) is not None
    starts_with_an_object = before.lstrip("` \t\n").removeprefix("json").lstrip().startswith("{")
    return not (starts_with_an_object or (within_a_line and _stated(first)))


def _is_followed_by_the_candidates_word(mark: re.Match[str], candidate: Sequence[str]) -> bool:
    """Whether a text of the candidate contains this end of reasoning followed by the same yes or no."""
    word = _WORD.search(mark.string, mark.end())
    if word is None or word[0].casefold() not in ("yes", "no"):
        return False
    said = _compact(mark.string[mark.start() : word.end()])
    return any(said in _compact(own) for own in candidate)


def _quotations(text: str, candidate: Sequence[str]) -> list[tuple[int, int]]:
    """Find whole texts of the candidate that follow other words on a line: `It wrote: ..`."""
    found = []
    for own in candidate:
        words = own.split()
        if not words or sum(map(len, words)) > len(text):
            continue
        for match in re.finditer(r"\s+".join(map(re.escape, words)), text):
            if _WORD.search(text, text.rfind("\n", 0, match.start()) + 1, match.start()):
                found.append(match.span())
    return found


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _bare(word: str) -> str:
    """A word without the punctuation around it."""
    letters = [letter.start() for letter in re.finditer(r"[^\W_]", word)]
    return word[letters[0] : letters[-1] + 1].casefold() if letters else ""


def _compact(text: str) -> str:
    """A text without blanks and case, and without characters that may precede a quotation."""
    return "".join(text.split()).lstrip("\"'`>*_-").casefold()


def _echoes(text: str, candidate: Sequence[str], enough: int | None) -> bool:
    """Whether a text begins with a candidate's text: with the whole of it, or with `enough` of its words."""
    said = _words(text)
    for own in candidate:
        words = _words(own)
        pairs = enumerate(zip(said, words, strict=False))
        shared = next((place for place, (one, other) in pairs if one != other), min(len(said), len(words)))
        # A single word, such as the answer yes, may be the judge's own.
        if shared >= _FEWEST_ECHOED_WORDS and (shared in (len(said), len(words)) or (enough and shared >= enough)):
            return True
        if (_MARK.search(own) or "`" in own) and _compact(text).startswith(_compact(own)):
            return True
    return False


# ------------------------------------------------------------------ yes or no


def _yes_or_no(text: str, candidate: Sequence[str]) -> bool:
    text = text.translate(_FULL_WIDTH_LETTERS)
    candidate = [own.translate(_FULL_WIDTH_LETTERS) for own in candidate]
    if _echoes(text, candidate, _ECHOED_WORDS):
        raise ReplyError("it begins with the candidate's own words")
    while (last := text.rfind("<")) >= 0 and _SPECIAL.fullmatch(text, last):
        text = text[:last]
    first = next((word for word in map(_bare, text.split()) if word), "")
    if first not in ("yes", "no"):
        raise ReplyError("neither yes nor no comes first")
    going_on = _FIRST_WORD_GOES_ON.match(text)
    if going_on and (going_on["quote"] or any(_words(own) == [first] for own in candidate)):
        raise ReplyError("its first word may be a quotation of the candidate")
    for start, end in sorted(_quotations(text, candidate), reverse=True):
        text = f"{text[:start]}(quotation){text[end:]}"
    stated = {first}
    for sentence in _SENTENCE_END.split(text):
        stated |= _stated(sentence)
        if begins := _BEGINS_WITH_A_VERDICT.match(sentence):
            stated.add(begins[1].casefold())
    if len(stated) > 1:
        raise ReplyError("both yes and no")
    return first == "yes"


def _stated(sentence: str) -> set[str]:
    """The verdicts that a sentence or line states, as opposed to mentions."""
    words = set(_words(sentence))
    return words & {"yes", "no"} if words <= _AROUND_A_VERDICT else set()


# ------------------------------------------------------------------ scores


@dataclass(frozen=True)
class _Object:
    """A JSON object at `text[start:end]`."""

    start: int
    end: int
    value: dict[str, Any]


def _objects(text: str) -> list[_Object]:
    """The outermost JSON objects of a text, in order.

    Raises:
        ReplyError: there are too many broken objects.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_without_duplicates)
    found: list[_Object] = []
    start = broken = 0
    while opening := _OBJECT.search(text, start):
        try:
            value, start = decoder.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            start = opening.end()
            broken += 1
            if broken > _MOST_BROKEN_OBJECTS:
                raise ReplyError(f"more than {_MOST_BROKEN_OBJECTS} broken JSON objects") from None
            continue
        found.append(_Object(opening.start(), start, value))
    return found


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _scores(text: str, candidate: Sequence[str]) -> tuple[tuple[int, int], str]:
    if _echoes(text, candidate, None):
        raise ReplyError("it begins with the candidate's own words")
    found = [one for one in _objects(text) if "score" in one.value]
    if not found:
        raise ReplyError("no JSON object with a score")
    starts, ends = [one.start for one in found], [one.end for one in found]
    around = [text[a:b] for a, b in zip([0, *ends], [*starts, len(text)], strict=True)]
    # An object inside a broken object is likely a badly escaped quotation of the candidate.
    if any(part.count("{") != part.count("}") or '"score"' in part for part in around):
        raise ReplyError("broken JSON around the score")
    written = ["".join(own.split()) for own in candidate]
    if all(any("".join(text[one.start : one.end].split()) in own for own in written) for one in found):
        raise ReplyError("no scores but those that the candidate wrote")
    if len({_coerce_scores(one.value["score"]) for one in found}) > 1:
        raise ReplyError("several different scores")
    reasoning = found[-1].value.get("reasoning", "")
    return _coerce_scores(found[-1].value["score"]), reasoning if isinstance(reasoning, str) else ""


def _coerce_scores(score: Any) -> tuple[int, int]:
    numbers: list[int] = []
    waiting = [score] if isinstance(score, list) else []
    while waiting and len(numbers) < 2:
        value = waiting.pop(0)
        if isinstance(value, list):
            waiting = [*value, *waiting]
            continue
        if isinstance(value, bool):
            raise ReplyError("a boolean as score")
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                continue
        if not isinstance(value, (int, float)):
            continue
        # Check before rounding: 5.4 is outside the scale. NaN fails here too.
        if not MIN_SCORE <= value <= MAX_SCORE:
            raise ReplyError(f"a score outside {MIN_SCORE}-{MAX_SCORE}")
        numbers.append(round(value))
    if len(numbers) < 2:
        raise ReplyError("fewer than two numbers as score")
    return numbers[0], numbers[1]
