"""The frozen vision tower: images to tokens before the last norm, and the value path of its last block.

SPRC trains the norm behind the tower (LAVIS' `ln_vision`), so the tower here ends before it: `post_layernorm` of
`Blip2VisionModel` is taken out, and what is cached on disk stays valid while the norm trains.
"""

from typing import cast

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from transformers import Blip2VisionConfig, Blip2VisionModel
from transformers.models.blip_2.modeling_blip_2 import Blip2EncoderLayer

Normalisation = tuple[list[float], list[float]]
"""Mean and standard deviation per channel, of images in [0, 1]."""


def make_tower(config: Blip2VisionConfig, dtype: torch.dtype) -> Blip2VisionModel:
    """A frozen tower in evaluation mode, without the last norm."""
    tower = Blip2VisionModel._from_config(config, dtype=dtype)
    tower.post_layernorm = nn.Identity()
    return tower.requires_grad_(False).eval()


@torch.no_grad()
def tower_tokens(
    tower: Blip2VisionModel,
    images: Num[Tensor, "batch 3 height width"],
    *,
    normalisation: Normalisation,
) -> Float[Tensor, "batch tokens channels"]:
    """Output of the tower's last block, class token first, before any norm.

    Args:
        tower: A tower of `make_tower`.
        images: uint8, or already normalised floats; positions are interpolated where the size is not the tower's own.
        normalisation: Mean and standard deviation per channel of images in [0, 1].
    """
    return _run(tower, images, normalisation).last_hidden_state


@torch.no_grad()
def value_tokens(
    tower: Blip2VisionModel,
    images: Num[Tensor, "batch 3 height width"],
    *,
    normalisation: Normalisation,
) -> tuple[Float[Tensor, "batch tokens channels"], Float[Tensor, "batch tokens channels"]]:
    """Output of the last block, and of its value path, in which no token looks at another.

    The value path is MaskCLIP's (Zhou et al. 2022) as FG-CLIP uses it for regions: the block's values take the place of
    its attention's result; residuals, second norm and MLP stay.

    Args:
        tower: See `tower_tokens`.
        images: See `tower_tokens`.
        normalisation: See `tower_tokens`.

    Returns:
        The tokens of `tower_tokens`, and as many of the value path.
    """
    output = _run(tower, images, normalisation, output_hidden_states=True)
    states, block = output.hidden_states[-2], cast("Blip2EncoderLayer", tower.encoder.layers[-1])
    # The whole fused projection, though a third of it is used: its weight alone is empty under ZeRO-3.
    values = block.self_attn.qkv(block.layer_norm1(states)).chunk(3, dim=-1)[2]
    states = states + block.self_attn.projection(values)
    return output.last_hidden_state, states + block.mlp(block.layer_norm2(states))


def _run(
    tower: Blip2VisionModel,
    images: Num[Tensor, "batch 3 height width"],
    normalisation: Normalisation,
    *,
    output_hidden_states: bool = False,
):
    if not images.is_floating_point():
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in normalisation)
        images = (images.float() / 255 - mean) / std
    own_size = images.shape[-2:] == (tower.config.image_size, tower.config.image_size)
    return tower(
        pixel_values=images.to(tower.dtype),
        interpolate_pos_encoding=not own_size,
        output_hidden_states=output_hidden_states,
    )
