"""The two probes of a candidate: can it be answered from the observed frames, and with the hint frames added?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from futurel1.curation.results import ProbeResult
from futurel1.data import Frame, RecordSource, Sample, parse_record
from futurel1.data.collate import OnError
from futurel1.data.prompts import parse_prompt
from futurel1.engines import Answers, Block, Engine, Unanswered
from futurel1.engines.base import Prompt, PromptEncoder
from futurel1.errors import FutureL1Error, RecordError
from futurel1.models.transcript import Transcript
from futurel1.rewards import AccuracyReward, RewardInputs

__all__ = ["Candidate", "CandidateDataset", "Prober", "with_hints"]

Responses = tuple[Transcript, ...]
_LABEL = re.compile(r"(?:^|\n)\s*frame_(\d+)\s*$")


@dataclass(frozen=True)
class Candidate:
    """A record with hints, ready to be probed.

    Attributes:
        number: position in the source, from 0.
        hints: number of hint frames.
        question: the question, for the judge.
        answer: the right answer.
        base: the prompt with the observed frames.
        hint: the prompt with the observed and the hint frames.
    """

    number: int
    hints: int
    question: str
    answer: str
    base: Prompt
    hint: Prompt


def with_hints(prompt: Sample, hints: Sequence[Frame]) -> Sample:
    """Append hint frames to the observed frames of a prompt.

    If the observed frames are labelled (`frame_3` before the third of the pool), the hints get labels too: frames of a
    pool by their index in it, others by counting on.

    Args:
        prompt: the turns before the response, with at least one observed frame.
        hints: future frames, in order.
    """
    places = [
        (turn, part)
        for turn, said in enumerate(prompt.turns)
        for part, what in enumerate(said.parts)
        if isinstance(what, Frame)
    ]
    turn, last = places[-1]
    parts = prompt.turns[turn].parts
    before = parts[last - 1] if last else None
    label = _LABEL.search(before) if isinstance(before, str) else None
    added: list[str | Frame] = []
    for step, hint in enumerate(hints, 1):
        if label:
            added.append(f"frame_{hint.pool_index or int(label[1]) + step}")
        added.append(hint)
    shown = replace(prompt.turns[turn], parts=(*parts[: last + 1], *added, *parts[last + 1 :]))
    return replace(prompt, turns=(*prompt.turns[:turn], shown, *prompt.turns[turn + 1 :]))


@dataclass(frozen=True)
class _Named:
    """What is left of a prompt in the items of its block."""

    sample_id: str


class CandidateDataset(Dataset[Candidate | ProbeResult]):
    """Candidates by record number, or final results for records that need no probe.

    Args:
        source: the records, as stored.
        encoder: makes the prompts that the engine takes.
        data_root: if given, media outside this folder are refused.
        on_error: ``raise``: a record that cannot be read stops the run; ``skip``: it gives a result ``skipped``.
    """

    def __init__(
        self,
        source: RecordSource,
        encoder: PromptEncoder[Any],
        *,
        data_root: Path | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self.source = source
        self.encoder = encoder
        self.data_root = data_root
        self.on_error = on_error

    def __getitem__(self, number: int) -> Candidate | ProbeResult:
        try:
            return self._candidate(number)
        except FutureL1Error as error:
            if self.on_error == "raise":
                raise
            return ProbeResult(number, self.source.id(number), "skipped", reason=f"{type(error).__name__}: {error}")

    def _candidate(self, number: int) -> Candidate | ProbeResult:
        record = self.source.raw(number)
        place = {"file": record.name, "number": record.number, "folder": record.folder}
        hints = parse_record(record.raw, **place, data_root=self.data_root, check_files=False).hints  # type: ignore[arg-type]
        if not hints:
            return ProbeResult(number, self.source.id(number), "no_hints")
        prompt = parse_prompt(record, data_root=self.data_root)
        return Candidate(
            number=number,
            hints=len(hints),
            question=str(prompt.info.question),
            answer=str(prompt.info.answer),
            base=self.encoder.encode_prompt(prompt),
            hint=self.encoder.encode_prompt(with_hints(prompt, hints)),
        )


class Prober:
    """Probes candidates and counts correct responses.

    Args:
        engine: answers prompts.
        reward: 1 for a correct response, NaN without a verdict.
        on_error: ``raise``: a prompt that the engine refuses stops the run; ``skip``: it gives a result ``skipped``.
    """

    def __init__(
        self, engine: Engine[Any], reward: AccuracyReward | None = None, *, on_error: OnError = "raise"
    ) -> None:
        self._engine = engine
        self._reward = reward or AccuracyReward()
        self._on_error = on_error

    def run(
        self, candidates: Any, numbers: Iterable[Sequence[int]], *, num_workers: int = 0
    ) -> Iterator[list[ProbeResult]]:
        """Probe blocks of candidates.

        Args:
            candidates: candidates by number, and results that need no probe.
            numbers: the numbers of each block.
            num_workers: processes that decode video.

        Yields:
            The results of each block, in the order of its numbers.

        Raises:
            EndpointError: a judge or a server refuses the calls, or too many of them fail.
            RecordError: the engine refuses a prompt, and `on_error` is ``raise``.
        """
        for items, rounds in self._engine.run(candidates, numbers, _as_block, num_workers=num_workers):
            found = iter(self._results([item for item in items if isinstance(item, Candidate)], rounds))
            yield [next(found) if isinstance(item, Candidate) else item for item in items]

    def _results(self, candidates: Sequence[Candidate], rounds: Sequence[Sequence[Answers]]) -> list[ProbeResult]:
        """Count what is right in the answers to both probes of each candidate."""
        results: list[ProbeResult | None] = []
        answered: list[tuple[Candidate, Responses, Responses]] = []
        for candidate, base, hint in zip(candidates, *rounds, strict=True):
            if isinstance(base, Unanswered) or isinstance(hint, Unanswered):
                results.append(self._unanswered(candidate, base if isinstance(base, Unanswered) else hint))
            else:
                results.append(None)
                answered.append((candidate, base, hint))
        counted = iter(self._counted(answered) if answered else ())
        return [next(counted) if result is None else result for result in results]

    def _unanswered(self, candidate: Candidate, why: Any) -> ProbeResult:
        if why.refused and self._on_error == "raise":
            raise RecordError(f"{why.reason} Or leave such records out by prompts.on_error skip")
        status: Any = "skipped" if why.refused else "failed"
        hints = 0 if why.refused else candidate.hints
        return ProbeResult(candidate.number, candidate.base.sample_id, status, hints, reason=why.reason)

    def _counted(self, answered: Sequence[tuple[Candidate, Responses, Responses]]) -> list[ProbeResult]:
        candidates = [candidate for candidate, _, _ in answered]
        rollouts = len(answered[0][1])
        probes = [base for _, base, _ in answered] + [hint for _, _, hint in answered]
        texts = [response.text for responses in probes for response in responses]
        asked = [candidate for _ in range(2) for candidate in candidates for _ in range(rollouts)]
        scores = self._reward(
            RewardInputs(
                responses=texts,
                answers=[candidate.answer for candidate in asked],
                problems=[candidate.question for candidate in asked],
                group_ids=torch.arange(2 * len(candidates)).repeat_interleave(rollouts),
                response_lengths=torch.zeros(len(texts), dtype=torch.int64),  # not used by the reward
            )
        ).view(2, len(candidates), rollouts)
        unknown = scores.isnan().sum(dim=(0, 2)).tolist()
        right = (scores == 1).sum(dim=2).tolist()
        results = []
        for candidate, missing, base, hint in zip(candidates, unknown, *right, strict=True):
            result = ProbeResult(candidate.number, candidate.base.sample_id, "probed", candidate.hints, base, hint)
            if missing:
                reason = f"no verdict on {missing} of {2 * rollouts} responses"
                result = replace(result, status="failed", base=0, hint=0, reason=reason)
            results.append(result)
        return results


def _as_block(items: list[Candidate | ProbeResult]) -> Block[Any]:
    """A block whose prompts without hints are decoded together, and then those with hints."""
    candidates = [item for item in items if isinstance(item, Candidate)]
    rounds = (tuple(each.base for each in candidates), tuple(each.hint for each in candidates))
    shown = [
        replace(item, base=_Named(item.base.sample_id), hint=_Named(item.hint.sample_id))
        if isinstance(item, Candidate)
        else item
        for item in items
    ]
    return Block(shown, rounds)
