"""From settings to a processor and a model: new, with pretrained parts, or from a PSALM folder."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, cast

import torch
from region_core.load_report import match_weights
from region_training.loading import whole_weights
from region_training.strict_loading import load_strictly
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    Mask2FormerConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    SwinConfig,
)

from psalm.config import DataSettings, ModelSettings
from psalm.configuration import SWIN_COMMON, SWIN_SIZES, PSALMConfig
from psalm.model import PSALMModel, make_projector
from psalm.processing import PSALMProcessor, prompt_texts
from psalm.published import PUBLISHED_TYPE, fill_mask_side, fill_projector, summarise
from psalm.tokenizer import (
    ALIGNED_TOKEN,
    IMAGE_TOKEN,
    QUERY_TOKEN,
    REGION_TOKEN,
    SEG_TOKEN,
    load_tokenizer,
    train_tokenizer,
)

logger = logging.getLogger(__name__)

PARTS: Mapping[str, tuple[str, ...]] = {
    "vision_tower": ("vision_tower.",),
    "projector": ("projector.",),
    "sampling_offsets": (),
    "language_model": ("language_model.model.",),
    "language_head": ("language_model.lm_head.",),
    "mask_queries": ("mask_queries.", "query_projector."),
    "region_embedder": ("region_embedder.",),
    "place_embedder": ("place_embedder.",),
    "pixel_decoder": ("pixel_decoder.",),
    "mask_decoder": ("mask_decoder.",),
    "condition_heads": ("condition_heads.",),
}
"""Parts of the model, as prefixes of parameter names; `parts_of` says which of them a model has."""

ADDABLE = ("region_embedder.*", "place_embedder.*", "projector.align.*")
"""Weights that a checkpoint may lack, or hold without use: settings add and remove them."""

_FREE_KEYS = ("attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "dropout")
"""Keys of a part that may differ from the pretrained part's; the others are its shape."""

_SIZES = ("num_mask_queries", "conv2_repeats", "fpn_variant", "projector_conv_dim")
"""Settings that a checkpoint settles; so it does the backbone's, and a deformable projector's."""
_PROJECTOR_FLAGS = {"hidden_dim": "--mm_hidden_dim", "num_heads": "--mm_n_heads", "num_points": "--mm_n_points"}


def parts_of(config: PSALMConfig) -> dict[str, tuple[str, ...]]:
    """The parts that a model has, as prefixes of parameter names.

    Without the deformable projector there are no sampling offsets, without geometry and levels the region embedder has
    no weights, without places there is no place embedder, and a language model whose word head is its embeddings has no
    head of its own.
    """
    parts = dict(PARTS)
    projector = _projector_names(config)
    offsets = tuple(name for name in projector if ".sampling_offsets." in name)
    parts["sampling_offsets"] = offsets
    parts["projector"] = tuple(name for name in projector if name not in offsets) if offsets else parts["projector"]
    absent = {
        "sampling_offsets": not offsets,
        "region_embedder": not (config.region_geometry or config.region_levels),
        "place_embedder": not config.mask_places,
        "language_head": bool(config.language.tie_word_embeddings),
    }
    return {part: prefixes for part, prefixes in parts.items() if not absent.get(part, False)}


def build_tokenizer(settings: ModelSettings, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a new run; `texts` (class names and sentences) make it if no pretrained one is named."""
    path = settings.tokenizer or settings.checkpoint or settings.language_model
    if path is None:
        return train_tokenizer(texts, settings.vocabulary_size, prompts=prompt_texts())
    return load_tokenizer(path)


def build_processor(settings: ModelSettings, data: DataSettings, texts: Iterable[str]) -> PSALMProcessor:
    """The processor of a new run; `texts` as in `build_tokenizer`.

    Raises:
        ValueError: Sequences may be longer than the language model reads, or as for `build_config`.
    """
    tokenizer = build_tokenizer(settings, texts)
    config = build_config(settings, tokenizer, data.image_size)
    # Not every language model has such a number.
    context = getattr(config.language, "max_position_embeddings", None)
    if context is not None and settings.max_length > context:
        raise ValueError(
            f"model.max_length (--model_max_length) is {settings.max_length}, but the language model "
            f"({config.language.model_type}) reads at most {context} tokens (max_position_embeddings); lower it to "
            f"{context} or less"
        )
    return PSALMProcessor.for_model(config, tokenizer, max_length=settings.max_length, pens=data.pens)


def build_config(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase, image_size: int) -> PSALMConfig:
    """The configuration of a model; shapes come from the pretrained model where one is named.

    Raises:
        ValueError: A key is unknown or contradicts the pretrained model, or sizes do not go together.
    """
    for where, given, known in (
        ("model.swin", settings.swin, SwinConfig),
        ("model.mask_decoder", settings.mask_decoder, Mask2FormerConfig),
    ):
        _check_keys(where, given or {}, known)
    ids = tokenizer.get_vocab()
    changed: dict[str, Any] = {
        "image_size": image_size,
        "projector_type": settings.projector_type,
        "projector_outdim": settings.projector_outdim,
        "region_geometry": settings.region_geometry,
        "region_levels": settings.region_levels,
        "mask_places": settings.mask_places,
        "cross_image": _directions(settings),
        "condition_tokens": settings.condition_tokens,
        "criterion_config": asdict(settings.criterion),
        "image_token_id": ids[IMAGE_TOKEN],
        "seg_token_id": ids[SEG_TOKEN],
        "region_token_id": ids[REGION_TOKEN],
        "aligned_token_id": ids[ALIGNED_TOKEN],
        "query_token_id": ids[QUERY_TOKEN],
    }
    if settings.checkpoint is not None:
        return _config_of_checkpoint(settings, tokenizer, changed)
    return PSALMConfig(
        swin_config={
            **SWIN_COMMON,
            **SWIN_SIZES[settings.swin_type],
            **_spread(settings),
            **(settings.swin or {}),
        },
        language_config=_language_config(settings, tokenizer),
        mask_config=settings.mask_decoder,
        projector_config=asdict(settings.projector),
        projector_conv_dim=settings.projector_conv_dim,
        conv2_repeats=settings.conv2_repeats,
        fpn_variant=settings.fpn_variant,
        num_mask_queries=settings.num_mask_queries,
        **changed,
    )


def build_model(settings: ModelSettings, processor: PSALMProcessor) -> PSALMModel:
    """A model from a checkpoint, or new with whatever pretrained parts are named.

    A checkpoint of the baseline may gain the deformable residual, and one with it may lose it: see `ADDABLE`.

    Raises:
        ValueError: Weights and configuration do not match.
    """
    config = build_config(settings, processor.tokenizer, processor.image_size)
    # ZeRO-3 would hand out pieces of the parts, which can't be initialised or copied here.
    with whole_weights():
        model = PSALMModel(config)
        if settings.checkpoint is not None:
            _fill_from_checkpoint(model, settings.checkpoint)
        if settings.mask2former is not None:
            fill_mask_side(model, settings.mask2former)
        if settings.language_model is not None:
            _fill_language_model(model, settings.language_model)
        if settings.projector_weights is not None:
            fill_projector(model, settings.projector_weights)
    return model


def _config_of_checkpoint(
    settings: ModelSettings, tokenizer: PreTrainedTokenizerBase, changed: Mapping[str, Any]
) -> PSALMConfig:
    """A checkpoint's shapes with the settings that are no shapes."""
    source = str(settings.checkpoint)
    base = PSALMConfig.from_pretrained(source)
    _refuse_other_sizes(settings, base)
    swin = {key: value for key, value in (settings.swin or {}).items() if key != "image_size"}
    _change_part(base.swin, swin, f"model.swin ({source})")
    _change_part(base.language, settings.language or {}, f"model.language ({source})")
    _change_part(base.mask, settings.mask_decoder or {}, f"model.mask_decoder ({source})")
    if len(tokenizer) > base.language.vocab_size:
        raise ValueError(
            f"{source} has {base.language.vocab_size} word embeddings, the tokenizer {len(tokenizer)} tokens; use the "
            "tokenizer that it was trained with"
        )
    projector = settings.projector
    if base.projector_type == "deformable":
        # Its widths are in the weights; how it looks for places is not.
        sizes = {name: vars(base.projector)[name] for name in _PROJECTOR_FLAGS}
        projector = replace(projector, **sizes)
    own = {entry.name for entry in fields(cast("Any", PSALMConfig))} - {
        entry.name for entry in fields(cast("Any", PreTrainedConfig))
    }
    values: dict[str, Any] = {name: vars(base)[name] for name in own}
    values |= {**changed, "projector_config": asdict(projector)}
    return PSALMConfig(**values)


def _refuse_other_sizes(settings: ModelSettings, base: PSALMConfig) -> None:
    """Refuse sizes that are neither the settings' defaults nor the checkpoint's, whose weights settle them."""
    usual = ModelSettings()
    # Flag -> given, default, the checkpoint's.
    sizes = {"--swin_type": (settings.swin_type, usual.swin_type, _swin_type(base))}
    for name in _SIZES:
        sizes[f"--model.{name}"] = (vars(settings)[name], vars(usual)[name], vars(base)[name])
    if base.projector_type == settings.projector_type == "deformable":
        for name, flag in _PROJECTOR_FLAGS.items():
            values = (vars(part)[name] for part in (settings.projector, usual.projector, base.projector))
            sizes[flag] = tuple(values)
    other = [
        f"{flag}: got {given!r}, the checkpoint has {found!r}"
        for flag, (given, default, found) in sizes.items()
        if given not in (default, found)
    ]
    if other:
        raise ValueError(
            f"model.checkpoint ({settings.checkpoint!r}) settles the sizes of the model; {'; '.join(other)}; leave "
            "them out, or start a new model of other sizes from parts"
        )


def _swin_type(config: PSALMConfig) -> str:
    """Published size of a backbone, or its width where it is none of them."""
    for name, sizes in SWIN_SIZES.items():
        if all(vars(config.swin)[key] == value for key, value in sizes.items()):
            return name
    return f"embed_dim {config.swin.embed_dim}"


def _describe_sizes(config: PSALMConfig) -> str:
    sizes = {"swin": _swin_type(config), **{name: vars(config)[name] for name in _SIZES}}
    if config.projector_type == "deformable":
        sizes |= {f"projector.{name}": vars(config.projector)[name] for name in _PROJECTOR_FLAGS}
    return ", ".join(f"{name} {value}" for name, value in sizes.items())


def _fill_from_checkpoint(model: PSALMModel, source: str) -> None:
    # Opened as a model: on disk the library's parts have names of its own.
    saved = PSALMModel.from_pretrained(source)
    rename = {
        ("swin_conv", "deformable"): {"projector.": "projector.base."},
        ("deformable", "swin_conv"): {"projector.base.": "projector."},
    }.get((saved.config.projector_type, model.config.projector_type), {})
    report = match_weights(model, saved.state_dict(), allow_missing=ADDABLE, allow_unexpected=ADDABLE, rename=rename)
    counts = {"taken": len(report.loaded), "new": len(report.missing), "left_out": len(report.unexpected)}
    line = summarise("whole model", **counts)
    logger.info("%s: %s; sizes taken over: %s", source, line, _describe_sizes(saved.config))
    if report.missing or report.unexpected:
        logger.warning("%s does not hold exactly this model:\n%s", source, report.table())


def _fill_language_model(model: PSALMModel, source: str) -> None:
    language_model, _ = load_strictly(AutoModelForCausalLM.from_pretrained, source)
    rows = model.config.language.vocab_size
    known = len(language_model.get_input_embeddings().get_parameter("weight"))
    if rows > known:
        language_model.resize_token_embeddings(rows)
    report = match_weights(model.language_model, language_model.state_dict())
    # What is missing or has no place is among the problems above.
    line = summarise("language model", taken=len(report.loaded), new=0, left_out=0)
    logger.info("%s: %s; %d new rows of word embeddings", source, line, max(0, rows - known))


def _language_config(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    given = dict(settings.language or {})
    if settings.language_model is not None:
        _refuse_whole_model(settings.language_model)
        config = AutoConfig.from_pretrained(settings.language_model)
        _change_part(config, given, f"model.language ({settings.language_model})")
        # Never fewer: models have more rows than their tokenizers have tokens.
        config.vocab_size = max(config.vocab_size, len(tokenizer))
    else:
        model_type = given.pop("model_type", "phi")
        if model_type not in CONFIG_MAPPING:
            raise ValueError(f"model.language.model_type: got {model_type!r}, which transformers does not know")
        _check_keys("model.language", given, CONFIG_MAPPING[model_type])
        config = AutoConfig.for_model(model_type, **{"vocab_size": len(tokenizer), **given})
        if "initializer_range" not in given:
            # 0.02 for the width of Phi-1.5; a narrow model would hardly see its input through so small weights.
            config.initializer_range = config.hidden_size**-0.5
        if config.vocab_size < len(tokenizer):
            raise ValueError(
                f"model.language.vocab_size is {config.vocab_size}, the tokenizer has {len(tokenizer)} tokens"
            )
    config.bos_token_id, config.eos_token_id, config.pad_token_id = (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    return config


def _refuse_whole_model(source: str) -> None:
    """Say what to do with a PSALM where a language model is expected."""
    model_type = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
    advice = {
        PSALMConfig.model_type: "give it as model.checkpoint",
        PUBLISHED_TYPE: "make it ours by `psalm convert`, and give the result as model.checkpoint",
    }
    if model_type in advice:
        raise ValueError(
            f"model.language_model (--model_name_or_path): {source!r} is a whole PSALM (model_type {model_type!r}), "
            f"expected a causal language model; {advice[model_type]}, with model.language_model and "
            "model.mask2former null"
        )


def _spread(settings: ModelSettings) -> dict[str, float]:
    """Spread of a new backbone's weights: about 0.02 at the published sizes, more where it is narrow."""
    if settings.mask2former is not None:
        return {}
    width = (settings.swin or {}).get("embed_dim", SWIN_SIZES[settings.swin_type]["embed_dim"])
    return {"initializer_range": (8 * width) ** -0.5}


def _directions(settings: ModelSettings) -> list[str]:
    if settings.projector_type == "swin_conv" and settings.cross_image:
        logger.info(
            "model.cross_image: %s left out, since the projector is 'swin_conv'; the images of a pair meet in the "
            "language model alone",
            " and ".join(settings.cross_image),
        )
        return []
    return list(settings.cross_image)


def _projector_names(config: PSALMConfig) -> list[str]:
    """Names of the projector's parameters, from a projector without memory."""
    with torch.device("meta"):
        projector = make_projector(config)
    return [f"projector.{name}" for name, _ in projector.named_parameters()]


def _check_keys(where: str, given: Mapping[str, Any], config_class: type[PreTrainedConfig]) -> None:
    """Refuse misspelt keys, which transformers' configurations take for notes."""
    known = {entry.name for entry in fields(cast("Any", config_class))} | {"model_type"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"{where}: unknown keys {', '.join(unknown)}; {config_class.__name__} has {sorted(known)}")


def _change_part(part: PreTrainedConfig, given: Mapping[str, Any], where: str) -> None:
    """Take over what may differ from a pretrained part; refuse another shape."""
    found = part.to_dict()
    for key, value in given.items():
        if key in _FREE_KEYS:
            part.update({key: value})
        elif found.get(key) != value:
            raise ValueError(f"{where}: {key} is {found.get(key)!r} in the pretrained model, got {value!r}")
