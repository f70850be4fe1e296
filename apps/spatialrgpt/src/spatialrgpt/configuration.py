"""`SpatialRGPTConfig`: any Hugging Face vision tower and causal language model, composed around regions."""

from dataclasses import asdict
from typing import Any, no_type_check

from region_core.config import RegionEnhancerConfig
from region_heads.config import RegionHeadsConfig
from transformers import AutoConfig, PreTrainedConfig

IMAGE_TOKEN, MASK_TOKEN, DEPTH_TOKEN = "<image>", "<mask>", "<depth>"
IGNORED_LABEL = -100


# transformers gives the constructor more keywords than a shape checker's wrapper lets through.
@no_type_check
class SpatialRGPTConfig(PreTrainedConfig):
    """Configuration of `SpatialRGPTForConditionalGeneration`.

    Args:
        vision_config: Configuration of the vision tower (SigLIP, CLIP, ViT, ...), as a dictionary with `model_type`.
        text_config: Configuration of the causal language model, as a dictionary with `model_type`.
        image_token_id: Placeholder id of an image token.
        mask_token_id: Placeholder id of a region's RGB embedding.
        depth_token_id: Placeholder id of a region's depth embedding.
        vision_feature_layer: Which hidden state of the tower is used; -2 is SpatialRGPT's choice.
        image_mean: Mean per channel of images in [0, 1]; applied on the device to uint8 input.
        image_std: Standard deviation per channel of images in [0, 1].
        refinement_stages: Number of 2x transposed convolutions before regions are pooled.
        refine_depth: Give depth maps a refinement of their own; SpatialRGPT pools them on the tower's grid.
        region_geometry: Tell the model each region's place, size and depth, which mask pooling loses.
        projector_downsample: Side of the square of image tokens that becomes one language token.
        enable_region: Splice region embeddings in at `<mask>`.
        enable_depth: Splice depth embeddings in at `<depth>`.
        enable_region_enhancer: Let regions exchange information before they reach the language model.
        region_enhancer_cfg: Keys of `RegionEnhancerConfig`; missing keys take its defaults.
        enable_region_heads: Answer with typed heads beside the generated text.
        region_heads_cfg: Keys of `RegionHeadsConfig`; missing keys take its defaults.
        lm_loss_weight: Weight of the language modelling loss.
    """

    model_type = "spatialrgpt"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012 - transformers' own form

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    image_token_id: int = 0
    mask_token_id: int = 1
    depth_token_id: int = 2
    vision_feature_layer: int = -2
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    refinement_stages: int = 2
    refine_depth: bool = False
    region_geometry: bool = True
    projector_downsample: int = 2
    enable_region: bool = True
    enable_depth: bool = True
    enable_region_enhancer: bool = True
    region_enhancer_cfg: dict[str, Any] | None = None
    enable_region_heads: bool = False
    region_heads_cfg: dict[str, Any] | None = None
    lm_loss_weight: float = 1.0

    def __post_init__(self, **kwargs: object) -> None:
        """Build the sub-configurations and complete the guide's dictionaries, refusing unknown keys."""
        self.vision_config = _sub_config(self.vision_config, "siglip_vision_model")
        self.text_config = _sub_config(self.text_config, "llama")
        self.image_mean = self.image_mean or [0.5, 0.5, 0.5]
        self.image_std = self.image_std or [0.5, 0.5, 0.5]
        self.region_enhancer_cfg = asdict(self.enhancer)
        self.region_heads_cfg = asdict(self.heads)
        super().__post_init__(**kwargs)

    @property
    def vision(self) -> PreTrainedConfig:
        """`vision_config`, which is an object from the constructor on."""
        assert isinstance(self.vision_config, PreTrainedConfig)
        return self.vision_config

    @property
    def text(self) -> PreTrainedConfig:
        """`text_config`, which is an object from the constructor on."""
        assert isinstance(self.text_config, PreTrainedConfig)
        return self.text_config

    @property
    def enhancer(self) -> RegionEnhancerConfig:
        """`region_enhancer_cfg`, checked."""
        return RegionEnhancerConfig.from_dict(self.region_enhancer_cfg or {})

    @property
    def heads(self) -> RegionHeadsConfig:
        """`region_heads_cfg`, checked."""
        return RegionHeadsConfig.from_dict(self.region_heads_cfg or {})

    @property
    def hidden_size(self) -> int:
        """Width of the language model; DeepSpeed's automatic bucket sizes read it."""
        return self.text.hidden_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the vision tower's token grid."""
        height, width = self.image_size
        patch = _pair(self.vision.patch_size)
        return height // patch[0], width // patch[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the vision tower's input in pixels."""
        return _pair(self.vision.image_size)

    @property
    def region_grid(self) -> tuple[int, int]:
        """Rows and columns of the refined grid on which regions are pooled."""
        scale = 2**self.refinement_stages
        return self.grid[0] * scale, self.grid[1] * scale

    @property
    def num_image_tokens(self) -> int:
        """Language tokens that one image takes."""
        rows, columns = (-(-side // self.projector_downsample) for side in self.grid)
        return rows * columns


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _sub_config(config: dict[str, Any] | PreTrainedConfig | None, default_type: str) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return config
    values = dict(config or {})
    return AutoConfig.for_model(values.pop("model_type", default_type), **values)
