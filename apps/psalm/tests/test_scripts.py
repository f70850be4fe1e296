"""The guide's scripts: the words they run, and what those words read of a world that lies where the user says."""

import os
import subprocess
from pathlib import Path

import pytest
from psalm.cli import APPLICATION
from psalm.config import Settings, SyntheticSettings
from psalm.data import describe_shared, open_dataset
from psalm.synthetic import write_world
from region_training.command_line import resolve_settings

SCRIPTS = Path(__file__).parent.parent / "scripts"
ONE, PAIRS = "train_deformable.sh", "train_deformable_cross_image.sh"
STUB = '#!/bin/sh\nprintf "%s\\n" "$@"\n'


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("world")
    write_world(path, SyntheticSettings(train_scenes=4, eval_scenes=4, image_size=64))
    return path


@pytest.fixture
def run_script(tmp_path, monkeypatch):
    """The words with which a script would call `uv`, in a folder without data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text(STUB)
    (tmp_path / "bin" / "uv").chmod(0o755)

    def run(script: str, *words: str, **variables: str) -> list[str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("GPUS", "CUDA_VISIBLE_DEVICES")}
        done = subprocess.run(
            ["/bin/sh", str(SCRIPTS / script), *words],
            env={**kept, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.splitlines()

    return run


@pytest.mark.parametrize("script", [ONE, PAIRS])
@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        ({}, ["--include", "localhost:0"]),
        ({"GPUS": "localhost:0,1"}, ["--include", "localhost:0,1"]),
        ({"CUDA_VISIBLE_DEVICES": "2"}, []),
        ({"GPUS": "localhost:1", "CUDA_VISIBLE_DEVICES": "2"}, ["--include", "localhost:1"]),
    ],
)
def test_the_devices_are_those_that_are_asked_for(run_script, script, variables, devices):
    words = run_script(script, "--max_steps", "2", **variables)
    assert words[: words.index("--module")] == ["run", "--no-sync", "deepspeed", "--no_local_rank", *devices]
    assert words[words.index("--module") :][:3] == ["--module", "psalm", "train"]
    assert words[-2:] == ["--max_steps", "2"]


def settings_of(words: list[str]) -> Settings:
    settings = resolve_settings(APPLICATION, "train", words[words.index("train") + 1 :])
    assert isinstance(settings, Settings)
    return settings


def sources(settings: Settings, split: str) -> list[tuple[str, str]]:
    """Mode and file of what is read; every sample is."""
    dataset = open_dataset(settings.data, split, training=split == "train")
    for index in range(len(dataset)):
        assert dataset[index].record_id == dataset.where(index)
    return list(
        dict.fromkeys((dataset.source_of(index).mode, dataset.where(index).split()[0]) for index in range(len(dataset)))
    )


@pytest.mark.parametrize("script", [ONE, PAIRS])
def test_with_coco_alone_both_scripts_read_coco_and_say_what_is_left_out(run_script, root, caplog, script):
    words = run_script(script, "--panoptic_json_path", str(root / "coco"), "--data.image_size", "64")
    settings = settings_of(words)
    assert [mode for mode, _ in sources(settings, "train")] == ["panoptic"]
    assert [mode for mode, _ in sources(settings, "val")] == ["panoptic"]
    messages = [record.getMessage() for record in caplog.records]
    assert sum("not on disk, and left out of the mix" in message for message in messages) == 1
    assert sum("no image is left out of training" in message for message in messages) == 1
    assert sum("--cross_image_seg_task" in message for message in messages) == 2 * (script == PAIRS)


@pytest.mark.parametrize("script", [ONE, PAIRS])
def test_training_files_as_the_guide_names_them_are_read_by_split(run_script, root, caplog, script):
    pairs = (
        *("--region_cross_json_path", str(root / "cross_image_train.json")),
        *("--region_cross_image_folder", str(root / "pairs" / "train")),
    )
    words = run_script(
        script,
        *("--panoptic_json_path", str(root / "coco"), "--data.image_size", "64"),
        *("--ref_coco_path", str(root / "refcoco" / "refcoco_train.json")),
        *("--refcoco_image_folder", str(root / "coco" / "{split}2017")),
        *("--region_json_path", str(root / "coco_interactive_train_psalm.json")),
        *("--region_image_folder", str(root / "coco" / "train2017")),
        *(pairs if script == PAIRS else ()),
    )
    settings = settings_of(words)
    for split in ("train", "val"):
        assert dict(sources(settings, split)) == {
            "panoptic": f"panoptic_{split}2017.json",
            "referring": f"refcoco_{split}.json",
            "region": f"coco_interactive_{split}_psalm.json",
            **({"cross_image": f"cross_image_{split}.json"} if script == PAIRS else {}),
        }
    assert describe_shared(settings.data) is None
    assert "no image is left out of training" not in caplog.text
    assert "--cross_image_seg_task" not in caplog.text


def test_without_any_data_it_is_said(run_script):
    settings = settings_of(run_script(ONE))
    with pytest.raises(ValueError, match=r"no sample of the modes panoptic, .*; paths are given for no data set"):
        open_dataset(settings.data, "train", training=True)


def test_what_the_user_names_must_be_there(run_script):
    settings = settings_of(run_script(ONE, "--panoptic_json_path", "datasets/coco"))
    with pytest.raises(ValueError, match=r"data\.coco_root: 'datasets/coco' has neither"):
        open_dataset(settings.data, "train", training=True)
