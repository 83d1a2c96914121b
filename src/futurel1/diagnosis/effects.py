"""What replacing the latents does to the answers: accuracy, answers that moved, and answers of another future."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from futurel1.metrics.functional import Difference, intervention_effect, is_right, paired_bootstrap, plain_answer

__all__ = ["Effect", "effect_of"]

Prediction = Mapping[str, Any]


@dataclass(frozen=True)
class Effect:
    """Answers to the same questions with replaced latents, and what differs from those with the model's own.

    Attributes:
        name: what replaced the latents; ``none`` for the model's own.
        total: questions.
        right: right answers.
        moved: answers that differ from those with the model's own latents.
        changed_text: share of responses whose text differs.
        difference: accuracy minus that with the model's own latents, over the same questions; None for its own.
        followed: answers that are right in the other future; None where questions have none.
        gain: their share minus that with the model's own latents; None for its own, or without another future.
        own_latents: latents that stayed the model's own, because no known frame belongs to them.
        control: the replacement without content under which most answers are right in the other future; "" for none.
        over_control: `followed` as a share, minus that under the control.
        per_question: number of each question from 0, whether its answer is right, and whether it is right in the other
            future (None where questions have none).
    """

    name: str
    total: int
    right: int
    moved: int = 0
    changed_text: float = 0.0
    difference: Difference | None = None
    followed: int | None = None
    gain: Difference | None = None
    own_latents: int = 0
    control: str = ""
    over_control: Difference | None = None
    per_question: tuple[tuple[int, bool, bool | None], ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right / self.total


def effect_of(
    name: str,
    base: Sequence[Prediction],
    changed: Sequence[Prediction] | None = None,
    controls: Mapping[str, Sequence[Prediction]] = MappingProxyType({}),
) -> Effect:
    """Compare predictions under an intervention with those with the model's own latents.

    Args:
        name: the intervention.
        base: predictions with the model's own latents, with known answers.
        changed: predictions for the same questions under the intervention; None: describe `base` itself.
        controls: by intervention, predictions with latents that say nothing of any future. Without latents to read, a
            model may still give the other future's answer, for example because nothing seems to move.

    Raises:
        RecordError: no predictions, predictions of different questions, or without a known answer.
    """
    after = {str(line["id"]): line for line in (base if changed is None else changed)}
    compared = intervention_effect(base, list(after.values()))
    pairs = [(line, after[str(line["id"])]) for line in base]
    right, right_before = (_shares([is_right(pair[side]) for pair in pairs]) for side in (1, 0))
    moved = sum(plain_answer(str(one["answer"])) != plain_answer(str(other["answer"])) for one, other in pairs)
    followed = gain = over_control = None
    other: list[bool | None] = [None] * len(pairs)
    control = ""
    if all(line.get("counterfactual") is not None for line in base):
        follows, before = (_shares([_follows(pair[side], pair[0]) for pair in pairs]) for side in (1, 0))
        other = [bool(one) for one in follows[0]]
        followed = int(follows.sum())
        gain = None if changed is None else paired_bootstrap(follows, before)
        shares = {kind: _shares(_all_follow(lines, base)) for kind, lines in controls.items()}
        if shares:
            control = max(shares, key=lambda kind: float(shares[kind].sum()))
            over_control = paired_bootstrap(follows, shares[control])
    return Effect(
        name=name,
        total=len(pairs),
        right=int(right.sum()),
        moved=moved,
        changed_text=float(compared["changed_text"]),
        difference=None if changed is None else paired_bootstrap(right, right_before),
        followed=followed,
        gain=gain,
        own_latents=sum(int(line.get("own_latents") or 0) for line in after.values()),
        control=control,
        over_control=over_control,
        per_question=tuple(zip(range(len(pairs)), map(bool, right[0]), other, strict=True)),
    )


def _shares(values: Sequence[bool]) -> NDArray[np.float64]:
    """(1, questions), as the bootstrap takes a single run."""
    return np.array([values], dtype=np.float64)


def _all_follow(lines: Sequence[Prediction], questions: Sequence[Prediction]) -> list[bool]:
    """Whether each question's answer among these is the one that is right in its other future."""
    by_id = {str(line["id"]): line for line in lines}
    return [_follows(by_id[str(question["id"])], question) for question in questions]


def _follows(prediction: Prediction, question: Prediction) -> bool:
    """Whether an answer is the one that is right in the question's other future."""
    answer = plain_answer(str(prediction["answer"]))
    return bool(answer) and answer == plain_answer(str(question["counterfactual"]))
