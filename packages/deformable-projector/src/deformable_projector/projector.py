"""Projectors from a feature pyramid to a language model, and the one place that builds them.

The deformable projector is PSALM's baseline plus an aligner whose result is added: its tokens look again at all levels
of their own image, or at those of a reference image in which regions are marked. The addition starts at zero, so a
deformable projector is its baseline until it is trained, and the number of tokens stays.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from jaxtyping import Bool, Float
from torch import Tensor, nn

from .alignment import AlignerOutput, MultiScaleDeformableCrossAttentionAlignment
from .config import DeformableProjectorConfig, ReferencePoints, check_choice
from .swin_conv import SwinConvProjector

ProjectorType = Literal["swin_conv", "deformable"]
"""The values of `--mm_projector_type` that work on a feature pyramid."""


class ProjectedTokens(NamedTuple):
    """Image tokens for a language model.

    Attributes:
        tokens: Row by row of `grid`.
        grid: (height, width) of the tokens.
        similarity: Similarity of each token with each cell of the reference image's coarsest level, as logits; None
            without a reference image.
    """

    tokens: Float[Tensor, "batch tokens output_dim"]
    grid: tuple[int, int]
    similarity: Float[Tensor, "batch tokens height width"] | None


class DeformableProjector(nn.Module):
    """The baseline's tokens plus what they see when they look at a feature pyramid.

    Args:
        vision_dims: Channels of each level, finest first.
        output_dim: Width of the tokens, that of the language model.
        config: Settings of the aligner.
        conv_dim: Width of the baseline's block.
        conv2_repeats: How often the baseline's second convolution runs.
    """

    def __init__(
        self,
        vision_dims: Sequence[int],
        output_dim: int,
        config: DeformableProjectorConfig | None = None,
        conv_dim: int = 2048,
        conv2_repeats: int = 1,
    ) -> None:
        super().__init__()
        self.config = config or DeformableProjectorConfig()
        self.base = SwinConvProjector(vision_dims[-1], output_dim, conv_dim, conv2_repeats)
        self.align = MultiScaleDeformableCrossAttentionAlignment(
            output_dim,
            vision_dims,
            self.config.hidden_dim,
            self.config.num_heads,
            self.config.num_points,
            reference_points=self.config.reference_points,
            top_k=self.config.top_k,
            similarity_temperature=self.config.similarity_temperature,
            sample_first=self.config.sample_first,
            backend=self.config.backend,
        )

    @property
    def search(self) -> ReferencePoints:
        """How queries find their place in an image that they have no cell in."""
        return "similarity" if self.config.reference_points == "grid" else self.config.reference_points

    def offset_parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters that move sampling points, to be trained at a tenth of the learning rate."""
        return tuple(f"align.{name}" for name in self.align.offset_parameter_names())

    def forward(
        self,
        feature_maps: Sequence[Float[Tensor, "batch _ _ _"]],
        *,
        reference_maps: Sequence[Float[Tensor, "batch _ _ _"]] | None = None,
        reference_regions: Float[Tensor, "batch _ _"] | None = None,
        valid_masks: Sequence[Bool[Tensor, "batch _ _"]] | None = None,
        reference_valid_masks: Sequence[Bool[Tensor, "batch _ _"]] | None = None,
    ) -> ProjectedTokens:
        """Project an image, by itself or in the light of a reference image.

        Args:
            feature_maps: The image's pyramid, finest first.
            reference_maps: The pyramid of another image to look at instead; its sizes may differ.
            reference_regions: Shares in [0, 1] of the reference frame covered by regions, at any size.
            valid_masks: Per level True where the image is.
            reference_valid_masks: The same for the reference image.

        Returns:
            As many tokens as the baseline's.

        Raises:
            ValueError: Shapes do not fit, or something of a reference image is given without its maps.
        """
        height, width = feature_maps[-1].shape[2:]
        grid = self.base.grid(height, width)
        tokens = self.base(feature_maps[-1])
        if reference_maps is None:
            if reference_regions is not None or reference_valid_masks is not None:
                raise ValueError("reference_regions and reference_valid_masks need reference_maps, got none")
            seen = self.align(tokens, feature_maps, valid_masks=valid_masks, grid=grid, mode="grid")
        else:
            seen = self.align(
                tokens,
                reference_maps,
                valid_masks=reference_valid_masks,
                region_maps=reference_regions,
                mode=self.search,
            )
        return ProjectedTokens(tokens + seen.tokens, grid, seen.similarity)

    def attend(
        self,
        queries: Float[Tensor, "batch queries output_dim"],
        feature_maps: Sequence[Float[Tensor, "batch _ _ _"]],
        *,
        query_mask: Bool[Tensor, "batch queries"] | None = None,
        valid_masks: Sequence[Bool[Tensor, "batch _ _"]] | None = None,
        reference_points: Float[Tensor, "batch queries 2"] | Float[Tensor, "batch queries 4"] | None = None,
        region_maps: Float[Tensor, "batch _ _"] | None = None,
    ) -> AlignerOutput:
        """Let other vectors look at an image: names of classes, or regions of a reference image.

        Args:
            queries: Vectors in the language model's width.
            feature_maps: The pyramid of the image to look at.
            query_mask: False for padding rows, which give zeros.
            valid_masks: Per level True where the image is.
            reference_points: Known points or boxes in [0, 1] of the valid area; without them queries search.
            region_maps: Shares in [0, 1] of the frame covered by regions, at any size.

        Returns:
            What to add to the queries, zero until trained, and where they looked.
        """
        return self.align(
            queries,
            feature_maps,
            query_mask=query_mask,
            valid_masks=valid_masks,
            reference_points=reference_points,
            region_maps=region_maps,
            mode=self.search,
        )


def build_projector(
    projector_type: ProjectorType,
    vision_dims: Sequence[int],
    output_dim: int,
    *,
    config: DeformableProjectorConfig | None = None,
    conv_dim: int = 2048,
    conv2_repeats: int = 1,
) -> SwinConvProjector | DeformableProjector:
    """Build a projector by the name of its type.

    Args:
        projector_type: `swin_conv` or `deformable` (`--mm_projector_type`).
        vision_dims: Channels of each level, finest first.
        output_dim: Width of the tokens, that of the language model.
        config: Settings of the aligner; `swin_conv` has none and ignores them.
        conv_dim: Width of the baseline's block.
        conv2_repeats: How often the baseline's second convolution runs.

    Returns:
        The projector, in training mode.

    Raises:
        ValueError: The type is unknown or a size is out of range.
    """
    check_choice("projector_type (--mm_projector_type)", projector_type, get_args(ProjectorType))
    if projector_type == "swin_conv":
        return SwinConvProjector(vision_dims[-1], output_dim, conv_dim, conv2_repeats)
    return DeformableProjector(vision_dims, output_dim, config, conv_dim, conv2_repeats)


def describe(projector: SwinConvProjector | DeformableProjector) -> list[str]:
    """Lines for the start of a run that answer "is the deformable module really on?".

    Args:
        projector: What `build_projector` returned.
    """
    base = projector.base if isinstance(projector, DeformableProjector) else projector
    block = (
        f"SwinConvProjector: in_dim={base.in_dim}, conv_dim={base.conv_dim}, output_dim={base.output_dim}, "
        f"conv2_repeats={base.conv2_repeats}"
    )
    if not isinstance(projector, DeformableProjector):
        return [block]
    align, config = projector.align, projector.config
    parameters = sum(parameter.numel() for parameter in align.parameters())
    return [
        f"MultiScaleDeformableCrossAttentionAlignment: hidden_dim={config.hidden_dim}, "
        f"vision_dims={list(align.vision_dims)}, {parameters:,} parameters, on top of {block}",
        f"n_levels={align.num_levels}, n_heads={config.num_heads}, n_points={config.num_points}",
    ]
