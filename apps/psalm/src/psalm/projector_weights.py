"""Weights of a projector from any file that holds one: PSALM's, ours, adapted ones, alone or in a whole model."""

import json
from dataclasses import dataclass
from pathlib import Path

from region_core.weights import load_weights
from torch import Tensor

from psalm.configuration import PSALMConfig

PUBLISHED_MARK = "mm_projector."
"""What stands in the names of a projector that PSALM's code has written."""
OWN_MARK = "projector."
"""What stands before the names of the projector in a model of ours."""
PUBLISHED_REPEATS = 2
"""PSALM's code runs the projector's second convolution twice, and its published weights were trained with that."""


@dataclass(frozen=True)
class ProjectorWeights:
    """A projector's weights under its own names.

    Attributes:
        weights: Names of a baseline (`fc.weight`) or of a deformable projector (`base.fc.weight`, `align.…`).
        num_others: Tensors of the file that belong to other parts of a model.
        conv2_repeats: How often the second convolution ran in training; None where the file does not tell.
    """

    weights: dict[str, Tensor]
    num_others: int
    conv2_repeats: int | None


def open_projector_weights(source: str) -> ProjectorWeights:
    """Read a projector.

    Args:
        source: A `mm_projector.bin`, a file of `psalm adapt-projector`, or a whole model, of PSALM's code or ours.

    Raises:
        ValueError: The file is damaged, or two of its weights would be the same one of the projector.
        OSError: It cannot be read.
    """
    path = Path(source)
    found = load_weights(path)
    published = {name: tensor for name, tensor in found.items() if PUBLISHED_MARK in name}
    own = {name: tensor for name, tensor in found.items() if name.startswith(OWN_MARK)}
    weights: dict[str, Tensor] = {}
    for name, tensor in (published or own or found).items():
        plain = name.rpartition(PUBLISHED_MARK)[2] if published else name.removeprefix(OWN_MARK)
        if plain in weights:
            raise ValueError(f"{source!r}: two weights are {plain!r} of a projector, one of them {name!r}; give one")
        weights[plain] = tensor
    repeats = PUBLISHED_REPEATS if published else _own_repeats(path)
    return ProjectorWeights(weights, len(found) - len(weights), repeats)


def _own_repeats(path: Path) -> int | None:
    """What the `config.json` of a model of ours says, which lies beside its weights."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return None
    config = json.loads(file.read_text(encoding="utf-8"))
    return config["conv2_repeats"] if config.get("model_type") == PSALMConfig.model_type else None
