"""Scenes, masks, settings and weights that are not what they should be, through the real `psalm train`."""

import json
import os
import pickle
import shutil

import pytest
from psalm.synthetic import paths_of

pytestmark = pytest.mark.slow


class _Evil:
    """What a pickle of a stranger may hold: it makes a folder when it is opened."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


def _words(small, folder, *more):
    return small.train(folder / "run", "--training.max_steps", "2", *more)


def _copy(small, folder):
    """A copy of the small world and the words that lead to it."""
    root = folder / "world"
    shutil.copytree(small.root, root)
    return root, tuple(word for key, path in paths_of(root).items() for word in (f"--data.{key}", path))


def _edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _assert_refused(run, code, output, *said, expected=1):
    assert code == expected, output
    message = " ".join(output[output.rindex("psalm: ") :].split())
    for words in said:
        assert words in message, message
    assert "Traceback" not in output
    # Nothing was trained before.
    assert not (run / "metrics.jsonl").exists()


def test_settings_that_do_not_go_together_are_named_before_training(psalm_small, psalm_commands, tmp_path):
    # What settings alone tell ends with 2 as every misuse of the command line does; the others are found with the data.
    cases = {
        "width": (1, ("--projector_outdim", "48"), ("--projector_outdim", "48", "phi", "hidden size of 32")),
        "heads": (2, ("--mm_n_heads", "3"), ("--mm_hidden_dim", "--mm_n_heads", "got 16 and 3")),
        "swin heads": (1, ("--model.swin.num_heads", "[1, 3, 2, 2]"), ("swin", "3 heads", "32 channels")),
        "side": (1, ("--data.image_size", "72"), ("image_size", "multiple", "got 72")),
        "prompt": (2, ("--region_mask_type", "box||circle"), ("--region_mask_type", "box||circle", "scribble")),
        "chat": (2, ("--mmconv_path", "chat.json"), ("--mmconv_path", "chat.json")),
        "mode": (2, ("--task_ratio", "{panoptics: 1}"), ("data.mode_ratios", "panoptics")),
    }
    found = psalm_commands([_words(psalm_small, tmp_path / name, *case[1]) for name, case in cases.items()], tmp_path)
    for (name, case), (code, output) in zip(cases.items(), found, strict=True):
        _assert_refused(tmp_path / name / "run", code, output, *case[2], expected=case[0])


def test_what_is_not_there_is_named_before_training(psalm_small, psalm_commands, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    cases = {
        "coco": (("--panoptic_json_path", nowhere), ("data.coco_root", nowhere, "panoptic_train2017.json")),
        "sentences": (("--ref_coco_path", f"{nowhere}/ref.json"), (f"{nowhere}/ref.json",)),
        "regions": (("--region_json_path", f"{nowhere}/regions.json"), (f"{nowhere}/regions.json",)),
        "pairs": (("--region_cross_json_path", f"{nowhere}/pairs.json"), (f"{nowhere}/pairs.json",)),
        "tower": (("--vision_tower", f"{nowhere}/swin.pkl"), (f"{nowhere}/swin.pkl",)),
        "language": (("--model_name_or_path", nowhere), (nowhere,)),
        "projector": (("--pretrain_mm_mlp_adapter", f"{nowhere}/mm_projector.bin"), (f"{nowhere}/mm_projector.bin",)),
    }
    found = psalm_commands([_words(psalm_small, tmp_path / name, *case[0]) for name, case in cases.items()], tmp_path)
    for (name, case), (code, output) in zip(cases.items(), found, strict=True):
        _assert_refused(tmp_path / name / "run", code, output, *case[1])


def test_weights_that_are_programs_are_refused_and_not_run(psalm_small, psalm_commands, tmp_path):
    paths = {"--vision_tower": tmp_path / "evil.pkl", "--pretrain_mm_mlp_adapter": tmp_path / "evil.bin"}
    for path in paths.values():
        path.write_bytes(pickle.dumps({"model": _Evil(tmp_path / "canary")}))
    # It would work: else the test could not fail.
    pickle.loads(pickle.dumps(_Evil(tmp_path / "opened")))  # noqa: S301 - our own
    assert (tmp_path / "opened").is_dir()
    words = [_words(psalm_small, tmp_path / path.suffix, flag, str(path)) for flag, path in paths.items()]
    for path, (code, output) in zip(paths.values(), psalm_commands(words, tmp_path / "ranks"), strict=True):
        _assert_refused(tmp_path / path.suffix / "run", code, output, str(path), "refused")
    assert not (tmp_path / "canary").exists()


def test_records_that_contradict_themselves_are_named(psalm_small, psalm_commands, tmp_path):
    """Each in a world of its own; the record is met in the first epoch at the latest."""
    worlds = {name: _copy(psalm_small, tmp_path / name) for name in ("size", "category", "segment", "words")}

    def turn(records):
        for annotation in records[0]["anns"]:
            annotation["segmentation"]["size"] = [7, 9]

    def add_category(content):
        content["annotations"][0]["segments_info"][0]["category_id"] = 9999

    def add_segment(content):
        content["annotations"][0]["segments_info"].append({"id": 77, "category_id": 2, "iscrowd": 0})

    def drop_words(records):
        records[0]["instruction"] = [{"raw": "  ", "sent": "  "}]

    panoptic = "coco/annotations/panoptic_train2017.json"
    _edit(worlds["size"][0] / "coco_interactive_train_psalm.json", turn)
    _edit(worlds["category"][0] / panoptic, add_category)
    _edit(worlds["segment"][0] / panoptic, add_segment)
    _edit(worlds["words"][0] / "refcoco" / "refcoco_train.json", drop_words)
    said = {
        "size": ("coco_interactive_train_psalm.json record 0", "[7, 9]", "segmentation"),
        "category": ("panoptic_train2017.json record 0", "9999", "category_id"),
        "segment": ("panoptic_train2017.json record 0", "77"),
        "words": ("refcoco_train.json record 0", "sentence 0", "'sent' or 'raw'"),
    }
    modes = {"size": "[region]", "category": "[panoptic]", "segment": "[panoptic]", "words": "[referring]"}
    # Until the last step the record has come.
    commands = [
        _words(psalm_small, tmp_path / name, *worlds[name][1], "--data.modes", modes[name], "--max_steps", "9")
        for name in worlds
    ]
    for name, (code, output) in zip(worlds, psalm_commands(commands, tmp_path / "ranks"), strict=True):
        assert code == 1, output
        message = " ".join(output[output.rindex("psalm: ") :].split())
        assert all(words in message for words in said[name]), message
        assert "Traceback" not in output


def test_a_list_of_classes_that_is_too_long_is_refused_and_not_cut(psalm_small, psalm_commands, tmp_path):
    words = _words(psalm_small, tmp_path, "--model_max_length", "80", "--data.modes", "[panoptic]")
    ((code, output),) = psalm_commands([words], tmp_path / "ranks")
    said = ("panoptic_train2017.json record", "candidates make a sequence of", "the longest is 80", "model.max_length")
    _assert_refused(tmp_path / "run", code, output, *said)


def test_a_corrupt_image_stops_the_run_or_is_skipped_and_counted(psalm_small, psalm_commands, tmp_path):
    root, paths = _copy(psalm_small, tmp_path)
    image = sorted((root / "coco" / "train2017").iterdir())[0]
    image.write_bytes(image.read_bytes()[:400])
    # Six records, in one step: each of them is read.
    quick = ("--evaluation.baselines", "false", "--evaluation.max_samples", "1", "--max_steps", "1")
    common = (*paths, "--data.modes", "[panoptic]", *quick, "--data.on_error")
    (stopped, why), (code, output), (few, few_output) = psalm_commands(
        [
            _words(psalm_small, tmp_path / "stopped", *common, "raise"),
            _words(psalm_small, tmp_path / "skipped", *common, "skip", "--data.max_bad_fraction", "0.5"),
            _words(psalm_small, tmp_path / "few", *common, "skip"),
        ],
        tmp_path / "ranks",
    )
    _assert_refused(tmp_path / "stopped" / "run", stopped, why, "panoptic_train2017.json record 0", image.name)
    assert code == 0, output
    run = tmp_path / "skipped" / "run"
    (line,) = (json.loads(line) for line in (run / "bad_records.jsonl").read_text().splitlines())
    assert "panoptic_train2017.json record 0" in line["record"]
    assert image.name in line["reason"]
    assert (run / "results.json").is_file()
    # The default allows one in a hundred.
    assert few == 1
    assert "cannot be read, expected at most 0.06" in " ".join(few_output.split())
    assert "Traceback" not in few_output


def test_a_faulty_held_out_record_stops_the_evaluation(psalm_small, psalm_commands, tmp_path):
    """A score over what is left of a data set is not its score, whatever the policy for training."""
    root, paths = _copy(psalm_small, tmp_path)
    image = sorted((root / "coco" / "val2017").iterdir())[0]
    image.write_bytes(image.read_bytes()[:400])
    words = _words(psalm_small, tmp_path, *paths, "--data.modes", "[panoptic]", "--data.on_error", "skip")
    ((code, output),) = psalm_commands([words], tmp_path / "ranks")
    assert code == 1, output
    message = output[output.rindex("psalm: ") :]
    assert "panoptic_val2017.json record 0" in message
    assert image.name in message
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "results.json").exists()
