"""Batch normalisation over the batches of all ranks.

With one or two images per rank, statistics of a rank's own batch are noise, and two ranks do not equal one process.
Torch's `SyncBatchNorm` is for GPUs alone and another class under another name; this one runs anywhere, keeps the names
of `BatchNorm2d`, and is `BatchNorm2d` where there is one rank.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float
from region_core.distributed import all_gather_with_grad
from torch import Tensor, nn


class RankBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` whose batch in training is that of all ranks; every rank has to call it equally often."""

    def forward(self, input: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Normalise; in training also move the running statistics, alike on all ranks."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        values = input.float()
        own_count = values.new_full((1,), values.numel() / values.shape[1])
        totals = all_gather_with_grad(torch.cat([own_count, values.sum((0, 2, 3))])[None]).sum(0)
        count, mean = totals[0], totals[1:] / totals[0]
        # In two passes: the difference of two large sums would lose what it is after.
        centred = values - mean[:, None, None]
        variance = all_gather_with_grad(centred.square().sum((0, 2, 3))[None]).sum(0) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scaled = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        return (scaled * self.weight[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Float[Tensor, " channels"], variance: Float[Tensor, " channels"]) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
