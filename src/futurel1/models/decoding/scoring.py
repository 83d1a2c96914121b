"""Scoring of decoded responses: log-probabilities of their decisions and latents under the current weights.

Shapes: B prompts of P tokens, G branches each, N = B * G responses of at most R tokens and S latents, H hidden size, V
vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from futurel1.errors import BatchError
from futurel1.models.backbones import Vision, VisualRows
from futurel1.models.decoding.attention import branch_mask
from futurel1.models.decoding.branching import (
    Layout,
    PackedLayout,
    choose_layout,
    next_positions,
    pack,
    require_left_padding,
)
from futurel1.models.decoding.protocol import PromptLike, Reasoner
from futurel1.models.decoding.rollout import Rollout, RolloutScores
from futurel1.models.decoding.sampling import looks_are_free

SCORE_CHUNK = 2048
"""Number of response positions whose logits are in memory at once while scoring."""
LIKELY_END = -1.0
"""Log-probability of END above which 1 - p(END) is summed over the other tokens."""


def continue_log_prob(log_probs: Tensor, end_id: int) -> Tensor:
    """log(1 - p(END)), the log-probability that a span continues: (N, V) log-probabilities to (N,).

    Sums over the other tokens where END is likely, because there 1 - p loses digits. Elsewhere that pass over the
    vocabulary is saved, if rows may be told apart.
    """
    if not looks_are_free(log_probs):
        return _other_tokens(log_probs, end_id)
    end = log_probs[:, end_id]
    likely = end > LIKELY_END
    continued = (-end.clamp(max=LIKELY_END).exp()).log1p()
    if likely.any():
        continued = continued.masked_scatter(likely, _other_tokens(log_probs[likely], end_id))
    return continued


def _other_tokens(log_probs: Tensor, end_id: int) -> Tensor:
    """(N, V) log-probabilities to the (N,) log-probability of all tokens but one."""
    end = torch.tensor([end_id], device=log_probs.device)
    return log_probs.index_fill(1, end, -torch.inf).logsumexp(dim=-1).clamp(max=0.0)


def score(
    reasoner: Reasoner,
    prompt: PromptLike,
    rollout: Rollout,
    *,
    share_prompt: bool | None = None,
    vision: Vision | None = None,
) -> RolloutScores:
    """Score a rollout under the current weights; see :meth:`futurel1.models.LatentReasoner.score_rollout`."""
    layout = choose_layout(reasoner.backbone, share_prompt)
    ids, mask, branches = prompt.input_ids, prompt.attention_mask, rollout.num_branches
    require_left_padding(mask)
    if len(ids) * branches != len(rollout):
        raise BatchError(f"{len(ids)} prompts with {branches} branches, but the rollout has {len(rollout)} responses")

    # 1. Run the prompts and their responses once: every decision is scored from the hidden state before it.
    vision = reasoner.encode(prompt) if vision is None else vision
    lengths = rollout.response_mask.sum(dim=1).view(-1, branches)
    packed = pack(mask, lengths, rollout.responses.shape[1], layout)
    hidden = _run_packed(reasoner, prompt, rollout, packed, layout, vision)
    real = rollout.response_mask
    row = packed.row[:, None].expand_as(packed.column)
    predicting = hidden[row[real], packed.column[real]]

    # 2. Score the tokens, and at latents the decision to continue.
    slots = rollout.slot_mask[real]
    chosen, entropy = _decision_log_probs(reasoner, predicting, rollout.responses[real], slots, rollout.temperature)
    log_probs = hidden.new_zeros(real.shape, dtype=torch.float32).masked_scatter(real, chosen)

    # 3. Score the recorded latents, as constants.
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


def _run_packed(
    reasoner: Reasoner, prompt: PromptLike, rollout: Rollout, packed: PackedLayout, layout: Layout, vision: Vision
) -> Tensor:
    """(Q, T, H) hidden states of the packed rows, with recorded latents in their slots."""
    ids, mask, backbone = prompt.input_ids, prompt.attention_mask, reasoner.backbone
    start, width = ids.shape[1], packed.branch.shape[1]
    # 1. Embed prompts and responses, and put the responses' tokens into their columns.
    prompt_embeds, visual = reasoner.embed(ids, vision)
    response_embeds = backbone.embed_tokens(rollout.responses)
    slot_values = rollout.latents.detach()[rollout.latent_mask].to(response_embeds.dtype)
    response_embeds = response_embeds.masked_scatter(rollout.slot_mask[..., None], slot_values)
    embeds = prompt_embeds[packed.prompt]
    embeds = torch.cat([embeds, embeds.new_zeros(len(embeds), width - start, embeds.shape[-1])], dim=1)
    is_fed = packed.fed_column >= 0
    row = packed.row[:, None].expand_as(packed.fed_column)
    embeds = embeds.index_put((row[is_fed], packed.fed_column[is_fed]), response_embeds[is_fed])

    # 2. Positions continue after the prompt, restarting in every branch.
    positions = backbone.positions(ids, mask, vision)
    next_position = next_positions(positions, mask)
    later = next_position[packed.prompt, None] + packed.step[:, start:].clamp(min=0)
    positions = torch.cat([positions[:, packed.prompt], later[None].expand(3, -1, -1)], dim=2)

    # 3. A branch attends to its prompt and itself.
    if layout == "shared":
        attention: Tensor = branch_mask(packed.branch, backbone.attn_implementation, embeds.dtype)
    else:
        # Rows are ordinary sequences, and recurrent layers take only a (B, T) mask.
        real = torch.where(packed.step[:, start:] >= 0, 1, 0).to(mask.dtype)
        attention = torch.cat([mask[packed.prompt], real], dim=1)
    return backbone.run(embeds, positions, attention, spread_visual(visual, packed.prompt, width))


def _decision_log_probs(
    reasoner: Reasoner, hidden: Tensor, targets: Tensor, slots: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of the decision at every scored position, chunk by chunk."""
    end = reasoner.tokens.end_id

    def chunk(rows: Tensor, ids: Tensor, is_slot: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = (reasoner.logits(rows).float() / temperature).log_softmax(dim=-1)
        going = continue_log_prob(log_probs[is_slot], end)
        chosen = log_probs.gather(1, ids[:, None])[:, 0].masked_scatter(is_slot, going)
        # Last, because recomputation in backward stops after the last tensor that needs a gradient.
        with torch.no_grad():
            entropy = -log_probs.exp().mul_(log_probs).sum(dim=-1)
            ended = log_probs[is_slot, end]
            entropy[is_slot] = -(ended.exp() * ended + going.exp() * going)
        return chosen, entropy

    # One chunk of logits at a time, recomputed in backward: logits are by far the largest tensor here.
    parts = [
        checkpoint(
            chunk, hidden[i : i + SCORE_CHUNK], targets[i : i + SCORE_CHUNK], slots[i : i + SCORE_CHUNK],
            use_reentrant=False,
        )
        for i in range(0, len(targets), SCORE_CHUNK)
    ]  # fmt: skip
    log_probs, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return log_probs, entropy


def spread_visual(visual: VisualRows | None, prompt: Tensor, width: int) -> VisualRows | None:
    """Expand the prompts' DeepStack rows to packed rows that start with those prompts and are `width` wide."""
    if visual is None:
        return None
    starts = visual.mask.sum(dim=1).cumsum(0) - visual.mask.sum(dim=1)
    mask = visual.mask[prompt]
    # In row-major order, a row's visual tokens are those of its prompt.
    index = (mask.cumsum(dim=1) - 1 + starts[prompt][:, None])[mask]
    return VisualRows(F.pad(mask, (0, width - mask.shape[1])), [level[index] for level in visual.deepstack])
