"""Pre-norm attention blocks on torch's scaled dot-product attention.

Self-attention and cross-attention blocks with a feed-forward part of four times the width, in the pre-norm order
(Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture"). Key masks are boolean with True = may be
attended; a query without any key to attend receives zeros, never NaN.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .config import ACTIVATIONS
from .losses import touch

FEED_FORWARD_RATIO = 4
"""Width of the feed-forward part over the width of the tokens, as in the original transformer."""


class LayerGate(nn.Module):
    """A learned factor per channel that starts at zero (LayerScale, Touvron et al. 2021, with zero as initial value).

    It is a plain parameter of a plain module: libraries that re-initialise every linear or norm layer leave it alone.

    Args:
        dim: Number of channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(dim))

    def reset_parameters(self) -> None:
        """Close the gate again."""
        nn.init.zeros_(self.gate)

    def forward(self, tokens: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Scale every channel by its factor; exactly zero at the start."""
        return self.gate * tokens


class Attention(nn.Module):
    """Multi-head attention of queries over a context.

    Args:
        dim: Width of queries and context.
        num_heads: Number of heads; must divide `dim`.
        dropout: Probability of dropping an attention weight while training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float | int = 0.0) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads != 0:
            raise ValueError(f"dim must be a multiple of num_heads, got dim={dim} and num_heads={num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        queries: Float[Tensor, "batch queries dim"],
        context: Float[Tensor, "batch keys dim"],
        key_mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Attend from every query to the allowed keys of its own batch entry.

        Args:
            queries: Query tokens.
            context: Tokens that give keys and values.
            key_mask: True where a key may be attended; None allows all.

        Returns:
            Attended values; zeros where a batch entry has no key at all.
        """
        query, key, value = (
            projection(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, tokens in ((self.query, queries), (self.key, context), (self.value, context))
        )
        if queries.shape[1] == 0 or context.shape[1] == 0:
            # Nothing to attend: zeros (or no rows), with all four projections kept in the graph.
            empty = self.out(query.transpose(1, 2).flatten(2))
            return torch.zeros_like(empty) + touch(empty, key, value).to(empty.dtype)
        dropout = self.dropout if self.training else 0.0
        if key_mask is None:
            attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
            return self.out(attended.transpose(1, 2).flatten(2))
        has_key = key_mask.any(dim=1)
        # A row without keys attends everything for the moment: a softmax over nothing is NaN in some kernels.
        allowed = (key_mask | ~has_key[:, None])[:, None, None, :]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
        return self.out(attended.transpose(1, 2).flatten(2)).masked_fill(~has_key[:, None, None], 0.0)


class FeedForward(nn.Module):
    """Two linear layers with an activation between them, four times as wide inside.

    Args:
        dim: Width of the tokens.
        dropout: Probability of dropping an inner activation while training.
        activation: One of `region_core.config.ACTIVATIONS`.
    """

    def __init__(self, dim: int, dropout: float | int = 0.0, activation: str = "gelu") -> None:
        super().__init__()
        self.expand = nn.Linear(dim, FEED_FORWARD_RATIO * dim)
        self.activation = make_activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(FEED_FORWARD_RATIO * dim, dim)

    def forward(self, tokens: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Transform every token on its own."""
        return self.contract(self.dropout(self.activation(self.expand(tokens))))


class SelfAttentionBlock(nn.Module):
    """Tokens attend to each other, then pass through a feed-forward part; both are pre-norm residuals.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads; must divide `dim`.
        dropout: Probability of dropping, in the attention weights and before each residual sum.
        activation: One of `region_core.config.ACTIVATIONS`.
        gated: Put a `LayerGate` before each residual sum, so that the block starts as the identity.
    """

    def __init__(
        self, dim: int, num_heads: int, *, dropout: float | int = 0.0, activation: str = "gelu", gated: bool = False
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads, dropout)
        self.attention_gate = LayerGate(dim) if gated else nn.Identity()
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, dropout, activation)
        self.feed_forward_gate = LayerGate(dim) if gated else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], token_mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Mix the tokens of each batch entry.

        Args:
            tokens: Tokens; no order is implied.
            token_mask: True where a token is real; the others are attended by nobody.
        """
        normed = self.attention_norm(tokens)
        tokens = tokens + self.attention_gate(self.dropout(self.attention(normed, normed, token_mask)))
        return tokens + self.feed_forward_gate(self.dropout(self.feed_forward(self.feed_forward_norm(tokens))))


class CrossAttentionBlock(nn.Module):
    """Tokens attend to a context, then pass through a feed-forward part; both are pre-norm residuals.

    Args:
        dim: Width of tokens and context.
        num_heads: Number of heads; must divide `dim`.
        dropout: Probability of dropping, in the attention weights and before each residual sum.
        activation: One of `region_core.config.ACTIVATIONS`.
        gated: Put a `LayerGate` before each residual sum, so that the block starts as the identity.
    """

    def __init__(
        self, dim: int, num_heads: int, *, dropout: float | int = 0.0, activation: str = "gelu", gated: bool = False
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.context_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads, dropout)
        self.attention_gate = LayerGate(dim) if gated else nn.Identity()
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, dropout, activation)
        self.feed_forward_gate = LayerGate(dim) if gated else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        context: Float[Tensor, "batch keys dim"],
        context_mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Read from the context into the tokens.

        Args:
            tokens: Tokens that ask.
            context: Tokens that answer.
            context_mask: True where a context token may be attended.
        """
        attended = self.attention(self.attention_norm(tokens), self.context_norm(context), context_mask)
        tokens = tokens + self.attention_gate(self.dropout(attended))
        return tokens + self.feed_forward_gate(self.dropout(self.feed_forward(self.feed_forward_norm(tokens))))


def make_activation(name: str) -> nn.Module:
    """Return the activation of that name; an unknown name is a ValueError that lists the known ones."""
    activations = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
    if name not in activations:
        raise ValueError(f"unknown activation {name!r}; known are {', '.join(ACTIVATIONS)}")
    return activations[name]()
