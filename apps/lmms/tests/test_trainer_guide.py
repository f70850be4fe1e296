"""The guide's call of `AutoregressiveTrainer`: it trains, and checks and reads data as `lmms train` does."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from lmms.config import DataSettings
from lmms.data import VideoDataset
from lmms.trainer import AutoregressiveTrainer
from region_training.images import write_png
from region_training.settings import ConfigError
from region_training.testing import run_ranks
from transformers import TrainingArguments


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_guides_call_trains(toy, tmp_path, caplog):
    """Its arguments are `model`, `args`, `train_dataset` and `enable_autoregressive`, as the guide has them."""
    samples = [toy.sample((3,), seed=seed) for seed in range(8)]

    def run(rank):
        results = {}
        for name, enabled in (("on", True), ("off", False)):
            trainer = AutoregressiveTrainer(
                model=toy.model(),
                args=TrainingArguments(
                    output_dir=str(tmp_path / name),
                    num_train_epochs=1,
                    per_device_train_batch_size=2,
                    gradient_accumulation_steps=2,
                    learning_rate=2e-2,
                    bf16=True,
                    logging_steps=1,
                    save_steps=500,
                    use_cpu=True,
                    report_to="none",
                ),
                train_dataset=toy.dataset(samples),
                data_collator=toy.collator(),
                enable_autoregressive=enabled,
            )
            results[name] = trainer.train().global_step
        return results

    assert run_ranks(run, 1, tmp_path / "ranks") == [{"on": 2, "off": 2}]
    for line in log_of(tmp_path / "on"):
        assert {"autoregressive_loss", "main_loss", "total_loss"} <= set(line)
        assert line["total_loss"] == pytest.approx(line["autoregressive_loss"] + line["main_loss"])
    for line in log_of(tmp_path / "off"):
        assert "autoregressive_loss" not in line
        assert line["total_loss"] == line["main_loss"]
    parts = {part["name"]: part["trainable"] for part in json.loads((tmp_path / "on/parts.json").read_text())}
    assert parts == {"vision_tower": False, "projector": True, "language_model": True, "autoregressive": True}
    parts = {part["name"]: part["trainable"] for part in json.loads((tmp_path / "off/parts.json").read_text())}
    assert not parts["autoregressive"]
    assert (tmp_path / "on/model/config.json").exists()


def test_the_guides_call_without_the_module_says_so(toy, tmp_path):
    model = toy.model(enable_autoregressive=False)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ConfigError, match="the model has no autoregressive_module"):
        AutoregressiveTrainer(model=model, args=args, train_dataset=toy.dataset([]), enable_autoregressive=True)
    with pytest.raises(ConfigError, match="train_dataset: got none"):
        AutoregressiveTrainer(model=model, args=args)
    with pytest.raises(
        TypeError, match=r"got OnevisionForTraining, expected a VideoLMM: lmms\.wrap_model\(model, proc"
    ):
        AutoregressiveTrainer(model=model.lmm, args=args)
    with pytest.raises(ConfigError, match="data_collator: needed for a Listed"):
        AutoregressiveTrainer(model=model, args=args, train_dataset=toy.dataset([]))


def record_of(video: str | None, number: int) -> dict:
    words = "which way?" if video is None else "<video>\nwhich way?"
    turns = [{"from": "human", "value": words}, {"from": "gpt", "value": "left"}]
    return {"id": str(number), "conversations": turns} | ({} if video is None else {"video": video})


@pytest.fixture
def dataset_of(toy, tmp_path):
    """Opens records about folders of three pictures, of which there are eight, and about others that are not there."""
    for number in range(8):
        for frame in range(3):
            write_png(tmp_path / "data" / f"clip-{number}" / f"{frame}.png", toy.image(seed=10 * number + frame))

    def open_records(videos: Sequence[str | None], own=toy, **settings: object) -> VideoDataset:
        rows = [record_of(video, number) for number, video in enumerate(videos)]
        (tmp_path / "data" / "train.json").write_text(json.dumps(rows))
        data = DataSettings(root=str(tmp_path / "data"), backend="pyav", **settings)
        return VideoDataset.open(data, ["train.json"], own.family())

    return open_records


def guided(model, output: Path, dataset, **changes: object) -> AutoregressiveTrainer:
    values = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no"}
    args = TrainingArguments(output_dir=str(output), use_cpu=True, report_to="none", **{**values, **changes})
    return AutoregressiveTrainer(model=model, args=args, train_dataset=dataset, enable_autoregressive=True)


CLIPS = [f"clip-{number}" for number in range(8)]


def looking_ahead(model):
    """The model, made to see the mean of all states."""

    def mix(module, args, output):
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(1, keepdim=True)
        return output

    model.lmm.model.language_model.register_forward_hook(mix)
    return model


def test_the_guides_call_refuses_a_model_that_looks_ahead(toy, tmp_path, dataset_of):
    def run(rank):
        said = []
        for name, dataset, collate in (
            ("records", dataset_of(CLIPS), None),
            ("others", toy.dataset([toy.sample(()), toy.sample((3,), seed=1)]), toy.collator()),
        ):
            args = TrainingArguments(output_dir=str(tmp_path / name), use_cpu=True, report_to="none", max_steps=1)
            try:
                AutoregressiveTrainer(
                    model=looking_ahead(toy.model()),
                    args=args,
                    train_dataset=dataset,
                    data_collator=collate,
                    enable_autoregressive=True,
                )
            except ValueError as error:
                said.append(str(error))
        return said

    (said,) = run_ranks(run, 1, tmp_path / "ranks")
    assert len(said) == 2
    assert all("the language model looks ahead" in sentence for sentence in said)


def test_the_guides_call_treats_data_as_lmms_train_does(toy, tmp_path, dataset_of):
    """A bad record is skipped and counted, or too many of them end the run; short samples share a row."""
    qwen = toy.of("qwen2_5_vl")

    def run(rank):
        skipping = dataset_of([*CLIPS[:7], "gone"], on_error="skip", max_bad_fraction=0.2)
        trainer = guided(toy.model(), tmp_path / "skip", skipping, max_steps=4)
        steps = trainer.train().global_step
        packed = guided(toy.model(), tmp_path / "pack", dataset_of(CLIPS, packing=True, max_length=256, max_frames=3))
        job, _ = packed._guide
        rows = [len(pack) for pack in job.train_dataset.plan]
        packed.train()
        said = []
        try:
            guided(toy.model(), tmp_path / "stop", dataset_of([*CLIPS[:1], "gone"] * 2)).train()
        except ValueError as error:
            said.append(str(error))
        try:
            guided(qwen.model(), tmp_path / "qwen", dataset_of(CLIPS, qwen, packing=True))
        except ValueError as error:
            said.append(str(error))
        return steps, rows, said

    ((steps, rows, said),) = run_ranks(run, 1, tmp_path / "ranks")
    assert steps == 4
    (line,) = [json.loads(line) for line in (tmp_path / "skip" / "bad_records.jsonl").read_text().splitlines()]
    assert line["index"] == 7
    assert "gone" in line["reason"]
    assert sum(rows) == 8
    assert max(rows) > 1
    assert "train.json record" in said[0]
    assert "gone" in said[0]
    assert "qwen2_5_vl has positions that packed rows cannot restart" in said[1]


def test_the_guides_call_goes_on_with_the_same_teacher_only(toy, tmp_path, dataset_of):
    def run(rank):
        for seed in (0, 0, 1):
            try:
                guided(toy.model(seed=seed, frozen_parts=()), tmp_path / "run", dataset_of(CLIPS), max_steps=1).train()
            except ValueError as error:
                return seed, str(error)
        return None

    ((seed, said),) = run_ranks(run, 1, tmp_path / "ranks")
    assert seed == 1
    assert "the teacher of this run has the fingerprint" in said


def test_a_copy_of_the_tower_has_the_runs_precision(toy, tmp_path, dataset_of):
    def run(rank):
        found = []
        for bf16 in (False, True):
            model = toy.model(frozen_parts=())
            trainer = guided(model, tmp_path / f"{bf16}", dataset_of(CLIPS), bf16=bf16)
            teacher = trainer.network.autoregressive_module.teacher
            same = teacher.fingerprint() == model.config.teacher["fingerprint"]
            trainer.train()
            found.append((str(next(teacher._tower.parameters()).dtype), same))
        return found

    assert run_ranks(run, 1, tmp_path / "ranks") == [[("torch.float32", True), ("torch.bfloat16", True)]]
    for whole, rough in zip(log_of(tmp_path / "False"), log_of(tmp_path / "True"), strict=True):
        assert rough["ar_copy_loss"] == pytest.approx(whole["ar_copy_loss"], rel=0.05)
