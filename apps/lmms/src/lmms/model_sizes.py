"""How large a model will be, part by part, before it exists: it is built on the meta device, without memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from region_training.loading import whole_weights
from region_training.settings import ConfigError
from torch import nn
from transformers import AutoConfig, AutoModel
from video_autoregressive.teacher import SharedTeacher

from lmms.building import parts_of
from lmms.configuration import VideoLMMConfig
from lmms.model import VideoLMM, backbone_of


@dataclass(frozen=True)
class PartSize:
    """One part of a model.

    Attributes:
        name: As in `training.frozen_parts`.
        num_parameters: Elements of its weights; weights that two modules share count once.
        num_trained: Those that are trained: all or none.
    """

    name: str
    num_parameters: int
    num_trained: int


@dataclass(frozen=True)
class ModelSizes:
    """Elements of a model.

    Attributes:
        parts: Its parts.
        largest_tensor: Elements of the largest weight.
        teacher: Elements of a teacher that has weights of its own, else 0.
    """

    parts: tuple[PartSize, ...]
    largest_tensor: int
    teacher: int

    @property
    def num_parameters(self) -> int:
        """Elements of all weights."""
        return sum(part.num_parameters for part in self.parts)

    @property
    def num_trained(self) -> int:
        """Elements that are trained."""
        return sum(part.num_trained for part in self.parts)

    @property
    def trained_parts(self) -> tuple[str, ...]:
        """Names of the parts that are trained."""
        return tuple(part.name for part in self.parts if part.num_trained)


def measure_model(config: VideoLMMConfig, frozen_parts: Sequence[str]) -> ModelSizes:
    """Count the weights of a model.

    Args:
        config: The model's configuration.
        frozen_parts: Parts that are not trained.

    Raises:
        ConfigError: A frozen part is none of the model's.
    """
    prefixes = parts_of(config)
    unknown = sorted(set(frozen_parts) - set(prefixes))
    if unknown:
        raise ConfigError(f"training.frozen_parts: got {unknown}, expected names among {sorted(prefixes)}")
    teacher = None if config.autoregressive is None else SharedTeacher(config.autoregressive.embedding_dim)
    recorded = config.teacher
    with whole_weights(), torch.device("meta"):
        model = VideoLMM(config, teacher=teacher)
    config.teacher = recorded  # a teacher leaves its kind there
    parameters = list(model.named_parameters())
    parts = []
    for name, heads in prefixes.items():
        count = sum(parameter.numel() for key, parameter in parameters if key.startswith(heads))
        parts.append(PartSize(name, count, 0 if name in frozen_parts else count))
    tower = backbone_of(config).tower(model.lmm)
    return ModelSizes(
        parts=tuple(parts),
        largest_tensor=max(parameter.numel() for _, parameter in parameters),
        teacher=_teacher_size(config, tower, is_frozen="vision_tower" in frozen_parts),
    )


def _teacher_size(config: VideoLMMConfig, tower: nn.Module, *, is_frozen: bool) -> int:
    settings = config.autoregressive
    if settings is None or settings.teacher == "shared" or (settings.teacher == "auto" and is_frozen):
        return 0
    if settings.teacher != "external":
        return _num_elements(tower)
    with whole_weights(), torch.device("meta"):
        encoder = AutoModel.from_config(AutoConfig.from_pretrained(str(settings.teacher_path)))
    encoder = cast("Any", encoder)
    return _num_elements(encoder.vision_model if "text_config" in encoder.config else encoder)


def _num_elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
