"""From settings to a tokenizer and a model: new, from BLIP-2, or from an SPRC folder."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from region_core.load_report import match_weights
from region_core.weights import load_weights
from region_training.loading import whole_weights
from region_training.strict_loading import LoadError, load_strictly
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from sprc.config import ModelSettings
from sprc.configuration import SPRCConfig
from sprc.key_map import BLIP2, to_own_names
from sprc.model import SPRCModel
from sprc.tokenizer import load_tokenizer, train_tokenizer

logger = logging.getLogger(__name__)

PARTS: Mapping[str, tuple[str, ...]] = {
    "vision_tower": ("vision_tower.",),
    "ln_vision": ("ln_vision.",),
    "qformer": ("composer.qformer.", "composer.embeddings.", "composer.query_tokens."),
    "prompts": ("composer.prompt_tokens.",),
    "projections": ("composer.vision_projection.", "composer.text_projection.", "temperature."),
    "region_branch": ("region_branch.",),
}
"""Parts of the model, as prefixes of parameter names: what `part_learning_rates` and `frozen_parts` speak of."""

ADDABLE = ("region_branch.*",)
"""Weights that a checkpoint may lack, or hold without use: another `region_mode` adds and removes them."""

_FREE_KEYS = ("attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob")
"""Keys of a part that may differ from the pretrained part's; the others are its shape."""


def build_tokenizer(settings: ModelSettings, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a new run; `texts` make it if no pretrained one is named."""
    path = settings.tokenizer or settings.checkpoint or settings.blip2
    return train_tokenizer(texts, settings.vocabulary_size) if path is None else load_tokenizer(path)


def build_config(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase | None) -> SPRCConfig:
    """The configuration of a model; sizes come from the pretrained model where one is named.

    Args:
        settings: The composition.
        tokenizer: Its vocabulary is the model's; None where only images and boxes are read, and no model is built.

    Raises:
        ValueError: A key is unknown, contradicts the pretrained model, or the tokenizer has more tokens than it.
    """
    changed: dict[str, Any] = {
        "max_caption_tokens": settings.max_caption_tokens,
        "use_region_loss": settings.use_region_loss,
        "region_mode": settings.region_mode,
        "region_queries": settings.region_queries,
        "region_loss": asdict(settings.region_loss),
        "loss_rtc": settings.loss_rtc,
        "loss_align": settings.loss_align,
        "loss_region": settings.loss_region,
    }
    vision, qformer = dict(settings.vision or {}), settings.qformer or {}
    if "dtype" in vision:
        changed["vision_dtype"] = vision.pop("dtype")
    _check_keys("model.vision", vision, Blip2VisionConfig)
    _check_keys("model.qformer", qformer, Blip2QFormerConfig)
    source = settings.checkpoint or settings.blip2
    if source is None:
        return SPRCConfig(
            vision_config=vision,
            qformer_config=qformer if tokenizer is None else {**qformer, **_vocabulary(tokenizer)},
            num_query_tokens=settings.num_query_tokens,
            image_text_hidden_size=settings.image_text_hidden_size,
            **changed,
        )
    base = (
        SPRCConfig.from_pretrained(source) if settings.checkpoint else blip2_config(source, settings.max_caption_tokens)
    )
    _change_part(base.vision, vision, f"model.vision ({source})")
    _change_part(base.qformer, qformer, f"model.qformer ({source})")
    if tokenizer is not None and len(tokenizer) > base.qformer.vocab_size:
        raise ValueError(
            f"{source} has {base.qformer.vocab_size} word embeddings, the tokenizer {len(tokenizer)} tokens; use the "
            "tokenizer that it was trained with"
        )
    return SPRCConfig(**{**_own_values(base), **changed})


def with_tower_dtype(settings: ModelSettings, precision: str) -> ModelSettings:
    """The settings with the type that the tower's weights have in training.

    In bf16 the engine casts the whole model. The tower is frozen and needs no master weights in fp32, so it has bf16
    from the beginning: what is cached, trained, saved and opened again is then the same tower.

    Args:
        settings: The composition.
        precision: "bf16" or "fp32" of the training.
    """
    wanted = (settings.vision or {}).get("dtype")
    if precision != "bf16" or wanted == "bfloat16":
        return settings
    if wanted is not None:
        logger.warning("model.vision.dtype %r has no effect: training in bf16 makes the tower bfloat16", wanted)
    return replace(settings, vision={**(settings.vision or {}), "dtype": "bfloat16"})


def build_model(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> SPRCModel:
    """A new model, one that starts from BLIP-2 (soft prompts, temperature and region branch are new), or a saved one.

    Raises:
        ValueError: Weights and configuration do not match.
    """
    # ZeRO-3 would hand out pieces of the parts, which can't be initialised or copied here.
    with whole_weights():
        model = SPRCModel(build_config(settings, tokenizer))
        if settings.checkpoint is not None:
            weights = load_weights(Path(settings.checkpoint))
            report = match_weights(model, weights, allow_missing=ADDABLE, allow_unexpected=ADDABLE)
            if report.missing or report.unexpected:
                logger.warning("%s does not hold exactly this model:\n%s", settings.checkpoint, report.table())
        elif settings.blip2 is not None:
            fill(model, to_own_names(BLIP2, blip2_weights(settings.blip2), model.state_dict()))
    return model


def blip2_config(source: str, max_caption_tokens: int = 32) -> SPRCConfig:
    """Our configuration of a Hugging Face BLIP-2 retrieval model (`Blip2ForImageTextRetrieval`)."""
    config = Blip2Config.from_pretrained(source)
    return SPRCConfig(
        vision_config=cast("Blip2VisionConfig", config.vision_config),
        qformer_config=cast("Blip2QFormerConfig", config.qformer_config),
        num_query_tokens=config.num_query_tokens,
        region_queries=min(SPRCConfig.region_queries, config.num_query_tokens),
        image_text_hidden_size=config.image_text_hidden_size,
        max_caption_tokens=max_caption_tokens,
    )


def fill(model: SPRCModel, weights: Mapping[str, Tensor]) -> None:
    """Copy weights of `to_own_names` into a model; what they lack by the layout's leave stays new.

    Raises:
        ValueError: A shape differs.
    """
    match_weights(model, weights, allow_missing=("*",))


def blip2_weights(source: str) -> dict[str, Tensor]:
    """Weights of a Hugging Face BLIP-2 retrieval model under its own names, in float32.

    Raises:
        ValueError: The folder holds another model.
    """
    try:
        model, _ = load_strictly(Blip2ForImageTextRetrieval.from_pretrained, source, dtype=torch.float32)
    except LoadError as error:
        raise ValueError(f"no BLIP-2 retrieval model (Blip2ForImageTextRetrieval): {error}") from error
    return model.state_dict()


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    return {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}


def _check_keys(where: str, given: Mapping[str, Any], config_class: type[PreTrainedConfig]) -> None:
    """Refuse misspelt keys, which transformers' configurations take for notes."""
    known = {entry.name for entry in fields(cast("Any", config_class))} | {"model_type"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"{where}: unknown keys {', '.join(unknown)}; {config_class.__name__} has {sorted(known)}")


def _change_part(part: PreTrainedConfig, given: Mapping[str, Any], where: str) -> None:
    for key, value in given.items():
        if key in _FREE_KEYS:
            part.update({key: value})
        elif key != "model_type" and part.to_dict().get(key) != value:
            raise ValueError(f"{where}: {key} is {part.to_dict().get(key)!r} in the pretrained model, got {value!r}")


def _own_values(config: SPRCConfig) -> dict[str, Any]:
    """The values of a configuration's own fields, without what transformers keeps beside them."""
    own = {entry.name for entry in fields(cast("Any", SPRCConfig))} - {
        entry.name for entry in fields(cast("Any", PreTrainedConfig))
    }
    return {name: vars(config)[name] for name in own}
