"""One step of the state machine of interleaved decoding (Future-L1, arXiv 2606.05769, Section 3).

Everything has a fixed shape and nothing waits for the device, so that a step can be compiled as a whole and replayed as
a CUDA graph. Only an intervention is called with the rows that need it.

Shapes: A rows, H hidden size, V vocabulary.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from futurel1.errors import ConfigError
from futurel1.models.decoding.protocol import Reasoner
from futurel1.models.decoding.rollout import REASONS
from futurel1.models.decoding.rows import Rows
from futurel1.models.noise import RowNoise

if TYPE_CHECKING:
    from futurel1.models.decoding.generation import DecodingSettings

EOS = REASONS.index("eos")
LENGTH = REASONS.index("length")


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


def may_be_latent(reasoner: Reasoner, rows: Rows) -> Tensor:
    """(A,) bool, rows that are inside a span in their next step, so that it may emit a latent."""
    return (rows.inside | (rows.last == reasoner.tokens.start_id)) & ~rows.done


def latent_noise(settings: "DecodingSettings", rows: Rows, wanted: Tensor, steps: int, width: int) -> Tensor:
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
    reasoner: Reasoner, settings: "DecodingSettings", eos: Tensor, rows: Rows, hidden: Tensor, noise: Tensor | None
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
    # 1. Predict the next token. START opens a span.
    logits = reasoner.logits(hidden).float()
    going = ~rows.done
    entering = (rows.last == tokens.start_id) & ~rows.inside
    open_span = rows.inside | entering
    emitted = torch.where(entering, 0, rows.emitted)

    # 2. Every row picks a token.
    picked = sampling.choose(logits, RowNoise(rows.key, rows.step))

    # 3. Only END ends a span: when it is picked (ignored by a fixed budget), or by force when the budget is spent.
    full = open_span & (emitted >= budget.latents)
    ends_early = open_span & ~full & (picked == tokens.end_id)
    if budget.kind == "fixed":
        ends_early = torch.zeros_like(ends_early)

    # 4. Any other pick is a latent inside a span, and text outside.
    is_latent = open_span & ~full & ~ends_early & going
    forced_start = torch.zeros_like(full) if not settings.force_start else (rows.step == 0) & ~open_span
    token = torch.where(is_latent, tokens.latent_id, picked)
    token = torch.where(full | ends_early, tokens.end_id, token)
    token = torch.where(forced_start, tokens.start_id, token)

    # 5. Separate the model's choices from forced tokens, and take the log-probability of each choice. At a latent the
    # choice is to continue: log(1 - p(END)), summed over the other tokens because 1 - p would lose all its digits.
    chosen = ~full & ~forced_start
    if budget.kind == "fixed":
        chosen = chosen & ~is_latent
    scaled = logits / sampling.scale
    end = torch.full((1,), tokens.end_id, device=scaled.device)
    others = scaled.index_fill(1, end, -torch.inf).logsumexp(dim=-1)
    total = torch.logaddexp(others, scaled[:, tokens.end_id])
    log_prob = torch.where(is_latent, others, scaled.gather(1, token[:, None])[:, 0]) - total

    # 6. Sample the latents.
    latents = densities = None
    bad_latent = torch.zeros_like(full)
    if noise is not None:
        mu = reasoner.predict_latents(hidden)
        bad_latent = open_span & ~mu.isfinite().all(dim=-1)
        latents = settings.latent_policy.place(mu, noise)
        if settings.intervention is not None:
            latents = _replaced(settings, rows, latents, is_latent)
        densities = settings.latent_policy.log_prob(latents, mu).double()
        rows.latent.copy_(torch.where(is_latent[:, None], latents, rows.latent))

    # 7. Numbers that are not finite are noted, and reported when the host looks. The largest logit is NaN if any logit
    # is, and infinite if the softmax is undefined.
    bad = (bad_latent | ~logits.amax(dim=-1).isfinite()) & going & (rows.bad_step < 0)
    rows.bad_latent.copy_(torch.where(bad, bad_latent, rows.bad_latent))
    rows.bad_step.copy_(torch.where(bad, rows.step, rows.bad_step))

    # 8. Record the step. Rows that are done write into the spare column.
    limit = settings.max_new_tokens
    column = torch.where(going, rows.step, limit)[:, None]
    rows.tokens.scatter_(1, column, token[:, None])
    rows.log_probs.scatter_(1, column, torch.where(chosen, log_prob.clamp(max=0.0), 0.0)[:, None])
    rows.chosen.scatter_(1, column, chosen[:, None])
    rows.slots.scatter_(1, column, is_latent[:, None])
    ended = (token[:, None] == eos).any(dim=1) & ~is_latent
    rows.last.copy_(torch.where(going, token, rows.last))
    rows.inside.copy_(torch.where(going, is_latent, rows.inside))
    rows.emitted.copy_(torch.where(going, emitted + is_latent, rows.emitted))
    rows.latents.add_(is_latent)
    rows.step.add_(going)
    rows.reason.copy_(torch.where(going, torch.where(ended, EOS, LENGTH), rows.reason))
    rows.done.logical_or_(ended | (rows.step >= limit))
    return Emitted(going, token, is_latent, latents, densities)


def _replaced(settings: "DecodingSettings", rows: Rows, latents: Tensor, is_latent: Tensor) -> Tensor:
    """(A, H) latents after the intervention, which gets those of this step only."""
    intervention = settings.intervention
    at = is_latent.nonzero()[:, 0]
    if intervention is None or not len(at):
        return latents
    sampled = latents[at]
    replaced = intervention(sampled, rows.name[at], rows.latents[at])
    if replaced.shape != sampled.shape:
        raise ConfigError(
            f"{type(intervention).__name__} returned latents of shape {tuple(replaced.shape)} for "
            f"{tuple(sampled.shape)}"
        )
    return latents.index_copy(0, at, replaced.to(sampled))
