"""From settings to a processor and a model: new, or a pretrained video language model with a new module beside it."""

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import torch
from region_training.loading import whole_weights
from region_training.settings import ConfigError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from video_autoregressive.config import AutoregressiveConfig, VideoTokenConfig

from lmms.config import ModelSettings
from lmms.configuration import VideoLMMConfig, read_own
from lmms.families import family_class
from lmms.model import VideoLMM, backbone_of, fill_faster_token, fill_own, open_plain
from lmms.new_weights import settle_new_weights
from lmms.teachers import check_width, make_teacher, placeholder_teacher
from lmms.tokenizer import chat_template, train_tokenizer

logger = logging.getLogger(__name__)

QWEN_MAX_FRAMES = 768


def parts_of(config: VideoLMMConfig) -> dict[str, tuple[str, ...]]:
    """The parts of a model, as prefixes of parameter names: what `part_learning_rates` and `frozen_parts` speak of.

    They are `vision_tower`, `projector`, `language_model` and, where it is on, `autoregressive`.
    """
    backbone = backbone_of(config)
    parts = {part: tuple(f"lmm.{prefix}" for prefix in prefixes) for part, prefixes in backbone.parts.items()}
    if config.autoregressive_config is not None:
        parts["autoregressive"] = ("autoregressive_module.",)
    return parts


def build_processor(settings: ModelSettings, texts: Iterable[str]) -> ProcessorMixin:
    """The processor of a new run: the pretrained model's, or one for a new model.

    Args:
        settings: The composition.
        texts: Questions and answers; they make the tokenizer where none is named.
    """
    if settings.pretrained is not None:
        processor = AutoProcessor.from_pretrained(settings.pretrained)
        if settings.tokenizer not in (None, settings.pretrained):
            raise ConfigError(
                f"model.tokenizer: a pretrained model brings its own ({settings.pretrained}), got "
                f"{settings.tokenizer!r} beside it; leave it out"
            )
        return _resized(cast("ProcessorMixin", processor), settings.image_size)
    model_type, values = _new_values(settings)
    if settings.tokenizer is None:
        tokenizer = train_tokenizer(texts, settings.vocabulary_size, model_type)
    else:
        # Annotated as possibly None, which it never is.
        tokenizer = cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(settings.tokenizer))
    config = AutoConfig.for_model(model_type, **values)
    if model_type == "llava_onevision":
        return _onevision_processor(config, tokenizer)
    return _qwen_processor(config, tokenizer, settings.image_size)


def build_config(
    settings: ModelSettings, processor: ProcessorMixin, loaded: PreTrainedConfig | None = None
) -> VideoLMMConfig:
    """The configuration of a model; sizes that must agree with the tokenizer are taken from it.

    Args:
        settings: The composition.
        processor: The run's processor.
        loaded: Configuration of a video language model that is loaded already; by default the settings name one.

    Raises:
        ConfigError: A key is not known, or sizes do not go together.
    """
    own: dict[str, Any] = {}
    if loaded is not None:
        lmm = loaded
    elif settings.pretrained is not None:
        lmm = AutoConfig.from_pretrained(settings.pretrained)
        family_class(lmm.model_type, f"model.pretrained ({settings.pretrained}): model_type")
    else:
        lmm = _new_config(settings, processor.tokenizer)
    mean, std = _normalisation(processor)
    own |= {"video_tokens": asdict(settings.token_layout), "main_loss_weight": settings.main_loss_weight}
    if settings.enable_autoregressive:
        own["autoregressive_config"] = asdict(settings.autoregressive_config)
    config = VideoLMMConfig(lmm_config=lmm, image_mean=mean, image_std=std, **own)
    check_width(config)
    return config


def build_model(settings: ModelSettings, processor: ProcessorMixin, *, frozen_parts: Sequence[str] = ()) -> VideoLMM:
    """A pretrained model or a new one, with its reconstruction module and the teacher of that.

    Args:
        settings: The composition.
        processor: The run's processor.
        frozen_parts: Parts that are not trained: a frozen tower is its own teacher.

    Raises:
        ConfigError: Settings do not go together.
        ValueError: Weights and configuration do not match.
    """
    config = build_config(settings, processor)
    _check_parts(config, frozen_parts)
    # ZeRO-3 would hand out pieces of the parts, which can't be initialised or copied here.
    with whole_weights():
        if settings.pretrained is None:
            model = VideoLMM(config, _new_lmm(config), placeholder_teacher(config))
        else:
            lmm = open_plain(settings.pretrained)
            config.lmm_config = lmm.config
            model = VideoLMM(config, lmm, placeholder_teacher(config))
            _fill_pretrained(model, Path(settings.pretrained))
        _settle(model, frozen_parts, settings.pretrained)
    return model


def wrap_model(
    lmm: PreTrainedModel,
    processor: ProcessorMixin,
    autoregressive: AutoregressiveConfig | None,
    *,
    video_tokens: VideoTokenConfig | None = None,
    frozen_parts: Sequence[str] = (),
) -> VideoLMM:
    """A video language model that is loaded already, with a reconstruction module beside it.

    Args:
        lmm: A model of the library; it becomes the part `lmm` of the new one, with its weights and their type.
        processor: Its processor.
        autoregressive: The module, whose `embedding_dim` is the width of the tower; None has no module.
        video_tokens: How features of frames become tokens, by default as in the library; LLaVA-OneVision only.
        frozen_parts: Parts that are not trained: a frozen tower is its own teacher.

    Raises:
        ConfigError: Settings and model do not go together.
        ValueError: The family is not known.
    """
    family_class(lmm.config.model_type, f"{type(lmm).__name__}: model_type")
    settings = ModelSettings(
        video_tokens=video_tokens or VideoTokenConfig(),
        enable_autoregressive=autoregressive is not None,
        autoregressive_config=autoregressive or AutoregressiveConfig(),
    )
    # A copy: making a configuration around the model's own would reset how the model attends.
    config = build_config(settings, processor, copy.deepcopy(lmm.config))
    config.lmm_config = lmm.config
    _check_parts(config, frozen_parts)
    with whole_weights():
        model = VideoLMM(config, lmm, placeholder_teacher(config)).to(lmm.dtype)
        _settle(model, frozen_parts, lmm.name_or_path or None)
    return model


def _check_parts(config: VideoLMMConfig, frozen_parts: Sequence[str]) -> None:
    unknown = sorted(set(frozen_parts) - set(parts_of(config)))
    if unknown:
        raise ConfigError(f"frozen_parts: got {unknown}, expected names among {sorted(parts_of(config))}")


def _settle(model: VideoLMM, frozen_parts: Sequence[str], source: str | None) -> None:
    """Freeze parts of a model that has its weights, and give its module the teacher that follows from that."""
    frozen = tuple(prefix for part in frozen_parts for prefix in parts_of(model.config)[part])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    if model.autoregressive_module is not None:
        teacher = make_teacher(model, frozen="vision_tower" in frozen_parts)
        model.autoregressive_module.teacher = teacher
        kind, fingerprint = teacher.kind, teacher.fingerprint()
        model.config.teacher = {"kind": kind, "source": source, "fingerprint": fingerprint}
        logger.info("reconstruction targets: teacher %s, %d wide, fingerprint %s", kind, teacher.dim, fingerprint)


def _new_lmm(config: VideoLMMConfig) -> PreTrainedModel:
    """A video language model with first weights: whole before anything is put beside it, so the same with and without.

    Published configurations may ask for float16; a new model has torch's default type.
    """
    lmm = AutoModelForImageTextToText.from_config(config.lmm, dtype=torch.get_default_dtype())
    if config.lmm.model_type == "llava_onevision":
        plain = cast("LlavaOnevisionForConditionalGeneration", lmm)
        settle_new_weights(plain.model.vision_tower, plain.model.multi_modal_projector, plain)
    return cast("PreTrainedModel", lmm)


def _fill_pretrained(model: VideoLMM, source: Path) -> None:
    """Take over what a folder of this application holds beside the plain model, where it fits."""
    own = read_own(source)
    same_tokens = own.get("video_tokens") == model.config.video_tokens
    if same_tokens and own.get("autoregressive_config") == model.config.autoregressive_config:
        fill_own(model, source)
    elif own:
        logger.warning("%s holds a reconstruction module of other settings, which is left out", source)
        if same_tokens:
            fill_faster_token(model, source)


def _new_config(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    model_type, values = _new_values(settings)
    _check_keys("model.config", values, CONFIG_MAPPING[model_type])
    config = AutoConfig.for_model(model_type, **values)
    text = config.get_text_config()
    text.vocab_size = len(tokenizer)
    ids = tokenizer.get_vocab()
    placeholders = {"image_token_id": "image_token", "video_token_id": "video_token"}
    if model_type != "llava_onevision":
        placeholders |= {"vision_start_token_id": "vision_start_token", "vision_end_token_id": "vision_end_token"}
    for key, name in placeholders.items():
        setattr(config, key, ids[tokenizer.special_tokens_map[name]])
    for part in (config, text):
        part.pad_token_id, part.eos_token_id, part.bos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id, None
    return config


def _new_values(settings: ModelSettings) -> tuple[str, dict[str, Any]]:
    """The family of a new model, and its configuration's values.

    Raises:
        ConfigError: There is neither a pretrained model nor a configuration.
        ValueError: The family is not known.
    """
    if settings.config is None:
        raise ConfigError(
            "model.pretrained: got nothing, and no model.config either; name a video language model, or use a preset"
        )
    values = dict(settings.config)
    model_type = str(values.pop("model_type"))
    family_class(model_type, "model.config.model_type")
    return model_type, values


def _check_keys(where: str, given: Mapping[str, Any], config_class: type[PreTrainedConfig]) -> None:
    """Refuse misspelt keys, which transformers' configurations take for notes."""
    known = {entry.name for entry in fields(cast("Any", config_class))} | set(config_class.attribute_map)
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(f"{where}: unknown keys {', '.join(unknown)}; {config_class.__name__} has {sorted(known)}")


def _onevision_processor(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
    side = config.vision_config.image_size
    size = {"height": side, "width": side}
    pixels: dict[str, Any] = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=config.image_grid_pinpoints, **pixels),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(**pixels),
        num_image_tokens=(side // config.vision_config.patch_size) ** 2,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        vision_aspect_ratio=config.vision_aspect_ratio,
        chat_template=tokenizer.chat_template or chat_template("llava_onevision"),
    )


def _qwen_processor(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, image_size: int | None
) -> ProcessorMixin:
    vision = config.vision_config
    sizes: dict[str, Any] = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    template = tokenizer.chat_template or chat_template(config.model_type)
    images = Qwen2VLImageProcessor(**sizes)
    if config.model_type == "qwen2_5_vl":
        videos = Qwen2VLVideoProcessor(**sizes, cap_pixels_per_frame=False)
        return _resized(Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=template), image_size)
    videos = Qwen3VLVideoProcessor(**sizes, cap_pixels_per_frame=False)
    return _resized(Qwen3VLProcessor(images, tokenizer, videos, chat_template=template), image_size)


def _resized(processor: ProcessorMixin, image_size: int | None) -> ProcessorMixin:
    """The processor, made to bring pictures and frames to about so many pixels a side.

    Raises:
        ConfigError: The model has one size.
    """
    if image_size is None:
        return processor
    if isinstance(processor, LlavaOnevisionProcessor):
        raise ConfigError(f"model.image_size: got {image_size}, but this model has one size; leave it out")
    area = image_size**2
    images, videos = processor.image_processor, processor.video_processor
    images.size = {"shortest_edge": area, "longest_edge": area}
    if isinstance(processor, Qwen3VLProcessor):
        # Its limits are for a whole video; the cap is for a frame.
        factor = (videos.patch_size * videos.merge_size) ** 2
        videos.size = {"shortest_edge": factor, "longest_edge": area * QWEN_MAX_FRAMES}
        videos.max_video_tokens = max(1, area // factor)
        videos.cap_pixels_per_frame = True
    else:
        videos.size = {"shortest_edge": area, "longest_edge": area}
        videos.cap_pixels_per_frame = False
    return processor


def _normalisation(processor: ProcessorMixin) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of pixels, the same for images and videos.

    Raises:
        ConfigError: They differ.
    """
    images, videos = processor.image_processor, processor.video_processor
    of_images, of_videos = ((list(one.image_mean), list(one.image_std)) for one in (images, videos))
    if of_images != of_videos:
        raise ConfigError(
            f"the processor normalises images by {of_images} and videos by {of_videos}; expected the same for both, "
            "since they go through the tower together"
        )
    return of_images
