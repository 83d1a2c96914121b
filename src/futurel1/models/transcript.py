"""Decoded responses as text, with readable placeholders for imagined frames."""

from dataclasses import dataclass
from typing import Any

from futurel1.models.decoding import FinishReason, Rollout


@dataclass(frozen=True)
class Transcript:
    """One response as text.

    Attributes:
        text: everything the model wrote, with special tokens but without the end-of-turn token.
        readable: the same text with each span as `[imagined frame 1: 4 latents]`.
        spans: number of latents of each span.
        tokens: number of tokens in the response, latents included.
        finish_reason: why decoding ended.
    """

    text: str
    readable: str
    spans: tuple[int, ...]
    tokens: int
    finish_reason: FinishReason


def transcripts(rollout: Rollout, tokenizer: Any) -> list[Transcript]:
    """Decode every response of a rollout to text.

    Args:
        rollout: what :meth:`LatentReasoner.generate` returned.
        tokenizer: the model's tokenizer.

    Returns:
        N transcripts; branches of a prompt are adjacent.
    """
    lengths = rollout.response_mask.sum(dim=1).tolist()
    return [_transcript(rollout, row, int(length), tokenizer) for row, length in enumerate(lengths)]


def _transcript(rollout: Rollout, row: int, length: int, tokenizer: Any) -> Transcript:
    ids = rollout.responses[row, :length].tolist()
    reason = rollout.finish_reasons[row]
    written = ids[:-1] if reason == "eos" else ids
    spans = rollout.span_table[rollout.span_table[:, 0] == row].tolist()
    pieces: list[str] = []
    done = 0
    for number, (_, start, latents, end, _) in enumerate(spans, start=1):
        # START at -1 ended the prompt; END at -1 means that decoding ended inside the span.
        pieces.append(tokenizer.decode(written[done : max(0, start)], skip_special_tokens=False))
        pieces.append(f"[imagined frame {number}: {latents} latent{'s' if latents != 1 else ''}]")
        done = end + 1 if end >= 0 else len(written)
    pieces.append(tokenizer.decode(written[done:], skip_special_tokens=False))
    return Transcript(
        text=tokenizer.decode(written, skip_special_tokens=False),
        readable="".join(pieces).strip(),
        spans=tuple(span[2] for span in spans),
        tokens=length,
        finish_reason=reason,
    )
