"""Trainable rows of a few tokens in an embedding table and a vocabulary projection that stay frozen.

Shapes: K tokens, H hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class RowDelta(NamedTuple):
    """What is added to some rows of a (V, H) table.

    Attributes:
        ids: (K,) int64 rows, each once.
        values: (K, H) what is added to them.
    """

    ids: Tensor
    values: Tensor


def with_rows(table: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """A (V, H) table with (K, H) `values` added to its rows `ids`, rounded to its dtype; the table does not change."""
    return table.index_copy(0, ids, (table[ids] + values).to(table.dtype))


class TokenRows(nn.Module):
    """What a few tokens' rows differ by from those of the frozen tables.

    Nothing of the size of a table is made, neither in forward nor in backward: a difference is added to the embeddings
    of these tokens, and to their columns of the logits. The differences are float32 and begin at zero.

    Args:
        ids: the K tokens.
        hidden_size: H.
        tied: whether `lm_head` is the embedding table, so that both get the same difference.
        device: where the tables are.
    """

    ids: Tensor

    def __init__(self, ids: Sequence[int], hidden_size: int, *, tied: bool, device: torch.device | None = None) -> None:
        super().__init__()
        self.register_buffer("ids", torch.tensor(ids, device=device), persistent=False)
        zeros = torch.zeros(len(ids), hidden_size, dtype=torch.float32, device=device)
        self.embedding = nn.Parameter(zeros)
        self.projection: nn.Parameter | None = None if tied else nn.Parameter(zeros.clone())
        self.enabled = True

    @property
    def of_projection(self) -> Tensor:
        """(K, H) what is added to rows of `lm_head`."""
        return self.embedding if self.projection is None else self.projection

    def embedded(self, embeds: Tensor, input_ids: Tensor) -> Tensor:
        """Add the tokens' differences to their embeddings: (..., H) embeddings of (...) ids to (..., H)."""
        if not self.enabled:
            return embeds
        # A product, so that the differences are in the graph of every batch, as DDP needs them.
        chosen = (input_ids[..., None] == self.ids).to(embeds.dtype)
        return embeds + chosen @ self.embedding.to(embeds.dtype)

    def projected(self, logits: Tensor, hidden: Tensor) -> Tensor:
        """Add the tokens' differences to their columns of fresh logits, in place: (..., V) logits of (..., H)."""
        if not self.enabled:
            return logits
        columns = nn.functional.linear(hidden, self.of_projection.to(hidden.dtype))
        return logits.index_add_(-1, self.ids, columns.to(logits.dtype))

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it, the rows are those of the tables."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before
