"""What `train` hands to the engine; whole runs are tested across packages, in the repository's `tests`."""

import dataclasses
import logging
from pathlib import Path

import pytest
from region_heads.sampling import TaskBalancedSampler
from region_training.run_folder import RunFolder
from region_training.settings import TrainingSettings
from spatialrgpt.building import PARTS, build_model
from spatialrgpt.config import DataSettings, Settings, SyntheticSettings
from spatialrgpt.data import RegionDataset
from spatialrgpt.train import make_job, prepare_data, prepare_processor, training_of


@pytest.fixture
def settings(toy, world, tmp_path) -> Settings:
    return Settings(run_dir=str(tmp_path / "run"), model=toy.settings(), data=DataSettings(root=str(world)))


def _job(settings, toy):
    data = RegionDataset(Path(settings.data.root), settings.data.train_split, toy.processor())
    return make_job(settings, RunFolder(settings.run_dir), toy.processor(), data)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"enable_region": False},
        {"enable_region_enhancer": False},
        {"enable_region_heads": False},
        {"enable_depth": False},
        {"refine_depth": True, "region_geometry": False},
    ],
)
def test_every_parameter_belongs_to_exactly_one_part(settings, toy, changes):
    settings = dataclasses.replace(settings, model=toy.settings(**changes))
    parts = _job(settings, toy).parts
    model = build_model(settings.model, toy.tokenizer)
    for name, _ in model.named_parameters():
        owners = [part for part, prefixes in parts.items() if name.startswith(prefixes)]
        assert len(owners) == 1, (name, owners)
    for part, prefixes in parts.items():
        assert any(name.startswith(prefixes) for name, _ in model.named_parameters()), part
    assert set(parts) <= set(PARTS)


def test_the_job_is_complete(settings, toy):
    job = _job(settings, toy)
    assert isinstance(job.sampler, TaskBalancedSampler)
    assert len(job.dataset_fingerprint) == 64
    batch = job.collate([job.train_dataset[0], job.train_dataset[1]])
    assert len(batch["record_ids"]) == 2
    assert {"lm", "distance", "left_right", "multiple_choice", "counting"} <= set(batch["loss_counts"])


def test_other_records_have_another_fingerprint(settings, toy):
    other = dataclasses.replace(settings, data=dataclasses.replace(settings.data, train_split="val"))
    assert _job(settings, toy).dataset_fingerprint != _job(other, toy).dataset_fingerprint


def test_heads_are_frozen_unless_they_are_tuned(settings, toy, caplog):
    """T39."""

    def frozen(already=(), **changes):
        training = TrainingSettings(frozen_parts=list(already))
        return training_of(dataclasses.replace(settings, model=toy.settings(**changes), training=training)).frozen_parts

    with caplog.at_level(logging.WARNING):
        assert frozen(enable_region_heads=True, tune_region_heads=False) == ["region_heads"]
    assert "the heads stay random" in caplog.text
    assert frozen(enable_region_heads=True, tune_region_heads=True) == []
    assert frozen(enable_region_heads=False, tune_region_heads=False) == []
    assert frozen(("region_heads",), enable_region_heads=True) == ["region_heads"]
    assert frozen(("vision_tower",), enable_region_heads=True) == ["vision_tower", "region_heads"]


def test_the_processor_is_made_once(settings, tmp_path):
    folder = tmp_path / "processor"
    prepare_processor(settings, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    # A resumed run must not make another tokenizer, even where the texts have changed.
    prepare_processor(dataclasses.replace(settings, data=DataSettings(root="nowhere")), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_world_is_written_only_where_one_is_asked_for(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("spatialrgpt.train.write_world", lambda root, world, splits: written.append((root, splits)))
    prepare_data(DataSettings(root=str(tmp_path)))
    assert written == []
    prepare_data(DataSettings(root=str(tmp_path), eval_split="test", synthetic=SyntheticSettings()))
    assert written == [(tmp_path, ("train", "test"))]
