"""A toy model with two ragged loss terms, dropout and a freezable tower, and the job that trains it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from region_core.losses import LossTerms, drop_dummy, with_dummy_row
from region_training.batches import SeededPermutation
from region_training.engine import TrainingJob
from region_training.settings import TrainingSettings
from region_training.strict_loading import StrictModel
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModel, PreTrainedConfig, TrainerCallback
from transformers.utils import ModelOutput


class ToyConfig(PreTrainedConfig):
    model_type = "region_training_toy"
    hidden_size: int = 16
    dropout: float = 0.1


@dataclass
class ToyOutput(ModelOutput):
    loss: torch.Tensor | None = None
    losses: LossTerms | None = None
    predictions: torch.Tensor | None = None


class Tower(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.lift = nn.Linear(4, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.dropout(torch.tanh(self.lift(inputs.to(self.lift.weight.dtype))))


class ToyModel(StrictModel):
    config_class = ToyConfig
    base_model_prefix = "toy"
    main_input_name = "inputs"
    supports_gradient_checkpointing = True

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.tower = Tower(config)
        self.body = nn.Sequential(nn.Linear(config.hidden_size, config.hidden_size), nn.LayerNorm(config.hidden_size))
        self.dropout = nn.Dropout(config.dropout)
        self.regress = nn.Linear(config.hidden_size, 1)
        self.classify = nn.Linear(config.hidden_size, 3)
        self.gate = nn.Parameter(torch.ones(1))
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        labels: torch.Tensor,
        loss_counts: dict[str, float] | None = None,
    ) -> ToyOutput:
        lifted = self.tower(inputs)
        if self.gradient_checkpointing and self.training:
            hidden = self._gradient_checkpointing_func(self.body.__call__, lifted)
        else:
            hidden = self.body(lifted)
        hidden = self.dropout(torch.relu(hidden)) * self.gate
        predictions = self.regress(hidden).squeeze(-1).float()
        losses = LossTerms()
        losses.add("regress", (predictions - targets).square().sum(), len(targets))
        has_label = labels >= 0
        rows, num_dummy = with_dummy_row(hidden[has_label])
        logits = drop_dummy(self.classify(rows), num_dummy).float()
        total = F.cross_entropy(logits, labels[has_label], reduction="sum")
        losses.add("classify", total, int(has_label.sum()), 0.5)
        return ToyOutput(losses.weighted_total(loss_counts), losses, predictions)


AutoConfig.register("region_training_toy", ToyConfig)
AutoModel.register(ToyConfig, ToyModel)

PARTS = {"tower": ("tower",), "body": ("body.",), "heads": ("regress", "classify", "gate")}


class ToyData(Dataset):
    """Every third record has a label, so the second term is ragged; `bad` makes one record's input NaN."""

    def __init__(self, num_samples: int, *, bad: int | None = None, labelled: Callable[[int], bool] | None = None):
        self._num_samples = num_samples
        self._bad = bad
        self._labelled = labelled or (lambda index: index % 3 == 0)

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> dict:
        inputs = torch.randn(4, generator=torch.Generator().manual_seed(1000 + index))
        label = int(inputs.sum() > 0) if self._labelled(index) else -1
        target = inputs[0] * 2 - inputs[1]
        return {
            "id": f"record-{index}",
            "inputs": inputs * torch.nan if index == self._bad else inputs,
            "target": target,
            "label": label,
        }


def collate(samples: list) -> dict:
    labels = torch.tensor([sample["label"] for sample in samples])
    return {
        "inputs": torch.stack([sample["inputs"] for sample in samples]),
        "targets": torch.stack([sample["target"] for sample in samples]),
        "labels": labels,
        "record_ids": [sample["id"] for sample in samples],
        "loss_counts": {"regress": len(samples), "classify": int((labels >= 0).sum())},
    }


class At(TrainerCallback):
    """Does something when a step has ended."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self._step = step
        self._action = action

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self._step:
            self._action()


class Toy:
    """What the tests need, in one fixture."""

    Config, Model, Data, At = ToyConfig, ToyModel, ToyData, At
    parts = PARTS
    collate = staticmethod(collate)

    def job(self, num_samples: int = 24, *, dropout: float = 0.1, **changes: object) -> TrainingJob:
        dataset = changes.pop("dataset", None) or ToyData(num_samples)
        values = {
            "build_model": lambda: ToyModel(ToyConfig(dropout=dropout)),
            "train_dataset": dataset,
            "collate": collate,
            "parts": PARTS,
        }
        return TrainingJob(**{**values, **changes})

    def settings(self, **changes: object) -> TrainingSettings:
        values = {
            "device": "cpu",
            "micro_batch_size": 2,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "log_every": 1,
            "save_every": 2,
            "weight_decay": 0.1,
            "warmup": 0.0,
            "communication_timeout_s": 60.0,
        }
        return TrainingSettings(**{**values, **changes})

    @staticmethod
    def permutation(num_samples: int, seed: int = 0) -> SeededPermutation:
        return SeededPermutation(num_samples, seed)

    @staticmethod
    def weights(model_dir: Path) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(model_dir / "model.safetensors")
