"""PSALM's baseline projector: a residual block of stride 2 on the coarsest map, then a linear layer per token.

The block is ResNet's basic block (He et al. 2016) with batch normalisation. The names of its parameters are those of
PSALM's published `mm_projector.bin`. In the code that trained it the second convolution runs twice with nothing in
between, so its weights need `conv2_repeats=2`.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deformable_projector.batch_norm import RankBatchNorm2d


class _ConvBlock(nn.Module):
    """Two 3x3 convolutions beside a 1x1 one, each with batch normalisation, of stride 2."""

    def __init__(self, in_dim: int, conv_dim: int, conv2_repeats: int) -> None:
        super().__init__()
        self.conv2_repeats = conv2_repeats
        self.conv1 = nn.Conv2d(in_dim, conv_dim, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = RankBatchNorm2d(conv_dim)
        self.conv2 = nn.Conv2d(conv_dim, conv_dim, kernel_size=3, padding=1, bias=False)
        self.bn2 = RankBatchNorm2d(conv_dim)
        self.downsample = nn.Sequential(
            nn.Conv2d(in_dim, conv_dim, kernel_size=1, stride=2, bias=False), RankBatchNorm2d(conv_dim)
        )

    def forward(
        self, feature_map: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch conv_dim half_height half_width"]:
        """Run the block."""
        out = torch.relu(self.bn1(self.conv1(feature_map)))
        for _ in range(self.conv2_repeats):
            out = self.conv2(out)
        return torch.relu(self.bn2(out) + self.downsample(feature_map))


class SwinConvProjector(nn.Module):
    """Tokens from the coarsest map: half its height and width, in the language model's width.

    Batch normalisation uses the statistics of the batch in training, that of all ranks, and the running ones in
    evaluation.

    Args:
        in_dim: Channels of the map (1024 for Swin-B, 1536 for Swin-L).
        output_dim: Width of the tokens, that of the language model.
        conv_dim: Width of the block.
        conv2_repeats: How often the second convolution runs: 1, or 2 for PSALM's published weights.

    Raises:
        ValueError: A size is not positive, or the repeats are neither 1 nor 2.
    """

    def __init__(self, in_dim: int, output_dim: int, conv_dim: int = 2048, conv2_repeats: int = 1) -> None:
        super().__init__()
        if min(in_dim, output_dim, conv_dim) < 1:
            raise ValueError(
                f"in_dim, output_dim and conv_dim must be at least 1, got {in_dim}, {output_dim} and {conv_dim}"
            )
        if conv2_repeats not in (1, 2):
            raise ValueError(f"conv2_repeats must be 1, or 2 for PSALM's published weights, got {conv2_repeats!r}")
        self.in_dim = in_dim
        self.output_dim = output_dim
        self.conv_dim = conv_dim
        self.conv2_repeats = conv2_repeats
        self.layer1 = nn.Sequential(_ConvBlock(in_dim, conv_dim, conv2_repeats))
        self.fc = nn.Linear(conv_dim, output_dim)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the tokens for a map of this height and width: half, rounded up."""
        return (height + 1) // 2, (width + 1) // 2

    def forward(
        self, feature_map: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens output_dim"]:
        """Project.

        Args:
            feature_map: The coarsest map of the pyramid (res5).

        Returns:
            Tokens row by row of `grid(height, width)`.

        Raises:
            ValueError: The channels differ, or in training the whole batch has one token, whose normalised value would
                be zero whatever it is.
        """
        batch, channels, height, width = feature_map.shape
        if channels != self.in_dim:
            raise ValueError(f"the coarsest feature map has {channels} channels, the projector expects {self.in_dim}")
        rows, columns = self.grid(height, width)
        if self.training and batch * rows * columns == 1:
            raise ValueError(
                f"batch normalisation cannot train on one token: a batch of one map of {height} x {width}; "
                "use a larger batch or image, or call eval() to use the running statistics"
            )
        return self.fc(self.layer1(feature_map).flatten(2).mT)
