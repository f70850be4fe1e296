"""Fixtures of the app's tests: a small world on disk, and models, processors and samples of toy size."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from region_core.attention import LayerGate
from region_core.config import RegionEnhancerConfig
from region_heads.config import RegionHeadsConfig
from region_heads.labels import Label
from region_heads.tasks import TaskType
from region_training.images import write_png
from spatialrgpt.building import build_config, build_model
from spatialrgpt.collate import RegionDataCollator
from spatialrgpt.config import BackboneSettings, ModelSettings, SyntheticSettings
from spatialrgpt.data import Frame, RegionDataset, RegionSample, make_sample, read_texts
from spatialrgpt.model import SpatialRGPTForConditionalGeneration
from spatialrgpt.processing import SpatialRGPTProcessor
from spatialrgpt.synthetic import write_world
from spatialrgpt.tokenizer import train_tokenizer
from transformers import PreTrainedTokenizerBase

WORLD = SyntheticSettings(train_scenes=6, eval_scenes=2, questions=2, seed=0)
HEIGHT, WIDTH = 24, 32
VISION = {
    "model_type": "siglip_vision_model",
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vision_use_head": False,
}
TEXT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
SETTINGS = ModelSettings(
    vision=BackboneSettings(config=VISION),
    text=BackboneSettings(config=TEXT),
    refinement_stages=1,
    region_enhancer_cfg=RegionEnhancerConfig(num_heads=2, num_transformer_layers=1, dropout=0.0),
    enable_region_heads=True,
    region_heads_cfg=RegionHeadsConfig.from_dict({"hidden_dim": 16, "max_count": 5}),
)


@dataclass(frozen=True)
class Toy:
    """Makes what the tests need, always the same from the same seed."""

    tokenizer: PreTrainedTokenizerBase
    vision: Mapping[str, object]
    text: Mapping[str, object]

    def settings(self, **changes: object) -> ModelSettings:
        return replace(SETTINGS, **changes)

    def model(self, *, seed: int = 0, open_gates: bool = True, **changes: object):
        """A model without dropout; its gates are opened, since a closed one hides whatever is behind it."""
        torch.manual_seed(seed)
        model = build_model(self.settings(**changes), self.tokenizer).eval()
        for module in model.modules():
            if isinstance(module, LayerGate) and open_gates:
                torch.nn.init.normal_(module.gate)
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return model

    def processor(self, **changes: object) -> SpatialRGPTProcessor:
        return SpatialRGPTProcessor.for_model(build_config(self.settings(**changes), self.tokenizer), self.tokenizer)

    def sample(
        self,
        regions: Sequence[int] = (0, 0),
        *,
        depths: Sequence[bool] = (True,),
        words: str = "how far is",
        answer: str | None = "The answer is 2.",
        task: TaskType | None = TaskType.COUNTING,
        seed: int = 0,
        processor: SpatialRGPTProcessor | None = None,
    ) -> RegionSample:
        """One conversation about random pictures.

        Args:
            regions: The image of each region, in order of mention.
            depths: For each image whether it has a depth map.
            words: Repeated before each region.
            answer: The assistant's turn, if there is one.
            task: Task of the question; its label is 1.
            seed: Of pictures and masks.
            processor: By default that of the toy model.
        """
        rng = np.random.default_rng(seed)
        frames = [_frame(rng, has_depth) for has_depth in depths]
        masks = [_masks(rng, list(regions).count(image)) for image in range(len(depths))]
        messages = [{"role": "user", "content": "".join(f"{words} <mask> " for _ in regions) + f"{words}?"}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        return make_sample(
            processor or self.processor(),
            messages,
            frames,
            masks,
            torch.tensor(list(regions), dtype=torch.long),
            task_type=-1 if task is None else int(task),
            where="toy",
            index=seed,
            record_id=f"toy-{seed}",
            label=None if task is None else Label(task, 1),
        )

    def batch(self, samples: Sequence[RegionSample], *, side: str = "right", heads: bool = True) -> dict:
        """Collate, without what is for the trainer alone."""
        settings = SETTINGS.region_heads_cfg if heads else None
        batch = RegionDataCollator(self.tokenizer.pad_token_id, heads=settings, padding_side=side)(samples)
        return {key: value for key, value in batch.items() if key not in ("record_ids", "loss_counts")}


def _frame(rng: np.random.Generator, has_depth: bool) -> Frame:
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Frame(image, rng.random((HEIGHT, WIDTH), dtype=np.float32) if has_depth else None)


def _masks(rng: np.random.Generator, count: int) -> np.ndarray | None:
    if count == 0:
        return None
    masks = np.zeros((count, HEIGHT, WIDTH), dtype=bool)
    for mask in masks:
        top, left = rng.integers(0, HEIGHT - 8), rng.integers(0, WIDTH - 8)
        mask[top : top + rng.integers(3, 9), left : left + rng.integers(3, 9)] = True
    return masks


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # The tensors here are tiny: more threads only wait for each other, badly so on a busy machine.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world_settings() -> SyntheticSettings:
    return WORLD


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small world in the warehouse format."""
    root = tmp_path_factory.mktemp("world")
    write_world(root, WORLD)
    return root


@pytest.fixture(scope="session")
def texts(world: Path) -> list[str]:
    return read_texts(world / "train.json")


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> PreTrainedTokenizerBase:
    return train_tokenizer(texts, 300)


@pytest.fixture(scope="session")
def toy(tokenizer: PreTrainedTokenizerBase) -> Toy:
    return Toy(tokenizer, VISION, TEXT)


@pytest.fixture
def processor(toy: Toy) -> SpatialRGPTProcessor:
    return toy.processor()


@pytest.fixture
def dataset(world: Path, processor: SpatialRGPTProcessor) -> RegionDataset:
    return RegionDataset(world, "train", processor)


@pytest.fixture
def write_split(tmp_path: Path, processor: SpatialRGPTProcessor) -> Callable[..., RegionDataset]:
    """Write records beside two pictures, `a.png` and `b.png`, and open them as the split `toy`."""

    def write(*records: Mapping[str, object], depths: Sequence[str] = ("a", "b"), **options: object) -> RegionDataset:
        rng = np.random.default_rng(0)
        for name in ("a", "b"):
            write_png(tmp_path / "toy/images" / f"{name}.png", rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
        for name in depths:
            depth = rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
            write_png(tmp_path / "toy/depths" / f"{name}_depth.png", depth)
        (tmp_path / "toy.json").write_text(json.dumps(list(records)))
        return RegionDataset(tmp_path, "toy", processor, **options)

    return write


@pytest.fixture(scope="session")
def model(toy: Toy) -> SpatialRGPTForConditionalGeneration:
    """The toy model with everything enabled; not to be changed."""
    return toy.model()
