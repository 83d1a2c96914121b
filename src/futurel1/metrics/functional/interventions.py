"""Effect of do(z): the same questions answered with and without the model's own latents."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from futurel1.errors import RecordError
from futurel1.metrics.functional.responses import plain_answer

__all__ = ["intervention_effect"]

FRAME = re.compile(r"\[imagined frame (\d+): \d+ latents?\]")


def intervention_effect(
    base: Sequence[Mapping[str, Any]], changed: Sequence[Mapping[str, Any]]
) -> dict[str, float | int]:
    """Compare predictions under an intervention on the latents with those without.

    Args:
        base: records of `futurel1 predict` with `id`, `response`, `answer` and `expected`, without intervention.
        changed: records of the same samples, in any order, with latents replaced or removed.

    Returns:
        `accuracy_base` and `accuracy` in 0 to 1, where an answer is right if its `plain_answer` is that of the expected
        one; `drop`, the first minus the second; `right_to_wrong` and `wrong_to_right`, numbers of samples;
        `changed_text`, share of responses whose text differs apart from numbers of latents (below 0.05, the
        intervention hardly affects the text); `n`, number of samples.

    Raises:
        RecordError: no records, a missing field, a repeated id, or ids or expected answers that differ between the two.

    Example:
        >>> base = [{"id": "a", "response": "x", "answer": "A", "expected": "A"}]
        >>> changed = [{"id": "a", "response": "y", "answer": "B", "expected": "A"}]
        >>> intervention_effect(base, changed)["right_to_wrong"]
        1
    """
    one, other = _by_id(base, "base"), _by_id(changed, "changed")
    if one.keys() != other.keys():
        raise RecordError(
            "base and changed have to be predictions of the same samples: only in base are "
            f"{sorted(one.keys() - other.keys())[:3]} ({len(one.keys() - other.keys())} in all), only in changed "
            f"{sorted(other.keys() - one.keys())[:3]} ({len(other.keys() - one.keys())} in all)"
        )
    if not one:
        raise RecordError("there are no predictions to compare")
    for name, record in one.items():
        if record["expected"] != other[name]["expected"]:
            raise RecordError(
                f"{name!r} is expected to be {record['expected']!r} in base and {other[name]['expected']!r} in changed"
            )
    right = [(_is_right(record), _is_right(other[name])) for name, record in one.items()]
    texts = [_text(record) != _text(other[name]) for name, record in one.items()]
    n = len(right)
    lost, won = right.count((True, False)), right.count((False, True))
    return {
        "accuracy": sum(after for _, after in right) / n,
        "accuracy_base": sum(before for before, _ in right) / n,
        "drop": (lost - won) / n,
        "right_to_wrong": lost,
        "wrong_to_right": won,
        "changed_text": sum(texts) / n,
        "n": n,
    }


def _by_id(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for number, record in enumerate(records, 1):
        missing = [key for key in ("id", "response", "answer", "expected") if record.get(key) is None]
        if missing:
            raise RecordError(f"{name}, record {number} ({record.get('id')!r}) has no {', '.join(missing)}")
        if str(record["id"]) in found:
            raise RecordError(f"{name} has {record['id']!r} twice, again as record {number}")
        found[str(record["id"])] = record
    return found


def _is_right(record: Mapping[str, Any]) -> bool:
    answer = plain_answer(str(record["answer"]))
    return bool(answer) and answer == plain_answer(str(record["expected"]))


def _text(record: Mapping[str, Any]) -> str:
    # The number of latents in a frame may come from the intervention ("markers"), not from the model.
    return FRAME.sub(r"[imagined frame \1]", str(record["response"]))
