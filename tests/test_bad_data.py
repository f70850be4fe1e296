"""Records and files that are not what they should be, through the real command: a clear message or a counted skip."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from region_core.rle import encode_rle
from region_core.weights import load_weights
from region_training.testing import start_ranks

Damage = Callable[[Path, dict], None]
TRAIN = ("--training.max_steps", "2", "--training.micro_batch_size", "16", "--evaluation.generate_records", "0")


def _lose_image(root: Path, record: dict) -> None:
    record["image"] = "nowhere.png"


def _cut_image(root: Path, record: dict) -> None:
    image = root / "train" / "images" / record["image"]
    image.write_bytes(image.read_bytes()[:200])


def _spoil_image(root: Path, record: dict) -> None:
    (root / "train" / "images" / record["image"]).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))


def _shrink_rle(root: Path, record: dict) -> None:
    record["rle"][0] = encode_rle(np.ones((4, 5), dtype=bool))


def _empty_rle(root: Path, record: dict) -> None:
    height, width = record["rle"][0]["size"]
    record["rle"][0] = encode_rle(np.zeros((height, width), dtype=bool))


def _mention_another(root: Path, record: dict) -> None:
    record["conversations"][0]["value"] += " And <mask>?"


def _leave(root: Path, record: dict) -> None:
    record["image"] = "../../secret.png"


# What was done, and what the message must say beside the record's place.
DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing image": (_lose_image, "nowhere.png"),
    "cut-off image": (_cut_image, "damaged picture"),
    "corrupt image": (_spoil_image, "got no picture"),
    "RLE of the wrong size": (_shrink_rle, "[4, 5]"),
    "empty mask": (_empty_rle, "the mask is empty"),
    "mask and token counts differ": (_mention_another, "'<mask>' in the text, expected"),
    "path out of the folder": (_leave, "leads out of"),
}


def _damaged(small, root: Path, damage: Damage, which: slice) -> list[str]:
    """A copy of the small world with some records damaged, and their ids."""
    shutil.copytree(small.root, root)
    records = json.loads((root / "train.json").read_text())
    for record in records[which]:
        damage(root, record)
    (root / "train.json").write_text(json.dumps(records))
    return [record["id"] for record in records[which]]


def _train_in_turn(commands, folder):
    """Exit code and output of several commands, one after the other in one forked process."""

    def run(rank):
        from spatialrgpt.cli import main

        codes = []
        for words in commands:
            codes.append(main(words))
            print("=== end", flush=True)  # noqa: T201 - a mark between the outputs
        return codes

    outcome = start_ranks(run, 1, folder).wait(300.0)[0]
    assert not outcome.error, f"{outcome.error}\n{outcome.output}"
    return list(zip(outcome.result, outcome.output.split("=== end"), strict=False))


@pytest.mark.slow
def test_each_kind_of_bad_record_stops_training_with_one_message(small, tmp_path):
    commands = []
    for number, (damage, _) in enumerate(DAMAGES.values()):
        _damaged(small, tmp_path / f"world-{number}", damage, slice(None))
        run = tmp_path / f"run-{number}"
        commands.append([*small.train(run, *TRAIN), "--data.root", str(tmp_path / f"world-{number}")])
    outcomes = _train_in_turn(commands, tmp_path / "ranks")
    for (kind, (_, says)), (code, output) in zip(DAMAGES.items(), outcomes, strict=True):
        assert code == 1, (kind, output)
        message = output[output.index("spatialrgpt: ") :]
        assert "train.json, record" in message, kind
        assert "(id 'train-" in message, kind
        assert says in message, (kind, message)
        assert message.count("(id 'train-") == 1, (kind, message)
        assert "Traceback" not in output, (kind, output)


@pytest.mark.slow
def test_a_bad_record_in_a_loading_process_gives_the_same_message(small, tmp_path):
    _damaged(small, tmp_path / "world", _empty_rle, slice(None))
    words = small.train(tmp_path / "run", *TRAIN, "--training.num_workers", "1", "--data.root", str(tmp_path / "world"))
    code, output = _train_in_turn([words], tmp_path / "ranks")[0]
    assert code == 1
    assert "the mask is empty" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_skipped_records_are_counted_and_too_many_stop_the_run(small, tmp_path):
    bad = _damaged(small, tmp_path / "world", _empty_rle, slice(0, 3))
    common = (*TRAIN, "--data.root", str(tmp_path / "world"), "--data.on_error", "skip")
    (code, output), (few_code, few_output) = _train_in_turn(
        [
            small.train(tmp_path / "run", *common, "--data.max_bad_fraction", "0.5"),
            small.train(tmp_path / "few", *common, "--data.max_bad_fraction", "0.0"),
        ],
        tmp_path / "ranks",
    )
    assert code == 0, output
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad_records.jsonl").read_text().splitlines()]
    assert lines
    assert {line["index"] for line in lines} <= {0, 1, 2}
    for line in lines:
        assert bad[line["index"]] in line["record"]
        assert "the mask is empty" in line["reason"]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["scores"]
    assert few_code == 1
    assert "cannot be read, expected at most 0 (max_bad_fraction 0)" in few_output
    assert "Traceback" not in few_output


class _Canary:
    """Unpickling it leaves a folder behind."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["weights.pt", "weights.bin", "weights.pkl", "weights.ckpt"])
def test_a_malicious_weight_file_is_refused(tmp_path, name):
    canary, path = tmp_path / "canary", tmp_path / name
    if name.endswith(".pkl"):
        import pickle

        path.write_bytes(pickle.dumps({"model": {"weight": _Canary(canary)}}))
    else:
        torch.save({"weight": _Canary(canary)}, path)
    with pytest.raises(ValueError, match=f"{name}.*refused"):
        load_weights(path)
    assert not canary.exists()


@pytest.mark.slow
def test_a_malicious_model_folder_is_refused(trained, tmp_path, capsys):
    from spatialrgpt.cli import main

    folder, canary = tmp_path / "model", tmp_path / "canary"
    shutil.copytree(trained / "model", folder)
    (folder / "model.safetensors").unlink()
    torch.save({"projector.layers.1.weight": _Canary(canary)}, folder / "pytorch_model.bin")
    image = next((trained / "samples").glob("*.png"))
    words = ["predict", str(folder), "--image", str(image), "--question", "What is this?", "--device", "cpu"]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "model.safetensors" in error
    assert "Traceback" not in error
    assert not canary.exists()
