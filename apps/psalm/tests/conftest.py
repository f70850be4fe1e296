"""Tiny builders that all test files of the app share, through the fixture `toy` (an object of class `Toy`).

    toy.settings(**changes)                 ModelSettings of toy size: 64 px, 2 x 2 image tokens, 6 mask tokens
    toy.config(**changes)                   the PSALMConfig of those settings
    toy.tokenizer                           made from toy.names and toy.sentences
    toy.processor(**changes)                a PSALMProcessor for that config
    toy.model(seed=0, **changes)            a PSALMModel in evaluation mode (imports the model when it is called)
    toy.sample(mode, seed=0, ...)           a random SegmentationSample; any number of targets and regions, also none
    toy.samples()                           one sample of every mode
    toy.batch(samples, ...)                 what SegmentationCollator makes of samples: `model(**toy.batch())` works

`model` is a toy model in evaluation mode for the whole session: not to be changed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from deformable_projector.config import DeformableProjectorConfig
from psalm.config import CriterionConfig, DataSettings, ModelSettings, SyntheticSettings
from psalm.configuration import PSALMConfig
from psalm.modes import BACKGROUND, KIND_OF_MODE, MODES, Mode
from psalm.processing import PSALMProcessor, prompt_texts
from psalm.samples import SegmentationSample
from psalm.synthetic import paths_of, write_world
from psalm.tokenizer import train_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

if TYPE_CHECKING:
    from psalm.model import PSALMModel

SIDE = 64
SWIN = {
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.0,
}
LANGUAGE = {
    "model_type": "phi",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
MASK_DECODER = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 48,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "num_attention_heads": 4,
}
SETTINGS = ModelSettings(
    swin=SWIN,
    language=LANGUAGE,
    mask_decoder=MASK_DECODER,
    projector=DeformableProjectorConfig(hidden_dim=16, num_heads=2, num_points=2),
    projector_conv_dim=16,
    num_mask_queries=6,
    region_geometry=True,
    region_levels=True,
    mask_places=True,
    max_length=512,
    vocabulary_size=300,
    criterion=CriterionConfig(num_points=64),
)
NAMES = ("sky", "grass", "red square", "ring")
SENTENCES = ("the red square", "the left ring", "the large one above the grass")


@dataclass(frozen=True)
class Toy:
    """Makes what the tests need, always the same from the same seed."""

    side: int = SIDE
    names: tuple[str, ...] = NAMES
    sentences: tuple[str, ...] = SENTENCES

    def settings(self, **changes: object) -> ModelSettings:
        return replace(SETTINGS, **changes)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return train_tokenizer([*self.names, BACKGROUND, *self.sentences], 300, prompts=prompt_texts())

    def config(self, **changes: object) -> PSALMConfig:
        from psalm.building import build_config

        return build_config(self.settings(**changes), self.tokenizer, self.side)

    def processor(self, **changes: object) -> PSALMProcessor:
        settings = self.settings(**changes)
        return PSALMProcessor.for_model(self.config(**changes), self.tokenizer, max_length=settings.max_length)

    def model(self, *, seed: int = 0, **changes: object) -> "PSALMModel":
        from psalm.building import build_model

        torch.manual_seed(seed)
        return build_model(self.settings(**changes), self.processor(**changes)).eval()

    def data_settings(self, **changes: object) -> DataSettings:
        return replace(DataSettings(image_size=self.side), **changes)

    def sample(
        self,
        mode: Mode = "panoptic",
        *,
        seed: int = 0,
        num_targets: int | None = None,
        num_regions: int = 2,
        content_size: tuple[int, int] | None = None,
    ) -> SegmentationSample:
        """A random sample: noise with rectangles as targets and as prompts.

        Args:
            mode: What is asked.
            seed: Of everything in it.
            num_targets: By default 2, or as many as there are regions (the k-th target is the k-th region's).
            num_regions: Regions of the modes `region` and `cross_image`.
            content_size: Height and width of the image in the square; by default all rows, 3/4 of the columns.
        """
        rng = np.random.default_rng([seed, MODES.index(mode)])
        size = content_size or (self.side, self.side * 3 // 4)
        kind = KIND_OF_MODE[mode]
        conditions = {
            "class_name": (*self.names, BACKGROUND),
            "sentence": (self.sentences[int(rng.integers(len(self.sentences)))],),
            "region": ("",) * num_regions,
        }[kind]
        candidates = len(self.names) if kind == "class_name" else len(conditions)
        count = num_targets if num_targets is not None else (num_regions if kind == "region" else 2)
        belongs = torch.zeros(count, candidates, dtype=torch.bool)
        if candidates:
            belongs[torch.arange(count), torch.arange(count) % candidates] = True
        crosses = mode == "cross_image"
        return SegmentationSample(
            record_id=f"toy {mode} {seed}",
            mode=mode,
            image=_picture(rng, self.side, size),
            content_size=size,
            original_size=(size[0] * 2, size[1] * 2),
            masks=_rectangles(rng, count, self.side, size),
            conditions=conditions,
            target_conditions=belongs,
            is_thing=(False, False, True, True) if kind == "class_name" else (True,) * len(conditions),
            prompts=_rectangles(rng, num_regions, self.side, size) if kind == "region" else None,
            reference_image=_picture(rng, self.side, size) if crosses else None,
            reference_size=size if crosses else None,
        )

    def samples(self, *, seed: int = 0) -> list[SegmentationSample]:
        """One sample of every mode."""
        return [self.sample(mode, seed=seed) for mode in MODES]

    def batch(
        self, samples: Sequence[SegmentationSample] | None = None, *, with_targets: bool = True, **changes: object
    ) -> dict[str, Any]:
        """A batch of samples, by default of one of every mode.

        Args:
            samples: What to collate.
            with_targets: As in training; without, as for inference.
            changes: Settings that differ.
        """
        from psalm.collate import SegmentationCollator

        collate = SegmentationCollator(self.processor(**changes), self.settings(**changes), with_targets=with_targets)
        return collate(self.samples() if samples is None else list(samples))


def _picture(rng: np.random.Generator, side: int, size: tuple[int, int]) -> Tensor:
    picture = torch.full((3, side, side), 128, dtype=torch.uint8)
    picture[:, : size[0], : size[1]] = torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8))
    return picture


def _rectangles(rng: np.random.Generator, count: int, side: int, size: tuple[int, int]) -> Tensor:
    masks = torch.zeros(count, side, side, dtype=torch.bool)
    for mask in masks:
        top, left = int(rng.integers(size[0] // 2)), int(rng.integers(size[1] // 2))
        mask[top : top + size[0] // 2, left : left + size[1] // 2] = True
    return masks


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # The tensors here are tiny: more threads only wait for each other, badly so on a busy machine.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy()


@pytest.fixture(scope="session")
def model(toy: Toy) -> "PSALMModel":
    """The toy model in evaluation mode; not to be changed."""
    return toy.model()


@pytest.fixture(scope="session")
def scenes() -> SyntheticSettings:
    """Size of the small world in `root`."""
    return SyntheticSettings(train_scenes=4, eval_scenes=4, image_size=64)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory, scenes: SyntheticSettings) -> Path:
    """Folder of a small world; to be read only."""
    path = tmp_path_factory.mktemp("world")
    write_world(path, scenes)
    return path


@pytest.fixture
def world(root: Path) -> Callable[..., DataSettings]:
    """Settings with all paths of the small world, changed as a test likes."""

    def settings(**changes: object) -> DataSettings:
        return DataSettings(**{"image_size": 64, **paths_of(root), **changes})

    return settings
