"""Answers of responses in a common form, and votes over the responses to one prompt."""

from collections import Counter
from collections.abc import Mapping, Sequence

from futurel1.metrics.functional.futurebench import OPTION_LETTERS, extract_option
from futurel1.metrics.functional.responses import extract_answer, plain_answer, sanitize_response

__all__ = ["answer_of", "elect", "elect_each", "expected_answer", "vote"]


def answer_of(text: str, options: Mapping[str, str] | None = None) -> str:
    """The answer of a response; "" without one.

    With options it is a letter: options A to D are read by the strict protocol of FutureBench, other sets of letters by
    the letter itself or the exact text of an option. Without options it is the text in `<answer>`, without latent and
    chat tokens.
    """
    if options and set(options) <= set(OPTION_LETTERS):
        return extract_option(text, "strict", options=options)
    answer = extract_answer(sanitize_response(text)).strip()
    if not options:
        return answer
    by_name = {plain_answer(value): letter for letter, value in options.items()}
    by_name |= {plain_answer(letter): letter for letter in options}
    plain = plain_answer(answer)
    # The plain form of a missing answer is empty, and so is that of an option made only of punctuation.
    return by_name.get(plain, "") if plain else ""


def expected_answer(answer: str | None, options: Mapping[str, str] | None = None) -> str | None:
    """A ground truth in the form of :func:`answer_of`: a letter, whether given as a letter or as an option's text."""
    return answer if answer is None else answer_of(f"<answer>{answer}</answer>", options) or answer


def vote(texts: Sequence[str], options: Mapping[str, str] | None = None) -> dict[str, float]:
    """Share of responses per answer, most frequent first; ties are in order of appearance, and "no answer" is last.

    Args:
        texts: responses of one prompt.
        options: letters and texts of a multiple-choice question.

    Returns:
        Mapping from answer, as it was first written, to share; answers with the same `plain_answer` count as one.
    """
    answers = [answer_of(text, options) for text in texts]
    first: dict[str, str] = {}
    for answer in answers:
        first.setdefault(plain_answer(answer), answer)
    counts = Counter(plain_answer(answer) for answer in answers)
    ranked = sorted(counts.items(), key=lambda item: (item[0] == "", -item[1]))
    return {first[key]: count / len(texts) for key, count in ranked}


def elect(texts: Sequence[str], options: Mapping[str, str] | None = None) -> tuple[int, dict[str, float]]:
    """The index of a prompt's elected response, which is the first with the winning answer, and the votes."""
    votes = vote(texts, options)
    best = plain_answer(next(iter(votes)))
    return next(place for place, text in enumerate(texts) if plain_answer(answer_of(text, options)) == best), votes


def elect_each(
    texts: Sequence[str], branches: int, options: Sequence[Mapping[str, str] | None]
) -> list[tuple[int, dict[str, float]]]:
    """Vote over the branches of each prompt.

    Args:
        texts: B * `branches` responses, those of a prompt next to each other.
        branches: responses per prompt.
        options: of each of the B prompts, letters and texts of its options; None for an open question.

    Returns:
        Of each prompt, the row of the response that stands for it, and the votes, most frequent first.
    """
    elected = []
    for prompt, choices in enumerate(options):
        first = prompt * branches
        place, votes = elect(texts[first : first + branches], choices)
        elected.append((first + place, votes))
    return elected
