"""Settings, records and videos that are not what they should be, through the real `lmms train`."""

import json
import re
import shutil

import pytest

pytestmark = pytest.mark.slow

QUICK = ("--evaluation.controls", "false", "--evaluation.max_records", "1", "--evaluation.max_new_tokens", "1")
GUIDE = """
- type: trainer
  config:
    trainer_type: autoregressive_trainer
    model_config:
      enable_autoregressive: true
      autoregressive_config:
        embedding_dim: 1152
        {}
"""


def _words(small, folder, *more):
    # Later words win, so each case may name another world.
    return small.train(folder / "run", "--training.max_steps", "1", *QUICK, *more)


def _copy(small, folder):
    """A copy of the small world, its training records, and words that lead to it and read all of it in one step."""
    root = folder / "world"
    shutil.copytree(small.root, root)
    records = json.loads((root / "train.json").read_text())
    return root, records, ("--data.root", str(root), "--training.micro_batch_size", str(len(records)))


def _message(output):
    return " ".join(output[output.rindex("lmms: ") :].split())


def _assert_refused(run, code, output, *said, expected=1):
    assert code == expected, output
    for words in said:
        assert words in _message(output), output
    assert "Traceback" not in output
    # Nothing was trained before.
    assert not (run / "metrics.jsonl").exists()


def test_settings_that_do_not_go_together_are_named_before_training(lmms_small, lmms_commands, tmp_path):
    """Keys of the reconstruction module as a mapping, as a flag of their own and in the guide's file."""
    files = {"guide": "num_histt: 3", "guide value": "num_heads: 7"}
    for name, line in files.items():
        (tmp_path / f"{name}.yaml").write_text(GUIDE.format(line))
    module = "model.autoregressive_config"
    # What settings alone tell ends with 2 as every misuse of the command line does; the others are found with the data.
    cases = {
        "key": (2, ("--autoregressive_config", "{num_histt: 3}"), ("num_histt", "did you mean", "num_hist")),
        "flag": (2, (f"--{module}.loss_wieght", "1"), ("loss_wieght", "did you mean", "loss_weight")),
        "heads": (2, (f"--{module}.num_heads", "3"), ("num_heads: got 3", "does not divide", "16")),
        "streams": (
            2,
            (f"--{module}.add_faster_video", "true", "--model.video_tokens.newline", "frame"),
            ("model.video_tokens.newline", "'frame'", "'grid'"),
        ),
        "guide": (2, ("--config", str(tmp_path / "guide.yaml")), ("guide.yaml", "num_histt", "num_hist")),
        "guide value": (2, ("--config", str(tmp_path / "guide value.yaml")), ("num_heads: got 7", "1152")),
        "width": (1, (f"--{module}.embedding_dim", "24"), ("embedding_dim: got 24, expected 16", "vision tower")),
        "teacher": (1, (f"--{module}.teacher", "shared"), ("teacher", "shared", "training.frozen_parts")),
        "family": (1, ("--model.config", "{model_type: llava}"), ("model_type", "llava", "llava_onevision")),
        "part": (1, ("--training.frozen_parts", "[tower]"), ("frozen_parts", "tower", "vision_tower")),
    }
    found = lmms_commands([_words(lmms_small, tmp_path / name, *case[1]) for name, case in cases.items()], tmp_path)
    for (name, case), (code, output) in zip(cases.items(), found, strict=True):
        _assert_refused(tmp_path / name / "run", code, output, *case[2], expected=case[0])


def test_what_is_wrong_with_the_guides_file_is_named_with_its_key(lmms_commands, tmp_path):
    mistakes = {
        "key": ("per_device_train_batchsize: 2", ("config.per_device_train_batchsize", "per_device_train_batch_size")),
        "trainer": ("trainer_type: dpo_trainer", ("config.trainer_type", "dpo_trainer", "autoregressive_trainer")),
        "overwrite": ("model_config: {overwrite_config: {a: 1}}", ("overwrite_config", "model.video_tokens")),
        "data": ("dataset_config: {video_backend: decrod}", ("data.backend", "decrod", "decord")),
    }
    commands = []
    for name, (line, _) in mistakes.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"- type: trainer\n  config:\n    {line}\n")
        commands.append(["show-config", "train", "--config", str(path)])
    for (name, (_, said)), (code, output) in zip(mistakes.items(), lmms_commands(commands, tmp_path), strict=True):
        assert code == 2, output
        assert all(words in output for words in said), output
        assert f"{name}.yaml" in output or name == "data", output
        assert "Traceback" not in output


def test_what_is_not_there_is_named_before_training(lmms_small, lmms_commands, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    cases = {
        "root": (("--data.root", nowhere), (nowhere, "train.json")),
        "records": (("--data_path", "[nowhere.json]"), ("nowhere.json",)),
        "manifest": (("--data.manifest", "nowhere.jsonl"), ("nowhere.jsonl",)),
        "model": (("--model.config", "null", "--model_name_or_path", nowhere), (nowhere,)),
    }
    found = lmms_commands([_words(lmms_small, tmp_path / name, *case[0]) for name, case in cases.items()], tmp_path)
    for (name, case), (code, output) in zip(cases.items(), found, strict=True):
        _assert_refused(tmp_path / name / "run", code, output, *case[1])


def test_records_that_contradict_themselves_are_named(lmms_small, lmms_commands, tmp_path):
    """Each in a world of its own; every record is read in the first step."""

    def lose_video(record):
        record["video"] = "videos/train/lost.mp4"

    def mention_twice(record):
        record["conversations"][0]["value"] = "<video><video>\nWhich way?"

    def mention_never(record):
        record["conversations"][0]["value"] = "Which way?"

    def lead_outside(record):
        record["video"] = "../../outside.mp4"

    def change_speaker(record):
        record["conversations"][0]["from"] = "alien"

    changes = {
        "missing": (lose_video, ("lost.mp4",)),
        "twice": (mention_twice, ("found 2 times <video> in the text, expected 1",)),
        "never": (mention_never, ("found 0 times <video> in the text, expected 1",)),
        "outside": (lead_outside, ("../../outside.mp4",)),
        "speaker": (change_speaker, ("'from' is 'alien'", "human", "gpt")),
    }
    commands = []
    for name, (change, _) in changes.items():
        root, records, words = _copy(lmms_small, tmp_path / name)
        change(records[4])
        (root / "train.json").write_text(json.dumps(records))
        commands.append(_words(lmms_small, tmp_path / name, *words))
    found = lmms_commands(commands, tmp_path / "ranks")
    for (name, (_, said)), (code, output) in zip(changes.items(), found, strict=True):
        _assert_refused(tmp_path / name / "run", code, output, "train.json", "4", *said)


def test_a_record_that_is_too_long_is_refused_or_gets_fewer_frames(lmms_small, lmms_commands, tmp_path):
    root, records, words = _copy(lmms_small, tmp_path)
    (root / "train.json").write_text(json.dumps(records[:1]))
    common = (*words, "--training.micro_batch_size", "1", "--data.eval_files", "[train.json]", "--data.max_length")
    run = tmp_path / "refused" / "run"
    ((code, output),) = lmms_commands([_words(lmms_small, run.parent, *common, "9")], tmp_path / "ranks")
    _assert_refused(run, code, output, "train.json record 0", "tokens, expected at most 9 (data.max_length)")
    length = int(re.search(r"(\d+) tokens, expected at most 9", _message(output))[1])
    commands = [
        _words(lmms_small, tmp_path / name, *common, str(limit), "--data.overlong", "fewer_frames")
        for name, limit in (("fits", length), ("fewer", length - 1), ("none", 9))
    ]
    *trained, (code, output) = lmms_commands(commands, tmp_path / "ranks")
    for name, num_frames in zip(("fits", "fewer"), (4, 3), strict=True):
        (line, *_) = (tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines()
        # All frames but the first are predicted, each at four tokens.
        assert json.loads(line)["ar_targets"] == 4 * (num_frames - 1)
    assert [code for code, _ in trained] == [0, 0]
    _assert_refused(tmp_path / "none" / "run", code, output, "frames and none to spare, expected at most 9")


def test_a_corrupt_video_stops_the_run_or_is_skipped_and_counted(lmms_small, lmms_commands, tmp_path):
    root, records, words = _copy(lmms_small, tmp_path)
    # The first: what is looked at before training must deal with it as well.
    video = root / records[0]["video"]
    video.write_bytes(video.read_bytes()[:400])
    common = (*words, "--data.on_error")
    (stopped, why), (code, output), (few, few_output) = lmms_commands(
        [
            _words(lmms_small, tmp_path / "stopped", *common, "raise"),
            _words(lmms_small, tmp_path / "skipped", *common, "skip", "--data.max_bad_fraction", "0.5"),
            _words(lmms_small, tmp_path / "few", *common, "skip"),
        ],
        tmp_path / "ranks",
    )
    _assert_refused(tmp_path / "stopped" / "run", stopped, why, "train.json", records[0]["video"])
    assert code == 0, output
    run = tmp_path / "skipped" / "run"
    lines = [json.loads(line) for line in (run / "bad_records.jsonl").read_text().splitlines()]
    of_video = [index for index, record in enumerate(records) if record.get("video") == records[0]["video"]]
    assert sorted(line["index"] for line in lines) == of_video
    for line in lines:
        assert "train.json" in line["record"]
        assert records[0]["video"] in line["reason"]
    assert (run / "results.json").is_file()
    # The default allows one in a hundred.
    assert few == 1
    assert f"cannot be read, expected at most {len(records) / 100:g}" in " ".join(few_output.split())
    assert "Traceback" not in few_output


def test_a_faulty_held_out_record_stops_the_evaluation(lmms_small, lmms_commands, tmp_path):
    """A score over what is left of a data set is not its score, whatever the policy for training."""
    root, _, words = _copy(lmms_small, tmp_path)
    record = json.loads((root / "val.json").read_text())[0]
    video = root / record["video"]
    video.write_bytes(video.read_bytes()[:400])
    ((code, output),) = lmms_commands(
        [_words(lmms_small, tmp_path, *words, "--data.on_error", "skip")], tmp_path / "ranks"
    )
    assert code == 1, output
    assert "val.json" in _message(output)
    assert record["video"] in _message(output)
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "results.json").exists()
