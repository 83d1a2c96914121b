"""Interleaved latent decoding of many branches per prompt, and scoring of what was decoded (`method.md` 1 and 3).

Shapes: B prompts of P tokens, G branches each, N = B * G responses of at most R tokens, S latents, H hidden size, V
vocabulary. Rows of a prompt's branches stand next to each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from futurel1.errors import BatchError, ConfigError, FutureL1Error
from futurel1.models.attention import shared_prompt_mask
from futurel1.models.backbones import Vision
from futurel1.models.branching import Layout, branch_mask, kept_columns, next_positions, pack
from futurel1.models.interventions import LatentIntervention
from futurel1.models.noise import RowNoise, row_keys
from futurel1.models.policies import LatentPolicy
from futurel1.models.tokens import SpanBudget

if TYPE_CHECKING:
    from futurel1.models.reasoner import LatentReasoner

FinishReason = Literal["eos", "stop", "length"]
REASONS: tuple[FinishReason, ...] = ("eos", "stop", "length")
SCORE_CHUNK = 2048
"""Response positions whose logits over the vocabulary exist at once while scoring."""

RANKED_TOKENS = 64
"""Most likely tokens that top_p looks at first."""


class DecodingError(FutureL1Error, ArithmeticError):
    """Decoding produced numbers that are not finite."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from logits.

    Args:
        do_sample: draw at random; False takes the most likely token.
        temperature: divides the logits before drawing, above 0.
        top_k: draw among the k most likely tokens only; 0 for all.
        top_p: draw among the most likely tokens that together have at least this probability, of what `top_k` left.
        min_p: draw among tokens at least this share as likely as the most likely one.

    Raises:
        ConfigError: a value outside its range.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}; for greedy use do_sample=False")
        if not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1 or self.top_k < 0:
            raise ConfigError(
                "top_p is in (0, 1], min_p in [0, 1] and top_k at least 0; got "
                f"{self.top_p}, {self.min_p}, {self.top_k}"
            )

    @property
    def scale(self) -> float:
        """Temperature at which log-probabilities are recorded: 1 when greedy."""
        return self.temperature if self.do_sample else 1.0

    def choose(self, logits: Tensor, noise: RowNoise) -> Tensor:
        """(N, V) float32 logits to (N,) chosen token ids."""
        if not self.do_sample:
            return logits.argmax(dim=-1)
        probabilities = (logits / self.temperature).softmax(dim=-1).double()
        if self.top_k or self.top_p < 1 or self.min_p:
            probabilities = self._truncate(probabilities)
        # In the order of the vocabulary, not of likelihood: rounding may swap two tokens that are nearly as likely, and
        # with them everything that is drawn near their border.
        cumulative = probabilities.cumsum(dim=-1)
        draw = noise.uniform(1).to(cumulative.device) * cumulative[:, -1:]
        return torch.searchsorted(cumulative, draw, right=True).clamp(max=logits.shape[-1] - 1)[:, 0]

    def _truncate(self, probabilities: Tensor) -> Tensor:
        """Set what top_k, top_p and min_p leave out to zero, one after the other as in `transformers`."""
        if self.top_k or self.top_p < 1:
            probabilities = probabilities.where(self._among_likeliest(probabilities), 0)
        if self.min_p:
            likeliest = probabilities.amax(dim=-1, keepdim=True)
            probabilities = probabilities.where(probabilities >= self.min_p * likeliest, 0)
        return probabilities

    def _among_likeliest(self, probabilities: Tensor, count: int = RANKED_TOKENS) -> Tensor:
        """(N, V) what top_k and top_p keep; of tokens that are equally likely, the first ones of the vocabulary.

        top_p ranks the `count` most likely tokens, few of a large vocabulary; in rows that need more, 32 times as many,
        and then all.
        """
        size = probabilities.shape[-1]
        count = min(self.top_k or count, size)
        ranked = probabilities.topk(count, dim=-1).values
        number = torch.full_like(ranked[:, :1], count, dtype=torch.int64)
        short: Tensor | None = None
        # Rounding may bring the sum of all tokens above 1, and top_p = 1 leaves none out.
        if self.top_p < 1:
            mass = (ranked if self.top_k else probabilities).sum(dim=-1, keepdim=True)
            # a token is kept when the ones before it do not yet reach top_p
            inside = ranked.cumsum(dim=-1) - ranked < self.top_p * mass
            number = inside.sum(dim=-1, keepdim=True).clamp(min=1)
            if not self.top_k and count < size:
                short = inside[:, -1].nonzero()[:, 0]
        last = ranked.gather(1, number - 1)
        above, tied = probabilities > last, probabilities == last
        kept = above | (tied & (tied.cumsum(dim=-1) <= number - above.sum(dim=-1, keepdim=True)))
        if short is not None and len(short):
            kept[short] = self._among_likeliest(probabilities[short], 32 * count if count == RANKED_TOKENS else size)
        return kept


@dataclass(frozen=True)
class DecodingStep:
    """What one step of decoding produced, for streaming.

    Attributes:
        step: 0-based number of the step.
        rows: (A,) int64 rows that are still decoded.
        tokens: (A,) int64 their new tokens.
        is_latent: (A,) bool, True where the token stands for a latent.
    """

    step: int
    rows: Tensor
    tokens: Tensor
    is_latent: Tensor


@dataclass
class Rollout:
    """Decoded responses and what is needed to score them again.

    Attributes:
        responses: (N, R) int64 token ids, right-padded.
        response_mask: (N, R) bool, True at real tokens.
        log_probs: (N, R) float32, log-probability of what the model chose: a token, the end of a span, or at a latent
            slot the decision to continue, log(1 - p(END)); 0 where nothing was chosen.
        chosen_mask: (N, R) bool, False at padding and where the state machine forced the token.
        slot_mask: (N, R) bool, True at LATENT tokens that stand for a latent.
        latents: (N, S, H) latents in order of emission, right-padded with zeros.
        latent_mask: (N, S) bool, True at real latents.
        span_ids: (N, S) int64, 0-based span of each latent within its response, -1 at padding.
        latent_log_probs: (N, S) float64, log-density of each latent under the latent policy: in thousands of dimensions
            a large number of which only small differences count.
        span_table: (K, 5) int64, one row per span: response, position of its START (-1 when START ended the prompt),
            number of latents, position of its END (-1 when decoding ended inside), 1 when END was forced by the budget.
        finish_reasons: N of ``"eos"``, ``"stop"`` (a stop string) and ``"length"``.
        num_branches: G.
        temperature: temperature of the recorded log-probabilities.
        policy: latent policy that drew the latents.
    """

    responses: Tensor
    response_mask: Tensor
    log_probs: Tensor
    chosen_mask: Tensor
    slot_mask: Tensor
    latents: Tensor
    latent_mask: Tensor
    span_ids: Tensor
    latent_log_probs: Tensor
    span_table: Tensor
    finish_reasons: list[FinishReason]
    num_branches: int
    temperature: float
    policy: LatentPolicy

    def __len__(self) -> int:
        return len(self.responses)


@dataclass(frozen=True)
class RolloutScores:
    """Log-probabilities of a rollout under the current weights.

    Attributes:
        log_probs: (N, R) as in :class:`Rollout`, with gradient.
        latent_log_probs: (N, S) as in :class:`Rollout`, with gradient.
        entropy: (N, R) entropy in nats of each decision that was the model's, without gradient: of the next token, or
            at a latent slot of ending against continuing.
        predicted: (N, S, H) predicted latents, with gradient.
    """

    log_probs: Tensor
    latent_log_probs: Tensor
    entropy: Tensor
    predicted: Tensor


def continue_log_prob(log_probs: Tensor, end_id: int) -> Tensor:
    """log(1 - p(END)), the log-probability that a span goes on: (N, V) log-probabilities to (N,).

    Summed over the other tokens: 1 - p has no digits left where a span is almost certain to end.
    """
    end = torch.tensor([end_id], device=log_probs.device)
    return log_probs.index_fill(1, end, -torch.inf).logsumexp(dim=-1).clamp(max=0.0)


@dataclass
class _State:
    """The state machine of `method.md` 1, over all N rows."""

    last: Tensor
    inside: Tensor
    emitted: Tensor
    reason: Tensor
    span: Tensor
    latents: Tensor
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
    spans: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def generate(
    reasoner: "LatentReasoner",
    prompt: Any,
    *,
    num_branches: int,
    max_new_tokens: int,
    sampling: Sampling,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    budget: SpanBudget,
    latent_policy: LatentPolicy,
    seed: int | Tensor,
    stop_strings: Sequence[str],
    force_start: bool,
    use_cache: bool,
    layout: Layout,
    vision: Vision | None,
    on_step: Callable[[DecodingStep], None] | None,
    intervention: LatentIntervention | None = None,
) -> Rollout:
    """Decode; arguments as for :meth:`LatentReasoner.generate`, with all defaults filled in."""
    ids = prompt.input_ids
    _require_left_padding(prompt.attention_mask)
    if isinstance(seed, Tensor) and seed.shape != (len(ids),):
        raise ConfigError(f"seed is one number or one per prompt, ({len(ids)},), got shape {tuple(seed.shape)}")
    if not all(stop_strings):
        raise ConfigError(f"stop_strings must not be empty texts, got {list(stop_strings)}")
    device = ids.device
    vision = reasoner.encode(prompt) if vision is None else vision
    rows = len(ids) * num_branches

    def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=device)

    state = _State(
        last=ids[:, -1].repeat_interleave(num_branches),
        inside=zeros(rows, dtype=torch.bool),
        emitted=zeros(rows, dtype=torch.int64),
        reason=torch.full((rows,), REASONS.index("length"), device=device),
        span=torch.full((rows,), -1, device=device),
        latents=zeros(rows, dtype=torch.int64),
        responses=torch.full((rows, max_new_tokens), pad_token_id, device=device),
        response_mask=zeros(rows, max_new_tokens, dtype=torch.bool),
        log_probs=zeros(rows, max_new_tokens, dtype=torch.float32),
        chosen=zeros(rows, max_new_tokens, dtype=torch.bool),
        slots=zeros(rows, max_new_tokens, dtype=torch.bool),
    )
    runner: _Runner
    if not use_cache:
        runner = _Uncached(reasoner, prompt, vision, num_branches)
    elif layout == "shared":
        runner = _SharedPrompt(reasoner, prompt, vision, num_branches)
    else:
        runner = _CopiedPrompt(reasoner, prompt, vision, num_branches)
    hidden = runner.start()
    contents = _contents(reasoner, prompt)
    keys = row_keys(seed, contents, num_branches).to(device)
    if intervention is not None:
        intervention.begin(contents, num_branches)
    active = torch.arange(rows, device=device)
    eos = torch.tensor(list(eos_token_ids), device=device)
    for step in range(max_new_tokens):
        state.step = step
        tokens, latents, is_latent = _advance(
            reasoner, state, active, hidden, sampling, budget, latent_policy, keys, force_start and step == 0,
            intervention,
        )  # fmt: skip
        finished = torch.isin(tokens, eos) & ~is_latent
        state.reason[active[finished]] = REASONS.index("eos")
        if stop_strings:
            stopped = _has_stop_string(reasoner, state, active, stop_strings) & ~finished
            state.reason[active[stopped]] = REASONS.index("stop")
            finished = finished | stopped
        if on_step is not None:
            on_step(DecodingStep(step, active, tokens, is_latent))
        going = ~finished
        if step + 1 == max_new_tokens or not bool(going.any()):
            break
        embeds = reasoner.backbone.embed_tokens(tokens[going])
        embeds = torch.where(is_latent[going, None], latents[going].to(embeds.dtype), embeds)
        active = active[going]
        hidden = runner.step(active, embeds, state)
    return _rollout(reasoner, state, num_branches, sampling.scale, latent_policy)


def _advance(
    reasoner: "LatentReasoner",
    state: _State,
    active: Tensor,
    hidden: Tensor,
    sampling: Sampling,
    budget: SpanBudget,
    policy: LatentPolicy,
    keys: Tensor,
    force_start: bool,
    intervention: LatentIntervention | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the next token of every active row: (A,) tokens, (A, H) latents, (A,) whether the token is a latent."""
    tokens, step = reasoner.tokens, state.step
    logits = reasoner.logits(hidden).float()
    mu = reasoner.predict_latents(hidden)
    last, inside, emitted = state.last[active], state.inside[active], state.emitted[active]
    entering = (last == tokens.start_id) & ~inside
    state.span[active] += entering.long()
    emitted = torch.where(entering, 0, emitted)
    open_span = inside | entering
    _require_finite(logits, mu, open_span, active, step)

    noise = RowNoise(keys[active], step)
    picked = sampling.choose(logits, noise)
    log_probs = (logits / sampling.scale).log_softmax(dim=-1)

    full = open_span & (emitted >= budget.latents)
    ends_early = open_span & ~full & (picked == tokens.end_id)
    if budget.kind == "fixed":
        ends_early = torch.zeros_like(ends_early)
    is_latent = open_span & ~full & ~ends_early
    forced_start = torch.full_like(full, force_start) & ~open_span
    next_token = torch.where(is_latent, tokens.latent_id, picked)
    next_token = torch.where(full | ends_early, tokens.end_id, next_token)
    next_token = torch.where(forced_start, tokens.start_id, next_token)

    chosen = ~full & ~forced_start
    if budget.kind == "fixed":
        chosen = chosen & ~is_latent
    chosen_log_prob = log_probs.gather(1, next_token[:, None])[:, 0]

    latents = torch.zeros_like(mu)
    if bool(is_latent.any()):
        where = is_latent.nonzero()[:, 0]
        chosen_log_prob[where] = continue_log_prob(log_probs[where], tokens.end_id)
        # A row's latents are drawn from its own numbers, whichever rows share the step.
        drawn = policy.sample(mu[where], RowNoise(keys[active[where]] ^ -1, step))
        if intervention is not None:
            drawn = _replaced(intervention, drawn, active[where], state.latents[active[where]])
        latents[where] = drawn
        state.latent_rows.append(active[where])
        state.latent_values.append(drawn)
        state.latent_densities.append(policy.log_prob(drawn, mu[where]).double())
        state.latent_spans.append(state.span[active[where]])
    _record_spans(state, active, entering, full | ends_early, full, torch.where(is_latent, emitted + 1, emitted), step)

    state.responses[active, step] = next_token
    state.response_mask[active, step] = True
    state.log_probs[active, step] = torch.where(chosen, chosen_log_prob, 0.0)
    state.chosen[active, step] = chosen
    state.slots[active, step] = is_latent
    state.last[active] = next_token
    state.inside[active] = is_latent
    state.emitted[active] = torch.where(is_latent, emitted + 1, emitted)
    state.latents[active] += is_latent.long()
    return next_token, latents, is_latent


def _replaced(intervention: LatentIntervention, drawn: Tensor, rows: Tensor, numbers: Tensor) -> Tensor:
    """(K, H) what an intervention puts in the place of K latents."""
    replaced = intervention(drawn, rows, numbers)
    if replaced.shape != drawn.shape:
        raise ConfigError(
            f"{type(intervention).__name__} returned latents of shape {tuple(replaced.shape)} for {tuple(drawn.shape)}"
        )
    return replaced.to(drawn)


def _record_spans(
    state: _State, active: Tensor, entering: Tensor, ended: Tensor, forced: Tensor, emitted: Tensor, step: int
) -> None:
    """Note what happened to spans in this step, as (row, span, kind, a, b); put together in `_span_table`."""
    rows, spans = active, state.span[active]

    def note(where: Tensor, kind: int, first: Tensor, second: Tensor) -> None:
        if bool(where.any()):
            columns = (rows, spans, torch.full_like(rows, kind), first, second)
            state.spans.append(torch.stack(columns, dim=1)[where])

    start = torch.full_like(rows, step - 1)
    note(entering, 0, start, start)
    note(ended, 1, torch.full_like(rows, step), forced.long())


def _require_finite(logits: Tensor, mu: Tensor, open_span: Tensor, active: Tensor, step: int) -> None:
    bad_latent = open_span & ~mu.isfinite().all(dim=-1)
    # The largest logit is NaN when any is, and infinite when there is no distribution.
    bad = bad_latent | ~logits.amax(dim=-1).isfinite()
    if bool(bad.any()):
        place = int(bad.nonzero()[0, 0])
        what = "a latent" if bool(bad_latent[place]) else "the logits"
        raise DecodingError(
            f"{what} of row {int(active[place])} at step {step} is not finite; check the weights, or decode in float32"
        )


def _require_left_padding(mask: Tensor) -> None:
    real = mask != 0
    if not bool(real[:, -1].all()) or bool((real[:, :-1] & ~real[:, 1:]).any()):
        raise BatchError("prompts have to be padded on the left: attention_mask has zeros after real tokens")


def _has_stop_string(reasoner: "LatentReasoner", state: _State, active: Tensor, stop_strings: Sequence[str]) -> Tensor:
    """(A,) bool, rows whose text holds a stop string since this step; the last token may go on beyond it."""
    if reasoner.processor is None:
        raise ConfigError("stop_strings need a tokenizer; this checkpoint has none")
    longest = max(len(text.encode()) for text in stop_strings)
    # A token is at least one byte, so the last `longest` tokens hold any stop string that the newest token completed.
    tail = state.responses[active, max(0, state.step + 1 - longest) : state.step + 1]
    texts = reasoner.processor.tokenizer.batch_decode(tail, skip_special_tokens=False)
    return torch.tensor([any(stop in text for stop in stop_strings) for text in texts], device=active.device)


def _contents(reasoner: "LatentReasoner", prompt: Any) -> list[str]:
    """Names of the prompts: their sample ids, else their token ids with a digest of their pixels."""
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
        parts = pixels.cpu().split(((prompt.input_ids == token).sum(dim=1) * patches).tolist())
        digests = [sha256(part.contiguous().view(torch.uint8).numpy()).hexdigest() for part in parts]
        # A prompt without pixels has the same name whether or not others have some.
        names = [
            f"{name}:{digest}" if len(part) else name for name, part, digest in zip(names, parts, digests, strict=True)
        ]
    return names


def _rollout(
    reasoner: "LatentReasoner", state: _State, branches: int, temperature: float, policy: LatentPolicy
) -> Rollout:
    used = int(state.response_mask.any(dim=0).sum())
    rows, device = len(state.last), state.last.device
    if state.latent_rows:
        row = torch.cat(state.latent_rows)
        order = row.argsort(stable=True)
        row = row[order]
        counts = torch.bincount(row, minlength=rows)
        place = torch.arange(len(row), device=device) - (counts.cumsum(0) - counts)[row]
        width = int(counts.max())
        values = torch.cat(state.latent_values)[order]
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
    if state.latent_rows:
        span_ids[row, place] = torch.cat(state.latent_spans)[order]
        densities[row, place] = torch.cat(state.latent_densities)[order]
    return Rollout(
        responses=state.responses[:, :used],
        response_mask=state.response_mask[:, :used],
        log_probs=state.log_probs[:, :used],
        chosen_mask=state.chosen[:, :used],
        slot_mask=state.slots[:, :used],
        latents=latents,
        latent_mask=latent_mask,
        span_ids=span_ids,
        latent_log_probs=densities,
        span_table=_span_table(state, span_ids),
        finish_reasons=[REASONS[code] for code in state.reason.tolist()],
        num_branches=branches,
        temperature=temperature,
        policy=policy,
    )


def _span_table(state: _State, span_ids: Tensor) -> Tensor:
    """(K, 5) spans in order of row and appearance."""
    if not state.spans:
        return torch.zeros((0, 5), dtype=torch.int64, device=span_ids.device)
    notes = torch.cat(state.spans)
    opened, closed = notes[notes[:, 2] == 0], notes[notes[:, 2] == 1]
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


# ---------------------------------------------------------------------------------------------------- running


class _Runner:
    """Runs the backbone step by step; (A, H) hidden states of the active rows, in their order."""

    def __init__(self, reasoner: "LatentReasoner", prompt: Any, vision: Vision, branches: int) -> None:
        self.reasoner = reasoner
        self.prompt = prompt
        self.vision = vision
        self.branches = branches
        self.mask = prompt.attention_mask
        self.positions = reasoner.backbone.positions(prompt.input_ids, self.mask, vision)
        self.next_position = next_positions(self.positions, self.mask)

    def _prefill(self, cache: Any) -> Tensor:
        embeds, visual = self.reasoner.embed(self.prompt.input_ids, self.vision)
        return self.reasoner.backbone.run(embeds, self.positions, self.mask, visual, cache)[:, -1]

    def start(self) -> Tensor:
        """Hidden states that predict the first token."""
        raise NotImplementedError  # abstract

    def step(self, active: Tensor, embeds: Tensor, state: _State) -> Tensor:
        """Feed the last token of every active row."""
        raise NotImplementedError  # abstract


def _new_cache(reasoner: "LatentReasoner") -> Any:
    from futurel1.models.kv_cache import growing_cache

    return growing_cache(reasoner.backbone.config.get_text_config())


class _SharedPrompt(_Runner):
    """Prompt keys and values exist once; each step feeds one token per branch into the prompt's row."""

    def start(self) -> Tensor:
        """Run the prompts."""
        self.cache = _new_cache(self.reasoner)
        # (prompts, branch slots) the row in each slot, -1 when it is empty
        self.slots = torch.arange(len(self.mask) * self.branches, device=self.mask.device).view(-1, self.branches)
        self.steps = 0
        return self._prefill(self.cache).repeat_interleave(self.branches, dim=0)

    def step(self, active: Tensor, embeds: Tensor, state: _State) -> Tensor:
        """Feed one token per branch; finished branches leave when enough of them have."""
        self.slots = torch.where(torch.isin(self.slots, active), self.slots, -1)
        self._drop_finished()
        prompts, width = self.slots.shape
        place = torch.full((int(self.slots.max()) + 1,), -1, device=active.device)
        filled = self.slots >= 0
        place[self.slots[filled]] = filled.flatten().nonzero()[:, 0]
        slots = place[active]
        fed = embeds.new_zeros(prompts * width, embeds.shape[-1])
        fed[slots] = embeds
        self.steps += 1
        position = (self.next_position + state.step)[None, :, None].expand(3, -1, width)
        mask = branch_mask(self.mask, width, self.steps, embeds.dtype)
        hidden = self.reasoner.backbone.run(fed.view(prompts, width, -1), position, mask, None, self.cache)
        return hidden.flatten(0, 1)[slots]

    def _drop_finished(self) -> None:
        filled = self.slots >= 0
        alive = filled.any(dim=1).nonzero()[:, 0]
        most = int(filled.sum(dim=1).max())
        width = self.slots.shape[1]
        # Moving the cache costs about a step, so it has to pay: a quarter of the slots, or a whole prompt.
        if len(alive) == len(self.slots) and most > 0.75 * width:
            return
        kept = filled[alive].long().argsort(dim=1, descending=True, stable=True)[:, :most]
        columns = kept_columns(self.mask.shape[1], width, self.steps, kept)
        self.cache.reorder_cache(alive)
        for layer in self.cache.layers:
            for name in ("keys", "values"):
                tensor = getattr(layer, name)
                index = columns[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
                setattr(layer, name, tensor.gather(2, index))
        self.slots = self.slots[alive].gather(1, kept)
        self.mask, self.next_position = self.mask[alive], self.next_position[alive]


class _CopiedPrompt(_Runner):
    """Every branch is a row that starts from a copy of the prompt's state."""

    def start(self) -> Tensor:
        """Run the prompts once and copy their state."""
        self.cache = _new_cache(self.reasoner)
        hidden = self._prefill(self.cache)
        prompt = torch.arange(len(self.mask), device=self.mask.device).repeat_interleave(self.branches)
        self.cache.reorder_cache(prompt)
        self.rows = torch.arange(len(prompt), device=prompt.device)
        self.mask, self.next_position = self.mask[prompt], self.next_position[prompt]
        return hidden[prompt]

    def step(self, active: Tensor, embeds: Tensor, state: _State) -> Tensor:
        """Feed one token per row; finished rows leave when a quarter of them have."""
        staying = torch.isin(self.rows, active)
        if int(staying.sum()) <= 0.75 * len(self.rows):
            kept = staying.nonzero()[:, 0]
            self.cache.reorder_cache(kept)
            self.rows, self.mask, self.next_position = self.rows[kept], self.mask[kept], self.next_position[kept]
        slots = torch.searchsorted(self.rows, active)
        fed = embeds.new_zeros(len(self.rows), 1, embeds.shape[-1])
        fed[slots, 0] = embeds
        self.mask = F.pad(self.mask, (0, 1), value=1)
        position = (self.next_position + state.step)[None, :, None].expand(3, -1, 1)
        return self.reasoner.backbone.run(fed, position, self.mask, None, self.cache)[slots, 0]


class _Uncached(_Runner):
    """Runs the whole sequence anew in every step; slow, and the yardstick of the other two."""

    def start(self) -> Tensor:
        """Run the prompts."""
        prompt = torch.arange(len(self.mask), device=self.mask.device).repeat_interleave(self.branches)
        self.row_prompt = prompt
        embeds, visual = self.reasoner.embed(self.prompt.input_ids, self.vision)
        self.embeds = embeds[prompt]
        self.fed = self.embeds.new_zeros(len(prompt), 0, embeds.shape[-1])
        self.visual = visual
        return self.reasoner.backbone.run(embeds, self.positions, self.mask, visual)[:, -1][prompt]

    def step(self, active: Tensor, embeds: Tensor, state: _State) -> Tensor:
        """Append one token to every active row and run everything."""
        column = embeds.new_zeros(len(self.row_prompt), 1, embeds.shape[-1])
        column[active, 0] = embeds
        self.fed = torch.cat([self.fed, column], dim=1)
        prompt = self.row_prompt[active]
        length = self.fed.shape[1]
        steps = torch.arange(length, device=active.device)
        later = (self.next_position[prompt, None] + steps)[None].expand(3, -1, -1)
        whole = torch.cat([self.embeds[active], self.fed[active]], dim=1)
        positions = torch.cat([self.positions[:, prompt], later], dim=2)
        mask = F.pad(self.mask[prompt], (0, length), value=1)
        visual = spread_visual(self.visual, prompt, self.prompt.input_ids.shape[1] + length)
        return self.reasoner.backbone.run(whole, positions, mask, visual)[:, -1]


def spread_visual(visual: Any, prompt: Tensor, width: int) -> Any:
    """DeepStack rows of prompts, for rows that start with those prompts and are `width` wide."""
    from futurel1.models.backbones import VisualRows

    if visual is None:
        return None
    starts = visual.mask.sum(dim=1).cumsum(0) - visual.mask.sum(dim=1)
    mask = visual.mask[prompt]
    # In row-major order a row's visual tokens are its prompt's, in order.
    index = (mask.cumsum(dim=1) - 1 + starts[prompt][:, None])[mask]
    return VisualRows(F.pad(mask, (0, width - mask.shape[1])), [level[index] for level in visual.deepstack])


# ---------------------------------------------------------------------------------------------------- scoring


def score(
    reasoner: "LatentReasoner", prompt: Any, rollout: Rollout, *, layout: Layout, vision: Vision | None
) -> RolloutScores:
    """Score a rollout under the current weights; see :meth:`LatentReasoner.score_rollout`."""
    ids, mask = prompt.input_ids, prompt.attention_mask
    branches = rollout.num_branches
    _require_left_padding(mask)
    if len(ids) * branches != len(rollout):
        raise BatchError(f"{len(ids)} prompts with {branches} branches, but the rollout has {len(rollout)} responses")
    vision = reasoner.encode(prompt) if vision is None else vision
    backbone = reasoner.backbone
    lengths = rollout.response_mask.sum(dim=1).view(-1, branches)
    packed = pack(mask, lengths, rollout.responses.shape[1], layout)

    prompt_embeds, visual = reasoner.embed(ids, vision)
    response_embeds = backbone.embed_tokens(rollout.responses)
    slot_values = rollout.latents.detach()[rollout.latent_mask].to(response_embeds.dtype)
    response_embeds = response_embeds.masked_scatter(rollout.slot_mask[..., None], slot_values)

    width = packed.branch.shape[1]
    start = ids.shape[1]
    embeds = prompt_embeds[packed.prompt]
    embeds = torch.cat([embeds, embeds.new_zeros(len(embeds), width - start, embeds.shape[-1])], dim=1)
    is_fed = packed.fed_column >= 0
    row = packed.row[:, None].expand_as(packed.fed_column)
    embeds = embeds.index_put((row[is_fed], packed.fed_column[is_fed]), response_embeds[is_fed])

    positions = backbone.positions(ids, mask, vision)
    next_position = next_positions(positions, mask)
    later = next_position[packed.prompt, None] + packed.step[:, start:].clamp(min=0)
    positions = torch.cat([positions[:, packed.prompt], later[None].expand(3, -1, -1)], dim=2)
    attention: Tensor = mask
    if layout == "shared":
        attention = shared_prompt_mask(packed, backbone.attn_implementation, embeds.dtype)
    else:
        # Rows are ordinary sequences, and recurrent layers understand a mask of tokens only.
        real = torch.where(packed.step[:, start:] >= 0, 1, 0).to(mask.dtype)
        attention = torch.cat([mask[packed.prompt], real], dim=1)
    hidden = backbone.run(embeds, positions, attention, spread_visual(visual, packed.prompt, width))

    real = rollout.response_mask
    predicting = hidden[row[real], packed.column[real]]
    slots = rollout.slot_mask[real]
    chosen, entropy = _decision_log_probs(reasoner, predicting, rollout.responses[real], slots, rollout.temperature)
    log_probs = hidden.new_zeros(real.shape, dtype=torch.float32).masked_scatter(real, chosen)
    mu = reasoner.predict_latents(predicting[slots])
    density = rollout.policy.log_prob(rollout.latents[rollout.latent_mask].detach(), mu).double()
    latent_mask = rollout.latent_mask
    predicted = mu.new_zeros(rollout.latents.shape).masked_scatter(latent_mask[..., None], mu)
    return RolloutScores(
        log_probs=torch.where(rollout.chosen_mask, log_probs, 0.0),
        latent_log_probs=density.new_zeros(latent_mask.shape).masked_scatter(latent_mask, density),
        entropy=torch.where(rollout.chosen_mask, torch.zeros_like(log_probs).masked_scatter(real, entropy), 0.0),
        predicted=predicted,
    )


def _decision_log_probs(
    reasoner: "LatentReasoner", hidden: Tensor, targets: Tensor, slots: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of the decision at every scored position, chunk by chunk."""
    end = reasoner.tokens.end_id

    def chunk(rows: Tensor, ids: Tensor, is_slot: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = (reasoner.logits(rows).float() / temperature).log_softmax(dim=-1)
        going = continue_log_prob(log_probs[is_slot], end)
        chosen = log_probs.gather(1, ids[:, None])[:, 0].masked_scatter(is_slot, going)
        # Last, because recomputation in backward ends with the last tensor that has a gradient.
        with torch.no_grad():
            entropy = -log_probs.exp().mul_(log_probs).sum(dim=-1)
            ended = log_probs[is_slot, end]
            entropy[is_slot] = -(ended.exp() * ended + going.exp() * going)
        return chosen, entropy

    # One chunk of logits at a time, recomputed in backward: the vocabulary is the largest thing here.
    parts = [
        checkpoint(
            chunk, hidden[i : i + SCORE_CHUNK], targets[i : i + SCORE_CHUNK], slots[i : i + SCORE_CHUNK],
            use_reentrant=False,
        )
        for i in range(0, len(targets), SCORE_CHUNK)
    ]  # fmt: skip
    log_probs, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return log_probs, entropy
