"""First weights of a small model that starts from nothing, so that it learns from pictures in minutes.

The library draws all weights as for wide models with a long training before them. In a model 128 wide, what the vision
tower sees would enter the language model a hundred times fainter than what the first layer adds to it; a tower without
training adds mostly itself, the same to every patch; and places would drown in contents. Pretrained models are left as
they are.
"""

import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

EMBEDDING_SPREAD = 0.1
"""Standard deviation of the token embeddings; pictures arrive with about the same."""
PLACE_SPREAD = 0.5
"""Of the tower's position embeddings, where contents have about 0.6."""
BRANCH_SCALE = 0.1
"""Of what the tower's blocks add to the patches."""
NUM_FREQUENCIES = 4
"""The longest wave of a place spans two pictures, the shortest a quarter of one."""


def settle_new_weights(tower: nn.Module, projector: nn.Module, language: PreTrainedModel) -> None:
    """Change the random weights of a new model in place; the random generator decides what is random of it.

    Args:
        tower: Vision tower with SigLIP's names; what it does not have stays as it is.
        projector: Linear layers from the tower to the language model.
        language: Has the token embeddings.
    """
    with torch.no_grad():
        for name, module in tower.named_modules():
            if isinstance(module, nn.Embedding) and name.endswith("position_embedding"):
                module.weight.copy_(place_waves(*module.weight.shape))
            elif isinstance(module, nn.Linear) and name.endswith(("out_proj", "fc2")):
                module.weight.mul_(BRANCH_SCALE)
        for module in projector.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
        nn.init.normal_(cast("nn.Embedding", language.get_input_embeddings()).weight, std=EMBEDDING_SPREAD)


def place_waves(num_places: int, dim: int) -> Float[Tensor, "{num_places} {dim}"]:
    """Random mixtures of sines of the row and the column of every patch of a square picture.

    Raises:
        ValueError: So many patches make no square.
    """
    side = math.isqrt(num_places)
    if side * side != num_places:
        raise ValueError(f"got {num_places} places, expected a square number: the patches of a square picture")
    centres = (torch.arange(side) + 0.5) / side
    places = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (places[:, :, None] * math.pi * 2.0 ** torch.arange(NUM_FREQUENCIES)).flatten(1)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    # Half of a wave's square on average is 1.
    mixture = torch.randn(waves.shape[1], dim) * PLACE_SPREAD / math.sqrt(waves.shape[1] / 2)
    return waves @ mixture
