"""Names of the weights in published checkpoints, and ours: every tensor is taken over, or left out by name.

| ours | detectron2's Mask2Former | transformers' Mask2Former | published PSALM |
|---|---|---|---|
| `vision_tower` | `backbone` | `pixel_level_module.encoder` | `model.vision_tower` |
| `pixel_decoder.decoder` | `sem_seg_head.pixel_decoder` | `pixel_level_module.decoder` | `pixel_decoder` |
| `mask_decoder` | `sem_seg_head.predictor` | `transformer_module` | `predictor` |
| `projector`, or its `base` | - | - | `model.mm_projector` |
| `language_model.model`, `.lm_head` | - | - | `model`, `lm_head` |
| `mask_queries.weight`, `query_projector` | - | - | `seg_query`, `seg_query_projector` |
| `condition_heads.*_projector`, `.*_proj` | - | - | `*_projector`, `predictor.*_proj` |

A published tensor may hold queries, keys and values in one: one after the other in Swin and in PyTorch's attention,
head by head in old Phi checkpoints.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor

Rules = tuple[tuple[str, str], ...]
"""Regular expression for the beginning of our name -> theirs. `[0]`, `[1]` or `[2]` in theirs stands for nothing but
says which third of their tensor ours is, `[h0]` and so on which third of each head's rows."""

_THIRD = re.compile(r"\[(h?)([012])\]")
_QKV = ("q_proj", "k_proj", "v_proj")


class Place(NamedTuple):
    """Where a checkpoint keeps one of our tensors.

    Attributes:
        name: Their name.
        third: Which third of their rows it is; None for all.
        by_head: Whether a third of each head's rows is meant.
    """

    name: str
    third: int | None
    by_head: bool


@dataclass(frozen=True)
class Layout:
    """How one kind of checkpoint names what is ours.

    Attributes:
        name: For messages.
        rules: The first that fits a name counts. What fits none has no place there.
        ignored: Patterns of their names that we have no use for.
        optional: Patterns of our names that a checkpoint may lack; they stay as in a new model.
        zeros: Patterns of our names that a checkpoint may lack because there they are zero.
    """

    name: str
    rules: Rules
    ignored: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    zeros: tuple[str, ...] = ()

    def place(self, own: str) -> Place | None:
        """Where they keep one of our tensors; None where they have no such thing."""
        for pattern, template in self.rules:
            if match := re.match(pattern, own):
                marked = match.expand(template) + own[match.end() :]
                third = _THIRD.search(marked)
                name = _THIRD.sub("", marked)
                return Place(name, int(third[2]), bool(third[1])) if third else Place(name, None, False)
        return None


@dataclass(frozen=True)
class Renamed:
    """A checkpoint under our names.

    Attributes:
        weights: In float32; integers as they are.
        left_out: Their names that we have no use for.
        zeros: Our names that the checkpoint lacks and that were filled with zeros.
        kept: Our names that the checkpoint lacks and that stay as in a new model.
    """

    weights: dict[str, Tensor]
    left_out: tuple[str, ...]
    zeros: tuple[str, ...]
    kept: tuple[str, ...]

    def report(self) -> str:
        """What happened to the tensors, in one line per kind."""
        lines = [f"{len(self.weights) - len(self.zeros)} tensors taken over"]
        for what, names in (
            ("filled with zeros", self.zeros),
            ("as in a new model, for the checkpoint lacks them", self.kept),
            ("left out, for we have no use for them", self.left_out),
        ):
            if names:
                lines.append(f"{len(names)} {what}: {_some(names)}")
        return "\n".join(lines)


def _swin(ours: str, theirs: str) -> Rules:
    """Rules of the backbone.

    Args:
        ours: What stands before our names, as a regular expression.
        theirs: What stands before theirs.
    """
    block, their_block = rf"{ours}swin\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.", rf"{theirs}layers.\1.blocks.\2."
    return (
        (rf"{ours}swin\.embeddings\.patch_embeddings\.projection\.", f"{theirs}patch_embed.proj."),
        (rf"{ours}swin\.embeddings\.norm\.", f"{theirs}patch_embed.norm."),
        *((rf"{ours}hidden_states_norms\.stage{stage + 1}\.", f"{theirs}norm{stage}.") for stage in range(4)),
        *((rf"{block}attention\.{name}\.", rf"{their_block}attn.qkv.[{part}]") for part, name in enumerate(_QKV)),
        (rf"{block}attention\.o_proj\.", rf"{their_block}attn.proj."),
        (rf"{block}attention\.relative_position_bias\.", rf"{their_block}attn."),
        (rf"{block}layernorm_before\.", rf"{their_block}norm1."),
        (rf"{block}layernorm_after\.", rf"{their_block}norm2."),
        (rf"{ours}swin\.encoder\.layers\.", f"{theirs}layers."),
    )


def _pixel_decoder(ours: str, theirs: str) -> Rules:
    """Rules of the pixel decoder but for its pyramid."""
    layer, their_layer = rf"{ours}encoder\.layers\.(\d+)\.", rf"{theirs}transformer.encoder.layers.\1."
    return (
        (rf"{ours}input_projections\.", f"{theirs}input_proj."),
        (rf"{ours}level_embed", f"{theirs}transformer.level_embed"),
        (rf"{ours}mask_projection\.", f"{theirs}mask_features."),
        (rf"{layer}self_attn_layer_norm\.", rf"{their_layer}norm1."),
        (rf"{layer}final_layer_norm\.", rf"{their_layer}norm2."),
        (rf"{layer}fc([12])\.", rf"{their_layer}linear\2."),
        (rf"{layer}self_attn\.", rf"{their_layer}self_attn."),
    )


def _mask_decoder(ours: str, theirs: str) -> Rules:
    """Rules of the mask decoder."""
    layer = rf"{ours}decoder\.layers\.(\d+)\."
    self_attention = rf"{theirs}transformer_self_attention_layers.\1."
    cross_attention = rf"{theirs}transformer_cross_attention_layers.\1."
    feed_forward = rf"{theirs}transformer_ffn_layers.\1."
    return (
        (rf"{ours}queries_embedder\.", f"{theirs}query_embed."),
        (rf"{ours}queries_features\.", f"{theirs}query_feat."),
        (rf"{ours}level_embed\.", f"{theirs}level_embed."),
        (rf"{ours}input_projections\.", f"{theirs}input_proj."),
        (rf"{ours}decoder\.layernorm\.", f"{theirs}decoder_norm."),
        (rf"{ours}decoder\.mask_predictor\.mask_embedder\.(\d+)\.0\.", rf"{theirs}mask_embed.layers.\1."),
        *(
            (rf"{layer}self_attn\.{name}\.", rf"{self_attention}self_attn.in_proj_[{part}]")
            for part, name in enumerate(_QKV)
        ),
        (rf"{layer}self_attn\.out_proj\.", rf"{self_attention}self_attn.out_proj."),
        (rf"{layer}self_attn_layer_norm\.", rf"{self_attention}norm."),
        (rf"{layer}cross_attn\.", rf"{cross_attention}multihead_attn."),
        (rf"{layer}cross_attn_layer_norm\.", rf"{cross_attention}norm."),
        (rf"{layer}fc([12])\.", rf"{feed_forward}linear\2."),
        (rf"{layer}final_layer_norm\.", rf"{feed_forward}norm."),
    )


def _phi(ours: str, theirs: str) -> Rules:
    """Rules of a Phi model whose queries, keys and values are fused head by head."""
    layer, their_layer = rf"{ours}layers\.(\d+)\.self_attn\.", rf"{theirs}layers.\1.self_attn.query_key_value."
    return (*((rf"{layer}{name}\.", rf"{their_layer}[h{part}]") for part, name in enumerate(_QKV)), (ours, theirs))


_PYRAMID, _D2_PIXEL = r"pixel_level_module\.decoder\.(adapter|layer)_(\d+)\.", "sem_seg_head.pixel_decoder."
_UNUSED_NORM = "swin.layernorm.*"
"""Of transformers' Swin alone: the norm behind the last stage, which a backbone does not run."""

DETECTRON2 = Layout(
    name="detectron2 Mask2Former",
    rules=(
        *_swin(r"pixel_level_module\.encoder\.", "backbone."),
        (rf"{_PYRAMID}0\.", rf"{_D2_PIXEL}\1_\2."),
        (rf"{_PYRAMID}1\.", rf"{_D2_PIXEL}\1_\2.norm."),
        *_pixel_decoder(r"pixel_level_module\.decoder\.", _D2_PIXEL),
        *_mask_decoder(r"transformer_module\.", "sem_seg_head.predictor."),
    ),
    ignored=(
        "backbone.layers.*.attn.relative_position_index",  # computed from the window's size
        "sem_seg_head.predictor.class_embed.*",  # of a fixed list of classes, which PSALM does not have
        "criterion.*",
    ),
    optional=(f"pixel_level_module.encoder.{_UNUSED_NORM}",),
)
"""Our side is `transformers.Mask2FormerModel`; `upgrade_detectron2` brings older files to these names."""

MASK2FORMER = Layout(
    name="transformers Mask2Former",
    rules=(
        (r"vision_tower\.", "pixel_level_module.encoder."),
        (r"pixel_decoder\.decoder\.", "pixel_level_module.decoder."),
        (r"mask_decoder\.", "transformer_module."),
    ),
    # PSALM's queries come from the language model; of Mask2Former's it keeps the positions.
    ignored=("transformer_module.queries_features.weight",),
    # A pyramid of the variant `psalm` starts as the original one but for its ReLU.
    zeros=("pixel_decoder.decoder.adapter_*.0.bias", "pixel_decoder.decoder.layer_*.0.bias"),
)
"""Names of `transformers.Mask2FormerModel`."""

PSALM = Layout(
    name="published PSALM",
    rules=(
        *_swin(r"vision_tower\.", "model.vision_tower."),
        (r"projector\.(?:base\.|(?!align\.))", "model.mm_projector."),
        *_phi(r"language_model\.model\.", "model."),
        (r"language_model\.lm_head\.", "lm_head."),
        (r"mask_queries\.weight", "seg_query"),
        (r"query_projector\.", "seg_query_projector."),
        *_pixel_decoder(r"pixel_decoder\.decoder\.", "pixel_decoder."),
        (r"pixel_decoder\.decoder\.", "pixel_decoder."),
        *_mask_decoder(r"mask_decoder\.", "predictor."),
        (r"condition_heads\.(\w+)_proj\.", r"predictor.\1_proj."),
        (r"condition_heads\.", ""),
    ),
    ignored=(
        "model.vision_tower.layers.*.attn.relative_position_index",
        "model.layers.*.self_attn.rotary_emb.inv_freq",  # computed from the configuration
        "predictor.query_feat.weight",  # of Mask2Former, never used by PSALM
        "predictor.SEG_query_embed.weight",  # of a variant that was not published
        "criterion.*",
    ),
    optional=(
        f"vision_tower.{_UNUSED_NORM}",
        "projector.align.*",
        "region_embedder.*",
        "place_embedder.*",
        # Files of named parameters lack batch normalisation's buffers.
        "projector.*.running_mean",
        "projector.*.running_var",
        "projector.*.num_batches_tracked",
    ),
    zeros=("language_model.lm_head.bias",),
)

FUSED_PHI = Layout(
    name="Phi with fused attention",
    rules=(*_phi(r"model\.", "model."), ("", "")),
    ignored=("model.layers.*.self_attn.rotary_emb.inv_freq",),
)
"""Our side is `transformers.PhiForCausalLM`."""


def upgrade_detectron2(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the names of the first published Mask2Former files to those of the later ones."""
    return {_upgraded(name): tensor for name, tensor in weights.items()}


def to_own_names(
    layout: Layout, weights: Mapping[str, Tensor], own: Mapping[str, Tensor], *, num_heads: int = 1
) -> Renamed:
    """A checkpoint under our names, with fused tensors split.

    Args:
        layout: The kind of checkpoint.
        weights: The checkpoint.
        own: All tensors to fill, by our names; only their shapes are read, and only where zeros are to be made.
        num_heads: Attention heads of a language model that is fused head by head.

    Raises:
        ValueError: Tensors are missing or left over, or cannot be split; the message lists them.
    """
    found: dict[str, Tensor] = {}
    used, missing, zeros, kept = set(), [], [], []
    for name, tensor in own.items():
        place = layout.place(name)
        if place is not None and place.name in weights:
            used.add(place.name)
            found[name] = _take(weights[place.name], place, num_heads if place.by_head else 1)
        elif _matches(name, layout.zeros):
            zeros.append(name)
            found[name] = torch.zeros(tensor.shape)
        elif _matches(name, layout.optional):
            kept.append(name)
        else:
            missing.append(place.name if place else name)
    rest = [name for name in weights if name not in used]
    unknown = [name for name in rest if not _matches(name, layout.ignored)]
    if missing or unknown:
        missing = list(dict.fromkeys(missing))
        raise ValueError(
            f"not the {layout.name} weights of this model: {len(missing)} missing ({_some(missing)}), "
            f"{len(unknown)} unknown ({_some(unknown)})"
        )
    return Renamed(found, tuple(name for name in rest if name not in unknown), tuple(zeros), tuple(kept))


def to_their_names(layout: Layout, weights: Mapping[str, Tensor], *, num_heads: int = 1) -> dict[str, Tensor]:
    """Our weights under their names, with their fused tensors; what they have no place for is left out.

    Args:
        layout: The kind of checkpoint to make.
        weights: Weights by our names.
        num_heads: Attention heads of a language model that is fused head by head.

    Raises:
        ValueError: What is always zero there is not zero here, or a part of a fused tensor is missing.
    """
    theirs: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    heads: dict[str, int] = {}
    for own, tensor in weights.items():
        place = layout.place(own)
        if _matches(own, layout.zeros):
            if bool(tensor.any()):
                raise ValueError(f"{own}: not zero, and the layout of {layout.name} has no place for it")
        elif place is not None and place.third is None:
            theirs[place.name] = tensor
        elif place is not None and place.third is not None:
            parts.setdefault(place.name, {})[place.third] = tensor
            heads[place.name] = num_heads if place.by_head else 1
    for name, thirds in parts.items():
        if len(thirds) < len(_QKV):
            raise ValueError(f"{name}: expected its {len(_QKV)} parts, got {len(thirds)}")
        split = [thirds[part].unflatten(0, (heads[name], -1)) for part in range(len(_QKV))]
        theirs[name] = torch.stack(split, dim=1).flatten(0, 2)
    return theirs


def _upgraded(name: str) -> str:
    name = name.replace("sem_seg_head.predictor.static_query.", "sem_seg_head.predictor.query_feat.")
    if name.startswith("sem_seg_head.") and not name.startswith((_D2_PIXEL, "sem_seg_head.predictor.")):
        return name.replace("sem_seg_head.", _D2_PIXEL, 1)
    return name


def _take(tensor: Tensor, place: Place, heads: int) -> Tensor:
    """The part of their tensor that is ours."""
    wide = tensor.float() if tensor.is_floating_point() else tensor
    if place.third is None:
        return wide
    if not wide.ndim or len(wide) % (heads * len(_QKV)):
        raise ValueError(
            f"{place.name}: expected queries, keys and values of {heads} heads, which makes a multiple of "
            f"{heads * len(_QKV)} rows, got shape {list(wide.shape)}"
        )
    return wide.unflatten(0, (heads, len(_QKV), -1))[:, place.third].flatten(0, 1)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: Sequence[str], most: int = 6) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + rest) if names else "none"
