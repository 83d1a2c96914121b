"""Answers of responses, brought to one form, and votes over the responses to one prompt."""

from collections import Counter
from collections.abc import Mapping, Sequence

from futurel1.metrics.functional.futurebench import OPTION_LETTERS, extract_option
from futurel1.metrics.functional.responses import extract_answer, plain_answer, sanitize_response

__all__ = ["answer_of", "elect", "expected_answer", "vote"]


def answer_of(text: str, options: Mapping[str, str] | None = None) -> str:
    """The answer of a response; "" for none.

    With options it is a letter: for A to D by the strict protocol of FutureBench, for other sets of letters the letter
    itself or the exact text of an option. Without, it is the text in `<answer>`, free of latent and chat tokens.
    """
    if options and set(options) <= set(OPTION_LETTERS):
        return extract_option(text, "strict", options=options)
    answer = extract_answer(sanitize_response(text)).strip()
    if not options:
        return answer
    by_name = {plain_answer(value): letter for letter, value in options.items()}
    by_name |= {plain_answer(letter): letter for letter in options}
    plain = plain_answer(answer)
    # An option of signs alone has no plain form, and neither has a missing answer.
    return by_name.get(plain, "") if plain else ""


def expected_answer(answer: str | None, options: Mapping[str, str] | None = None) -> str | None:
    """A ground truth as :func:`answer_of` writes answers: a letter, be it given as one or as an option's text."""
    return answer if answer is None else answer_of(f"<answer>{answer}</answer>", options) or answer


def vote(texts: Sequence[str], options: Mapping[str, str] | None = None) -> dict[str, float]:
    """Share of responses per answer, most frequent first; no answer comes last, and ties keep their first appearance.

    Args:
        texts: responses of one prompt.
        options: letters and texts of a multiple-choice question.

    Returns:
        Answer, as it was first written, to share; answers with the same `plain_answer` are one.
    """
    answers = [answer_of(text, options) for text in texts]
    first: dict[str, str] = {}
    for answer in answers:
        first.setdefault(plain_answer(answer), answer)
    counts = Counter(plain_answer(answer) for answer in answers)
    ranked = sorted(counts.items(), key=lambda item: (item[0] == "", -item[1]))
    return {first[key]: count / len(texts) for key, count in ranked}


def elect(texts: Sequence[str], options: Mapping[str, str] | None = None) -> tuple[int, dict[str, float]]:
    """The place of the response that stands for a prompt, the first that gave the answer which won, and the votes."""
    votes = vote(texts, options)
    best = plain_answer(next(iter(votes)))
    return next(place for place, text in enumerate(texts) if plain_answer(answer_of(text, options)) == best), votes
