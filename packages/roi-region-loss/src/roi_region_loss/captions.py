"""Contrastive loss between regions and their captions (FG-CLIP, Xie et al. 2025, arXiv:2505.05071).

The same symmetric loss as between regions, with a caption in place of the second region. Captions that are wrong on
purpose ("a red ball" for a blue one) enter as further columns of their own region's row, and of no other.
"""

from jaxtyping import Float, Int64
from torch import Tensor, nn

from roi_region_loss.config import RegionLossConfig
from roi_region_loss.contrastive import LogitScale, RegionLossOutput, contrast_pairs


class RegionCaptionLoss(nn.Module):
    """Pulls regions and their captions together, against the captions and regions of all ranks.

    Args:
        config: Temperature and choice of negatives: captions of regions that overlap a row's own, or lie in another
            record of the same image, are no negatives.
    """

    def __init__(self, config: RegionLossConfig | None = None) -> None:
        super().__init__()
        self.config = config or RegionLossConfig()
        self.scale = LogitScale(self.config.temperature, self.config.max_scale)

    def forward(
        self,
        region_features: Float[Tensor, "regions dim"],
        caption_features: Float[Tensor, "regions dim"],
        *,
        boxes: Float[Tensor, "regions 4"],
        owner: Int64[Tensor, " regions"],
        image_ids: Int64[Tensor, " batch"],
        hard_negatives: Float[Tensor, "regions negatives dim"] | None = None,
        weights: Float[Tensor, " regions"] | None = None,
    ) -> RegionLossOutput:
        """Contrast the regions and captions of all ranks; every rank must call this together.

        Args:
            region_features: One vector per region; normalised here.
            caption_features: The vector of each region's caption.
            boxes: The regions, normalised.
            owner: Image of this rank's batch that each region lies in.
            image_ids: Per image, a number that identifies it, the same on all ranks.
            hard_negatives: Vectors of wrong captions of each region.
            weights: Weight of each region's row; 1 by default.

        Raises:
            ValueError: The numbers of rows differ.
        """
        return contrast_pairs(
            (region_features, caption_features),
            boxes=(boxes, boxes),
            owner=owner,
            image_ids=(image_ids, image_ids),
            weights=weights,
            scale=self.scale(),
            config=self.config,
            hard_negatives=hard_negatives,
        )
