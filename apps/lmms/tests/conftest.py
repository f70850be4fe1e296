"""Fixtures of the app's tests: video language models, processors, samples and batches of toy size."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from lmms.building import build_config, build_model, build_processor
from lmms.chat import ChatEncoder
from lmms.collate import VideoCollator
from lmms.config import ModelSettings
from lmms.configuration import VideoLMMConfig
from lmms.families import Family, PreparedImages, family_of
from lmms.model import VideoLMM
from lmms.records import Turn
from lmms.sample import VideoSample
from torch.utils.data import Dataset
from transformers import ProcessorMixin
from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.frames import VideoInfo
from video_autoregressive.loader import VideoClip

NOTES = ("record_ids", "decode_ms", "num_samples", "loss_counts")
TEXTS = ["Which way does the red circle move?", "It moves to the left.", "How many squares are there? 3"]
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vision_use_head": False,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
MODELS = {
    "llava_onevision": {
        "model_type": "llava_onevision",
        "vision_config": SIGLIP,
        "text_config": {"model_type": "qwen2", **TEXT},
        "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32], [64, 64]],
    },
    "qwen2_5_vl": {
        "model_type": "qwen2_5_vl",
        "vision_config": {
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 32,
        },
        "text_config": {**TEXT, "rope_parameters": ROPE},
    },
    "qwen3_vl": {
        "model_type": "qwen3_vl",
        "vision_config": {
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            "out_hidden_size": 32,
        },
        "text_config": {**TEXT, "head_dim": 16, "rope_parameters": ROPE},
    },
}
AUTOREGRESSIVE = AutoregressiveConfig(embedding_dim=16, num_hist=2, num_heads=2, num_layers=1, loss="cosine")


@dataclass
class Listed(Dataset):
    """Samples in a list."""

    samples: Sequence[VideoSample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> VideoSample:
        return self.samples[index]


@dataclass(frozen=True)
class Toy:
    """Makes what the tests need, always the same from the same seed.

    Attributes:
        model_type: The family.
    """

    model_type: str = "llava_onevision"
    processors: dict[str, ProcessorMixin] = field(default_factory=dict)

    def of(self, model_type: str) -> "Toy":
        """The same toys for another family."""
        return replace(self, model_type=model_type)

    def settings(self, **changes: object) -> ModelSettings:
        values = {
            "config": MODELS[self.model_type],
            "vocabulary_size": 300,
            "enable_autoregressive": True,
            "autoregressive_config": AUTOREGRESSIVE,
            "image_size": None if self.model_type == "llava_onevision" else 24,
        }
        return ModelSettings(**{**values, **changes})

    def autoregressive(self, **changes: object) -> AutoregressiveConfig:
        return replace(AUTOREGRESSIVE, **changes)

    @property
    def processor(self) -> ProcessorMixin:
        """One per family; not to be changed."""
        if self.model_type not in self.processors:
            self.processors[self.model_type] = build_processor(self.settings(), TEXTS)
        return self.processors[self.model_type]

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    def family(self, **changes: object) -> Family:
        return family_of(self.processor, self.settings(**changes).video_tokens)

    def config(self, **changes: object) -> VideoLMMConfig:
        return build_config(self.settings(**changes), self.processor)

    def model(self, *, seed: int = 0, frozen_parts: Sequence[str] = ("vision_tower",), **changes: object) -> VideoLMM:
        """A model in evaluation mode; its tower is frozen, and so its own teacher, unless told otherwise."""
        torch.manual_seed(seed)
        return build_model(self.settings(**changes), self.processor, frozen_parts=frozen_parts).eval()

    def clip(self, num_frames: int = 3, *, seed: int = 0, height: int = 24, width: int = 32) -> VideoClip:
        """Frames of noise, half a second apart."""
        generator = torch.Generator().manual_seed(seed)
        frames = torch.randint(0, 256, (num_frames, 3, height, width), dtype=torch.uint8, generator=generator)
        info = VideoInfo(5 * num_frames, 10.0, num_frames / 2, width, height, 0, "raw", False, "tensor")
        indices = 5 * torch.arange(num_frames)
        return VideoClip(frames, indices / 10, indices, torch.ones(num_frames, dtype=torch.bool), info)

    def image(self, *, seed: int = 0, height: int = 24, width: int = 40) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)

    def sample(
        self,
        videos: Sequence[int] = (3,),
        *,
        images: int = 0,
        answer: str | None = "It moves to the left.",
        question: str = "Which way does the red circle move?",
        seed: int = 0,
        **changes: object,
    ) -> VideoSample:
        """One conversation about random pixels.

        Args:
            videos: Frames of each video, in order of mention.
            images: Number of images, mentioned after the videos.
            answer: The assistant's turn, if there is one.
            question: What the user asks.
            seed: Of the pixels.
            changes: Of the settings, for another token layout.
        """
        family = self.family(**changes)
        clips = [self.clip(count, seed=seed + 10 * number) for number, count in enumerate(videos)]
        prepared = [family.prepare_video(clip) for clip in clips]
        pictures = [self.image(seed=seed + 100 * number) for number in range(images)]
        shown = family.prepare_images(pictures) if pictures else PreparedImages({}, ())
        parts = [{"type": "video"}] * len(videos) + [{"type": "image"}] * images + [{"type": "text", "text": question}]
        turns = [Turn("user", tuple(parts))]
        if answer is not None:
            turns.append(Turn("assistant", ({"type": "text", "text": answer},)))
        chat = ChatEncoder(family).encode(
            turns, prepared, shown.texts, with_answers=answer is not None, where=f"toy-{seed}"
        )
        visuals = [entry for entry in (*(video.visuals for video in prepared), shown.visuals) if entry]
        return VideoSample(
            index=seed,
            record_id=f"toy-{seed}",
            input_ids=chat.input_ids,
            labels=chat.labels,
            layout=chat.layout,
            visuals=family.collate_visuals(visuals),
            num_frames=sum(videos),
            decode_ms=1.0,
        )

    def dataset(self, samples: Sequence[VideoSample]) -> Listed:
        return Listed(samples)

    def collator(self, *, side: str = "right", autoregressive: AutoregressiveConfig | None = AUTOREGRESSIVE):
        return VideoCollator(
            self.tokenizer.pad_token_id, self.family(), autoregressive=autoregressive, padding_side=side
        )

    def batch(self, samples: Sequence[VideoSample], *, side: str = "right") -> dict:
        """Collate, without what is for the trainer alone."""
        batch = self.collator(side=side)(samples)
        return {key: value for key, value in batch.items() if key not in NOTES}

    def mixed(self, **options: object) -> list[VideoSample]:
        """Samples of every kind: ragged clips, two clips, one image, several images, a clip and an image, text."""
        kinds = [((3,), 0), ((5, 1), 0), ((), 1), ((), 2), ((2,), 1), ((), 0)]
        return [
            self.sample(videos, images=images, seed=seed, answer="3" * (1 + seed), **options)
            for seed, (videos, images) in enumerate(kinds)
        ]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # The tensors here are tiny: more threads only wait for each other, badly so on a busy machine.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy() -> Toy:
    """LLaVA-OneVision of toy size."""
    return Toy()


@pytest.fixture(params=sorted(MODELS))
def each(request: pytest.FixtureRequest, toy: Toy) -> Toy:
    """Every family of toy size."""
    return toy.of(request.param)
