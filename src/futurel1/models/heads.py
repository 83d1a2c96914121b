"""Projection heads: from a hidden state of the language model to a latent in the space of visual features."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from futurel1.errors import ConfigError

HeadKind = Literal["none", "swiglu", "lvr", "constant"]
EPS = 1e-6
CONSTANT_STD = 0.02


class SwiGLU(nn.Module):
    """``w3(silu(w1 x) * w2 x)``, without biases (Shazeer 2020, "GLU Variants Improve Transformer").

    Args:
        width: input and output width.
        inner: width of the gated product.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(width, inner, bias=False)
        self.w3 = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to (..., width)."""
        out: Tensor = self.w3(F.silu(self.w1(x)) * self.w2(x))
        return out


class SwiGLUHead(nn.Module):
    """LayerNorm, up-projection, :class:`SwiGLU`, down-projection; (..., H) to (..., H).

    Args:
        hidden_size: H, width of the language model.
        projection_hidden_dim: width inside the head.
    """

    def __init__(self, hidden_size: int, projection_hidden_dim: int = 2048) -> None:
        super().__init__()
        self.projection = nn.Sequential(
            nn.LayerNorm(hidden_size, eps=EPS),
            nn.Linear(hidden_size, projection_hidden_dim),
            SwiGLU(projection_hidden_dim, projection_hidden_dim),
            nn.Linear(projection_hidden_dim, hidden_size),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Project hidden states, (..., H) to (..., H)."""
        out: Tensor = self.projection(hidden)
        return out


class LVRHead(nn.Module):
    """LayerNorm and a two-layer GELU perceptron of constant width; (..., H) to (..., H).

    Args:
        hidden_size: H, width of the language model.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.ln_q = nn.LayerNorm(hidden_size, eps=EPS)
        self.mlp = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """Project hidden states, (..., H) to (..., H)."""
        out: Tensor = self.mlp(self.ln_q(hidden))
        return out


class ConstantHead(nn.Module):
    """One learned vector as every latent, whatever the hidden state; (..., H) to (..., H).

    A control: records, format and number of steps are those of a model with latents, and a latent says nothing. What
    such a model gains over one without spans comes from the format and from computing longer.

    Args:
        hidden_size: H, width of the language model.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.randn(hidden_size) * CONSTANT_STD)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the vector in the shape and dtype of hidden states, (..., H) to (..., H)."""
        return self.latent.to(hidden.dtype).expand_as(hidden)


def build_head(kind: HeadKind, hidden_size: int, projection_hidden_dim: int = 2048) -> nn.Module:
    """Make a projection head whose parameter names are those of released checkpoints (after ``projection_head.``).

    Args:
        kind: ``"none"`` (the hidden state itself is the latent), ``"swiglu"``, ``"lvr"`` or, as a control,
            ``"constant"`` (:class:`ConstantHead`).
        hidden_size: H, width of the language model.
        projection_hidden_dim: width inside the ``"swiglu"`` head; the other kinds ignore it.

    Raises:
        ConfigError: an unknown kind.
    """
    if kind == "none":
        return nn.Identity()
    if kind == "swiglu":
        return SwiGLUHead(hidden_size, projection_hidden_dim)
    if kind == "lvr":
        return LVRHead(hidden_size)
    if kind == "constant":
        return ConstantHead(hidden_size)
    raise ConfigError(f"projection head must be 'none', 'swiglu', 'lvr' or 'constant', got {kind!r}")
