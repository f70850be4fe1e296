"""Batch normalisation over the batches of all ranks.

With one or two images per rank, statistics of a rank's own batch are noise, and two ranks do not equal one process.
Torch's `SyncBatchNorm` is for GPUs alone and another class under another name; this one runs anywhere, keeps the names
of `BatchNorm2d`, and is `BatchNorm2d` where there is one rank.

Everything is float32 at least. A running statistic moves by a tenth of a small difference, which the three digits of
bfloat16 swallow; and torch refuses weights in bfloat16 beside statistics in float32 on CPUs, which is what DeepSpeed's
bf16 mode makes of a model.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from jaxtyping import Float
from region_core.distributed import all_gather_with_grad
from torch import Tensor, nn
from torch.nn import functional as F

STATISTICS = ("running_mean", "running_var")


class RankBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` whose batch in training is that of all ranks; every rank has to call it equally often.

    The running statistics are float32 at least, in whatever type the module is built or cast to.

    Args:
        num_features: Channels.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        for name in STATISTICS:
            self._buffers[name] = _widen(self.get_buffer(name))

    def forward(self, input: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Normalise; in training also move the running statistics, alike on all ranks."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        with torch.autocast(input.device.type, enabled=False):
            values, weight, bias = (tensor.to(dtype) for tensor in (input, self.weight, self.bias))
            rate = self._begin_batch() if self.training else 0.0
            if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
                statistics = (self.running_mean, self.running_var)
                normalised = F.batch_norm(values, *statistics, weight, bias, self.training, rate, self.eps)
            else:
                normalised = self._over_ranks(values, rate) * weight[:, None, None] + bias[:, None, None]
        return normalised.to(input.dtype)

    def _begin_batch(self) -> float:
        """Count the batch, and say how far the running statistics go towards its own."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        # Without a momentum, as `update_bn` sets it, they are the mean of all batches.
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum

    def _over_ranks(
        self, values: Float[Tensor, "batch channels height width"], rate: float
    ) -> Float[Tensor, "batch channels height width"]:
        """Values less the mean of all ranks over their deviation."""
        own_count = values.new_full((1,), values.numel() / values.shape[1])
        totals = all_gather_with_grad(torch.cat([own_count, values.sum((0, 2, 3))])[None]).sum(0)
        count, mean = totals[0], totals[1:] / totals[0]
        # In two passes: the difference of two large sums would lose what it is after.
        centred = values - mean[:, None, None]
        variance = all_gather_with_grad(centred.square().sum((0, 2, 3))[None]).sum(0) / count
        with torch.no_grad():
            for name, found in zip(STATISTICS, (mean, variance * count / (count - 1)), strict=True):
                running = self.get_buffer(name)
                running.lerp_(found.to(running.dtype), rate)
        return centred * torch.rsqrt(variance + self.eps)[:, None, None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RankBatchNorm2d":
        """Cast or move, but leave the running statistics wide."""
        before = {name: self.get_buffer(name) for name in STATISTICS}
        super()._apply(fn, recurse)
        for name, kept in before.items():
            cast = self.get_buffer(name)
            if _widen(cast) is not cast:
                self._buffers[name] = _widen(kept.to(cast.device))
        return self


def _widen(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
