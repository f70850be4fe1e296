"""Linear layers that compute in float32 whatever the type of their weights and whatever autocast says.

DeepSpeed's bf16 mode casts every parameter of a model (float32 master weights stay in the optimizer). What is added to
coordinates, or summed over a mask, must not follow: bfloat16 has three digits.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Float32Linear(nn.Linear):
    """A linear layer in float32; float64 stays.

    It widens its weights in its own forward, which also holds when ZeRO-3 gathers them for that call alone. Their
    gradients have the weights' own type.
    """

    def forward(self, input: Float[Tensor, "*rows in_features"]) -> Float[Tensor, "*rows out_features"]:
        """Project the last dimension."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(dtype)
            return F.linear(input.to(dtype), self.weight.to(dtype), bias)
