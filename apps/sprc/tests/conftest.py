"""Fixtures of the app's tests: configurations, models and batches of toy size, small worlds, and runs on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from region_training.run_folder import RunFolder
from region_training.settings import TrainingSettings
from sprc.building import build_model
from sprc.config import DataSettings, EvaluationSettings, ModelSettings, Settings, SyntheticSettings
from sprc.configuration import SPRCConfig
from sprc.data import TripletDataset
from sprc.model import SPRCModel
from sprc.opening import open_dataset
from sprc.synthetic import write_world
from sprc.tokenizer import train_tokenizer
from sprc.train import training_captions
from torch import Tensor
from transformers import PreTrainedTokenizerBase

VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
QFORMER = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CLS, SEP, PAD = 2, 3, 0
WORLDS = {
    # CIRR's test server wants lists of 50, so the held-out split has 12 scenes before and after 4 edits.
    "CIRR": SyntheticSettings(train_scenes=6, eval_scenes=12, edits=4, image_size=32),
    "FashionIQ": SyntheticSettings(train_scenes=9, eval_scenes=9, edits=3, image_size=32),
}


class ToyModel:
    """Makes what the tests of the model need, always the same from the same seed."""

    vision = VISION
    qformer = QFORMER

    def config(self, **changes: object) -> SPRCConfig:
        values = {
            "vision_config": VISION,
            "qformer_config": QFORMER,
            "num_query_tokens": 3,
            "region_queries": 3,
            "image_text_hidden_size": 8,
            "max_caption_tokens": 6,
            "region_output_size": 2,
            "use_region_loss": True,
        }
        return SPRCConfig(**{**values, **changes})

    def model(self, *, seed: int = 0, **changes: object) -> SPRCModel:
        torch.manual_seed(seed)
        return SPRCModel(self.config(**changes)).eval()

    def batch(
        self,
        rows: int = 3,
        *,
        seed: int = 0,
        owners: Sequence[int] | None = (0, 0, 2),
        side: tuple[int, int] = (16, 16),
    ) -> dict[str, Tensor]:
        """A batch of random images and captions; every image differs.

        Args:
            rows: Triplets.
            seed: Of everything in it.
            owners: Triplet of each pair of regions; None is a batch without boxes.
            side: Height and width of the images.
        """
        generator = torch.Generator().manual_seed(seed)
        length = 6
        input_ids = torch.randint(4, 20, (rows, length), generator=generator)
        lengths = torch.randint(3, length + 1, (rows, 1), generator=generator)
        positions = torch.arange(length)
        input_ids[:, 0] = CLS
        input_ids[positions == lengths - 1] = SEP
        input_ids[positions >= lengths] = PAD
        batch = {"input_ids": input_ids, "attention_mask": (positions < lengths).long()}
        for name, first in (("reference", 100 * seed), ("target", 100 * seed + 50)):
            batch[f"{name}_images"] = torch.randint(0, 256, (rows, 3, *side), generator=generator, dtype=torch.uint8)
            batch[f"{name}_ids"] = torch.arange(first, first + rows)
        if owners is None:
            return batch
        for name in ("reference", "target"):
            corners = torch.rand(len(owners), 2, generator=generator) * 0.5
            batch[f"{name}_boxes"] = torch.cat([corners, corners + 0.4], dim=1)
        batch["pair_owner"] = torch.tensor(list(owners), dtype=torch.long)
        batch["pair_weights"] = 0.5 + torch.rand(len(owners), generator=generator)
        return batch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # The tensors here are tiny: more threads only wait for each other, badly so on a busy machine.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_model() -> ToyModel:
    return ToyModel()


@pytest.fixture(scope="session")
def model(toy_model: ToyModel) -> SPRCModel:
    """The toy model in evaluation mode; not to be changed."""
    return toy_model.model()


@dataclass(frozen=True)
class ToyWorld:
    """A small world on disk, and a model for it that has learned nothing."""

    settings: Settings
    model: SPRCModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def root(self) -> Path:
        return Path(self.settings.data.root)

    def open(self, split: str = "val", **options: bool) -> TripletDataset:
        return open_dataset(self.settings.data, self.model.config, split, **options)

    def begin_run(self, path: Path, **data: object) -> RunFolder:
        """A run folder as training leaves it.

        Args:
            path: Its place.
            data: Settings of the data that differ.
        """
        run = RunFolder(path)
        changed = replace(self.settings.data, **data)
        run.begin(replace(self.settings, run_dir=str(path), data=changed))
        self.model.save_pretrained(run.model_path)
        self.tokenizer.save_pretrained(run.model_path)
        return run


@pytest.fixture(scope="session")
def app_model() -> ModelSettings:
    """Settings of a model of toy size whose vocabulary is made from captions."""
    qformer = {key: value for key, value in QFORMER.items() if key != "vocab_size"}
    return ModelSettings(
        vision=VISION,
        qformer={**qformer, "max_position_embeddings": 24},
        vocabulary_size=80,
        num_query_tokens=3,
        region_queries=3,
        image_text_hidden_size=8,
        max_caption_tokens=12,
    )


@pytest.fixture(scope="session")
def world_of(app_model: ModelSettings, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ToyWorld]:
    """The small world of a data set, by its name; not to be changed."""
    worlds: dict[str, ToyWorld] = {}

    def world(dataset: str) -> ToyWorld:
        if dataset not in worlds:
            root = tmp_path_factory.mktemp(dataset)
            write_world(root, WORLDS[dataset], dataset=dataset)
            settings = Settings(
                model=app_model,
                data=DataSettings(root=str(root), dataset=dataset),
                training=TrainingSettings(device="cpu"),
                evaluation=EvaluationSettings(batch_size=16, num_cases=4, top_k=3),
            )
            tokenizer = train_tokenizer(training_captions(settings), app_model.vocabulary_size)
            torch.manual_seed(0)
            worlds[dataset] = ToyWorld(settings, build_model(app_model, tokenizer).eval(), tokenizer)
        return worlds[dataset]

    return world


@pytest.fixture(scope="session")
def cirr(world_of: Callable[[str], ToyWorld]) -> ToyWorld:
    return world_of("CIRR")
