"""The predictor: from the language model's states at the tokens of a frame to the features of a later frame.

A transformer in pre-norm order in which a frame's tokens attend to all tokens of their own frame and of the
`num_hist - 1` frames before it. The own frame's tokens are those of the block before; the earlier frames' are those
that entered the predictor. So a prediction depends on `num_hist` frames exactly, however many blocks there are, where
plain windowed blocks would reach `num_hist - 1` frames further back each. DINO-WM (Zhou et al. 2024, arXiv:2411.04983)
predicts features of patches from the last frames' in the same spirit, under a mask over all tokens.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from region_core.attention import FeedForward
from region_core.losses import drop_dummy, with_dummy_row
from torch import Tensor, nn

from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.positions import PositionEncoding
from video_autoregressive.windows import FrameGroup, FrameWindows


class WindowedAttention(nn.Module):
    """Attention of every frame's tokens to those of its window, without a mask.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads; must divide `dim`.
        dropout: Probability of dropping an attention weight while training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float | int = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        tokens: Float[Tensor, "tokens dim"],
        memory: Float[Tensor, "tokens dim"] | None,
        groups: Sequence[FrameGroup],
    ) -> Float[Tensor, "tokens dim"]:
        """Mix the tokens of each frame's window into the frame.

        Args:
            tokens: Packed tokens, which ask and answer for their own frame.
            memory: The same tokens as they answer for other frames; None if they are `tokens`.
            groups: The windows.
        """
        queries = self.query(tokens).unflatten(1, (self.num_heads, -1))
        # One call for both, since a module that runs twice per step costs ZeRO-3 a second gathering of its weights.
        table = self.key_value(tokens if memory is None else torch.cat([tokens, memory]))
        offset = 0 if memory is None else tokens.shape[0]
        dropout = self.dropout if self.training else 0.0
        return self.out(attend_in_windows(queries, table, groups, offset=offset, dropout=dropout))


def attend_in_windows(
    queries: Float[Tensor, "tokens heads head_dim"],
    table: Float[Tensor, "rows keys_and_values"],
    groups: Sequence[FrameGroup],
    *,
    offset: int = 0,
    dropout: float | int = 0.0,
) -> Float[Tensor, "tokens dim"]:
    """Attention of packed tokens to their frame's window.

    Args:
        queries: One per packed token.
        table: Keys, then values of all heads side by side; the packed tokens' own come first.
        groups: The windows.
        offset: Row from which the tokens answer for other frames.
        dropout: Probability of dropping an attention weight.
    """
    attended, start = [], 0
    for group in groups:
        own = slice(start, start + group.num_frames * group.num_tokens)
        start = own.stop
        seen = table[own].unflatten(0, (group.num_frames, group.num_tokens))
        if group.others.shape[1]:
            # Indexed, not index_select: its backward adds in a fixed order on every device.
            seen = torch.cat([seen, table[group.others + offset]], dim=1)
        key, value = seen.unflatten(2, (2, queries.shape[1], -1)).permute(2, 0, 3, 1, 4)
        query = queries[own].unflatten(0, (group.num_frames, group.num_tokens)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        attended.append(mixed.transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat(attended)


class PredictorBlock(nn.Module):
    """Windowed attention and a feed-forward part, both as pre-norm residuals.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads; must divide `dim`.
        dropout: Probability of dropping, in the attention weights and before each residual sum.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float | int = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = WindowedAttention(dim, num_heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "tokens dim"],
        memory: Float[Tensor, "tokens dim"] | None,
        groups: Sequence[FrameGroup],
    ) -> Float[Tensor, "tokens dim"]:
        """Pass the tokens on; the arguments are those of `WindowedAttention`, before normalisation."""
        if memory is None:
            mixed = self.attention(self.attention_norm(tokens), None, groups)
        else:
            normed, remembered = self.attention_norm(torch.stack([tokens, memory])).unbind(0)
            mixed = self.attention(normed, remembered, groups)
        tokens = tokens + self.dropout(mixed)
        return tokens + self.dropout(self.feed_forward(self.feed_forward_norm(tokens)))


class FramePredictor(nn.Module):
    """Predicts teacher features, token by token, from the states of a language model.

    Args:
        hidden_size: Width of the language model.
        config: Width, heads, blocks, dropout.
        dim_out: Width of the features.
    """

    def __init__(self, hidden_size: int, config: AutoregressiveConfig, dim_out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.input = nn.Linear(hidden_size, config.width)
        self.position = PositionEncoding(config.width)
        self.blocks = nn.ModuleList(
            PredictorBlock(config.width, config.num_heads, config.dropout) for _ in range(config.num_layers)
        )
        self.head_norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, dim_out)

    def forward(self, states: Float[Tensor, "tokens hidden"], windows: FrameWindows) -> Float[Tensor, "tokens dim_out"]:
        """Predict one vector per token; without any token all layers run on one zero row.

        Args:
            states: Hidden states of the packed tokens, in the order of `windows.rows`.
            windows: Their frames, on the same device.
        """
        states, num_dummy = with_dummy_row(states)
        places, groups = windows.places, windows.groups
        if num_dummy:
            places = places.new_zeros(1, 4)
            groups = (FrameGroup(1, windows.rows.new_zeros(1, 0)),)
        normed = self.norm(states.to(self.norm.weight.dtype))
        entered = self.input(normed)
        entered = entered + self.position(places).to(entered.dtype)
        tokens, memory = entered, None
        for block in self.blocks:
            tokens, memory = block(tokens, memory, groups), entered
        return drop_dummy(self.head(self.head_norm(tokens)), num_dummy)
