"""From settings to a processor and a model: new, from pretrained parts, or from a checkpoint."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from region_core.load_report import match_weights
from region_core.weights import load_weights
from region_training.loading import whole_weights
from region_training.strict_loading import load_strictly
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_base import ImageProcessingMixin

from spatialrgpt.config import BackboneSettings, ModelSettings
from spatialrgpt.configuration import DEPTH_TOKEN, IMAGE_TOKEN, MASK_TOKEN, SpatialRGPTConfig
from spatialrgpt.model import SpatialRGPTForConditionalGeneration
from spatialrgpt.processing import SpatialRGPTProcessor
from spatialrgpt.tokenizer import load_tokenizer, train_tokenizer

logger = logging.getLogger(__name__)

PARTS: Mapping[str, tuple[str, ...]] = {
    "vision_tower": ("vision_tower.",),
    "projector": ("projector.",),
    "region_extractor": (
        "region_encoder.refinement.",
        "region_encoder.depth_refinement.",
        "region_encoder.rgb_connector.",
        "region_encoder.depth_connector.",
        "region_encoder.rgb_geometry.",
        "region_encoder.depth_geometry.",
    ),
    "region_enhancer": ("region_encoder.enhancer.",),
    "language_model": ("language_model.",),
    "region_heads": ("region_heads.", "head_geometry."),
}
"""Parts of the model, as prefixes of parameter names: what `part_learning_rates` and `frozen_parts` speak of."""


ADDABLE = ("region_encoder.*", "region_heads.*", "head_geometry.*")
"""Weights that a checkpoint may lack, or hold without use: the guides' switches add and remove them."""


def build_processor(settings: ModelSettings, texts: Iterable[str]) -> SpatialRGPTProcessor:
    """The processor of a new model; `texts` make the tokenizer if no pretrained one is named."""
    path = settings.tokenizer or settings.checkpoint or settings.text.pretrained
    tokenizer = train_tokenizer(texts, settings.vocabulary_size) if path is None else load_tokenizer(path)
    return SpatialRGPTProcessor.for_model(build_config(settings, tokenizer), tokenizer)


def build_config(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> SpatialRGPTConfig:
    """The configuration of a new model; sizes that must agree with the tokenizer are taken from it."""
    base = None if settings.checkpoint is None else SpatialRGPTConfig.from_pretrained(settings.checkpoint)
    text = _part_config(settings.text, "llama") if base is None else base.text
    text.vocab_size = max(len(tokenizer), text.vocab_size if base is not None or settings.text.pretrained else 0)
    text.bos_token_id, text.eos_token_id, text.pad_token_id = (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    same_names = (
        "vision_feature_layer",
        "refinement_stages",
        "refine_depth",
        "region_geometry",
        "projector_downsample",
        "enable_region",
        "enable_depth",
        "enable_region_enhancer",
        "enable_region_heads",
        "lm_loss_weight",
    )
    mean, std = (base.image_mean, base.image_std) if base is not None else _normalisation(settings)
    ids = tokenizer.get_vocab()
    return SpatialRGPTConfig(
        vision_config=_part_config(settings.vision, "siglip_vision_model") if base is None else base.vision,
        text_config=text,
        image_token_id=ids[IMAGE_TOKEN],
        mask_token_id=ids[MASK_TOKEN],
        depth_token_id=ids[DEPTH_TOKEN],
        image_mean=mean,
        image_std=std,
        region_enhancer_cfg=asdict(settings.region_enhancer_cfg),
        region_heads_cfg=asdict(settings.region_heads_cfg),
        **{name: vars(settings)[name] for name in same_names},
    )


def build_model(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> SpatialRGPTForConditionalGeneration:
    """A model from a checkpoint, or new with whatever pretrained parts are named.

    A checkpoint may lack what the switches add to it (an enhancer, heads, depth): that starts as a new model does.
    """
    # ZeRO-3 would hand out pieces of the parts, which can't be initialised or copied here.
    with whole_weights():
        model = SpatialRGPTForConditionalGeneration(build_config(settings, tokenizer))
        if settings.checkpoint is not None:
            weights = load_weights(Path(settings.checkpoint))
            report = match_weights(model, weights, allow_missing=ADDABLE, allow_unexpected=ADDABLE)
            if report.missing or report.unexpected:
                logger.warning("%s does not hold exactly this model:\n%s", settings.checkpoint, report.table())
            return model  # the parts that the checkpoint was made from would undo its training
        if settings.vision.pretrained is not None:
            tower, _ = load_strictly(
                AutoModel.from_pretrained,
                settings.vision.pretrained,
                # A head that only another task needs; a pooled vector, that no image token is part of.
                allow_unexpected=("*",),
                allow_missing=("*pooler*",),
            )
            # SigLIP and CLIP checkpoints hold a text tower too; the vision configuration says which half is ours.
            source = tower.vision_model if "text_config" in tower.config else tower
            model.vision_tower.load_state_dict(source.state_dict())
        if settings.text.pretrained is not None:
            text, _ = load_strictly(AutoModelForCausalLM.from_pretrained, settings.text.pretrained)
            text.resize_token_embeddings(model.config.text.vocab_size)
            model.language_model.load_state_dict(text.state_dict())
    return model


def _normalisation(settings: ModelSettings) -> tuple[list[float] | None, list[float] | None]:
    """Mean and standard deviation that the tower was trained with, where the settings do not name them."""
    if settings.vision.pretrained is None or (settings.image_mean is not None and settings.image_std is not None):
        return settings.image_mean, settings.image_std
    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(settings.vision.pretrained)
    except OSError as error:
        raise ValueError(
            f"{settings.vision.pretrained}: no preprocessor_config.json that tells how the tower's images were "
            "normalised; set model.image_mean and model.image_std"
        ) from error
    return settings.image_mean or values["image_mean"], settings.image_std or values["image_std"]


def _part_config(settings: BackboneSettings, default_type: str) -> PreTrainedConfig:
    if settings.pretrained is not None:
        config = AutoConfig.from_pretrained(settings.pretrained)
        return config.vision_config if default_type != "llama" and "vision_config" in config else config
    values = dict(settings.config or {})
    return AutoConfig.for_model(values.pop("model_type", default_type), **values)
