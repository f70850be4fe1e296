"""Modules that compute in float32 whatever the type of their weights and whatever autocast says.

DeepSpeed's bf16 mode casts every parameter of a model (float32 master weights stay in the optimizer), and no list of
exceptions spares any. Sampling coordinates in bf16 are off by cells, half-precision `grid_sample` on the CPU returns
garbage, and a mask is a large sum, so these parts widen their weights where they use them: layer by layer, which also
holds when ZeRO-3 gathers a layer's weights for that layer alone, and when activation checkpointing runs it again.
"""

from jaxtyping import Float
from region_core.precision import Float32Linear
from torch import Tensor, nn
from torch.nn import functional as F


def compute_in_float32(module: nn.Module) -> None:
    """Make every layer of a module widen its input and its weights to float32.

    The names, the number and the initialisation of the parameters stay. Bare parameters that a module adds to float32
    features are widened by the addition. Autocast has to be switched off around the module's forward.

    Args:
        module: Changed in place; layers of other types than those below keep their own computation.
    """
    for layer in module.modules():
        if type(layer) in _FLOAT32_LAYERS:
            # In place, since the library also reaches layers through plain lists, which know nothing of a replacement.
            layer.__class__ = _FLOAT32_LAYERS[type(layer)]


class Float32Conv2d(nn.Conv2d):
    """A convolution in float32."""

    def forward(
        self, input: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch filters rows columns"]:
        """As the base class."""
        return self._conv_forward(input.float(), self.weight.float(), _wide(self.bias))


class Float32GroupNorm(nn.GroupNorm):
    """A group norm in float32."""

    def forward(self, input: Float[Tensor, "batch channels *grid"]) -> Float[Tensor, "batch channels *grid"]:
        """As the base class."""
        return F.group_norm(input.float(), self.num_groups, self.weight.float(), _wide(self.bias), self.eps)


class Float32LayerNorm(nn.LayerNorm):
    """A layer norm in float32."""

    def forward(self, input: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """As the base class."""
        return F.layer_norm(input.float(), self.normalized_shape, self.weight.float(), _wide(self.bias), self.eps)


class Float32Embedding(nn.Embedding):
    """A table whose rows come out as float32."""

    def forward(self, input: Tensor) -> Tensor:
        """As the base class."""
        return super().forward(input).float()


class Float32MultiheadAttention(nn.MultiheadAttention):
    """Multi-head attention in float32, for queries and keys of one width."""

    def forward(
        self,
        query: Float[Tensor, "queries batch dim"],
        key: Float[Tensor, "keys batch dim"],
        value: Float[Tensor, "keys batch dim"],
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "queries batch dim"], Tensor | None]:
        """As the base class, but without the weights, which nobody reads and which are large."""
        attended, _ = F.multi_head_attention_forward(
            query.float(),
            key.float(),
            value.float(),
            self.embed_dim,
            self.num_heads,
            self.in_proj_weight.float(),
            _wide(self.in_proj_bias),
            None,
            None,
            False,
            self.dropout,
            self.out_proj.weight.float(),
            _wide(self.out_proj.bias),
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=False,
            attn_mask=attn_mask,
            is_causal=is_causal,
        )
        return attended, None


def _wide(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.float()


_FLOAT32_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Float32Linear,
    nn.Conv2d: Float32Conv2d,
    nn.GroupNorm: Float32GroupNorm,
    nn.LayerNorm: Float32LayerNorm,
    nn.Embedding: Float32Embedding,
    nn.MultiheadAttention: Float32MultiheadAttention,
}
