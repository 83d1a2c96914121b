"""Options of multiple-choice questions, and the letter that a ground truth means."""

import re
from collections.abc import Mapping

from futurel1.data.record_fields import RecordFields

__all__ = ["gold_letter", "lists_options", "read_options"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_LABEL = re.compile(r"\s*\(?([A-Z])[.):]\s*(?=\S)")
_ANSWER_LABEL = re.compile(r"""[\s*"'(\[]*([A-Z])(?:\s*[)\].:*、]+\s*|\s+[-\u2013\u2014]\s+)(?=\S)""")
_ONLY_LETTERS = re.compile(r"[a-z](?:\W+[a-z])*")


def read_options(fields: RecordFields) -> dict[str, str] | None:
    """Read a record's `options`: letter to text, or a list of texts in the order of letters.

    Labels ("A. up") are removed if every option carries its own; in a list, also if two or more options do and the
    others have none ("All of the above"). Any other leading letter is part of the text, such as an initial.

    Args:
        fields: the record.

    Returns:
        Letter to text, stripped; None where the record has no options.

    Raises:
        RecordError: not such a list or object, a blank text, or labels that are not in the order of the list.
    """
    value = fields.take("options")
    # Parquet gives every row the keys of all rows, and writers keep empty lists for questions without options.
    if isinstance(value, Mapping):
        options = {letter: text for letter, text in value.items() if text is not None}
    elif isinstance(value, list | tuple):
        if len(value) > len(LETTERS):
            fields.fail("options", value, f"{len(value)} options", f"write at most {len(LETTERS)}")
        options = dict(zip(LETTERS, value, strict=False))
    elif value is not None:
        fields.fail("options", value, "neither an object nor a list", "write {A: text, B: text}")
    else:
        options = {}
    for letter, text in options.items():
        if letter not in list(LETTERS):
            fields.fail("options", value, f"{letter!a} is not a letter", "name the options A, B, C and so on")
        fields.check_text(f"options.{letter}", text)
    labels = {letter: label for letter, text in options.items() if (label := _LABEL.match(text))}
    own = all(label[1] == letter for letter, label in labels.items())
    if own and (len(labels) == len(options) or (len(labels) > 1 and not isinstance(value, Mapping))):
        options = {letter: _without_label(letter, text) for letter, text in options.items()}
    elif not isinstance(value, Mapping) and sorted(label[1] for label in labels.values()) == sorted(options):
        fields.fail(
            "options",
            value,
            f"labels in the order {', '.join(label[1] for label in labels.values())}",
            "put the options in the order of their labels, or write {A: text, B: text} if they are no labels",
        )
    return {letter: text.strip() for letter, text in options.items()} or None


def lists_options(problem: str, options: Mapping[str, str]) -> bool:
    """Whether a problem already lists the options: each label followed by its text, in order.

    Letters with a full stop are not enough, because they may be initials.

    Args:
        problem: what is asked.
        options: letter to text.
    """
    items = (
        rf"(?<!\w)\(?{letter}[.):]\s*" + r"\s+".join(map(re.escape, text.rstrip(" .,;").split()))
        for letter, text in options.items()
    )
    return re.search(r"[\s.,;]*".join(items), problem, re.IGNORECASE) is not None


def gold_letter(fields: RecordFields, answer: str, options: Mapping[str, str] | None, problem: str) -> str:
    """The letter that a ground truth means.

    The text of an option takes precedence over a leading letter, because that may be an initial. A leading letter
    counts if the text after it equals its option's text, contains it, or is part of it; texts are compared in their
    plain form (`futurel1.metrics.functional.plain_answer`).

    Args:
        fields: the record, for errors.
        answer: the ground truth: an option's text, a letter, or a letter before its text.
        options: letter to text; None if the record has none.
        problem: the question; if `options` is None, a label is checked against the options listed here, one per line.

    Raises:
        RecordError: `answer` matches no option, matches two, or its label and its text belong to different options.
    """
    from futurel1.metrics.functional.responses import ordinary_text

    letters = LETTERS if options is None else options
    written = ordinary_text(answer)
    label = _ANSWER_LABEL.match(written)
    texts = options or (_listed(problem) if label else {})
    exact = {letter for letter, text in texts.items() if text.strip() == answer.strip()}
    only = _plain(answer).upper()
    alone = {only} if len(only) == 1 and only in letters else set()
    if len(exact) == 1:
        # brackets or a full stop may belong to the option's text, so only a bare letter also counts as a letter
        meant = exact | (alone if answer.strip().upper() == only else set())
    else:
        meant = exact | _with_text(answer, texts) | alone
    if not meant:
        meant = _with_text(answer, {letter: _without_label(letter, text) for letter, text in texts.items()})
    if len(meant) > 1:
        fields.fail(
            "answer",
            fields.values["answer"],
            f"it means several options, {' and '.join(sorted(meant))}",
            "write the letter, or options whose texts differ from each other and from letters",
        )
    if not meant and label and label[1] in letters:
        behind = written[label.end() :]
        if _is_about(behind, label[1], texts) or (
            options is None and not _with_text(behind, texts) and not _ONLY_LETTERS.fullmatch(_plain(behind))
        ):
            meant = {label[1]}
        elif texts:
            fields.fail(
                "answer",
                fields.values["answer"],
                f"its text is not that of option {label[1]}, '{texts.get(label[1], '')}'",
                "write the letter alone, or with the exact text of that option",
            )
    if not meant:
        choices = "A, B, C and so on" if options is None else ", ".join(options)
        fields.fail("answer", fields.values["answer"], "not the letter of an option", f"write one of {choices}")
    return meant.pop()


def _is_about(text: str, letter: str, options: Mapping[str, str]) -> bool:
    """Whether the text after a letter is its option's, or one contains the other and no other option fits better."""
    same = _with_text(text, options)
    if same or letter not in options:
        return letter in same
    plain = {name: _plain(_without_label(name, other)) for name, other in options.items()}
    said, own = _plain(text), plain.pop(letter)
    if said == own:
        return True
    if not said or not own or said in plain.values() or _ONLY_LETTERS.fullmatch(said):
        return False
    if _has_words(said, own):
        return not any(_has_words(said, other) and _has_words(other, own) for other in plain.values())
    return _has_words(own, said) and not any(_has_words(other, said) for other in plain.values())


def _has_words(text: str, words: str) -> bool:
    """Whether a text contains another one as whole words."""
    return bool(words) and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def _with_text(text: str, options: Mapping[str, str]) -> set[str]:
    """Letters of the options whose text equals `text` in plain form."""
    plain = _plain(text)
    return {letter for letter, other in options.items() if plain and _plain(other) == plain}


def _without_label(letter: str, text: str) -> str:
    """An option's text without the label of its own letter."""
    label = _LABEL.match(text)
    return text[label.end() :] if label and label[1] == letter else text


def _plain(text: str) -> str:
    """The form in which the metrics compare answers."""
    # imported here, because metrics and data load without each other
    from futurel1.metrics.functional.responses import plain_answer

    return plain_answer(text)


def _listed(problem: str) -> dict[str, str]:
    """Options that a problem lists, one per line, labelled from A on."""
    lines = [(label[1], line[label.end() :]) for line in problem.splitlines() if (label := _LABEL.match(line))]
    return dict(lines) if [letter for letter, _ in lines] == list(LETTERS[: len(lines)]) else {}
