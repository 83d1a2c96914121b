"""Interleaved decoding of text and latents, many branches per prompt (Future-L1, arXiv 2606.05769, Section 3).

Shapes: B prompts of P tokens, G branches each, N = B * G rows of which A are active in a step, R response tokens, H
hidden size, V vocabulary. Rows of a prompt's branches are adjacent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from futurel1.errors import ConfigError
from futurel1.models.backbones import Vision
from futurel1.models.decoding.branching import choose_layout, require_left_padding
from futurel1.models.decoding.protocol import PromptLike, Reasoner
from futurel1.models.decoding.rollout import REASONS, DecodingError, DecodingStep, Rollout
from futurel1.models.decoding.runners import RUNNERS
from futurel1.models.decoding.sampling import Sampling
from futurel1.models.decoding.scoring import continue_log_prob
from futurel1.models.decoding.state import DecodingState
from futurel1.models.interventions import LatentIntervention
from futurel1.models.noise import RowNoise, row_keys
from futurel1.models.policies import LatentPolicy
from futurel1.models.tokens import SpanBudget


@dataclass(frozen=True, eq=False)
class DecodingSettings:
    """How responses are decoded; :meth:`futurel1.models.LatentReasoner.generate` documents each setting.

    Raises:
        ConfigError: `num_branches` or `max_new_tokens` below 1, or an empty stop string.
    """

    num_branches: int
    max_new_tokens: int
    sampling: Sampling
    eos_token_ids: Sequence[int]
    pad_token_id: int
    budget: SpanBudget
    latent_policy: LatentPolicy
    intervention: LatentIntervention | None = None
    seed: int | Tensor = 0
    stop_strings: Sequence[str] = ()
    force_start: bool = False

    def __post_init__(self) -> None:
        if self.num_branches < 1 or self.max_new_tokens < 1:
            raise ConfigError(
                f"num_branches and max_new_tokens must be at least 1, got {self.num_branches}, {self.max_new_tokens}"
            )
        if not all(self.stop_strings):
            raise ConfigError(f"stop_strings must not be empty texts, got {list(self.stop_strings)}")


@torch.no_grad()
def generate(
    reasoner: Reasoner,
    prompt: PromptLike,
    settings: DecodingSettings,
    *,
    share_prompt: bool | None = None,
    vision: Vision | None = None,
    on_step: Callable[[DecodingStep], None] | None = None,
) -> Rollout:
    """Decode responses; see :meth:`futurel1.models.LatentReasoner.generate`, which fills in the defaults."""
    ids, seed, branches = prompt.input_ids, settings.seed, settings.num_branches
    layout = choose_layout(reasoner.backbone, share_prompt)
    require_left_padding(prompt.attention_mask)
    if isinstance(seed, Tensor) and seed.shape != (len(ids),):
        raise ConfigError(f"seed is one number or one per prompt, ({len(ids)},), got shape {tuple(seed.shape)}")

    # 1. Run the prompts: their last hidden states predict the first tokens.
    vision = reasoner.encode(prompt) if vision is None else vision
    runner = RUNNERS[layout](reasoner, prompt, vision, branches)
    hidden = runner.start()

    # 2. Every row has its own random numbers, and starts with the last token of its prompt.
    contents = _contents(reasoner, prompt)
    keys = row_keys(seed, contents, branches).to(ids.device)
    if settings.intervention is not None:
        settings.intervention.begin(contents, branches)
    state = DecodingState.start(ids[:, -1].repeat_interleave(branches), settings.max_new_tokens, settings.pad_token_id)
    active = torch.arange(len(ids) * branches, device=ids.device)
    eos = torch.tensor(list(settings.eos_token_ids), device=ids.device)
    for step in range(settings.max_new_tokens):
        state.step = step
        # 3. Choose the next token of every active row, and its latent inside a span.
        tokens, latents, is_latent = _advance(reasoner, settings, state, active, hidden, keys)

        # 4. A row ends with an end-of-response token or a stop string.
        finished = torch.isin(tokens, eos) & ~is_latent
        state.reason[active[finished]] = REASONS.index("eos")
        if settings.stop_strings:
            stopped = _has_stop_string(reasoner, state, active, settings.stop_strings) & ~finished
            state.reason[active[stopped]] = REASONS.index("stop")
            finished = finished | stopped
        if on_step is not None:
            on_step(DecodingStep(step, active, tokens, is_latent))
        going = ~finished
        if step + 1 == settings.max_new_tokens or not bool(going.any()):
            break

        # 5. Feed the unfinished rows: a token as its embedding, a latent as it is.
        embeds = reasoner.backbone.embed_tokens(tokens[going])
        embeds = torch.where(is_latent[going, None], latents[going].to(embeds.dtype), embeds)
        active = active[going]
        hidden = runner.step(active, embeds, step)
    return state.rollout(reasoner, branches, settings.sampling.scale, settings.latent_policy)


def _advance(
    reasoner: Reasoner, settings: DecodingSettings, state: DecodingState, active: Tensor, hidden: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the state machine: (A,) tokens, (A, H) latents, (A,) bool whether the token is a latent."""
    tokens, budget, sampling = reasoner.tokens, settings.budget, settings.sampling
    # 1. Predict the next position of every row: logits for a token, and a latent in case the row is inside a span.
    logits = reasoner.logits(hidden).float()
    mu = reasoner.predict_latents(hidden)

    # 2. START opens a span.
    last, inside, emitted = state.last[active], state.inside[active], state.emitted[active]
    entering = (last == tokens.start_id) & ~inside
    state.span[active] += entering.long()
    emitted = torch.where(entering, 0, emitted)
    open_span = inside | entering
    _require_finite(logits, mu, open_span, active, state.step)

    # 3. Every row picks a token.
    picked = sampling.choose(logits, RowNoise(keys[active], state.step))
    log_probs = (logits / sampling.scale).log_softmax(dim=-1)

    # 4. Only END ends a span: when it is picked (ignored by a fixed budget), or by force when the budget is spent.
    full = open_span & (emitted >= budget.latents)
    ends_early = open_span & ~full & (picked == tokens.end_id)
    if budget.kind == "fixed":
        ends_early = torch.zeros_like(ends_early)

    # 5. Any other pick is a latent inside a span, and text outside.
    is_latent = open_span & ~full & ~ends_early
    forced_start = torch.full_like(full, settings.force_start and state.step == 0) & ~open_span
    next_token = torch.where(is_latent, tokens.latent_id, picked)
    next_token = torch.where(full | ends_early, tokens.end_id, next_token)
    next_token = torch.where(forced_start, tokens.start_id, next_token)

    # 6. Separate the model's choices from forced tokens, and take the log-probability of each choice.
    chosen = ~full & ~forced_start
    if budget.kind == "fixed":
        chosen = chosen & ~is_latent
    chosen_log_prob = log_probs.gather(1, next_token[:, None])[:, 0]

    # 7. Sample the latents; the choice at a latent is to continue the span.
    latents = torch.zeros_like(mu)
    if bool(is_latent.any()):
        where = is_latent.nonzero()[:, 0]
        chosen_log_prob[where] = continue_log_prob(log_probs[where], tokens.end_id)
        latents[where] = _sample_latents(settings, state, active[where], mu[where], keys)

    # 8. Record the step.
    state.record_spans(active, entering, full | ends_early, full)
    state.record_tokens(active, next_token, is_latent, emitted, chosen, chosen_log_prob)
    return next_token, latents, is_latent


def _sample_latents(settings: DecodingSettings, state: DecodingState, rows: Tensor, mu: Tensor, keys: Tensor) -> Tensor:
    """Sample latents around K rows' (K, H) predictions, apply the intervention, and record the latents to feed."""
    # A row's noise does not depend on the other rows of the step; inverted keys keep it apart from the tokens' noise.
    sampled = settings.latent_policy.sample(mu, RowNoise(keys[rows] ^ -1, state.step))
    intervention = settings.intervention
    if intervention is not None:
        replaced = intervention(sampled, rows, state.num_latents[rows])
        if replaced.shape != sampled.shape:
            raise ConfigError(
                f"{type(intervention).__name__} returned latents of shape {tuple(replaced.shape)} for "
                f"{tuple(sampled.shape)}"
            )
        sampled = replaced.to(sampled)
    state.record_latents(rows, sampled, settings.latent_policy.log_prob(sampled, mu).double())
    return sampled


def _require_finite(logits: Tensor, mu: Tensor, open_span: Tensor, active: Tensor, step: int) -> None:
    bad_latent = open_span & ~mu.isfinite().all(dim=-1)
    # The largest logit is NaN if any logit is, and infinite if the softmax is undefined.
    bad = bad_latent | ~logits.amax(dim=-1).isfinite()
    if bool(bad.any()):
        place = int(bad.nonzero()[0, 0])
        what = "a latent" if bool(bad_latent[place]) else "the logits"
        raise DecodingError(
            f"{what} of row {int(active[place])} at step {step} is not finite; check the weights, or decode in float32"
        )


def _has_stop_string(reasoner: Reasoner, state: DecodingState, active: Tensor, stop_strings: Sequence[str]) -> Tensor:
    """(A,) bool, rows whose newest token completes a stop string; the token may extend beyond it."""
    if reasoner.processor is None:
        raise ConfigError("stop_strings need a tokenizer; this checkpoint has none")
    longest = max(len(text.encode()) for text in stop_strings)
    # A token is at least one byte, so the last `longest` tokens contain any stop string that the newest one completes.
    tail = state.responses[active, max(0, state.step + 1 - longest) : state.step + 1]
    texts = reasoner.processor.tokenizer.batch_decode(tail, skip_special_tokens=False)
    return torch.tensor([any(stop in text for stop in stop_strings) for text in texts], device=active.device)


def _contents(reasoner: Reasoner, prompt: PromptLike) -> list[str]:
    """Names of the prompts: their sample ids, or else their token ids with digests of their pixels."""
    if prompt.sample_ids:
        return list(prompt.sample_ids)
    masks = prompt.attention_mask != 0
    names = [str(ids[mask].tolist()) for ids, mask in zip(prompt.input_ids, masks, strict=True)]
    config = reasoner.backbone.config
    patches = int(config.vision_config.spatial_merge_size) ** 2
    for token, pixels in (
        (config.image_token_id, prompt.pixel_values),
        (config.video_token_id, prompt.pixel_values_videos),
    ):
        if pixels is None:
            continue
        parts = torch.split(pixels.cpu(), ((prompt.input_ids == token).sum(dim=1) * patches).tolist())
        digests = [sha256(part.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest() for part in parts]
        # A prompt without pixels keeps its name, whether or not other prompts have pixels.
        names = [
            f"{name}:{digest}" if len(part) else name for name, part, digest in zip(names, parts, digests, strict=True)
        ]
    return names
