"""`PSALMConfig`: a Swin backbone, a causal language model and Mask2Former's mask side, composed as PSALM does.

What must agree is computed or refused: the projector's output is as wide as the language model, the number of image
tokens follows from the image size, and both image directions need the deformable projector.
"""

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, cast, get_args, no_type_check

from deformable_projector.config import DeformableProjectorConfig
from transformers import AutoConfig, Mask2FormerConfig, PreTrainedConfig, SwinConfig

from psalm.config import CriterionConfig, Direction
from psalm.modes import MODES, Mode

IMAGE_MEAN = (123.675, 116.28, 103.53)
IMAGE_STD = (58.395, 57.12, 57.375)
"""ImageNet's, for pixels in [0, 255]: what Mask2Former's Swin was trained with."""

SWIN_SIZES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
        "large": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]},
    }
)
"""Published sizes of the backbone (Liu et al. 2021), as Mask2Former uses them."""

SWIN_COMMON: Mapping[str, Any] = MappingProxyType({"window_size": 12, "drop_path_rate": 0.3})

STAGES = ("stage1", "stage2", "stage3", "stage4")
NORM_GROUPS = 32
"""Mask2Former's pixel decoder has group norms of 32 groups, whatever its width."""


# transformers gives the constructor more keywords than a shape checker's wrapper lets through.
@no_type_check
class PSALMConfig(PreTrainedConfig):
    """Configuration of `PSALMModel`.

    Args:
        swin_config: Keys of `SwinConfig`; all four stages are put out, whatever it says.
        language_config: Configuration of the causal language model, as a dictionary with `model_type`.
        mask_config: Keys of `Mask2FormerConfig`: sizes of pixel and mask decoder. Its backbone and number of queries
            are taken from the other fields.
        image_size: Side of the square input in pixels, a multiple of the coarsest stride.
        image_mean: Mean per channel of pixels in [0, 255].
        image_std: Standard deviation per channel of pixels in [0, 255].
        projector_type: `swin_conv`, or `deformable`: the same with a deformable residual.
        projector_config: Keys of `DeformableProjectorConfig`; missing keys take its defaults.
        projector_outdim: Width of the projector's output; None, or the language model's width.
        projector_conv_dim: Width of the projector's convolution.
        conv2_repeats: How often the projector runs its second convolution; published weights were trained with 2.
        fpn_variant: Detail of the pixel decoder: `psalm` for published PSALM weights.
        num_mask_queries: Mask tokens at the end of a sequence.
        region_geometry: Add place and size to region vectors.
        region_levels: Add to region vectors what the backbone's maps say under the prompt.
        mask_places: Add places to mask tokens and pixels.
        cross_image: Directions in which the images of a cross-image sample look at each other; by default all that the
            projector allows.
        condition_tokens: Let every condition look at its own image, and add what it finds as one more token.
        criterion_config: Keys of `CriterionConfig`; missing keys take its defaults.
        image_token_id: Placeholder id of an image token.
        seg_token_id: Id of the token that ends a class name or a sentence.
        region_token_id: Placeholder id of a region vector.
        aligned_token_id: Placeholder id of a condition's vector that has looked at its image.
        query_token_id: Placeholder id of a mask token.
    """

    model_type = "psalm"
    sub_configs = {  # noqa: RUF012 - transformers' own form
        "swin_config": SwinConfig,
        "language_config": AutoConfig,
        "mask_config": Mask2FormerConfig,
    }

    swin_config: dict[str, Any] | PreTrainedConfig | None = None
    language_config: dict[str, Any] | PreTrainedConfig | None = None
    mask_config: dict[str, Any] | PreTrainedConfig | None = None
    image_size: int = 1024
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    projector_type: str = "deformable"
    projector_config: dict[str, Any] | None = None
    projector_outdim: int | None = None
    projector_conv_dim: int = 2048
    conv2_repeats: int = 1
    fpn_variant: str = "mask2former"
    num_mask_queries: int = 100
    region_geometry: bool = False
    region_levels: bool = False
    mask_places: bool = False
    cross_image: list[str] | None = None
    condition_tokens: bool = False
    criterion_config: dict[str, Any] | None = None
    image_token_id: int = 0
    seg_token_id: int = 1
    region_token_id: int = 2
    aligned_token_id: int = 3
    query_token_id: int = 4

    def __post_init__(self, **kwargs: object) -> None:
        """Build the sub-configurations and check what must agree."""
        self.language_config = _language_config(self.language_config)
        self.swin_config = _swin_config(self.swin_config, self.image_size)
        self.mask_config = _mask_config(self.mask_config, self.swin_config, self.num_mask_queries)
        self.image_mean = list(self.image_mean or IMAGE_MEAN)
        self.image_std = list(self.image_std or IMAGE_STD)
        self.projector_config = asdict(DeformableProjectorConfig(**(self.projector_config or {})))
        self.criterion_config = asdict(CriterionConfig(**(self.criterion_config or {})))
        self._check_choices()
        self.cross_image = _directions(self.cross_image, self.projector_type)
        if self.condition_tokens and self.projector_type != "deformable":
            raise ValueError(
                "condition_tokens needs projector_type 'deformable' (--mm_projector_type), got "
                f"{self.projector_type!r}: without sampling a condition cannot look at the image"
            )
        self._check_sizes()
        super().__post_init__(**kwargs)

    def _check_choices(self) -> None:
        for name, choices in (
            ("projector_type", ("swin_conv", "deformable")),
            ("fpn_variant", ("mask2former", "psalm")),
            ("conv2_repeats", (1, 2)),
        ):
            if vars(self)[name] not in choices:
                raise ValueError(f"{name}: expected one of {choices}, got {vars(self)[name]!r}")

    def _check_sizes(self) -> None:
        width = self.language.hidden_size
        if self.projector_outdim not in (None, width):
            raise ValueError(
                f"projector_outdim (--projector_outdim) is {self.projector_outdim}, but the language model "
                f"({self.language.model_type}) has a hidden size of {width}; leave it out, it is taken from there"
            )
        if self.image_size < 1 or self.image_size % self.coarsest_stride:
            raise ValueError(
                f"image_size: expected a multiple of the backbone's coarsest stride, {self.coarsest_stride} pixels, "
                f"got {self.image_size}"
            )
        if self.num_mask_queries < 1:
            raise ValueError(f"num_mask_queries: expected 1 or more, got {self.num_mask_queries}")

    @property
    def swin(self) -> SwinConfig:
        """`swin_config`, which is an object from the constructor on."""
        assert isinstance(self.swin_config, SwinConfig)
        return self.swin_config

    @property
    def language(self) -> PreTrainedConfig:
        """`language_config`, which is an object from the constructor on."""
        assert isinstance(self.language_config, PreTrainedConfig)
        return self.language_config

    @property
    def mask(self) -> Mask2FormerConfig:
        """`mask_config`, which is an object from the constructor on."""
        assert isinstance(self.mask_config, Mask2FormerConfig)
        return self.mask_config

    @property
    def projector(self) -> DeformableProjectorConfig:
        """`projector_config`, checked."""
        return DeformableProjectorConfig(**(self.projector_config or {}))

    @property
    def criterion(self) -> CriterionConfig:
        """`criterion_config`, checked."""
        return CriterionConfig(**(self.criterion_config or {}))

    @property
    def directions(self) -> tuple[Direction, ...]:
        """`cross_image`, which is a list from the constructor on."""
        assert self.cross_image is not None
        return tuple(cast("list[Direction]", self.cross_image))

    @property
    def aligned_modes(self) -> tuple[Mode, ...]:
        """Modes whose sequences have one more token per condition, which has looked at the image."""
        paired = "reference_to_target" in self.directions
        return tuple(mode for mode in MODES if (paired if mode == "cross_image" else self.condition_tokens))

    @property
    def hidden_size(self) -> int:
        """Width of the language model; DeepSpeed's automatic bucket sizes read it."""
        return self.language.hidden_size

    @property
    def vision_dims(self) -> list[int]:
        """Channels of the backbone's four maps, fine to coarse."""
        return [self.swin.embed_dim * 2**stage for stage in range(len(STAGES))]

    @property
    def coarsest_stride(self) -> int:
        """Pixels from one position of the coarsest map to the next."""
        assert isinstance(self.swin.patch_size, int)
        return self.swin.patch_size * 2 ** (len(STAGES) - 1)

    @property
    def image_grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens: half of the coarsest map, rounded up as a strided convolution does."""
        side = -(-self.image_size // self.coarsest_stride // 2)
        return side, side

    @property
    def num_image_tokens(self) -> int:
        """Tokens that the target image takes in a sequence."""
        return self.image_grid[0] * self.image_grid[1]


def _swin_config(config: dict[str, Any] | PreTrainedConfig | None, image_size: int) -> SwinConfig:
    given: dict[str, Any] = config.to_dict() if isinstance(config, PreTrainedConfig) else dict(config or {})
    # The stages are derived, so that an incomplete list of a file cannot stand.
    values = {key: value for key, value in given.items() if key not in ("out_features", "out_indices", "stage_names")}
    values |= {"image_size": image_size, "out_features": list(STAGES)}
    depths, patch_size = values.get("depths", SwinConfig.depths), values.get("patch_size", SwinConfig.patch_size)
    if len(depths) != len(STAGES) or not isinstance(patch_size, int):
        raise ValueError(
            f"swin_config: expected four stages and one number as patch_size, got depths {depths} and patch_size "
            f"{patch_size!r}"
        )
    swin = SwinConfig(**values)
    for stage, heads in enumerate(swin.num_heads):
        if swin.embed_dim * 2**stage % heads:
            raise ValueError(
                f"swin_config.num_heads: {heads} heads do not divide the {swin.embed_dim * 2**stage} channels of stage "
                f"{stage + 1}"
            )
    return swin


def _language_config(config: dict[str, Any] | PreTrainedConfig | None) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return config
    values = dict(config or {})
    return AutoConfig.for_model(values.pop("model_type", "phi"), **values)


def _mask_config(
    config: dict[str, Any] | PreTrainedConfig | None, swin: SwinConfig, num_queries: int
) -> Mask2FormerConfig:
    given = config.to_dict() if isinstance(config, PreTrainedConfig) else dict(config or {})
    assert isinstance(swin.patch_size, int)
    strides = [swin.patch_size * 2**stage for stage in range(len(STAGES))]
    derived: dict[str, Any] = {
        "backbone_config": swin,
        "num_queries": num_queries,
        "feature_strides": strides,
        "common_stride": swin.patch_size,
    }
    mask = Mask2FormerConfig(**{**given, **derived})
    if mask.hidden_dim % mask.num_attention_heads or mask.feature_size % mask.num_attention_heads:
        raise ValueError(
            f"mask_config: hidden_dim {mask.hidden_dim} and feature_size {mask.feature_size} have to be multiples of "
            f"num_attention_heads, {mask.num_attention_heads}"
        )
    if mask.feature_size % NORM_GROUPS or mask.mask_feature_size % NORM_GROUPS:
        raise ValueError(
            f"mask_config: feature_size {mask.feature_size} and mask_feature_size {mask.mask_feature_size} have to be "
            f"multiples of {NORM_GROUPS}, the groups of the pixel decoder's norms"
        )
    return mask


def _directions(given: list[str] | None, projector_type: str) -> list[str]:
    possible = list(get_args(Direction)) if projector_type == "deformable" else []
    if given is None:
        return possible
    unknown = [name for name in given if name not in get_args(Direction)]
    if unknown or len(set(given)) != len(given):
        raise ValueError(f"cross_image: expected names of {', '.join(get_args(Direction))}, each once, got {given}")
    if not set(given) <= set(possible):
        raise ValueError(
            f"cross_image: {', '.join(given)} needs projector_type 'deformable' (--mm_projector_type), got "
            f"{projector_type!r}: without sampling the images cannot look at each other; leave the list empty"
        )
    return list(given)


AutoConfig.register(PSALMConfig.model_type, PSALMConfig)
