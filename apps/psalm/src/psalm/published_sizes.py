"""Sizes of published models, read off their weights or from the `config.json` that lies beside them.

Every size that matters is in the shape of a tensor or in the number of its layers, attention heads too: Swin's tables
of relative positions have a column per head, the pixel decoder's sampling offsets a group of rows.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Mask2FormerConfig, PhiConfig, SwinConfig

from psalm.configuration import STAGES, SWIN_SIZES, PSALMConfig

_SWIN_KEYS = ("patch_size", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio")
_MASK_KEYS = (
    "feature_size",
    "mask_feature_size",
    "hidden_dim",
    "encoder_feedforward_dim",
    "dim_feedforward",
    "encoder_layers",
    "decoder_layers",
    "num_attention_heads",
    "pre_norm",
    "enforce_input_projection",
)
_PHI_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "max_position_embeddings",
    "layer_norm_eps",
    "rope_theta",
    "partial_rotary_factor",
    "qk_layernorm",
    "resid_pdrop",
    "embd_pdrop",
    "attention_dropout",
    "initializer_range",
)
"""What a `config.json` of transformers 4.36 says of a Phi; what it leaves out has kept its default since."""
_POINTS_AND_LEVELS = 2 * 3 * 4
"""Coordinates, levels and points per head in Mask2Former's pixel decoder."""


def phi_config(folder: Path, *, vocab_size: int) -> PhiConfig:
    """The configuration of a Phi, or of the Phi inside a PSALM, from a `config.json` of transformers 4.36."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return PhiConfig(vocab_size=vocab_size, **{key: values[key] for key in _PHI_KEYS if values.get(key) is not None})


def swin_sizes(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Sizes of a Swin in its authors' names, as keys of `SwinConfig`.

    Args:
        weights: A checkpoint.
        prefix: What stands before the backbone's names.

    Raises:
        ValueError: A weight that every Swin has is missing.
    """
    where = "Swin"
    embed_dim, _, patch_size, _ = shape_of(weights, f"{prefix}patch_embed.proj.weight", where)
    first = [f"{prefix}layers.{stage}.blocks.0." for stage in range(len(STAGES))]
    tables = [shape_of(weights, f"{block}attn.relative_position_bias_table", where) for block in first]
    stages = range(len(STAGES))
    return {
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depths": [_count(weights, rf"{re.escape(prefix)}layers\.{stage}\.blocks\.(\d+)\.") for stage in stages],
        "num_heads": [heads for _, heads in tables],
        # The table has a row per offset between two places of a window.
        "window_size": (math.isqrt(tables[0][0]) + 1) // 2,
        "mlp_ratio": shape_of(weights, f"{first[0]}mlp.fc1.weight", where)[0] / embed_dim,
    }


def mask_sizes(weights: Mapping[str, Tensor], pixel_decoder: str, mask_decoder: str) -> dict[str, Any]:
    """Sizes of Mask2Former's pixel and mask decoder in its authors' names, as keys of `Mask2FormerConfig`.

    Args:
        weights: A checkpoint.
        pixel_decoder: What stands before the names of the one.
        mask_decoder: What stands before the names of the other.

    Raises:
        ValueError: A weight that every Mask2Former has is missing.
    """
    where = "Mask2Former"
    layers = f"{pixel_decoder}transformer.encoder.layers."
    offsets = shape_of(weights, f"{layers}0.self_attn.sampling_offsets.bias", where)[0]
    feed_forward = f"{mask_decoder}transformer_ffn_layers."
    return {
        "feature_size": shape_of(weights, f"{pixel_decoder}input_proj.0.0.weight", where)[0],
        "mask_feature_size": shape_of(weights, f"{pixel_decoder}mask_features.weight", where)[0],
        "hidden_dim": shape_of(weights, f"{mask_decoder}query_embed.weight", where)[1],
        "encoder_feedforward_dim": shape_of(weights, f"{layers}0.linear1.weight", where)[0],
        "dim_feedforward": shape_of(weights, f"{feed_forward}0.linear1.weight", where)[0],
        "encoder_layers": _count(weights, rf"{re.escape(layers)}(\d+)\."),
        # Counted with the prediction before the first layer.
        "decoder_layers": _count(weights, rf"{re.escape(feed_forward)}(\d+)\.") + 1,
        "num_attention_heads": offsets // _POINTS_AND_LEVELS,
        "enforce_input_projection": f"{mask_decoder}input_proj.0.weight" in weights,
    }


def check_mask_sizes(found: Mask2FormerConfig, expected: PSALMConfig, source: str) -> None:
    """Refuse a Mask2Former of other sizes than the model's.

    Raises:
        ValueError: The message names all that differ, and the setting to change.
    """
    backbone = swin_of(found)
    swin = {key: (backbone.to_dict()[key], expected.swin.to_dict()[key]) for key in _SWIN_KEYS}
    mask = {key: (found.to_dict()[key], expected.mask.to_dict()[key]) for key in _MASK_KEYS}
    differ = [f"{key} {theirs}, the model {ours}" for key, (theirs, ours) in (swin | mask).items() if theirs != ours]
    if differ:
        size = size_name(backbone)
        hint = f"model.swin_type (--swin_type) {size!r} is its backbone" if size else "model.swin sets the backbone"
        raise ValueError(f"{source} has other sizes: {'; '.join(differ)}; {hint}, model.mask_decoder sets the decoders")


def swin_of(config: Mask2FormerConfig) -> SwinConfig:
    """The backbone of a Mask2Former.

    Raises:
        ValueError: It is another kind of backbone.
    """
    backbone = config.backbone_config
    if not isinstance(backbone, SwinConfig):
        found = type(backbone).__name__
        raise ValueError(f"{config.name_or_path or 'Mask2Former'}: expected a Swin backbone, got {found}")
    return backbone


def size_name(swin: SwinConfig) -> str | None:
    """The published size that a backbone has: `base` or `large`; None for another."""
    sizes = swin.to_dict()
    return next((name for name, keys in SWIN_SIZES.items() if all(sizes[key] == keys[key] for key in keys)), None)


def shape_of(weights: Mapping[str, Tensor], name: str, what: str) -> Sequence[int]:
    """Shape of a tensor that a kind of checkpoint has to have.

    Raises:
        ValueError: It is not there.
    """
    if name not in weights:
        raise ValueError(f"not the weights of a {what}: no {name!r} among {len(weights)} tensors")
    return weights[name].shape


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """Layers whose number a name holds."""
    return len({match[1] for name in weights if (match := re.match(pattern, name))})
