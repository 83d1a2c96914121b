"""The supervised objective: token cross entropy plus alignment of latents with future-frame features."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from futurel1.data import SFTBatch
from futurel1.errors import BatchError, ConfigError
from futurel1.losses.alignment import Alignment, alignment_sum, pool_to
from futurel1.losses.cross_entropy import CHUNK, CrossEntropyPath, linear_cross_entropy
from futurel1.models import IGNORE, LatentReasoner, Vision, find_spans, learned_latents, previous, put_latents
from futurel1.models.decoding.attention import branch_mask
from futurel1.models.decoding.branching import why_inseparable
from futurel1.models.decoding.scoring import continue_log_prob

LatentFeedback = Literal["teacher", "mixed", "self"]
LatentGradient = Literal["stop", "pathwise"]


@dataclass(frozen=True)
class LatentSFTOutput:
    """Result of :class:`LatentSFTLoss`.

    Attributes:
        loss: scalar, `ce + latent_weight * latent + continuation_weight * continuation`.
        ce: scalar, cross entropy in nats: sum over this batch, divided by its `total_tokens` or, without it, by
            `num_tokens`.
        latent: scalar, alignment error, divided by `total_latents` or `num_latents` in the same way.
        continuation: scalar, -log(1 - p(END)) in nats before the latents, divided in the same way; the probability that
            decoding goes on at each latent of a trained span.
        num_tokens: number of scored tokens in this batch.
        num_latents: number of latents in this batch.
        ce_sum: scalar, summed cross entropy, detached.
        latent_sum: scalar, summed alignment error, detached.
        continuation_sum: scalar, summed -log(1 - p(END)), detached.
        predicted: (N, H) predicted latents, detached.
        target: (N, H) features that the latents are compared with.
        span: (N,) int64 number of each latent's hint within the batch.
    """

    loss: Tensor
    ce: Tensor
    latent: Tensor
    continuation: Tensor
    num_tokens: int
    num_latents: int
    ce_sum: Tensor
    latent_sum: Tensor
    continuation_sum: Tensor
    predicted: Tensor
    target: Tensor
    span: Tensor


@dataclass(frozen=True)
class _Run:
    """Result of one pass. S scored tokens, N trained latents, in the order of the batch.

    Attributes:
        scoring: (S, H) hidden states that predict the scored tokens.
        tokens: (S,) int64, these tokens.
        token_record: (S,) int64, the record of each.
        imagining: (N, H) hidden states that predict the trained latents.
        predicted: (N, H) these latents.
        target: (N, H) features that they are compared with.
        span: (N,) int64 number of each latent's hint within the batch.
        latent_record: (N,) int64, the record of each latent.
    """

    scoring: Tensor
    tokens: Tensor
    token_record: Tensor
    imagining: Tensor
    predicted: Tensor
    target: Tensor
    span: Tensor
    latent_record: Tensor


class LatentSFTLoss(nn.Module):
    """``CE + latent_weight * alignment`` (Future-L1, arXiv 2606.05769, Eq. 1-3; `docs/method.md`).

    CE covers every labelled token but LATENT. Alignment compares `head(h_{t-1})` with the hint's features at every
    LATENT position `t` of trained turns. With ``latent_feedback="teacher"`` those features are also the inputs at `t`;
    otherwise some or all rows are fed their own predictions, which parallel passes compute.

    Args:
        latent_weight: lambda, weight of the alignment term.
        alignment: ``"mse"`` (mean over latents and dimensions) or ``"cosine"`` (one minus mean cosine).
        latent_feedback: ``"teacher"``: all rows read true features; ``"mixed"``: a share of rows, chosen by sample id,
            reads its own latents; ``"self"``: all rows read their own.
        feedback_passes: number of parallel passes that compute own latents; exact if it is at least the length of the
            longest chain of latents.
        latent_gradient: ``"stop"``: own latents are constants; ``"pathwise"``: the last pass takes part in backward, so
            that the loss on text trains latents too.
        cross_entropy: implementation of the token loss, see :func:`futurel1.losses.cross_entropy.choose_path`.
        packing: run the records of a padded batch end to end in one row, without their padding. Positions restart and
            attention stays within a record, so values and gradients are the same. Not for recurrent layers, nor for
            attention implementations without masks.
        continuation_weight: weight of -log(1 - p(END)) before each latent. LATENT has no cross entropy, so nothing else
            teaches the model to go on inside a span: without this term, it may end spans at once unless decoding fixes
            their length. 0: the paper's objective.

    Raises:
        ConfigError: a value outside its choices.
    """

    def __init__(
        self,
        latent_weight: float = 0.1,
        alignment: Alignment = "mse",
        latent_feedback: LatentFeedback = "teacher",
        feedback_passes: int = 2,
        latent_gradient: LatentGradient = "stop",
        cross_entropy: CrossEntropyPath = "auto",
        packing: bool = False,
        continuation_weight: float = 0.0,
    ) -> None:
        super().__init__()
        for name, weight in (("latent_weight", latent_weight), ("continuation_weight", continuation_weight)):
            if not weight >= 0:
                raise ConfigError(f"{name} must be at least 0, got {weight}")
        if alignment not in ("mse", "cosine"):
            raise ConfigError(f"alignment must be 'mse' or 'cosine', got {alignment!r}")
        if latent_feedback not in ("teacher", "mixed", "self"):
            raise ConfigError(f"latent_feedback must be 'teacher', 'mixed' or 'self', got {latent_feedback!r}")
        if latent_gradient not in ("stop", "pathwise"):
            raise ConfigError(f"latent_gradient must be 'stop' or 'pathwise', got {latent_gradient!r}")
        if feedback_passes < 1:
            raise ConfigError(f"feedback_passes must be at least 1, got {feedback_passes}")
        if cross_entropy not in get_args(CrossEntropyPath):
            raise ConfigError(f"cross_entropy must be auto, liger, torch or chunked, got {cross_entropy!r}")
        self.latent_weight = latent_weight
        self.alignment: Alignment = alignment
        self.latent_feedback: LatentFeedback = latent_feedback
        self.feedback_passes = feedback_passes
        self.latent_gradient: LatentGradient = latent_gradient
        self.cross_entropy: CrossEntropyPath = cross_entropy
        self.packing = packing
        self.continuation_weight = continuation_weight

    def forward(
        self, reasoner: LatentReasoner, batch: SFTBatch, *, feedback_share: float = 1.0, salt: int = 0
    ) -> LatentSFTOutput:
        """Compute the loss of a batch.

        Args:
            reasoner: the model.
            batch: right-padded sequences with hints.
            feedback_share: probability that a row is fed its own latents, for ``latent_feedback="mixed"``.
            salt: varies the choice of those rows, e.g. seed plus epoch.

        Raises:
            BatchError: hints and spans do not match.
            ConfigError: `packing` with a backbone that cannot keep records of one row apart.
        """
        run = self._run(reasoner, batch, feedback_share, salt)
        weight, delta = reasoner.backbone.lm_head.weight, reasoner.backbone.head_delta
        ce_sum = linear_cross_entropy(run.scoring, weight, run.tokens, self.cross_entropy, delta)
        latent_sum = alignment_sum(run.predicted, run.target, self.alignment)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.continuation_weight > 0):
            continuation_sum = _continuation_sum(reasoner, run.imagining)

        num_tokens, num_latents = len(run.tokens), len(run.target)
        total_latents = max(1, num_latents if batch.total_latents is None else batch.total_latents)
        ce = ce_sum / max(1, num_tokens if batch.total_tokens is None else batch.total_tokens)
        latent, continuation = latent_sum / total_latents, continuation_sum / total_latents
        loss = ce + self.latent_weight * latent
        if self.continuation_weight:
            loss = loss + self.continuation_weight * continuation
        return LatentSFTOutput(
            loss=loss,
            ce=ce,
            latent=latent,
            continuation=continuation,
            num_tokens=num_tokens,
            num_latents=num_latents,
            ce_sum=ce_sum.detach(),
            latent_sum=latent_sum.detach(),
            continuation_sum=continuation_sum.detach(),
            predicted=run.predicted.detach(),
            target=run.target,
            span=run.span,
        )

    @torch.no_grad()
    def scores(self, reasoner: LatentReasoner, batch: SFTBatch) -> dict[str, Tensor]:
        """Scores of each row, without gradient.

        Args:
            reasoner: the model.
            batch: B right-padded sequences with hints.

        Returns:
            ``ce``: (B,) mean cross entropy in nats; ``latent``: (B,) mean alignment error; ``cosine``: (B,) mean cosine
            to the target. NaN for rows without labelled tokens or without latents.
        """
        run = self._run(reasoner, batch, 1.0, 0)
        token_ce = F.cross_entropy(reasoner.logits(run.scoring).float(), run.tokens, reduction="none")
        predicted, target = run.predicted.float(), run.target.float()
        cosine = F.cosine_similarity(predicted, target, dim=-1)
        error = (predicted - target).square().mean(dim=-1) if self.alignment == "mse" else 1 - cosine

        def mean_by_row(values: Tensor, row: Tensor) -> Tensor:
            sums = values.new_zeros(len(batch)).index_add(0, row, values)
            return sums / torch.bincount(row, minlength=len(batch))

        return {
            "ce": mean_by_row(token_ce, run.token_record),
            "latent": mean_by_row(error, run.latent_record),
            "cosine": mean_by_row(cosine, run.latent_record),
        }

    def _run(self, reasoner: LatentReasoner, batch: SFTBatch, feedback_share: float, salt: int) -> "_Run":
        """One pass over a batch, after the passes that compute own latents."""
        backbone, tokens, real = reasoner.backbone, reasoner.tokens, batch.attention_mask != 0
        vision = _vision(reasoner, batch)
        spans = find_spans(batch.input_ids, tokens)
        target, span = self._targets(reasoner, batch, spans.latent_mask, spans.span_ids)
        learned = learned_latents(spans, batch.input_ids, batch.labels, tokens)
        scored = (batch.labels != IGNORE) & (batch.labels != tokens.latent_id)
        scored[:, 0] = False  # nothing comes before it

        # 1. Lay the records out: a row for each, or all real tokens in one row. Their order is the same.
        packed = self._packs(reasoner, real)

        def lay_out(values: Tensor) -> Tensor:
            return values[..., real].unsqueeze(-2) if packed else values

        record = lay_out(torch.arange(len(batch), device=real.device)[:, None].expand_as(real))
        slots, learned, scored, labels = map(lay_out, (spans.latent_mask, learned, scored, batch.labels))
        embeds, visual = reasoner.embed(lay_out(batch.input_ids), vision)
        positions = lay_out(backbone.positions(batch.input_ids, batch.attention_mask, vision))
        attention = batch.attention_mask
        if packed:
            attention = branch_mask(record, backbone.attn_implementation, embeds.dtype)

        # 2. Compute own latents where they are fed, then run once more.
        def run(latents: Tensor) -> Tensor:
            return backbone.run(put_latents(embeds, slots, latents), positions, attention, visual)

        own_rows = self._own_rows(batch, feedback_share, salt)
        hidden = run(self._fed(reasoner, run, target, slots, own_rows.to(record.device)[record[slots]], feedback_share))

        # 3. The hidden state before a token predicts it.
        kept = learned[slots]
        span = torch.unique_consecutive(span[kept], return_inverse=True)[1]
        # Without latents the head still runs, on zero rows, to keep every trainable parameter in the graph for DDP.
        imagining = previous(hidden, learned)
        predicted = reasoner.predict_latents(imagining)
        return _Run(
            previous(hidden, scored), labels[scored], record[scored], imagining, predicted, target[kept], span,
            record[learned],
        )  # fmt: skip

    def _packs(self, reasoner: LatentReasoner, real: Tensor) -> bool:
        """Whether to pack a batch whose real tokens are given; one without padding runs faster as it is."""
        why = why_inseparable(reasoner.backbone) if self.packing else None
        if why:
            raise ConfigError(f"records cannot be packed into one row: {why}; leave packing out")
        return self.packing and not bool(real.all())

    def _fed(
        self,
        reasoner: LatentReasoner,
        run: Callable[[Tensor], Tensor],
        target: Tensor,
        slots: Tensor,
        own: Tensor,
        share: float,
    ) -> Tensor:
        """(N, H) latents to feed: the target's, or the model's own in the slots of (N,) `own`."""
        fed = target
        # Sharded layers gather their weights in every pass, so all processes have to run the same number of passes.
        possible = self.latent_feedback == "self" or (self.latent_feedback == "mixed" and share > 0)
        if bool(own.any()) or (possible and _several_processes()):
            for number in range(self.feedback_passes):
                last = number == self.feedback_passes - 1
                with torch.set_grad_enabled(torch.is_grad_enabled() and last and self.latent_gradient == "pathwise"):
                    predicted = reasoner.predict_latents(previous(run(fed), slots)).to(target.dtype)
                    fed = torch.where(own[:, None], predicted, target)
        return fed

    def _targets(
        self, reasoner: LatentReasoner, batch: SFTBatch, mask: Tensor, span_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features for every latent slot, and the number of each slot's hint within the batch."""
        row = mask.nonzero()[:, 0]
        # Number the spans with latents across the batch; an empty span has no hint.
        span = torch.unique_consecutive(torch.stack((row, span_ids[mask])), dim=1, return_inverse=True)[1]
        lengths = torch.bincount(span)
        features = batch.hint_features
        if features is None and batch.hint_pixel_values is not None and batch.hint_grid_thw is not None:
            features = reasoner.encode_hints(batch.hint_pixel_values, batch.hint_grid_thw)
        if features is None:
            if len(span):
                raise BatchError(f"input_ids have {len(lengths)} spans with latents, but the batch has no hint frames")
            weight = reasoner.backbone.lm_head.weight
            return weight.new_zeros((0, reasoner.hidden_size)), span
        counts = torch.tensor(features.counts, device=span.device)
        if len(counts) != len(lengths):
            raise BatchError(f"{len(counts)} hint frames for {len(lengths)} spans with latents; one span per hint")
        embeds = features.embeds.detach()
        if not torch.equal(counts, lengths):
            if not reasoner.settings.fixed_latent_budget:
                raise BatchError(
                    f"hints have {counts.tolist()} visual tokens but their spans {lengths.tolist()} latents; give each "
                    "span as many LATENT tokens as its hint has visual tokens, or set fixed_latent_budget"
                )
            embeds = pool_to(embeds, counts, lengths)
        return embeds, span

    def _own_rows(self, batch: SFTBatch, share: float, salt: int) -> Tensor:
        """(B,) bool, rows that are fed their own latents; for a sample id it does not depend on the batch."""
        if self.latent_feedback == "teacher":
            return torch.zeros(len(batch), dtype=torch.bool)
        if self.latent_feedback == "self":
            return torch.ones(len(batch), dtype=torch.bool)
        names = batch.sample_ids or tuple(str(row) for row in range(len(batch)))
        return torch.tensor([_draw(f"{salt}:{name}") < share for name in names])


def _continuation_sum(reasoner: LatentReasoner, imagining: Tensor) -> Tensor:
    """Summed -log(1 - p(END)) over (N, H) hidden states inside spans: what it takes not to end there."""

    def chunk_sum(hidden: Tensor) -> Tensor:
        log_probs = reasoner.logits(hidden).float().log_softmax(dim=-1)
        return -continue_log_prob(log_probs, reasoner.tokens.end_id).sum()

    # As in the cross entropy, the logits of one chunk are held at a time.
    sums = [checkpoint(chunk_sum, rows, use_reentrant=False) for rows in torch.split(imagining, CHUNK) if len(rows)]
    return torch.stack(sums).sum() if sums else imagining.new_zeros((), dtype=torch.float32)


def _several_processes() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _draw(name: str) -> float:
    """A number in [0, 1) that depends only on a name."""
    # Not a checksum: a change of salt would flip the same bits for all samples, so the same samples would be chosen
    # together under every salt.
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big") / 2**48


def _vision(reasoner: LatentReasoner, batch: SFTBatch) -> Vision:
    """Features of a batch's images and videos; the batch may already have those of its images."""
    if batch.image_features is None:
        return reasoner.encode(batch)
    return replace(reasoner.encode(replace(batch, pixel_values=None, image_grid_thw=None)), images=batch.image_features)
