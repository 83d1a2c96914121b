"""Layouts of one prompt with many branches: a token's column, what it attends to, and which hidden state scores it.

Two layouts give the same results. ``"shared"``: the G responses of a prompt follow it in one row, branch after branch;
a branch attends to the prompt and itself, and positions restart in every branch. ``"rows"``: every branch is a row with
its own copy of the prompt; for backbones with layers that a mask cannot separate (recurrent ones).
"""

import logging
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from futurel1.errors import BatchError, ConfigError
from futurel1.models.backbones import Backbone

logger = logging.getLogger(__name__)
Layout = Literal["shared", "rows"]
MASKED_ATTENTION = ("sdpa", "eager")
"""Attention implementations that take an arbitrary mask, as branches that share a prompt need."""
PROMPT, PADDING = -1, -2
"""Values of :attr:`PackedLayout.branch` at columns outside all branches."""


@dataclass(frozen=True)
class PackedLayout:
    """Rows of prompts followed by response tokens. Q rows, T columns; N branches of at most R tokens.

    Attributes:
        prompt: (Q,) int64, the prompt that each row starts with.
        branch: (Q, T) int64, the branch of each token, counted within its row; ``PROMPT`` or ``PADDING`` elsewhere.
        step: (Q, T) int64, index of each response token within its branch; -1 at prompt and padding columns.
        row: (N,) int64, the row that contains each branch.
        column: (N, R) int64, the column whose hidden state predicts each response token; 0 at padding.
        fed_column: (N, R) int64, the column at which each response token is an input; -1 for tokens that are not (the
            last token of a branch, and padding).
    """

    prompt: Tensor
    branch: Tensor
    step: Tensor
    row: Tensor
    column: Tensor
    fed_column: Tensor

    @property
    def attend(self) -> Tensor:
        """(Q, 1, T, T) bool, True where a token may attend to a column of its row; rebuilt at every access."""
        return dense_mask(self.branch)


def dense_mask(branch: Tensor) -> Tensor:
    """(Q, T) branch of every column to (Q, 1, T, T) bool, True where a token may attend to a column of its row."""
    places = torch.arange(branch.shape[1], device=branch.device)
    return visible(branch[:, None, :, None], branch[:, None, None, :], places[:, None], places[None, :])


def visible(branch: Tensor, key_branch: Tensor, column: Tensor, key_column: Tensor) -> Tensor:
    """Whether tokens attend to keys, given the branch and the column of both; shapes broadcast.

    A token attends to earlier columns of the prompt and of its own branch, and every column attends to itself: padding
    that attended to nothing would give NaN.
    """
    reaches = (key_branch == PROMPT) | ((key_branch == branch) & (branch >= 0))
    return (reaches & (key_column <= column)) | (key_column == column)


def pack(prompt_mask: Tensor, lengths: Tensor, width: int, layout: Layout) -> PackedLayout:
    """Lay out prompts and their branches.

    Args:
        prompt_mask: (B, P), non-zero at real tokens of left-padded prompts.
        lengths: (B, G) int64, response tokens of each branch.
        width: R, columns of the responses.
        layout: ``"shared"`` or ``"rows"``.
    """
    device = prompt_mask.device
    prompts, branches = lengths.shape
    start = prompt_mask.shape[1]
    prompt = torch.arange(prompts, device=device)
    if layout == "rows":
        prompt = prompt.repeat_interleave(branches)
        lengths = lengths.reshape(-1, 1)
    # The last token of a branch predicts nothing, so it is not an input.
    fed = (lengths - 1).clamp(min=0)
    offset = start + fed.cumsum(dim=1) - fed
    total = start + int(fed.sum(dim=1).max())
    steps = torch.arange(width, device=device)
    rows = torch.arange(len(prompt), device=device)[:, None].expand_as(lengths)

    fed_column = torch.where(steps < fed[..., None], offset[..., None] + steps, -1)
    before = torch.where(steps == 0, start - 1, offset[..., None] + steps - 1)
    column = torch.where(steps < lengths[..., None], before, 0)

    branch = torch.full((len(prompt), total), PADDING, device=device)
    branch[:, :start] = torch.where(prompt_mask[prompt] != 0, PROMPT, PADDING)
    step = torch.full_like(branch, -1)
    is_fed = fed_column >= 0
    at = (rows[..., None].expand_as(fed_column)[is_fed], fed_column[is_fed])
    branch[at] = torch.arange(lengths.shape[1], device=device)[None, :, None].expand_as(fed_column)[is_fed]
    step[at] = steps.expand_as(fed_column)[is_fed]

    return PackedLayout(prompt, branch, step, rows.flatten(), column.flatten(0, 1), fed_column.flatten(0, 1))


def next_positions(positions: Tensor, mask: Tensor) -> Tensor:
    """(B,) int64 position of the first response token: one after the prompt's largest position.

    Args:
        positions: (3, B, P) M-RoPE positions of the prompts.
        mask: (B, P), non-zero at real tokens.
    """
    return torch.where(mask != 0, positions, -1).amax(dim=(0, 2)) + 1


def choose_layout(backbone: Backbone, share_prompt: bool | None) -> Layout:
    """Choose the requested layout, or by default the best one that a backbone supports.

    Args:
        backbone: backbone that runs the branches.
        share_prompt: whether branches share a prompt; None: if the backbone supports it.

    Raises:
        ConfigError: `share_prompt` with a backbone that does not support it.
    """
    why = why_inseparable(backbone)
    if share_prompt and why:
        raise ConfigError(f"branches cannot share a prompt: {why}; leave share_prompt out for one row per branch")
    if share_prompt is None and why:
        _say_once(f"every branch has its own copy of the prompt: {why}")
    return "rows" if why or share_prompt is False else "shared"


def why_inseparable(backbone: Backbone) -> str | None:
    """Why no mask can keep sequences of one row apart in a backbone; None where one can."""
    attention = backbone.attn_implementation
    if not backbone.shares_prompt:
        return f"{backbone.stock_class} has recurrent layers"
    if attention not in MASKED_ATTENTION:
        return f"attn_implementation={attention!r} takes no mask that keeps them apart, {MASKED_ATTENTION} do"
    return None


@cache
def _say_once(message: str) -> None:
    logger.info(message)


def require_left_padding(mask: Tensor) -> None:
    """Raise a `BatchError` unless the zeros of a (B, P) attention mask precede all real tokens."""
    real = mask != 0
    if not bool(real[:, -1].all()) or bool((real[:, :-1] & ~real[:, 1:]).any()):
        raise BatchError("prompts have to be padded on the left: attention_mask has zeros after real tokens")
