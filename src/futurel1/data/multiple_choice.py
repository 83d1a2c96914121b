"""Options of multiple-choice questions, and the letter that a ground truth means."""

import re
from collections.abc import Mapping

from futurel1.data.records import RecordFields

__all__ = ["gold_letter", "lists_options", "read_options"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_ONLY_LETTER = re.compile(r"\W*([A-Za-z])\W*")
_LABEL = re.compile(r"\s*\(?([A-Z])[.):]\s*(?=\S)")


def read_options(fields: RecordFields) -> dict[str, str] | None:
    """Read a record's `options`: letter to text, or a list of texts in the order of letters.

    Labels ("A. up") are taken off if every option carries its own: where only some of them begin with a letter, that is
    part of the text, such as an initial.

    Args:
        fields: the record.

    Returns:
        Letter to text, stripped; None where the record has no options.

    Raises:
        RecordError: not such a list or object, a blank text, or labels in another order than that of the list.
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
    if len(labels) == len(options):
        stated = [label[1] for label in labels.values()]
        if stated == list(options):
            options = {letter: text[labels[letter].end() :] for letter, text in options.items()}
        elif sorted(stated) == sorted(options):
            fields.fail(
                "options",
                value,
                f"labels in the order {', '.join(stated)}",
                "put the options in the order of their labels, or write {A: text, B: text} if they are no labels",
            )
    return {letter: text.strip() for letter, text in options.items()} or None


def lists_options(problem: str, options: Mapping[str, str]) -> bool:
    """Whether a problem lists the options itself: each text behind its label, one after the other.

    That letters with a full stop occur somewhere is not enough, for they may be initials.

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

    The exact text of an option goes before the letter that it begins with, because that may be an initial.

    Args:
        fields: the record, for errors.
        answer: the ground truth: an option's text, a letter, or a letter before its text.
        options: letter to text; None where the record does not say.
        problem: what is asked; where `options` is None, a label is compared with the options that it lists, one a line.

    Raises:
        RecordError: it is no option's letter or text, it means two of them, or its label is not that of its text.
    """
    letters = LETTERS if options is None else options
    only, label = _ONLY_LETTER.fullmatch(answer), _LABEL.match(answer)
    texts = options or (_listed(problem) if label else {})
    meant = {letter for letter, text in texts.items() if text == answer} or _with_text(answer, texts)
    if only and only[1].upper() in letters:
        meant |= {only[1].upper()}
    if len(meant) > 1:
        fields.fail(
            "answer",
            fields.values["answer"],
            f"it means several options, {' and '.join(sorted(meant))}",
            "write the letter, or options whose texts differ from each other and from letters",
        )
    if not meant and label and label[1] in letters:
        behind = _with_text(answer[label.end() :], texts)
        if label[1] in behind or (options is None and not behind):
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


def _with_text(text: str, options: Mapping[str, str]) -> set[str]:
    """Letters of the options with a text."""
    return {letter for letter, other in options.items() if _plain(other) == _plain(text)}


def _plain(text: str) -> str:
    """A text without differences of blanks, case and a closing full stop."""
    return " ".join(text.split()).removesuffix(".").rstrip().casefold()


def _listed(problem: str) -> dict[str, str]:
    """Options that a problem lists, one a line, labelled from A on."""
    lines = [(label[1], line[label.end() :]) for line in problem.splitlines() if (label := _LABEL.match(line))]
    return dict(lines) if [letter for letter, _ in lines] == list(LETTERS[: len(lines)]) else {}
