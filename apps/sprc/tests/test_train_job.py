"""What `train` hands to the engine; whole runs are tested across packages, in the repository's `tests`."""

import shutil
from dataclasses import replace

import pytest
import torch
from region_training.ranks import Ranks
from region_training.run_folder import RunFolder
from region_training.settings import TrainingSettings
from sprc.building import PARTS, build_model
from sprc.config import DataSettings, SyntheticSettings
from sprc.model import SPRCModel
from sprc.region_schedule import RegionSchedule
from sprc.train import (
    cache_tokens,
    fingerprint,
    make_job,
    open_splits,
    prepare_data,
    prepare_tokenizer,
    train,
    training_captions,
    training_of,
)


@pytest.fixture
def settings(cirr, tmp_path):
    data = replace(cirr.settings.data, box_file=str(cirr.root / "boxes/pairs.{split}.json"))
    model = replace(cirr.settings.model, use_region_loss=True)
    return replace(cirr.settings, run_dir=str(tmp_path / "run"), data=data, model=model)


def _job(settings, cirr):
    train_data, _ = open_splits(settings, cirr.model.config)
    return make_job(settings, RunFolder(settings.run_dir), cirr.tokenizer, train_data)


class OneRank(Ranks):
    """Stands for a run of one process."""

    def __init__(self) -> None:  # without a process group
        self.rank, self.world_size = 0, 1


def test_the_job_is_complete(settings, cirr):
    job = _job(settings, cirr)
    assert len(job.dataset_fingerprint) == 64
    assert job.parts is PARTS
    assert job.processor is cirr.tokenizer
    (schedule,) = job.callbacks
    assert isinstance(schedule, RegionSchedule)
    assert (schedule.config, schedule.weight) == (settings.model.region_loss, 0.5)
    batch = job.collate([job.train_dataset[0], job.train_dataset[1]])
    assert set(batch["loss_counts"]) == {"itc", "rtc", "align", "region"}
    assert len(batch["record_ids"]) == 2
    output = job.build_model()(**batch)
    assert set(output.losses) >= {"itc", "rtc", "align", "region"}
    assert torch.isfinite(output.loss)


def test_without_the_region_loss_no_box_is_read(settings, cirr):
    plain = replace(settings, model=replace(settings.model, use_region_loss=False))
    train_data, held_out = open_splits(plain, cirr.model.config)
    assert train_data.regions is None
    # For the contact sheet.
    assert held_out.regions is not None
    batch = _job(plain, cirr).collate([train_data[0]])
    assert "reference_boxes" not in batch


def test_the_vision_tower_is_frozen_and_so_is_a_branch_that_is_not_used(settings):
    def frozen(use_region_loss, already=()):
        changed = replace(
            settings,
            model=replace(settings.model, use_region_loss=use_region_loss),
            training=TrainingSettings(frozen_parts=list(already)),
        )
        return training_of(changed).frozen_parts

    assert frozen(True) == ["vision_tower"]
    assert frozen(False) == ["vision_tower", "region_branch"]
    assert frozen(True, ("qformer", "vision_tower")) == ["qformer", "vision_tower"]


def test_other_records_have_another_fingerprint(cirr):
    train_data, val = cirr.open("train", training=True), cirr.open("val")
    assert fingerprint(train_data) == fingerprint(cirr.open("train"))
    assert fingerprint(train_data) != fingerprint(val)


def test_captions_of_the_training_split_make_the_tokenizer(cirr, world_of):
    assert len(training_captions(cirr.settings)) == 24
    fashioniq = training_captions(world_of("FashionIQ").settings)
    assert all(" and " in caption for caption in fashioniq)


def test_the_tokenizer_is_made_once(settings, tmp_path):
    folder = tmp_path / "processor"
    prepare_tokenizer(settings, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    # A resumed run must not make another one, even where the captions have changed.
    prepare_tokenizer(replace(settings, data=replace(settings.data, root="nowhere")), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_world_is_written_only_where_one_is_asked_for(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("sprc.train.write_world", lambda root, world, dataset: written.append((root, dataset)))
    prepare_data(DataSettings(root=str(tmp_path)))
    assert written == []
    prepare_data(DataSettings(root=str(tmp_path), dataset="FashionIQ", synthetic=SyntheticSettings()))
    assert written == [(tmp_path, "FashionIQ")]


def test_both_splits_are_cached_with_the_tower_that_will_be_trained_on(settings, cirr, tmp_path):
    """A new tower is random: the engine draws the same one from the same seed."""
    settings = replace(settings, data=replace(settings.data, token_cache=str(tmp_path / "tokens")))
    splits = open_splits(settings, cirr.model.config)
    cache_tokens(settings, cirr.tokenizer, splits, OneRank())
    assert [len(split.tokens) for split in splits] == [30, 60]
    torch.manual_seed(settings.training.seed)
    model: SPRCModel = build_model(settings.model, cirr.tokenizer).eval()
    live = cirr.open("train").read_input(splits[0].split.gallery[0])
    expected = model.image_tokens(live[None])[0]
    found = splits[0].read_input(splits[0].split.gallery[0])
    torch.testing.assert_close(found.float(), expected, atol=5e-3, rtol=2e-3)


@pytest.mark.parametrize("changes", [{}, {"num_query_tokens": 2, "region_queries": 2}])
def test_a_finished_run_is_left_alone_and_another_configuration_refused(cirr, tmp_path, monkeypatch, changes):
    run = cirr.begin_run(tmp_path / "run")
    run.finish({"scores": {}})
    moved = tmp_path / "moved"
    shutil.move(run.path, moved)
    for name in ("sprc.train.join_ranks", "sprc.train.run_training"):
        monkeypatch.setattr(name, lambda *_args, **_options: OneRank())
    again = replace(cirr.settings, run_dir=str(moved), model=replace(cirr.settings.model, **changes))
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("*")}
    if changes:
        with pytest.raises(ValueError, match=r"model\.num_query_tokens: 3 -> 2"):
            train(again)
    else:
        train(again)
    assert {path: path.stat().st_mtime_ns for path in moved.rglob("*")} == before
