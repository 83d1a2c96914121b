"""State of all rows during decoding, and its conversion to a rollout.

Shapes: N responses of at most R tokens, A of them active in a step, S latents, H hidden size.
"""

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from futurel1.models.decoding.protocol import Reasoner
from futurel1.models.decoding.rollout import REASONS, Rollout
from futurel1.models.policies import LatentPolicy

OPENED, CLOSED = 0, 1
"""Kinds of span events."""


@dataclass
class DecodingState:
    """The state machine of all rows, and its output so far.

    Attributes:
        last: (N,) int64, the newest token of each row.
        inside: (N,) bool, whether that token is a latent: the row is inside a span.
        emitted: (N,) int64, number of latents in the newest span.
        span: (N,) int64, 0-based number of the newest span; -1 before the first.
        num_latents: (N,) int64, number of latents in the response.
        reason: (N,) int64, why the row ended, as an index into :data:`REASONS`.
        responses: (N, R) int64, as in :class:`Rollout`.
        response_mask: (N, R) bool, as in :class:`Rollout`.
        log_probs: (N, R) float32, as in :class:`Rollout`.
        chosen: (N, R) bool, `chosen_mask` of :class:`Rollout`.
        slots: (N, R) bool, `slot_mask` of :class:`Rollout`.
        step: 0-based number of the current step.
        latent_rows: per step with latents, the (K,) rows that they belong to.
        latent_values: per step with latents, the (K, H) latents.
        latent_densities: per step with latents, their (K,) log-densities.
        latent_spans: per step with latents, the (K,) spans that they belong to.
        span_notes: (K, 5) span events: row, span, ``OPENED`` or ``CLOSED``, position of START or END, and for
            ``CLOSED`` whether the budget forced it.
    """

    last: Tensor
    inside: Tensor
    emitted: Tensor
    span: Tensor
    num_latents: Tensor
    reason: Tensor
    responses: Tensor
    response_mask: Tensor
    log_probs: Tensor
    chosen: Tensor
    slots: Tensor
    step: int = 0
    latent_rows: list[Tensor] = field(default_factory=list)
    latent_values: list[Tensor] = field(default_factory=list)
    latent_densities: list[Tensor] = field(default_factory=list)
    latent_spans: list[Tensor] = field(default_factory=list)
    span_notes: list[Tensor] = field(default_factory=list)

    @classmethod
    def start(cls, last: Tensor, max_new_tokens: int, pad_token_id: int) -> Self:
        """The state before the first step.

        Args:
            last: (N,) int64, last token of each row's prompt.
            max_new_tokens: R.
            pad_token_id: id that pads responses on the right.
        """
        rows, device = len(last), last.device

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        return cls(
            last=last,
            inside=zeros(rows, dtype=torch.bool),
            emitted=zeros(rows, dtype=torch.int64),
            span=torch.full((rows,), -1, device=device),
            num_latents=zeros(rows, dtype=torch.int64),
            reason=torch.full((rows,), REASONS.index("length"), device=device),
            responses=torch.full((rows, max_new_tokens), pad_token_id, device=device),
            response_mask=zeros(rows, max_new_tokens, dtype=torch.bool),
            log_probs=zeros(rows, max_new_tokens, dtype=torch.float32),
            chosen=zeros(rows, max_new_tokens, dtype=torch.bool),
            slots=zeros(rows, max_new_tokens, dtype=torch.bool),
        )

    def record_latents(self, rows: Tensor, latents: Tensor, log_densities: Tensor) -> None:
        """Record the latents of this step: (K,) their rows, (K, H) values, (K,) float64 log-densities."""
        self.latent_rows.append(rows)
        self.latent_values.append(latents)
        self.latent_densities.append(log_densities)
        self.latent_spans.append(self.span[rows])

    def record_spans(self, active: Tensor, entering: Tensor, ended: Tensor, forced: Tensor) -> None:
        """Record which of the (A,) active rows entered a span before this step, ended one in it, or were forced to."""
        spans = self.span[active]

        def note(where: Tensor, kind: int, position: Tensor, by_force: Tensor) -> None:
            if bool(where.any()):
                columns = (active, spans, torch.full_like(active, kind), position, by_force)
                self.span_notes.append(torch.stack(columns, dim=1)[where])

        start = torch.full_like(active, self.step - 1)
        note(entering, OPENED, start, start)
        note(ended, CLOSED, torch.full_like(active, self.step), forced.long())

    def record_tokens(
        self, active: Tensor, tokens: Tensor, is_latent: Tensor, emitted: Tensor, chosen: Tensor, log_probs: Tensor
    ) -> None:
        """Record the tokens of the (A,) active rows, and advance the state machine.

        Args:
            active: (A,) int64 rows.
            tokens: (A,) int64 new token of each.
            is_latent: (A,) bool, whether the token stands for a latent.
            emitted: (A,) int64, number of latents in the newest span before this step.
            chosen: (A,) bool, whether the model chose the token.
            log_probs: (A,) float32 log-probability of the choice.
        """
        self.responses[active, self.step] = tokens
        self.response_mask[active, self.step] = True
        self.log_probs[active, self.step] = torch.where(chosen, log_probs, 0.0)
        self.chosen[active, self.step] = chosen
        self.slots[active, self.step] = is_latent
        self.last[active] = tokens
        self.inside[active] = is_latent
        self.emitted[active] = torch.where(is_latent, emitted + 1, emitted)
        self.num_latents[active] += is_latent.long()

    def rollout(self, reasoner: Reasoner, num_branches: int, temperature: float, policy: LatentPolicy) -> Rollout:
        """Everything recorded so far, row by row."""
        used = int(self.response_mask.any(dim=0).sum())
        rows, device = len(self.last), self.last.device
        if self.latent_rows:
            row = torch.cat(self.latent_rows)
            order = row.argsort(stable=True)
            row = row[order]
            counts = torch.bincount(row, minlength=rows)
            place = torch.arange(len(row), device=device) - (counts.cumsum(0) - counts)[row]
            width = int(counts.max())
            values = torch.cat(self.latent_values)[order]
        else:
            row = place = torch.zeros(0, dtype=torch.int64, device=device)
            width, order = 0, row
            values = torch.zeros(0, reasoner.hidden_size, dtype=reasoner.backbone.lm_head.weight.dtype, device=device)
        latents = values.new_zeros(rows, width, reasoner.hidden_size)
        latents[row, place] = values
        latent_mask = torch.zeros(rows, width, dtype=torch.bool, device=device)
        latent_mask[row, place] = True
        span_ids = torch.full((rows, width), -1, device=device)
        densities = torch.zeros(rows, width, dtype=torch.float64, device=device)
        if self.latent_rows:
            span_ids[row, place] = torch.cat(self.latent_spans)[order]
            densities[row, place] = torch.cat(self.latent_densities)[order]
        return Rollout(
            responses=self.responses[:, :used],
            response_mask=self.response_mask[:, :used],
            log_probs=self.log_probs[:, :used],
            chosen_mask=self.chosen[:, :used],
            slot_mask=self.slots[:, :used],
            latents=latents,
            latent_mask=latent_mask,
            span_ids=span_ids,
            latent_log_probs=densities,
            span_table=self._span_table(span_ids),
            finish_reasons=[REASONS[code] for code in self.reason.tolist()],
            num_branches=num_branches,
            temperature=temperature,
            policy=policy,
        )

    def _span_table(self, span_ids: Tensor) -> Tensor:
        """(K, 5) spans in order of row and appearance."""
        if not self.span_notes:
            return torch.zeros((0, 5), dtype=torch.int64, device=span_ids.device)
        notes = torch.cat(self.span_notes)
        opened, closed = notes[notes[:, 2] == OPENED], notes[notes[:, 2] == CLOSED]
        # The key of a span combines its row and its number.
        width = int(notes[:, 1].max()) + 1
        opened = opened[(opened[:, 0] * width + opened[:, 1]).argsort()]
        key = opened[:, 0] * width + opened[:, 1]
        latents = torch.bincount(
            (torch.arange(len(span_ids), device=span_ids.device)[:, None] * width + span_ids)[span_ids >= 0],
            minlength=int(key.max()) + 1,
        )[key]
        ends = torch.full((int(key.max()) + 1, 2), -1, device=span_ids.device)
        ends[closed[:, 0] * width + closed[:, 1]] = closed[:, 3:]
        end, forced = ends[key].unbind(dim=1)
        return torch.stack([opened[:, 0], opened[:, 3], latents, end, forced.clamp(min=0)], dim=1)
