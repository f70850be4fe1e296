"""Who gives the targets of a model's reconstruction loss: made, checked, and the same for a whole run."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from region_training.ranks import Ranks
from region_training.run_folder import write_atomically
from region_training.settings import ConfigError
from region_training.strict_loading import load_strictly
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.encoding import encode_vit
from video_autoregressive.teacher import ExternalTeacher, SharedTeacher, SnapshotTeacher, Teacher
from video_autoregressive.teacher_cache import CachedTeacher

from lmms.backbone import Backbone
from lmms.configuration import VideoLMMConfig
from lmms.model import VideoLMM, backbone_of

TEACHER_FILE = "teacher.json"


def make_teacher(model: VideoLMM, *, frozen: bool) -> Teacher:
    """The teacher that a model's settings ask for.

    Args:
        model: With all its weights; a copy is taken of them as they are.
        frozen: Whether its tower is not trained.

    Raises:
        ConfigError: A tower that is trained cannot be its own teacher.
    """
    settings, backbone = model.config.autoregressive, model.backbone
    assert settings is not None
    tower, width, chunk = backbone.tower(model.lmm), _teacher_width(model.config), settings.teacher_chunk
    kind = settings.teacher
    if kind == "auto":
        kind = "shared" if frozen else "snapshot"
    match kind:
        case "shared":
            if not frozen:
                raise ConfigError(
                    "model.autoregressive_config.teacher: got 'shared' with a tower that is trained; freeze it "
                    "(training.frozen_parts: [vision_tower]) or use 'snapshot'"
                )
            return SharedTeacher(width)
        case "external":
            return _external_teacher(settings, backbone)
        case "cache":
            snapshot = SnapshotTeacher(tower, width, encode=backbone.see, chunk=chunk)
            return CachedTeacher(snapshot, str(settings.teacher_path))
        case _:
            return SnapshotTeacher(tower, width, encode=backbone.see, chunk=chunk)


def placeholder_teacher(config: VideoLMMConfig) -> Teacher | None:
    """A teacher of the right width until the weights are there that a copy can be taken of."""
    return None if config.autoregressive is None else SharedTeacher(config.autoregressive.embedding_dim)


def check_width(config: VideoLMMConfig) -> None:
    """Refuse an `embedding_dim` that is not the width of what is predicted.

    Raises:
        ConfigError: The message names both.
    """
    settings = config.autoregressive
    if settings is None:
        return
    if settings.teacher == "external":
        width = cast("Any", AutoConfig.from_pretrained(str(settings.teacher_path)))
        width = (width.vision_config if "vision_config" in width else width).hidden_size
        whose = f"the features of the external teacher {settings.teacher_path}"
    else:
        width, whose = _teacher_width(config), f"the features of the vision tower ({config.lmm.model_type})"
    if settings.embedding_dim != width:
        raise ConfigError(
            f"model.autoregressive_config.embedding_dim: got {settings.embedding_dim}, expected {width}: the width of "
            f"{whose}, which are predicted"
        )


def check_teacher(config: VideoLMMConfig, recorded: Mapping[str, Any] | None) -> None:
    """Refuse to go on with another teacher than the one that the run began with.

    Raises:
        ValueError: The fingerprints differ.
    """
    if recorded is not None and config.teacher is not None and recorded["fingerprint"] != config.teacher["fingerprint"]:
        raise ValueError(
            f"the teacher of this run has the fingerprint {recorded['fingerprint']} ({recorded['kind']} of "
            f"{recorded['source']}), got {config.teacher['fingerprint']}: its source has changed"
        )


def agree_on_teacher(model: VideoLMM, run_dir: Path, ranks: Ranks) -> None:
    """The same teacher on all ranks, and after a resume; its targets would change in silence otherwise.

    Args:
        model: Its configuration says what the teacher is.
        run_dir: Keeps that, in `teacher.json`, from the first start on.
        ranks: Of the run.

    Raises:
        ValueError: They differ.
    """
    mine = model.config.teacher
    if mine is None:
        return
    fingerprints = ranks.gather(mine["fingerprint"])
    if len(set(fingerprints)) != 1:
        raise ValueError(f"the ranks have teachers with different weights: {fingerprints}")
    path = run_dir / TEACHER_FILE
    check_teacher(model.config, json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None)
    ranks.barrier()
    if ranks.is_first:
        write_atomically(path, json.dumps(mine, indent=2) + "\n")


def _external_teacher(settings: AutoregressiveConfig, backbone: Backbone) -> Teacher:
    """Another vision encoder of the library, with its own size and normalisation."""
    source = str(settings.teacher_path)
    encoder, _ = load_strictly(
        AutoModel.from_pretrained,
        source,
        # A head that only another task needs; a pooled vector, that no token is part of.
        allow_unexpected=("*",),
        allow_missing=("*pooler*",),
        dtype=torch.get_default_dtype(),
    )
    encoder = cast("nn.Module", encoder.vision_model if "text_config" in encoder.config else encoder)
    values = AutoImageProcessor.from_pretrained(source)
    size = cast("Any", encoder).config.image_size
    own = [torch.tensor(values).view(3, 1, 1) for values in (backbone.config.image_mean, backbone.config.image_std)]
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (values.image_mean, values.image_std))

    def preprocess(frames: Tensor) -> Tensor:
        device = frames.device
        plain = backbone.single_frames(frames).float() * own[1].to(device) + own[0].to(device)
        plain = F.interpolate(plain, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return (plain - mean.to(device)) / std.to(device)

    dim = cast("Any", encoder).config.hidden_size
    encode = partial(encode_vit, layer=-1 if settings.teacher_layer is None else settings.teacher_layer)
    return ExternalTeacher(encoder, dim, encode=encode, preprocess=preprocess, chunk=settings.teacher_chunk)


def _teacher_width(config: VideoLMMConfig) -> int:
    settings = config.autoregressive
    assert settings is not None
    if settings.teacher_layer is not None:
        return config.lmm.vision_config.hidden_size
    return backbone_of(config).feature_width(config.lmm)
