"""Published weights as models: Mask2Former of detectron2 or transformers, PSALM itself, Phi with fused attention.

Sizes are read off the weights, so that a file of another size than expected is named and not half loaded. Pickles are
read by `region_core.load_weights`, which runs nothing that stands in them.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from deformable_projector import DeformableProjector, adapt_projector_weights
from region_core.load_report import match_weights
from region_core.weights import load_weights
from region_training.strict_loading import load_strictly
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    Mask2FormerConfig,
    Mask2FormerModel,
    PhiForCausalLM,
    PreTrainedTokenizerBase,
    SwinConfig,
)

from psalm.configuration import STAGES, SWIN_COMMON, PSALMConfig
from psalm.key_map import DETECTRON2, FUSED_PHI, MASK2FORMER, PSALM, to_own_names, upgrade_detectron2
from psalm.model import PSALMModel
from psalm.projector_weights import PUBLISHED_REPEATS, open_projector_weights
from psalm.published_sizes import check_mask_sizes, mask_sizes, phi_config, shape_of, swin_of, swin_sizes
from psalm.tokenizer import ALIGNED_TOKEN, IMAGE_TOKEN, QUERY_TOKEN, REGION_TOKEN, SEG_TOKEN

logger = logging.getLogger(__name__)

PICKLES = (".pkl", ".pth", ".pt")
"""Endings of files in detectron2's layout."""
PUBLISHED_TYPE = "llava_phi"
"""`model_type` of a PSALM as its authors published it."""
QUERIES = "transformer_module.queries_embedder.weight"
SPARE = ("*class_predictor.*", "*criterion.*", "*swin.layernorm.*", "*relative_position_index")
"""Tensors of the classifier, of the norm that nothing reads, and of a table that is computed."""
STATISTICS = ("*running_mean", "*running_var", "*num_batches_tracked")
"""Buffers of batch normalisation."""
NO_STATISTICS = (
    "%s: without the running statistics of batch normalisation (%d tensors), as files of mere parameters are; they "
    "stay at mean 0 and variance 1. Training measures them as it goes; a model that is not trained further gives wrong "
    "image tokens until they are measured, for instance by torch.optim.swa_utils.update_bn"
)


def open_mask2former(source: str) -> Mask2FormerModel:
    """A Mask2Former with a Swin backbone, without its classifier.

    Args:
        source: A detectron2 `.pkl`, or a Hugging Face folder or hub name.

    Raises:
        ValueError: It is no Mask2Former with Swin, or a weight is missing, unknown or of another shape.
    """
    if Path(source).suffix in PICKLES:
        return _from_detectron2(source)
    config = AutoConfig.from_pretrained(source)
    if not isinstance(config, Mask2FormerConfig):
        raise ValueError(f"{source}: expected a Mask2Former, got a model of type {config.model_type!r}")
    swin_of(config)
    model, _ = load_strictly(Mask2FormerModel.from_pretrained, source, allow_missing=SPARE, allow_unexpected=SPARE)
    return model


def fill_mask_side(model: PSALMModel, source: str) -> None:
    """Fill backbone, pixel decoder and mask decoder with those of a Mask2Former, and log what became of its tensors.

    Of its learned queries only the positions are used: the first ones, where it has more than there are mask tokens.

    Args:
        model: In memory as a whole.
        source: As for `open_mask2former`.

    Raises:
        ValueError: The sizes differ; the message names them.
    """
    mask2former = open_mask2former(source)
    check_mask_sizes(mask2former.config, model.config, source)
    weights = dict(mask2former.state_dict())
    queries, wanted = weights[QUERIES], model.config.num_mask_queries
    if len(queries) < wanted:
        raise ValueError(
            f"{source} has {len(queries)} learned queries, the model {wanted} mask tokens "
            "(model.num_mask_queries); take at most as many"
        )
    weights[QUERIES] = queries[:wanted]
    parts: dict[str, nn.Module] = {
        "vision_tower": model.vision_tower,
        "pixel_decoder": model.pixel_decoder,
        "mask_decoder": model.mask_decoder,
    }
    own = {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}
    renamed = to_own_names(MASK2FORMER, weights, own)
    for part, module in parts.items():
        start = f"{part}."
        names = [name for name in renamed.weights if name.startswith(start)]
        match_weights(module, {name.removeprefix(start): renamed.weights[name] for name in names})
    logger.info(
        "%s: positions of %d of its %d queries, the first ones\n%s", source, wanted, len(queries), renamed.report()
    )


def fill_projector(model: PSALMModel, source: str) -> None:
    """Fill the projector with a baseline's weights, or with adapted ones, and log what became of them.

    Args:
        model: In memory as a whole.
        source: As for `open_projector_weights`.

    Raises:
        ValueError: Names or shapes do not fit, or an adapted file was made for other sizes.
    """
    opened, repeats = open_projector_weights(source), model.config.conv2_repeats
    if opened.conv2_repeats not in (None, repeats):
        logger.warning(
            "%s: weights that were trained with the second convolution run %d times, but model.conv2_repeats is %d: "
            "other tokens than in that training; set it to %d",
            source,
            opened.conv2_repeats,
            repeats,
            opened.conv2_repeats,
        )
    if isinstance(model.projector, DeformableProjector):
        adapted = adapt_projector_weights(opened.weights, model.projector)
        _check_metadata(source, adapted.metadata)
        match_weights(model.projector, adapted.weights)
        lacking: Sequence[str] = adapted.missing_statistics
    else:
        lacking = match_weights(model.projector, opened.weights, allow_missing=STATISTICS).missing
    # Every name that is a projector's was placed: what had no place is an error above.
    taken = len(opened.weights)
    new = len(model.projector.state_dict()) - taken
    logger.info("%s: %s", source, summarise("projector", taken=taken, new=new, left_out=opened.num_others))
    if lacking:
        logger.warning(NO_STATISTICS, source, len(lacking))


def summarise(part: str, *, taken: int, new: int, left_out: int) -> str:
    """What became of the tensors of one source, in one line."""
    return f"{part}: {taken} tensors taken over, {new} as in a new model, {left_out} left out"


def open_published_psalm(folder: Path, tokenizer: PreTrainedTokenizerBase, *, image_size: int) -> PSALMModel:
    """PSALM as its authors published it, with the switches its weights need.

    The projector is the baseline with its second convolution run twice, the pixel decoder's pyramid is PSALM's own, and
    the word head has a bias of zeros.

    Args:
        folder: Weights and a `config.json` of the kind `llava_phi`.
        tokenizer: The published one with the placeholders added. Tokens beyond the checkpoint's rows get rows of zeros,
            which nobody reads: the model puts image, regions and mask tokens in their place.
        image_size: Side of the square input in pixels.

    Raises:
        ValueError: A weight is missing, unknown or of another shape.
    """
    weights = load_weights(folder)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows, width = shape_of(weights, name, PSALM.name)
        added = weights[name].new_zeros(max(0, len(tokenizer) - rows), width)
        weights[name] = torch.cat([weights[name], added])
    language = phi_config(folder, vocab_size=len(weights["model.embed_tokens.weight"]))
    language.bos_token_id, language.eos_token_id, language.pad_token_id = (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    ids = tokenizer.get_vocab()
    config = PSALMConfig(
        swin_config=swin_sizes(weights, "model.vision_tower.") | {"drop_path_rate": SWIN_COMMON["drop_path_rate"]},
        language_config=language,
        mask_config=mask_sizes(weights, "pixel_decoder.", "predictor."),
        image_size=image_size,
        projector_type="swin_conv",
        projector_conv_dim=shape_of(weights, "model.mm_projector.fc.weight", PSALM.name)[1],
        conv2_repeats=PUBLISHED_REPEATS,
        fpn_variant="psalm",
        num_mask_queries=shape_of(weights, "seg_query", PSALM.name)[0],
        image_token_id=ids[IMAGE_TOKEN],
        seg_token_id=ids[SEG_TOKEN],
        region_token_id=ids[REGION_TOKEN],
        aligned_token_id=ids[ALIGNED_TOKEN],
        query_token_id=ids[QUERY_TOKEN],
    )
    model = PSALMModel(config)
    renamed = to_own_names(PSALM, weights, model.state_dict(), num_heads=language.num_attention_heads)
    match_weights(model, renamed.weights, allow_missing=PSALM.optional)
    logger.info("%s: %s", folder, renamed.report())
    lacking = [name for name in renamed.kept if name.startswith("projector.")]
    if lacking:
        logger.warning(NO_STATISTICS, folder, len(lacking))
    return model


def open_fused_phi(folder: Path) -> PhiForCausalLM:
    """A Phi whose queries, keys and values are fused, as transformers 4.36 kept them.

    Args:
        folder: Weights and `config.json`.

    Raises:
        ValueError: A weight is missing, unknown or of another shape.
    """
    weights = load_weights(folder)
    config = phi_config(folder, vocab_size=shape_of(weights, "model.embed_tokens.weight", FUSED_PHI.name)[0])
    model = PhiForCausalLM(config)
    renamed = to_own_names(FUSED_PHI, weights, model.state_dict(), num_heads=config.num_attention_heads)
    match_weights(model, renamed.weights)
    logger.info("%s: %s", folder, renamed.report())
    return model


def _from_detectron2(source: str) -> Mask2FormerModel:
    weights = upgrade_detectron2(load_weights(Path(source)))
    try:
        swin = swin_sizes(weights, "backbone.")
        mask = mask_sizes(weights, "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor.")
        config = Mask2FormerConfig(
            # The constructor takes the stages, which are not among its annotated fields.
            backbone_config=cast("Any", SwinConfig)(
                **swin, drop_path_rate=SWIN_COMMON["drop_path_rate"], out_features=list(STAGES)
            ),
            num_queries=shape_of(weights, "sem_seg_head.predictor.query_embed.weight", DETECTRON2.name)[0],
            feature_strides=[swin["patch_size"] * 2**stage for stage in range(len(STAGES))],
            common_stride=swin["patch_size"],
            **mask,
        )
        model = Mask2FormerModel(config)
        renamed = to_own_names(DETECTRON2, weights, model.state_dict())
        match_weights(model, renamed.weights, allow_missing=DETECTRON2.optional)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    logger.info("%s: %s", source, renamed.report())
    return model


def _check_metadata(source: str, expected: Mapping[str, str]) -> None:
    """Refuse an adapted file whose computation is another, though its shapes may be the same."""
    if not source.endswith(".safetensors"):
        return
    with safe_open(source, framework="pt") as file:
        said = file.metadata() or {}
    differ = [
        f"{key} {said[key]}, the model {expected[key]}"
        for key in ("conv2_repeats", "num_heads", "num_points")
        if key in said and said[key] != expected[key]
    ]
    if differ:
        raise ValueError(
            f"{source} was made for another projector: {'; '.join(differ)}; change model.conv2_repeats or "
            "model.projector, or adapt the weights again"
        )
