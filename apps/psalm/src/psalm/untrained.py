"""The untrained model of the same configuration: what the architecture scores before it has learned anything.

Its weights are always the same, so it is evaluated once per run and its scores are kept in the run's folder.
"""

import copy
import hashlib
import json
from pathlib import Path

import torch
from region_training.loading import whole_weights
from region_training.ranks import Ranks
from region_training.run_folder import write_atomically

from psalm.config import EvaluationSettings
from psalm.data import SegmentationDataset
from psalm.model import PSALMModel
from psalm.modes import Mode

UNTRAINED_SCORES = "untrained_scores.json"
"""The file in a run folder."""

SEED = 0


def fresh_model(model: PSALMModel) -> PSALMModel:
    """A model of the same configuration on the same device with random weights, the same at every call."""
    # Whole on every rank, also where the trained one is partitioned.
    with torch.random.fork_rng(), whole_weights():
        torch.manual_seed(SEED)
        fresh = PSALMModel(copy.deepcopy(model.config))
    return fresh.to(model.device).eval()


def fingerprint(
    model: PSALMModel, dataset: SegmentationDataset, settings: EvaluationSettings, main_mode: Mode | None
) -> str:
    """Tells these scores from those of another configuration, other records, data settings or thresholds."""
    sources = [
        (source.mode, source.name, source.label_space, source.texts(), [source.where(i) for i in range(len(source))])
        for source in dataset.sources
    ]
    thresholds = {name: value for name, value in vars(settings).items() if name not in ("batch_size", "num_pictures")}
    known = (
        model.config.to_json_string(use_diff=False),
        dataset.opened_with,
        sources,
        sorted(thresholds.items()),
        main_mode,
    )
    return hashlib.sha256(repr(known).encode()).hexdigest()


def read_kept(path: Path, key: str, ranks: Ranks | None) -> dict[str, float] | None:
    """Scores that were kept under this key; the first rank decides for all."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    scores = kept.get("scores") if kept.get("key") == key else None
    return scores if ranks is None else ranks.broadcast(scores)


def keep(path: Path, key: str, scores: dict[str, float], ranks: Ranks | None) -> None:
    """Keep scores; the first rank writes."""
    if ranks is None or ranks.is_first:
        write_atomically(path, json.dumps({"key": key, "scores": scores}, indent=2) + "\n")
