"""The pixel decoder: from the backbone's four maps to mask features and three levels for the mask decoder.

It is Mask2Former's (Cheng et al. 2022, arXiv:2112.01527, section 3.2.1): deformable attention over the three coarser
maps, then one step of a feature pyramid to stride 4. All of it runs in float32 (see `psalm.precision`).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder, Mask2FormerPreTrainedModel

from psalm.precision import compute_in_float32

FpnVariant = Literal["mask2former", "psalm"]


class PixelFeatures(NamedTuple):
    """What the mask decoder reads.

    Attributes:
        mask_features: At the finest stride; a mask is their product with a query's mask embedding.
        levels: The maps that the queries look at, coarse to fine (strides 32, 16 and 8).
    """

    mask_features: Float[Tensor, "batch mask_channels height width"]
    levels: tuple[Float[Tensor, "batch channels _ _"], ...]


class Mask2FormerPart(Mask2FormerPreTrainedModel):
    """A part of Mask2Former, initialised as there."""

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # Outside of its own package transformers never initialises a module without parameters of its own, and here it
        # is such modules that know how their layers begin (sampling offsets as a ring, for one).
        super()._initialize_weights(module)


class PixelDecoder(Mask2FormerPart):
    """Mask2Former's pixel decoder, in float32.

    Args:
        config: Sizes: `feature_size`, `mask_feature_size`, `encoder_layers`, `num_attention_heads`.
        feature_channels: Channels of the backbone's maps, fine to coarse.
        fpn_variant: `psalm` adds a bias to the pyramid's convolutions and a ReLU after its lateral norm, as published
            PSALM weights have been trained; `mask2former` is the original.
    """

    main_input_name = "maps"

    def __init__(
        self, config: Mask2FormerConfig, feature_channels: list[int], fpn_variant: FpnVariant = "mask2former"
    ) -> None:
        super().__init__(config)
        self.num_maps = len(feature_channels)
        self.decoder = Mask2FormerPixelDecoder(config, feature_channels)
        if fpn_variant == "psalm":
            self._use_published_pyramid()
        compute_in_float32(self)
        self.post_init()

    def forward(self, maps: Sequence[Float[Tensor, "batch _ _ _"]]) -> PixelFeatures:
        """Decode the maps of a backbone.

        Args:
            maps: Fine to coarse, strides 4 to 32, of any float type.

        Returns:
            float32 features.

        Raises:
            ValueError: There are more or fewer maps than the backbone has.
        """
        if len(maps) != self.num_maps:
            raise ValueError(f"pixel decoder: got {len(maps)} maps, expected {self.num_maps}, fine to coarse")
        with torch.autocast(maps[0].device.type, enabled=False):
            decoded = self.decoder([features.float() for features in maps])
        return PixelFeatures(decoded.mask_features, decoded.multi_scale_features)

    def _use_published_pyramid(self) -> None:
        for index in range(1, self.decoder.num_fpn_levels + 1):
            lateral = self.decoder.get_submodule(f"adapter_{index}")
            output = self.decoder.get_submodule(f"layer_{index}")
            assert isinstance(lateral, nn.Sequential)
            assert isinstance(output, nn.Sequential)
            # The decoder also holds both in plain lists, so they are changed, not replaced.
            lateral[0] = _with_bias(lateral[0])
            lateral.extend([nn.ReLU()])
            output[0] = _with_bias(output[0])


def _with_bias(convolution: nn.Module) -> nn.Conv2d:
    assert isinstance(convolution, nn.Conv2d)
    size = convolution.weight.shape[-1]
    return nn.Conv2d(convolution.in_channels, convolution.out_channels, kernel_size=size, padding=size // 2)
