"""Names of the weights in published checkpoints, and ours: every tensor is taken over, or ignored by name.

| ours | LAVIS and SPRC (`.pth`, `.pt`) | transformers' BLIP-2 |
|---|---|---|
| `vision_tower.*` | `visual_encoder.*` | `vision_model.*` |
| `ln_vision` | `ln_vision` | `vision_model.post_layernorm` |
| `composer.embeddings`, `composer.qformer` | `Qformer.bert.*` | `embeddings`, `qformer` |
| `composer.query_tokens.weight` | `query_tokens` | `query_tokens` |
| `composer.vision_projection`, `text_projection` | `vision_proj`, `text_proj` | same names |
| `composer.prompt_tokens.weight`, `temperature.value` | `prompt_tokens`, `temp` | - |
| `region_branch.*` | - | - |

LAVIS keeps the biases of queries and values apart (there is none for keys), transformers keeps one fused bias whose
middle third is zero.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How one kind of checkpoint names what is ours.

    Attributes:
        name: For error messages.
        prefixes: Our prefix -> theirs; the first that fits counts. What fits none has no place there.
        words: For some of our prefixes, what is replaced behind them, in order.
        ignored: Patterns of their names that we have no use for.
        optional: Patterns of our names that a checkpoint may lack; they start as in a new model.
    """

    name: str
    prefixes: Mapping[str, str]
    words: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def theirs(self, own: str) -> str | None:
        """Their name of one of our tensors; None where they have no such thing."""
        for prefix, their_prefix in self.prefixes.items():
            if own.startswith(prefix):
                rest = own.removeprefix(prefix)
                for word, their_word in self.words.get(prefix, ()):
                    rest = rest.replace(word, their_word)
                return their_prefix + rest
        return None


_TOKENS = ("composer.query_tokens.weight", "composer.prompt_tokens.weight")
"""Theirs have a leading dimension of 1, as for a batch."""
_TEMPERATURE = "temperature.value"
"""Ours is a vector of one number, theirs has no dimension."""
_COMMON_OPTIONAL = ("region_branch.*",)
_TOWER, _BERT = "vision_tower.encoder.layers.", "composer.qformer.encoder.layer."

SPRC = Layout(
    name="SPRC",
    prefixes={
        "vision_tower.embeddings.class_embedding": "visual_encoder.cls_token",
        "vision_tower.embeddings.position_embedding": "visual_encoder.pos_embed",
        "vision_tower.embeddings.patch_embedding.": "visual_encoder.patch_embed.proj.",
        _TOWER: "visual_encoder.blocks.",
        "ln_vision.": "ln_vision.",
        "composer.embeddings.": "Qformer.bert.embeddings.",
        "composer.qformer.layernorm.": "Qformer.bert.embeddings.LayerNorm.",
        _BERT: "Qformer.bert.encoder.layer.",
        "composer.query_tokens.weight": "query_tokens",
        "composer.prompt_tokens.weight": "prompt_tokens",
        "composer.vision_projection.": "vision_proj.",
        "composer.text_projection.": "text_proj.",
        _TEMPERATURE: "temp",
    },
    words={
        _TOWER: (("layer_norm", "norm"), ("self_attn.projection", "attn.proj"), ("self_attn", "attn")),
        _BERT: (("attention.attention.", "attention.self."),),
    },
    ignored=(
        "Qformer.cls.*",  # BERT's word prediction head, never trained by SPRC
        "Qformer.bert.embeddings.position_ids",  # 0, 1, 2, ...
        "itm_head.*",  # of BLIP-2's matching task
        "visual_encoder.norm.*",  # EVA-CLIP's own end, which BLIP-2 cuts off
        "visual_encoder.fc_norm.*",
        "visual_encoder.head.*",
    ),
    optional=_COMMON_OPTIONAL,
)
LAVIS = Layout(
    name="LAVIS BLIP-2",
    prefixes=SPRC.prefixes,
    words=SPRC.words,
    ignored=SPRC.ignored,
    optional=(*_COMMON_OPTIONAL, "composer.prompt_tokens.weight"),
)
BLIP2 = Layout(
    name="transformers BLIP-2",
    prefixes={
        "vision_tower.": "vision_model.",
        "ln_vision.": "vision_model.post_layernorm.",
        "composer.embeddings.": "embeddings.",
        "composer.qformer.": "qformer.",
        "composer.query_tokens.weight": "query_tokens",
        "composer.vision_projection.": "vision_projection.",
        "composer.text_projection.": "text_projection.",
    },
    ignored=("itm_head.*", "embeddings.position_ids"),
    optional=(*_COMMON_OPTIONAL, "composer.prompt_tokens.weight", _TEMPERATURE),
)


def to_own_names(
    layout: Layout, weights: Mapping[str, Tensor], own_names: Iterable[str], *, ignored: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Weights under our names, in float32 (a published tower is float16, which float32 holds exactly).

    Args:
        layout: The kind of checkpoint.
        weights: The checkpoint.
        own_names: All names of the model.
        ignored: Patterns of their names to ignore beside those of the layout.

    Raises:
        ValueError: A tensor is missing, or one is left over; the message lists them.
    """
    left = _with_fused_biases(weights)
    found: dict[str, Tensor] = {}
    missing = []
    for own in own_names:
        theirs = layout.theirs(own)
        if theirs is not None and theirs in left:
            tensor = left.pop(theirs).float()
            found[own] = _in_our_shape(own, tensor)
        elif not _matches(own, layout.optional):
            missing.append(theirs or own)
    unexpected = [name for name in left if not _matches(name, (*layout.ignored, *ignored))]
    if missing or unexpected:
        raise ValueError(
            f"not the {layout.name} weights of this model: {len(missing)} missing ({_some(missing)}), "
            f"{len(unexpected)} unknown ({_some(unexpected)})"
        )
    return found


def to_their_names(layout: Layout, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under their names; what they have no place for is left out.

    Raises:
        ValueError: The tower has a bias for keys, which LAVIS' has not.
    """
    theirs = {}
    for own, tensor in weights.items():
        name = layout.theirs(own)
        if name is not None:
            theirs[name] = _in_their_shape(own, tensor)
    return theirs if layout is BLIP2 else _with_split_biases(theirs)


def _in_our_shape(own: str, theirs: Tensor) -> Tensor:
    if own in _TOKENS:
        return theirs[0]
    return theirs[None] if own == _TEMPERATURE else theirs


def _in_their_shape(own: str, ours: Tensor) -> Tensor:
    if own in _TOKENS:
        return ours[None]
    return ours[0] if own == _TEMPERATURE else ours


def _with_fused_biases(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    fused = dict(weights)
    for name in weights:
        if name.endswith(".attn.q_bias") and name.replace("q_bias", "v_bias") in fused:
            query, value = fused.pop(name), fused.pop(name.replace("q_bias", "v_bias"))
            fused[name.replace("q_bias", "qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
    return fused


def _with_split_biases(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    split: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not name.endswith(".attn.qkv.bias"):
            split[name] = tensor
            continue
        query, key, value = tensor.chunk(3)
        if bool(key.any()):
            raise ValueError(f"{name}: the bias of the keys is not zero, and SPRC's layout has no place for it")
        split[name.replace("qkv.bias", "q_bias")] = query
        split[name.replace("qkv.bias", "v_bias")] = value
    return split


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: list[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + rest) if names else "none"
