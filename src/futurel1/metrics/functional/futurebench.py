"""FutureBench: the prompt, extraction of an option from a response, and accuracy with Wilson intervals.

Source: Future-L1, arXiv 2606.05769, section on FutureBench. 1,056 four-option questions in four splits.
"""

import math
import re
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal, get_args

import regex
import torch
from torch import Tensor

from futurel1.errors import BatchError, ConfigError, RecordError
from futurel1.metrics.functional.responses import extract_answer, ordinary_text, plain_answer

__all__ = [
    "FUTUREBENCH_SPLITS",
    "OPTION_LETTERS",
    "ExtractionProtocol",
    "extract_option",
    "futurebench_prompt",
    "gold_option",
    "wilson_interval",
]

ExtractionProtocol = Literal["paper", "strict", "direct"]
OPTION_LETTERS = "ABCD"
FUTUREBENCH_SPLITS = ("hop1", "hop2", "hop3", "hop5")
"""Values of `question_type`; the paper calls hop5 "Interp."."""

INSTRUCTION = "Please provide only the single option letter within the <answer> </answer> tags."
UNANSWERED, WRONG, CORRECT = -1.0, 0.0, 1.0
"""Values of a stored outcome."""

_ANSWER = ("<answer>", "</answer>")
_LETTER = re.compile("[A-D]")
# A sign directly after a letter that changes its meaning, as in C++, C#, B♭ or the mark A-.
_SIGN = r"(?:[+#\u00b0\u266d\u266f](?!\s*[A-D]\b)|[-\u2212](?=[^\w\s]*\s*\Z))"
_ONLY_LETTER = regex.compile(rf"[^\w\p{{M}}]*([A-D])(?!{_SIGN})[^\w\p{{M}}]*")
# A letter that is not part of a word. Only words in Latin script contain these letters, so the B of "答案是B" counts.
_LETTER_ALONE = regex.compile(
    r"(?<![\p{Latin}\p{Nd}]\p{M}*)(?<![\p{Latin}\p{Nd}][-\u2010\u2011'\u2019_])"
    r"[A-D](?![\p{Latin}\p{Nd}\p{M}])(?![-\u2010\u2011'\u2019_][\p{Latin}\p{Nd}])" + f"(?!{_SIGN})"
)
_INITIALS = regex.compile(r"(?<!\p{L})\p{Latin}(?:\.\p{Latin})+(?:\.(?!\p{L})|(?<=\.\p{L}\.\p{L})(?!\p{L}))")
_NAMES_OPTION = regex.compile(r"\b(?:answer|choice|letter|option)\s{1,3}$", re.IGNORECASE)
# "A" can be the English article only before a word in Latin script.
_NEXT_WORD = regex.compile(r"\s+((?=\p{Latin})\p{Ll}[\p{L}\p{M}'\u2019-]*)")
_NEVER_AFTER_ARTICLE = frozenset({
    "an", "and", "are", "as", "at", "be", "because", "but", "by", "could", "did", "does", "for", "from", "had", "has",
    "have", "he", "her", "his", "if", "in", "instead", "is", "it", "its", "might", "my", "nor", "not", "of", "on",
    "or", "our", "seems", "she", "should", "since", "so", "than", "that", "the", "their", "then", "these", "they",
    "this", "those", "to", "was", "we", "were", "when", "where", "which", "who", "why", "with", "would", "you",
    "your",
})  # fmt: skip
"""Words that never follow an article: an "A" before one of them is the letter."""
# Without slash, ampersand and bar, which join two letters.
_MARKS = r"(?:[^\w\s/&|+]|_)*"
_LABEL_ENDS = regex.compile(
    rf"{_MARKS}(?:[.:,)\]}}\u3001\u3002\u3011\u300d]|\*\*|__|\s*[-\u2013\u2014]|\s*\n){_MARKS}\s*{_MARKS}"
)
_LABEL_CLOSES = regex.compile(r"\A[\s\p{Pe}\p{Pf}*_`\"']*+")
_OPENS_BRACKET, _CLOSES_AT_END = regex.compile(r"\p{Ps}"), regex.compile(r"\A[\s.]*+\p{Pe}")
_LONGEST_LABEL_END = 20
"""Limit that bounds the time of `_LABEL_ENDS` on long runs of punctuation."""
_INTRODUCES_LABEL = regex.compile(
    r"(?:[\W_]|\b(?:the|my|so|thus|therefore|hence|final|correct|right|best|is|would|be)\b"
    r"|\b(?:answer|choice|letter|option)\b|(?:答案|选项?|是|为))*+",
    regex.IGNORECASE,
)


def extract_option(text: str, protocol: ExtractionProtocol = "paper", options: Mapping[str, str] | None = None) -> str:
    """Read the chosen option from a response.

    Args:
        text: the response.
        protocol: ``"paper"``: the first character A-D inside the first ``<answer>..</answer>`` (lower-case tags only),
            even inside a word, so that "Answer: C" reads as A. ``"direct"``: the same over the whole text, for models
            that do not reason. ``"strict"``: inside the first answer block (tags as in `extract_answer`), exactly one
            standalone option letter (upper case, also full-width or repeated, not part of a word, with any punctuation
            or script around it), or the exact text of one option, also after its own label, as in "B. .." and "A the
            boy sits down". An "A" that may be an article, as in "A man leaves", is not an answer by itself. Next to
            another standalone letter it counts as the letter A, except directly after a label, as in "B. A man leaves",
            where it is an article. Ambiguous responses have no answer: two different letters ("A not B"), the label of
            one option before the text of another, a text that two options share.
        options: letter to text of the options, for ``"strict"``; texts are compared by their `plain_answer`.

    Returns:
        ``"A"`` to ``"D"``, or ``""`` without an answer.

    Raises:
        ConfigError: an unknown protocol.
    """
    if protocol == "paper":
        return _first_letter(_paper_answer(text))
    if protocol == "direct":
        return _first_letter(text)
    if protocol == "strict":
        return _strict_option(extract_answer(text), options or {})
    raise ConfigError(f"protocol must be one of {get_args(ExtractionProtocol)}, got {protocol!r}")


def futurebench_prompt(record_qa: Mapping[str, Any]) -> str:
    """Text of a FutureBench question, as in the reference harness.

    Args:
        record_qa: the record's `qa`: ``Question``, and ``Options``, letters A-D to texts. Options are appended as
            ``A. ..`` lines unless the question already contains ``A) `` and ``D) ``.

    Returns:
        The user turn's text: a line break, question, options, instruction.

    Raises:
        RecordError: the question, or an option that has to be appended, is missing or not a text.
    """
    question = record_qa.get("Question")
    if not isinstance(question, str) or not question.strip():
        raise RecordError(f"FutureBench record: 'Question' must be a text, got {question!r}; keys: {sorted(record_qa)}")
    lines = ["", question]
    if not ("A) " in question and "D) " in question):
        options = record_qa.get("Options")
        if not isinstance(options, Mapping) or any(not isinstance(options.get(key), str) for key in OPTION_LETTERS):
            raise RecordError(
                f"FutureBench record: 'Options' must map A, B, C and D to texts, got {options!r} for the question "
                f"{question!r}"
            )
        lines += [f"{letter}. {options[letter]}" for letter in OPTION_LETTERS]
    return "\n".join([*lines, INSTRUCTION])


def gold_option(answer: str) -> str:
    """Letter of a ground truth such as ``"B"``, ``"d"``, ``"(C)."`` or ``"<answer>B</answer>"``.

    Raises:
        BatchError: the ground truth is not one letter A-D.
    """
    found = _ONLY_LETTER.fullmatch(ordinary_text(extract_answer(answer) or answer).upper())
    if found is None:
        raise BatchError(f"a FutureBench ground truth must be one of the letters A, B, C, D, got {answer!r}")
    return str(found[1])


def wilson_interval(correct: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of an accuracy.

    Unlike a percentile bootstrap interval, it has a positive width if all or none are correct, and it covers accuracies
    near 0 and 1. Its coverage is `level` on average over accuracies, and lower within some tenths of a sample of 0 and
    1.

    Args:
        correct: (N,) bool or 0 / 1.
        level: share of such intervals that contain the true accuracy.

    Returns:
        Lower and upper end in percent; NaN without samples.

    Raises:
        ConfigError: a level outside (0, 1).

    Source:
        Wilson, "Probable inference, the law of succession, and statistical inference", 1927; recommended by Brown, Cai
        and DasGupta, "Interval estimation for a binomial proportion", 2001.

    Example:
        >>> [round(end, 1) for end in wilson_interval(torch.ones(20))]
        [83.9, 100.0]
    """
    if not 0 < level < 1:
        raise ConfigError(f"the level of an interval must lie between 0 and 1, got {level}")
    number = correct.numel()
    if not number:
        return float("nan"), float("nan")
    share = float(correct.sum()) / number
    z_squared = NormalDist().inv_cdf((1 + level) / 2) ** 2
    center = share + z_squared / (2 * number)
    half = math.sqrt(z_squared * (share * (1 - share) + z_squared / (4 * number)) / number)
    scale = 100 / (1 + z_squared / number)
    # Exactly 0 and 100, which rounding may miss.
    return scale * (center - half) if share > 0 else 0.0, scale * (center + half) if share < 1 else 100.0


def _futurebench_update(
    responses: Sequence[str],
    answers: Sequence[str],
    splits: Sequence[str],
    options: Sequence[Mapping[str, str]] | None,
    protocols: Sequence[ExtractionProtocol],
    known_splits: Sequence[str],
) -> dict[str, Tensor]:
    """(n, number of protocols) outcomes of each split's samples, in order; only splits that occur."""
    lengths = {
        "responses": len(responses),
        "answers": len(answers),
        "splits": len(splits),
        "options": len(responses if options is None else options),
    }
    if len(set(lengths.values())) != 1:
        raise BatchError(f"FutureBench needs one answer, split and options per response, got {lengths}")
    unknown = sorted(set(splits) - set(known_splits))
    if unknown:
        raise BatchError(f"unknown FutureBench splits {unknown}; known are {list(known_splits)}")
    outcomes: dict[str, list[list[float]]] = {}
    for index, (response, answer, split) in enumerate(zip(responses, answers, splits, strict=True)):
        gold = gold_option(answer)
        choices = None if options is None else options[index]
        chosen = [extract_option(response, protocol, choices) for protocol in protocols]
        row = [UNANSWERED if not letter else CORRECT if letter == gold else WRONG for letter in chosen]
        outcomes.setdefault(split, []).append(row)
    return {split: torch.tensor(rows) for split, rows in outcomes.items()}


def _futurebench_compute(outcomes: Mapping[str, Tensor], protocols: Sequence[ExtractionProtocol]) -> dict[str, Tensor]:
    """Scores from the (n, number of protocols) outcomes of every split; see `FutureBenchAccuracy` for the keys."""
    everything = torch.cat(list(outcomes.values()))
    if not len(everything):
        raise BatchError("FutureBenchAccuracy has no samples to compute from: call update() first")
    result: dict[str, float] = {"samples": len(everything)}
    result |= {f"samples/{split}": len(rows) for split, rows in outcomes.items()}
    for column, protocol in enumerate(protocols):
        for name, rows in {"accuracy": everything, **outcomes}.items():
            correct = rows[:, column] == CORRECT
            low, high = wilson_interval(correct)
            result[f"{protocol}/{name}"] = 100 * float(correct.sum()) / len(rows) if len(rows) else float("nan")
            result[f"{protocol}/{name}_low"], result[f"{protocol}/{name}_high"] = low, high
        result[f"{protocol}/unanswered"] = float((everything[:, column] == UNANSWERED).sum())
    return {key: torch.tensor(float(value), device=everything.device) for key, value in result.items()}


def _paper_answer(text: str) -> str:
    """Content of the first `<answer>` block, case-sensitive like the reference."""
    opening, closing = _ANSWER
    start = text.find(opening)
    end = text.find(closing, start) if start >= 0 else -1
    return text[start + len(opening) : end] if end >= 0 else ""


def _first_letter(text: str) -> str:
    found = _LETTER.search(text)
    return found[0] if found else ""


def _strict_option(answer: str, options: Mapping[str, str]) -> str:
    text = ordinary_text(answer)
    only_letter = _ONLY_LETTER.fullmatch(text)
    exact = _letters_of(text, options)
    # A letter and nothing else is that letter, even if it is also the text of another option.
    if only_letter and (not exact or plain_answer(text) == only_letter[1].lower()):
        return str(only_letter[1])
    initials = {place for match in _INITIALS.finditer(text) for place in range(*match.span())}
    alone = [match for match in _LETTER_ALONE.finditer(text) if match.start() not in initials]
    letters = exact | (_labelled(text, alone[0], options) if alone else set())
    letters = letters or _standing(text, alone)
    return letters.pop() if len(letters) == 1 else ""


def _letters_of(text: str, options: Mapping[str, str]) -> set[str]:
    """Letters of the options with this text."""
    wanted = plain_answer(text)
    return {letter for letter in OPTION_LETTERS if wanted and plain_answer(options.get(letter, "")) == wanted}


def _labelled(text: str, label: regex.Match[str], options: Mapping[str, str]) -> set[str]:
    """The label if its own option's text follows, the label and the others if another's follows, else nothing."""
    # The bracket of the label, "B) ..", and the one around label and text, "(B: ..)", are not part of the text.
    behind = _LABEL_CLOSES.sub("", text[label.end() :], count=1)
    if _OPENS_BRACKET.search(text[: label.start()]):
        letters = _letters_of(_CLOSES_AT_END.sub("", behind[::-1], count=1)[::-1], options)
        if letters:
            return letters | {label[0]}
    letters = _letters_of(behind, options) or _letters_of(behind.lstrip(" \t\n-\u2010\u2011\u2013\u2014"), options)
    return {label[0]} if label[0] in letters else letters | {label[0]} if letters else set()


def _standing(text: str, alone: Sequence[regex.Match[str]]) -> set[str]:
    """Standalone letters; an "A" that may be an article counts only if another letter does."""
    articles = [_may_be_article(text, match) for match in alone]
    letters = {match[0] for match, article in zip(alone, articles, strict=True) if not article}
    # Only the first letter of an answer can be a label, so only the second can be an article after a label.
    uncertain = articles.count(True) - (articles[1:2] == [True] and _is_label(text, alone[0], alone[1]))
    return letters | {"A"} if letters and uncertain else letters


def _may_be_article(text: str, letter: regex.Match[str]) -> bool:
    following = _NEXT_WORD.match(text, letter.end())
    if letter[0] != "A" or following is None or following[1] in _NEVER_AFTER_ARTICLE:
        return False
    return _NAMES_OPTION.search(text, max(0, letter.start() - 10), letter.start()) is None


def _is_label(text: str, letter: regex.Match[str], following: regex.Match[str]) -> bool:
    """Whether a letter opens the answer, introduced or not, as a label of the text after it: "B. A man leaves"."""
    if following.start() - letter.end() > _LONGEST_LABEL_END:
        return False
    opens = _INTRODUCES_LABEL.fullmatch(text, 0, letter.start()) is not None
    return opens and _LABEL_ENDS.fullmatch(text, letter.end(), following.start()) is not None
