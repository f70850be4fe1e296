"""`lmms evaluate`: the run's own records, or others beside them."""

import json

import pytest
from lmms.building import build_model
from lmms.config import DataSettings, EvaluationSettings, Settings, SyntheticSettings
from lmms.evaluate_run import asked_data, evaluate_run, first_teacher
from lmms.synthetic import write_world
from lmms.verbs import EvaluateSettings
from region_training.run_folder import RunFolder
from transformers import set_seed

WORDS = {"max_records": 4, "batch_size": 4, "device": "cpu"}


@pytest.fixture
def run(toy, tmp_path):
    """A run folder as training leaves it, with a model that has learned nothing."""
    root = tmp_path / "world"
    write_world(root, SyntheticSettings(train_clips=5, eval_clips=5, image_size=32))
    run = RunFolder(tmp_path / "run")
    data = DataSettings(root=str(root), max_frames=4, backend="pyav")
    evaluation = EvaluationSettings(max_records=4, max_new_tokens=2, num_pictures=1)
    run.begin(Settings(run_dir=str(run.path), model=toy.settings(), data=data, evaluation=evaluation))
    toy.model().save_pretrained(run.model_path)
    toy.processor.save_pretrained(run.model_path)
    return run


def test_the_run_s_own_records_give_its_results(run):
    evaluate_run(EvaluateSettings(str(run.path), **WORDS))
    scores = run.read_results()["scores"]
    assert list(scores) == ["model", "shuffled frames", "another video", "question only"]
    assert "ar_skill" in scores["model"]
    assert not (run.path / "evaluations").exists()


def test_other_records_go_beside_and_the_run_s_results_stay(run):
    evaluate_run(EvaluateSettings(str(run.path), files=["train.json"], controls=False, **WORDS))
    assert not run.is_finished
    beside = RunFolder.open(run.path / "evaluations/train.json-4-records")
    assert set(beside.read_results()["scores"]) == {"model", "question only"}


def test_a_part_of_the_run_s_records_goes_beside(run):
    evaluate_run(EvaluateSettings(str(run.path), max_records=2, controls=False, device="cpu"))
    assert not run.is_finished
    assert RunFolder.open(run.path / "evaluations/val.json-2-records").is_finished


def test_the_command_s_records_and_root_go_before_the_run_s():
    data = DataSettings(root="data", eval_files=["val.json"])
    assert asked_data(data, EvaluateSettings("run")) == data
    other = asked_data(data, EvaluateSettings("run", root="elsewhere", files=["a.json"]))
    assert (other.root, other.eval_files) == ("elsewhere", ["a.json"])
    known = DataSettings(root="data", manifest="manifest.jsonl")
    assert asked_data(known, EvaluateSettings("run")).manifest == "manifest.jsonl"
    assert asked_data(known, EvaluateSettings("run", root="elsewhere")).manifest is None


def test_a_teacher_that_was_a_copy_is_made_again_or_missed_aloud(run, toy, caplog):
    trained = run.load_settings(Settings)
    toy.processor.save_pretrained(run.path / "processor")
    assert first_teacher(run, trained) is None
    set_seed(trained.training.seed)
    made = build_model(trained.model, toy.processor).config.teacher
    assert made["kind"] == "snapshot"
    (run.path / "teacher.json").write_text(json.dumps(made))
    teacher = first_teacher(run, trained)
    assert teacher is not None
    assert teacher.fingerprint() == made["fingerprint"]
    (run.path / "teacher.json").write_text(json.dumps({**made, "fingerprint": "another"}))
    evaluate_run(EvaluateSettings(str(run.path), **WORDS))
    assert "its teacher cannot be made again: the teacher of this run has the fingerprint another" in caplog.text
    assert not run.is_finished
    assert RunFolder.open(run.path / "evaluations/val.json-4-records").is_finished


def test_a_run_without_a_model_says_so(run):
    (run.model_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        evaluate_run(EvaluateSettings(str(run.path), **WORDS))
