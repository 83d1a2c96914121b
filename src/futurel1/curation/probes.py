"""The two probes of a candidate: can it be answered from the observed frames, and with the hint frames added?"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import Dataset

from futurel1.curation.results import MAX_ROLLOUTS, ProbeResult
from futurel1.data import Frame, PromptBatch, RecordSource, Sample, parse_record
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import Fetched, OnError
from futurel1.data.encoded import EncodedSample
from futurel1.data.prompts import PromptCollator, parse_prompt
from futurel1.errors import ConfigError, FutureL1Error
from futurel1.models import LatentReasoner
from futurel1.models.decoding import PromptSource
from futurel1.models.transcript import transcripts
from futurel1.rewards import AccuracyReward, RewardInputs
from futurel1.rollout import SamplingSettings

__all__ = ["Candidate", "CandidateDataset", "Prober", "Respond", "SampledResponses", "with_hints"]

Respond = Callable[[Iterable[PromptBatch]], Iterator[list[str]]]
"""Answers each of the B prompts of a batch G times, batch after batch; yields B * G texts, with those of a prompt next
to each other. It may read some batches ahead."""

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
    base: EncodedSample
    hint: EncodedSample


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


class CandidateDataset(Dataset[Candidate | ProbeResult]):
    """Candidates by record number, or final results for records that need no probe.

    Args:
        source: the records, as stored.
        encoder: turns prompts into tensors.
        data_root: if given, media outside this folder are refused.
        on_error: ``raise``: a record that cannot be read stops the run; ``skip``: it gives a result ``skipped``.
    """

    def __init__(
        self, source: RecordSource, encoder: ChatEncoder, *, data_root: Path | None = None, on_error: OnError = "raise"
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


class SampledResponses:
    """Samples responses of a reasoner; they depend on the seed and the record, but not on the batch or the shard.

    The two prompts of a record share a name and thus their random numbers, which removes noise from the gain.

    Args:
        reasoner: any model that :meth:`LatentReasoner.from_pretrained` loads.
        sampling: how responses are sampled.
        rollouts: responses per prompt.
        slots: prompts that are decoded at once, unless `sampling` has a number.

    Raises:
        ConfigError: `rollouts` is below 1 or above `MAX_ROLLOUTS`.
    """

    def __init__(
        self, reasoner: LatentReasoner, sampling: SamplingSettings, *, rollouts: int = 8, slots: int = 4
    ) -> None:
        if not 1 <= rollouts <= MAX_ROLLOUTS:
            raise ConfigError(f"rollouts must be from 1 to {MAX_ROLLOUTS}, got {rollouts}")
        self.reasoner = reasoner
        self.sampling = sampling
        self.rollouts = rollouts
        self.slots = slots

    def __call__(self, prompts: Iterable[PromptBatch]) -> Iterator[list[str]]:
        """Answer every prompt `rollouts` times; all of them wait in one queue."""
        sources = (PromptSource(prompt.to(self.reasoner.device), self.sampling.seed) for prompt in prompts)
        settings = {**self.sampling.arguments(), "slots": self.sampling.slots or self.slots}
        for rollout in self.reasoner.generate_each(sources, num_branches=self.rollouts, do_sample=True, **settings):
            yield [text.text for text in transcripts(rollout, self.reasoner.tokenizer)]


class Prober:
    """Probes candidates and counts correct responses.

    Args:
        respond: answers prompts.
        pad_token_id: id that fills the padding of prompts.
        reward: 1 for a correct response, NaN without a verdict.
    """

    def __init__(self, respond: Respond, pad_token_id: int, reward: AccuracyReward | None = None) -> None:
        self._respond = respond
        self._collate = PromptCollator(pad_token_id)
        self._reward = reward or AccuracyReward()

    def __call__(self, batches: Iterable[Sequence[Candidate | ProbeResult]]) -> Iterator[list[ProbeResult]]:
        """Probe a stream of batches.

        Args:
            batches: candidates, and results that need no probe.

        Yields:
            For each batch, one result for each of its items, in the same order.

        Raises:
            JudgeError: the endpoint refuses the calls, or too many of them fail.
        """
        waiting: deque[Sequence[Candidate | ProbeResult]] = deque()

        def prompts() -> Iterator[PromptBatch]:
            for batch in batches:
                waiting.append(batch)
                candidates = [item for item in batch if isinstance(item, Candidate)]
                if candidates:
                    yield self._collate([Fetched([candidate.base for candidate in candidates], [])])
                    yield self._collate([Fetched([candidate.hint for candidate in candidates], [])])

        texts = self._respond(prompts())
        for base in texts:
            while not any(isinstance(item, Candidate) for item in waiting[0]):
                yield _known(waiting.popleft())
            yield self._results(waiting.popleft(), [*base, *next(texts)])
        yield from map(_known, waiting)

    def _results(self, batch: Sequence[Candidate | ProbeResult], texts: Sequence[str]) -> list[ProbeResult]:
        """Results of a batch, given the texts of all its base prompts and then of all its hint prompts."""
        candidates = [item for item in batch if isinstance(item, Candidate)]
        rollouts = len(texts) // (2 * len(candidates))
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
        found = iter(results)
        return [next(found) if isinstance(item, Candidate) else item for item in batch]


def _known(batch: Sequence[Candidate | ProbeResult]) -> list[ProbeResult]:
    """Results that need no probe."""
    return [item for item in batch if isinstance(item, ProbeResult)]
