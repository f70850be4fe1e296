"""What a forward keeps for its backward, estimated from the sizes of the model and of a batch.

Counted per token and block are the tensors that autograd saves; attention is taken to keep no square of weights, as
`scaled_dot_product_attention` does. The numbers were read off with `torch.autograd.graph.saved_tensors_hooks`, and the
tests compare them so.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig
from video_autoregressive.config import AutoregressiveConfig

from lmms.config import DataSettings
from lmms.configuration import VideoLMMConfig
from lmms.sample import VideoSample

_CHAIN = ("vision_tower", "projector", "language_model", "autoregressive")
_VISION, _PROJECTOR, _LANGUAGE, _ = range(len(_CHAIN))
_PIXELS = ("video_frames", "image_tiles")
_PATCHES = ("pixel_values_videos", "pixel_values")


@dataclass(frozen=True)
class Workload:
    """One micro-batch.

    Attributes:
        rows: Sequences.
        tokens: Tokens of each, padding included.
        patches: Patches of all pictures and frames for the vision tower.
        frame_tokens: Tokens that the reconstruction module reads.
        labels: Positions with a label.
        is_measured: Whether real records were looked at.
    """

    rows: int
    tokens: int
    patches: int
    frame_tokens: int
    labels: int
    is_measured: bool = True

    @classmethod
    def of_samples(cls, samples: Sequence[VideoSample], rows: int, config: VideoLMMConfig) -> "Workload":
        """A micro-batch of samples that are each as large as the largest one given."""
        return cls(
            rows=rows,
            tokens=max(len(sample.input_ids) for sample in samples),
            patches=rows * max(_num_patches(sample, config.lmm) for sample in samples),
            frame_tokens=rows * max(sum(_area(span.grid) for span in sample.layout.spans) for sample in samples),
            labels=rows * max(int((sample.labels >= 0).sum()) for sample in samples),
        )

    @classmethod
    def worst(cls, data: DataSettings, rows: int, config: VideoLMMConfig) -> "Workload":
        """A micro-batch of the longest sequences that the settings allow, where no record is there to look at."""
        tokens = rows * data.max_length
        merge = getattr(config.lmm.vision_config, "spatial_merge_size", None)
        patches = tokens * merge**2 if merge else rows * data.max_frames * _patches_per_frame(config.lmm)
        return cls(rows, data.max_length, patches, tokens, tokens, is_measured=False)


def estimate_activations(
    config: VideoLMMConfig,
    workload: Workload,
    *,
    trained_parts: Collection[str],
    value_bytes: int,
    checkpointing: bool,
) -> int:
    """Bytes of activations at the peak: what is kept, and what passes through beside it.

    Args:
        config: The model.
        workload: One micro-batch.
        trained_parts: What stands in front of the first trained part keeps nothing.
        value_bytes: Bytes of an activation: 2 with bf16, else 4.
        checkpointing: Blocks of tower and language model keep their input alone and are computed again.
    """
    text, vision = config.lmm.get_text_config(), config.lmm.vision_config
    text_block = workload.rows * workload.tokens * _gated_block(text, value_bytes)
    vision_block = workload.patches * _vision_block(config, value_bytes)
    first = _first(trained_parts)
    # The gradients of a block stand beside what it kept; with checkpointing, what is computed again does too.
    trained = (vision_block if first <= _VISION else 0, text_block if first <= _LANGUAGE else 0)
    backward = max(trained) * (2 if checkpointing else 1)
    # What keeps nothing still computes, and attention reads a mask.
    vision_forward = workload.patches * (4 * vision.hidden_size + vision.intermediate_size) * value_bytes
    tokens = workload.rows * workload.tokens
    text_forward = tokens * (4 * text.hidden_size + 2 * text.intermediate_size) * value_bytes
    mask = workload.rows * workload.tokens**2
    kept = kept_bytes(
        config, workload, trained_parts=trained_parts, value_bytes=value_bytes, checkpointing=checkpointing
    )
    return kept + mask + max(backward, vision_forward, text_forward)


def kept_bytes(
    config: VideoLMMConfig,
    workload: Workload,
    *,
    trained_parts: Collection[str],
    value_bytes: int,
    checkpointing: bool,
) -> int:
    """Bytes that a forward keeps for its backward; arguments as for `estimate_activations`."""
    text, vision = config.lmm.get_text_config(), config.lmm.vision_config
    tokens, first = workload.rows * workload.tokens, _first(trained_parts)
    kept = 0
    if first <= _VISION:
        block = vision.hidden_size * value_bytes if checkpointing else _vision_block(config, value_bytes)
        kept += workload.patches * block * _num_blocks(vision)
    if first <= _PROJECTOR:
        # What enters it, and what enters and leaves the activation between its two layers.
        kept += workload.patches * (vision.hidden_size + 2 * text.hidden_size) * value_bytes
    if first <= _LANGUAGE:
        block = text.hidden_size * value_bytes if checkpointing else _gated_block(text, value_bytes)
        kept += tokens * block * _num_blocks(text)
        # Logits, the same in float32, and their log-softmax; then the gradients of two of them.
        kept += workload.labels * text.vocab_size * 2 * (value_bytes + 4)
    settings = config.autoregressive
    if settings is not None and "autoregressive" in trained_parts:
        kept += workload.frame_tokens * _predictor_token(settings, text.hidden_size, value_bytes)
    return kept


def _first(trained_parts: Collection[str]) -> int:
    """Position of the first trained part in the chain; behind all of it where nothing is trained."""
    return min((_CHAIN.index(part) for part in trained_parts), default=len(_CHAIN))


def _vision_block(config: VideoLMMConfig, value_bytes: int) -> int:
    # In Qwen2.5-VL the tower has the language model's kind of block.
    kind = _gated_block if config.lmm.model_type == "qwen2_5_vl" else _plain_block
    return kind(config.lmm.vision_config, value_bytes)


def _gated_block(config: PreTrainedConfig, value_bytes: int) -> int:
    """Bytes per token of a block with RMS norms, which compute in float32, and a gated feed-forward part."""
    heads = getattr(config, "num_attention_heads", None) or config.num_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_value = (getattr(config, "num_key_value_heads", None) or heads) * head_dim
    own = 6 * config.hidden_size + 2 * key_value + 4 * config.intermediate_size
    # Qwen3 norms queries and keys as well.
    normed = heads * head_dim + key_value if config.model_type.startswith("qwen3") else 0
    return (own + normed) * value_bytes + 4 * (2 * config.hidden_size + normed)


def _plain_block(config: PreTrainedConfig, value_bytes: int) -> int:
    """Bytes per token of a block with layer norms and a feed-forward part of two layers."""
    return (8 * config.hidden_size + 2 * config.intermediate_size) * value_bytes


def _predictor_token(config: AutoregressiveConfig, hidden_size: int, value_bytes: int) -> int:
    """Bytes per token of the predictor, whose keys and values are gathered once per frame of the window."""
    blocks = config.num_layers * (19 + 4 * config.num_hist) * config.width
    ends = 3 * hidden_size + 4 * config.width
    # Prediction and target are compared in float32, normed before.
    return (blocks + ends) * value_bytes + 4 * 4 * config.embedding_dim


def _num_blocks(config: PreTrainedConfig) -> int:
    return getattr(config, "num_hidden_layers", None) or config.depth


def _patches_per_frame(lmm: PreTrainedConfig) -> int:
    return (lmm.vision_config.image_size // lmm.vision_config.patch_size) ** 2


def _num_patches(sample: VideoSample, lmm: PreTrainedConfig) -> int:
    visuals = sample.visuals
    pictures = sum(len(visuals[name]) for name in _PIXELS if name in visuals)
    # The second factor exists only where pictures have one size.
    patches = pictures * _patches_per_frame(lmm) if pictures else 0
    return patches + sum(len(visuals[name]) for name in _PATCHES if name in visuals)


def _area(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1]
