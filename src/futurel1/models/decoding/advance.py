"""One step of the state machine of interleaved decoding (Future-L1, arXiv 2606.05769, Section 3).

Everything has a fixed shape and nothing waits for the device, so that a step can be compiled as a whole and replayed as
a CUDA graph. Only an intervention is called with the rows that need it.

Shapes: A rows, H hidden size, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from futurel1.errors import ConfigError
from futurel1.models.decoding.decoding_settings import DecodingSettings
from futurel1.models.decoding.protocol import Reasoner
from futurel1.models.decoding.rollout import REASONS
from futurel1.models.decoding.rows import NOT_BAD, Rows
from futurel1.models.decoding.scoring import continue_log_prob
from futurel1.models.interventions import LatentPlaces
from futurel1.models.noise import RowNoise

EOS = REASONS.index("eos")


class Emitted(NamedTuple):
    """What a step emitted.

    Attributes:
        going: (A,) bool, rows that were not done before the step; nothing is emitted in others.
        tokens: (A,) int64 tokens.
        is_latent: (A,) bool, whether the token stands for a latent.
        latents: (A, H) latents, of which only those of `is_latent` count; None if no row can be inside a span.
        densities: (A,) float64 log-densities of the latents; None without latents.
    """

    going: Tensor
    tokens: Tensor
    is_latent: Tensor
    latents: Tensor | None
    densities: Tensor | None

    def copy(self) -> "Emitted":
        """The same, in memory of its own: the next replay of a CUDA graph overwrites its outputs."""
        latents, densities = (None if part is None else part.clone() for part in (self.latents, self.densities))
        return Emitted(self.going.clone(), self.tokens.clone(), self.is_latent.clone(), latents, densities)


def may_be_latent(reasoner: Reasoner, rows: Rows) -> Tensor:
    """(A,) bool, rows that are inside a span in their next step, so that it may emit a latent."""
    return (rows.inside | (rows.last == reasoner.tokens.start_id)) & ~rows.done


def latent_noise(settings: DecodingSettings, rows: Rows, wanted: Tensor, steps: int, width: int) -> Tensor:
    """Random numbers of the latents of the next steps, ahead of time.

    They depend on a row's key and step and on nothing that the model computes, and how long it takes to find them
    varies, so they are no part of a step. A row's numbers do not depend on the other rows, and inverted keys keep them
    apart from those of its tokens.

    Args:
        settings: how latents are sampled.
        rows: A rows.
        wanted: (A,) bool, rows that need them; others get zeros.
        steps: number of steps.
        width: H.

    Returns:
        (steps, A, D) float64, where D is up to the policy.
    """
    at = wanted.nonzero()[:, 0]
    keys = (rows.key[at] ^ -1).repeat(steps)
    ahead = torch.arange(steps, device=at.device).repeat_interleave(len(at))
    numbers = settings.latent_policy.draw(RowNoise(keys, rows.step[at].repeat(steps) + ahead), width)
    noise = numbers.new_zeros(steps, len(rows), numbers.shape[-1])
    noise[:, at] = numbers.view(steps, len(at), numbers.shape[-1])
    return noise


def advance(
    reasoner: Reasoner, settings: DecodingSettings, eos: Tensor, rows: Rows, hidden: Tensor, noise: Tensor | None
) -> Emitted:
    """Choose the next token of every row, and its latent inside a span; changes `rows`.

    Args:
        reasoner: the model.
        settings: how responses are decoded.
        eos: (E,) int64 ids that end a response.
        rows: A rows.
        hidden: (A, H) hidden states that predict the next position.
        noise: (A, D) random numbers of the latents, see :func:`latent_noise`; None: no row is inside a span.
    """
    tokens, budget, sampling = reasoner.tokens, settings.budget, settings.sampling
    # 1. Every row picks a token.
    logits = reasoner.logits(hidden).float()
    logits = logits if sampling.scale == 1 else logits / sampling.scale
    picked = sampling.pick(logits, rows.uniform.gather(1, rows.step[:, None]))

    # 2. START opens a span. Only END ends it: when it is picked (ignored by a fixed budget), or by force when the
    # budget is spent. Any other pick is a latent inside a span, and text outside.
    going = ~rows.done
    opens = rows.last == tokens.start_id
    rows.spans.add_(opens & going)
    open_span = rows.inside | opens
    spent = rows.emitted >= budget.latents
    full = open_span & spent
    closing = full if budget.kind == "fixed" else open_span & (spent | (picked == tokens.end_id))
    is_latent = (open_span ^ closing) & going
    token = picked.masked_fill(is_latent, tokens.latent_id).masked_fill(closing, tokens.end_id)

    # 3. Separate the model's choices from forced tokens.
    chosen = ~full
    if budget.kind == "fixed":
        chosen = chosen & ~is_latent
    if settings.force_start:
        forced_start = (rows.step == 0) & ~open_span
        token = token.masked_fill(forced_start, tokens.start_id)
        chosen = chosen & ~forced_start

    # 4. Take the log-probability of each choice; at a latent the choice is to continue.
    log_probs = logits.log_softmax(dim=-1)
    log_prob = log_probs.gather(1, token[:, None])[:, 0]
    bad = log_prob.isnan() | (log_prob.isneginf() & chosen)  # a logit is NaN or infinite

    # 5. Sample the latents.
    latents = densities = None
    if noise is not None:
        log_prob = torch.where(is_latent, continue_log_prob(log_probs, tokens.end_id), log_prob)
        mu = reasoner.predict_latents(hidden)
        bad_latent = open_span & ~mu.isfinite().all(dim=-1)
        bad = bad | bad_latent
        rows.bad_latent.logical_or_(bad_latent & going & (rows.bad_step == NOT_BAD))
        latents = settings.latent_policy.place(mu, noise)
        if settings.intervention is not None:
            latents = _replaced(settings, rows, latents, is_latent)
        densities = settings.latent_policy.log_prob(latents, mu).double()
        rows.latent.copy_(latents)

    # 6. Numbers that are not finite are noted, and reported when the host looks.
    rows.bad_step.copy_(torch.where(bad & going & (rows.bad_step == NOT_BAD), rows.step, rows.bad_step))

    # 7. Record the step. Rows that are done write into the spare column.
    limit = settings.max_new_tokens
    column = rows.step.masked_fill(rows.done, limit)[:, None]
    rows.tokens.scatter_(1, column, token[:, None])
    rows.log_probs.scatter_(1, column, (log_prob * chosen)[:, None])
    rows.chosen.scatter_(1, column, chosen[:, None])
    rows.slots.scatter_(1, column, is_latent[:, None])
    rows.last.copy_(token)
    rows.inside.copy_(is_latent)
    rows.emitted.add_(1).mul_(is_latent)
    rows.latents.add_(is_latent)
    rows.step.add_(going)
    ended = (token[:, None] == eos).any(dim=1) & ~is_latent & going
    rows.reason.masked_fill_(ended, EOS)
    rows.done.logical_or_(ended).logical_or_(rows.step >= limit)
    return Emitted(going, token, is_latent, latents, densities)


def _replaced(settings: DecodingSettings, rows: Rows, latents: Tensor, is_latent: Tensor) -> Tensor:
    """(A, H) latents after the intervention, which gets those of this step only."""
    intervention = settings.intervention
    at = is_latent.nonzero()[:, 0]
    if intervention is None or not len(at):
        return latents
    sampled = latents[at]
    places = LatentPlaces(rows.name[at], rows.latents[at], rows.spans[at] - 1, rows.emitted[at])
    replaced = intervention(sampled, places)
    if replaced.shape != sampled.shape:
        raise ConfigError(
            f"{type(intervention).__name__} returned latents of shape {tuple(replaced.shape)} for "
            f"{tuple(sampled.shape)}"
        )
    return latents.index_copy(0, at, replaced.to(sampled))
