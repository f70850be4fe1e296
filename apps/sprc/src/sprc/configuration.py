"""`SPRCConfig`: BLIP-2's vision tower and Q-Former as SPRC composes them, with the region loss's settings."""

from dataclasses import asdict
from typing import Any, Literal, get_args, no_type_check

from region_core.grids import TokenGrid
from roi_region_loss.config import RegionLossConfig
from transformers import Blip2QFormerConfig, Blip2VisionConfig, PreTrainedConfig

RegionMode = Literal["qformer", "tokens", "value"]
TowerDtype = Literal["float32", "bfloat16", "float16"]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


# transformers gives the constructor more keywords than a shape checker's wrapper lets through.
@no_type_check
class SPRCConfig(PreTrainedConfig):
    """Configuration of `SPRCModel`.

    Args:
        vision_config: Keys of `Blip2VisionConfig`.
        qformer_config: Keys of `Blip2QFormerConfig`; the width of the keys is taken from the tower.
        vision_dtype: Type of the frozen tower's weights; all others are float32.
        num_query_tokens: Learnable queries, and soft prompts.
        image_text_hidden_size: Width of the space in which queries and targets are compared.
        max_caption_tokens: Length to which captions are padded.
        ln_vision_eps: Epsilon of the trainable norm behind the tower; LAVIS has 1e-5.
        image_mean: Mean per channel of images in [0, 1]; CLIP's by default.
        image_std: Standard deviation per channel of images in [0, 1]; CLIP's by default.
        use_region_loss: Compute the region loss; `model.use_region_loss` switches it at run time.
        region_mode: Where a region's embedding comes from: the Q-Former that retrieval uses ("qformer"), the mean token
            in a region ("tokens"), or the same on the last block's value path ("value").
        region_output_size: Side of the grid of keys that the Q-Former reads in a region.
        region_queries: How many of the learnable queries, the first ones, read a region: a region costs nearly in
            proportion to them, and as a small image with 49 keys in place of 257 it has less to be read than an image.
        region_loss: Keys of `RegionLossConfig`; missing keys take its defaults.
        loss_itc: Weight of the query-target contrastive loss.
        loss_rtc: Weight of the prompt-target contrastive loss.
        loss_align: Weight of the loss that pulls fused queries to the soft prompts.
        loss_region: Weight of the region loss.
    """

    model_type = "sprc"
    sub_configs = {"vision_config": Blip2VisionConfig, "qformer_config": Blip2QFormerConfig}  # noqa: RUF012 - transformers' own form

    vision_config: dict[str, Any] | Blip2VisionConfig | None = None
    qformer_config: dict[str, Any] | Blip2QFormerConfig | None = None
    vision_dtype: str = "float32"
    num_query_tokens: int = 32
    image_text_hidden_size: int = 256
    max_caption_tokens: int = 32
    ln_vision_eps: float = 1e-5
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    use_region_loss: bool = False
    region_mode: str = "qformer"
    region_output_size: int = 7
    region_queries: int = 8
    region_loss: dict[str, Any] | None = None
    loss_itc: float | int = 1.0
    loss_rtc: float | int = 0.4
    loss_align: float | int = 0.4
    loss_region: float | int = 0.5

    def __post_init__(self, **kwargs: object) -> None:
        """Build the sub-configurations and check what must agree."""
        self.vision_config = _vision_config(self.vision_config)
        self.qformer_config = _qformer_config(self.qformer_config, self.vision_config.hidden_size)
        self.image_mean = list(self.image_mean or CLIP_MEAN)
        self.image_std = list(self.image_std or CLIP_STD)
        self.region_loss = asdict(RegionLossConfig(**(self.region_loss or {})))
        for name, choices in (("region_mode", get_args(RegionMode)), ("vision_dtype", get_args(TowerDtype))):
            if vars(self)[name] not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {vars(self)[name]!r}")
        if self.region_mode == "qformer" and not 1 <= self.region_queries <= self.num_query_tokens:
            raise ValueError(
                f"region_queries is {self.region_queries}, expected 1 to {self.num_query_tokens} (num_query_tokens)"
            )
        longest = self.num_query_tokens + self.max_caption_tokens
        if self.qformer_config.max_position_embeddings < longest:
            raise ValueError(
                f"qformer_config.max_position_embeddings is {self.qformer_config.max_position_embeddings}, expected at "
                f"least num_query_tokens + max_caption_tokens = {longest}: soft prompts have positions too"
            )
        super().__post_init__(**kwargs)

    @property
    def vision(self) -> Blip2VisionConfig:
        """`vision_config`, which is an object from the constructor on."""
        assert isinstance(self.vision_config, Blip2VisionConfig)
        return self.vision_config

    @property
    def qformer(self) -> Blip2QFormerConfig:
        """`qformer_config`, which is an object from the constructor on."""
        assert isinstance(self.qformer_config, Blip2QFormerConfig)
        return self.qformer_config

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """`image_mean` and `image_std`, which are there from the constructor on."""
        assert self.image_mean is not None
        assert self.image_std is not None
        return self.image_mean, self.image_std

    @property
    def tower_constants(self) -> str:
        """What decides the tower's tokens and is neither weight nor shape; guards what is kept of them."""
        part = self.vision
        mean, std = self.normalisation
        return (
            f"mean={mean} std={std} tower(eps={part.layer_norm_eps} heads={part.num_attention_heads} {part.hidden_act})"
        )

    @property
    def image_constants(self) -> str:
        """Likewise of a gallery image's features."""
        part = self.qformer
        return (
            f"{self.tower_constants} norm(eps={self.ln_vision_eps}) qformer(eps={part.layer_norm_eps} "
            f"heads={part.num_attention_heads} {part.hidden_act} every={part.cross_attention_frequency})"
        )

    @property
    def region(self) -> RegionLossConfig:
        """`region_loss`, checked."""
        return RegionLossConfig(**(self.region_loss or {}))

    @property
    def hidden_size(self) -> int:
        """Width of the Q-Former; DeepSpeed's automatic bucket sizes read it."""
        return self.qformer.hidden_size

    @property
    def image_size(self) -> int:
        """Side of the tower's own input in pixels."""
        assert isinstance(self.vision.image_size, int)
        return self.vision.image_size

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        assert isinstance(self.vision.patch_size, int)
        return self.vision.patch_size

    @property
    def grid(self) -> TokenGrid:
        """Token grid of an image of the tower's own size: the class token, then the patches."""
        return self.grid_of(self.image_size, self.image_size)

    def grid_of(self, height: int, width: int) -> TokenGrid:
        """Token grid of an image of another size in pixels."""
        return TokenGrid.from_image(height, width, self.patch_size, num_prefix_tokens=1)


def _vision_config(config: dict[str, Any] | Blip2VisionConfig | None) -> Blip2VisionConfig:
    if not isinstance(config, Blip2VisionConfig):
        config = Blip2VisionConfig(**_with_range(config, default_width=Blip2VisionConfig.hidden_size))
    for name in ("image_size", "patch_size"):
        size = vars(config)[name]
        if not isinstance(size, int):
            raise ValueError(
                f"vision_config.{name}: expected one whole number (BLIP-2's tower is square), got {size!r}"
            )
    return config


def _qformer_config(config: dict[str, Any] | Blip2QFormerConfig | None, encoder_hidden_size: int) -> Blip2QFormerConfig:
    if not isinstance(config, Blip2QFormerConfig):
        config = Blip2QFormerConfig(**_with_range(config, default_width=Blip2QFormerConfig.hidden_size))
    # The Q-Former reads captions too, and its keys are as wide as the tower.
    config.use_qformer_text_input = True
    config.encoder_hidden_size = encoder_hidden_size
    return config


def _with_range(config: dict[str, Any] | None, *, default_width: int) -> dict[str, Any]:
    """Keys of a part, with a spread of new weights that keeps the size of what passes through them.

    With transformers' own 1e-10 all tokens of a new tower are equal; with 0.02 a narrow Q-Former is blind to its image.
    """
    values = {key: value for key, value in (config or {}).items() if key != "model_type"}
    return {"initializer_range": values.get("hidden_size", default_width) ** -0.5, **values}
