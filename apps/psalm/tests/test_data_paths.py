"""Paths as they are settled: those of a preset may be absent, a file of the training split stands for all splits."""

import logging

import pytest
import yaml
from psalm.cli import APPLICATION, main
from psalm.config import DataSettings, Settings
from psalm.data_paths import IMAGES_OF, PATH_KEYS, REF_KEYS
from region_training.command_line import resolve_settings

REAL_PRESETS = (
    "align",
    "deformable",
    "deformable-cross-image",
    "deformable-large",
    "from-baseline",
    "smoke",
    "swin-conv",
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def preset(name: str, *words: str) -> DataSettings:
    settings = resolve_settings(APPLICATION, "train", ["--preset", name, *words])
    assert isinstance(settings, Settings)
    return settings.data


def given(data: DataSettings) -> dict[str, str]:
    return {key: vars(data)[key] for key in PATH_KEYS if vars(data)[key] is not None}


@pytest.mark.parametrize("name", REAL_PRESETS)
def test_what_only_a_preset_names_and_is_absent_is_left_out_with_one_warning(here, caplog, name):
    caplog.set_level(logging.WARNING)
    assert given(preset(name)) == {}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "not on disk, and left out of the mix" in record.getMessage()
    assert "data.coco_root (data/coco)" in record.getMessage()
    assert ("data.ref_coco_g (data/refcocog/refcocog_{split}.json)" in record.getMessage()) is (name != "align")


def test_what_a_preset_names_and_is_there_joins(here, caplog):
    caplog.set_level(logging.WARNING)
    touch(here, "data/coco/annotations/a.json", "data/refcoco/refcoco_train.json", "data/refcoco+/refcoco+_val.json")
    assert given(preset("deformable")) == {
        "coco_root": "data/coco",
        "ref_coco": "data/refcoco/refcoco_{split}.json",
    }
    (record,) = caplog.records
    assert "data.ref_coco_plus (data/refcoco+/refcoco+_{split}.json), data.ref_coco_g" in record.getMessage()
    assert "data.ref_coco (" not in record.getMessage()


def test_a_path_that_the_user_gives_is_kept_even_where_it_is_the_presets(here, caplog):
    words = ("--panoptic_json_path", "data/coco", "--ref_coco_path", "data/refcoco/refcoco_{split}.json")
    assert given(preset("deformable", *words)) == {
        "coco_root": "data/coco",
        "ref_coco": "data/refcoco/refcoco_{split}.json",
    }
    assert "data.coco_root" not in caplog.text
    (here / "own.yaml").write_text("{preset: deformable, data: {coco_root: elsewhere}}")
    settings = resolve_settings(APPLICATION, "train", ["--config", "own.yaml"])
    assert isinstance(settings, Settings)
    assert given(settings.data) == {"coco_root": "elsewhere"}


def test_a_preset_is_emptied_by_null(here):
    touch(here, "data/coco/a", "data/refcoco/refcoco_train.json")
    assert given(preset("deformable", "--data.coco_root", "null")) == {"ref_coco": "data/refcoco/refcoco_{split}.json"}


def test_show_config_shows_what_is_read(here, capsys):
    touch(here, "data/coco/a", "refs/refcoco_train.json", "refs/refcoco_val.json")
    words = ["show-config", "train", "--preset", "deformable", "--ref_coco_path", "refs/refcoco_train.json"]
    assert main(words) == 0
    shown = yaml.safe_load(capsys.readouterr().out)["data"]
    assert shown["coco_root"] == "data/coco"
    assert shown["ref_coco"] == "refs/refcoco_{split}.json"
    assert shown["ref_coco_plus"] is None
    # As a run's config.yaml is read again.
    assert vars(DataSettings(**shown)) == shown


@pytest.mark.parametrize("key", [*REF_KEYS, *IMAGES_OF])
@pytest.mark.parametrize("sibling", ["x_val_psalm.json", "x_testA_psalm.json", "x_held_psalm.json"])
def test_a_file_of_the_training_split_stands_for_all_splits(tmp_path, key, sibling):
    touch(tmp_path, "x_train_psalm.json", sibling)
    settings = DataSettings(**{key: str(tmp_path / "x_train_psalm.json")}, eval_split="held")
    assert vars(settings)[key] == str(tmp_path / "x_{split}_psalm.json")


@pytest.mark.parametrize("name", ["x_train.json", "x_val.json", "training_x.json", "train/x.json"])
def test_a_file_alone_stands_for_itself(tmp_path, name):
    touch(tmp_path, name, "y_val.json", "valing_x.json", "val/x.json")
    assert DataSettings(ref_coco=str(tmp_path / name)).ref_coco == str(tmp_path / name)


def test_another_training_split_is_known_by_its_name(tmp_path):
    touch(tmp_path, "x_mine.json", "x_val.json", "x_train.json")
    settings = DataSettings(
        ref_coco=str(tmp_path / "x_mine.json"), own_json=str(tmp_path / "x_train.json"), train_split="mine"
    )
    assert settings.ref_coco == str(tmp_path / "x_{split}.json")
    assert settings.own_json == str(tmp_path / "x_train.json")


@pytest.mark.parametrize(("json", "images"), list(IMAGES_OF.items()))
def test_folders_of_images_go_with_their_files(tmp_path, json, images):
    touch(tmp_path, "x_train.json", "x_val.json", "one.json", "train2017/a.jpg", "val2017/a.jpg")
    folder = str(tmp_path / "train2017")
    follows, alone = (
        vars(DataSettings(**{json: str(tmp_path / name), images: folder}))[images]
        for name in ("x_train.json", "one.json")
    )
    assert follows == str(tmp_path / "{split}2017")
    assert alone == folder


def test_the_one_folder_of_refcocos_images_stays(tmp_path):
    touch(tmp_path, "x_train.json", "x_val.json", "train2014/a.jpg", "val2014/a.jpg")
    settings = DataSettings(ref_coco=str(tmp_path / "x_train.json"), refcoco_images=str(tmp_path / "train2014"))
    assert settings.refcoco_images == str(tmp_path / "train2014")
