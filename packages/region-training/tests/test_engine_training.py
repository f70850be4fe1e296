"""Parts, precision, evaluation, non-finite numbers and the exported model."""

import json
import os
import random

import numpy as np
import pytest
import torch
import torch.distributed as dist
from region_training.engine import prepare, run, train
from region_training.stopping import NonFiniteError
from region_training.testing import RankError, run_ranks
from region_training.trainer import RegionTrainer

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.mark.parametrize("stage", [2, 3])
def test_frozen_parts_stand_still(toy, tmp_path, stage):
    """T36, T39: no gradient, no optimizer state, evaluation mode in every step, and the table says so."""

    def run(rank):
        modes = []
        built = []

        def build():
            built.append(toy.Model(toy.Config()))
            built[0].tower.dropout.register_forward_hook(
                lambda module, _, __: modes.append((module.training, built[0].dropout.training))
            )
            return built[0]

        settings = toy.settings(zero_stage=stage, frozen_parts=["tower"], part_learning_rates={"heads": 0.003})
        train(toy.job(build_model=build), settings, tmp_path / "run")
        return modes

    for modes in run_ranks(run, 2, tmp_path / "ranks"):
        assert set(modes) == {(False, True)}
    torch.manual_seed(0)
    fresh = toy.Model(toy.Config()).state_dict()
    for name, value in toy.weights(tmp_path / "run" / "model").items():
        assert torch.equal(value, fresh[name]) == name.startswith("tower."), name
    tower, body, heads = json.loads((tmp_path / "run" / "parts.json").read_text())
    assert (tower["name"], tower["trainable"], tower["num_parameters"], tower["num_trained"]) == ("tower", False, 80, 0)
    assert (body["trainable"], body["num_tensors"], body["num_decayed"]) == (True, 4, 256)
    assert (heads["learning_rate"], heads["num_parameters"]) == (0.003, 17 + 51 + 1)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {key for key in last if key.startswith("lr/")} == {"lr/body", "lr/heads"}
    for path in (tmp_path / "run" / "checkpoint-4").rglob("*optim_states.pt"):
        assert "tower" not in str(torch.load(path, weights_only=False)["optimizer_state_dict"].get("param_shapes", ""))


def test_evaluation_changes_nothing(toy, tmp_path):
    """T40 is out of the way: an evaluation is the job's own function, called with the model on every rank."""
    seen = []

    def evaluate(model, step):
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append(step)
        noise = torch.rand(2, 4) + random.random() + np.random.rand()  # noqa: NPY002
        outputs = model(noise, torch.zeros(2), torch.tensor([0, -1]))
        model.train()
        return {"loss": outputs.loss.item(), "step": step}

    def run(rank):
        for stage in (2, 3):
            settings = toy.settings(evaluate_every=1, zero_stage=stage)
            result = train(toy.job(evaluate=evaluate), settings, tmp_path / f"with-{stage}")
            train(toy.job(), settings, tmp_path / f"without-{stage}")
            assert result.metrics["step"] == 4
        return seen

    assert run_ranks(run, 2, tmp_path / "ranks") == [[1, 2, 3, 4] * 2] * 2
    for stage in (2, 3):
        without = toy.weights(tmp_path / f"without-{stage}" / "model")
        for name, value in toy.weights(tmp_path / f"with-{stage}" / "model").items():
            assert torch.equal(value, without[name]), name
        lines = [json.loads(line) for line in (tmp_path / f"with-{stage}" / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "eval/loss" in line] == [1, 2, 3, 4]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_bad_record_stops_the_run_at_its_step(toy, tmp_path, stage, precision):
    order = list(toy.permutation(16))
    bad = order[2 * 4 + 3]  # step 3, and of its four records the last, which is on rank 1

    def run(rank):
        settings = toy.settings(zero_stage=stage, precision=precision, save_every=1, max_grad_norm=stage / 2)
        with pytest.raises(NonFiniteError) as caught:
            train(toy.job(dataset=toy.Data(16, bad=bad)), settings, tmp_path / "run")
        return str(caught.value)

    messages = run_ranks(run, 2, tmp_path / "ranks")
    assert messages[0] == messages[1]
    assert "step 3" in messages[0]
    assert "rank 1: loss term 'regress' is nan" in messages[0]
    assert f"record-{bad}" in messages[0]
    assert "rank 0: " not in messages[0]
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_a_gradient_that_is_not_finite_stops_the_run(toy, tmp_path, stage, precision):
    """DeepSpeed skips such a step in silence."""

    def run(rank):
        steps = []

        def poison(gradient):
            steps.append(len(steps))
            return gradient * torch.inf if rank == 1 and len(steps) == 2 else gradient

        class Poisoned(toy.Model):
            def forward(self, **batch):
                output = super().forward(**batch)
                output.loss.register_hook(poison)
                return output

        job = toy.job(build_model=lambda: Poisoned(toy.Config()))
        with pytest.raises(NonFiniteError, match="every loss is finite, but the gradient is not") as caught:
            train(job, toy.settings(zero_stage=stage, precision=precision), tmp_path / "run")
        return "step 2" in str(caught.value) and "record-" in str(caught.value)

    assert run_ranks(run, 2, tmp_path / "ranks") == [True, True]


def test_one_process_without_a_launcher(toy, tmp_path):
    def run(rank):
        dist.destroy_process_group()
        for name in LAUNCHER:
            os.environ.pop(name)
        result = train(toy.job(), toy.settings(), tmp_path / "run")
        return result.global_step, dist.get_world_size(), os.environ["LOCAL_RANK"]

    assert run_ranks(run, 1, tmp_path / "ranks") == [(4, 1, "0")]


def test_half_a_launcher_is_an_error(toy, tmp_path):
    def run(rank):
        dist.destroy_process_group()
        os.environ.pop("MASTER_PORT")
        train(toy.job(), toy.settings(), tmp_path / "run")

    with pytest.raises(RankError, match="but not \\['MASTER_PORT'\\]"):
        run_ranks(run, 1, tmp_path / "ranks")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_zero3_partitions_weights_at_load_and_exports_them_whole(toy, tmp_path, precision):
    """A custom DeepSpeed file; its threshold of 0 partitions even the tensors of a toy. Touches T35: the trained
    weights come back from the folder with nothing missing and nothing fresh."""
    torch.manual_seed(5)
    toy.Model(toy.Config()).save_pretrained(tmp_path / "start")
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
    }
    (tmp_path / "zero3.json").write_text(json.dumps(config))

    def run(rank):
        shapes = []

        def build():
            model = toy.Model.from_pretrained(tmp_path / "start")
            shapes.extend(tuple(parameter.shape) for parameter in model.parameters())
            return model

        for stage, file in ((3, str(tmp_path / "zero3.json")), (2, None)):
            settings = toy.settings(zero_stage=stage, deepspeed_config=file, precision=precision)
            train(toy.job(build_model=build), settings, tmp_path / f"stage-{stage}")
        # Stage 2 comes second: nothing of stage 3 may be left over.
        return set(shapes[: len(shapes) // 2]), (16, 4) in shapes[len(shapes) // 2 :]

    assert run_ranks(run, 2, tmp_path / "ranks") == [({(0,)}, True)] * 2
    partitioned, plain = (toy.weights(tmp_path / f"stage-{stage}" / "model") for stage in (3, 2))
    for name, value in plain.items():
        assert value.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
        torch.testing.assert_close(partitioned[name], value, rtol=1e-2, atol=1e-2 if precision == "bf16" else 1e-5)
    model = toy.Model.from_pretrained(tmp_path / "stage-3" / "model")
    for name, value in model.state_dict().items():
        assert torch.equal(value, partitioned[name])


def test_boxes_keep_their_precision_in_bf16(toy, tmp_path):
    def run(rank):
        dtypes = set()

        class Watching(toy.Model):
            def forward(self, **batch):
                dtypes.update((batch["inputs"].dtype, self.regress.weight.dtype))
                assert "record_ids" not in batch
                assert "num_samples" not in batch
                return super().forward(**batch)

        job = toy.job(build_model=lambda: Watching(toy.Config()))
        train(job, toy.settings(precision="bf16"), tmp_path / "run")
        return dtypes

    assert run_ranks(run, 1, tmp_path / "ranks") == [{torch.float32, torch.bfloat16}]


def test_wrong_counts_and_mixed_counts_are_reported(toy, tmp_path):
    def overcount(samples):
        batch = toy.collate(samples)
        batch["loss_counts"]["regress"] += 1
        return batch

    def sometimes(samples):
        batch = toy.collate(samples)
        if samples[0]["id"] == "record-0":
            del batch["loss_counts"]
        return batch

    def run(rank):
        train(toy.job(collate=overcount), toy.settings(), tmp_path / "over")
        settings = toy.settings(max_steps=-1, num_epochs=1.0, gradient_accumulation_steps=12)
        with pytest.raises(ValueError, match="expected all or none"):
            train(toy.job(collate=sometimes), settings, tmp_path / "some")
        job = toy.job(collate=lambda samples: {**toy.collate(samples), "loss_counts": {"regress": 2}})
        with pytest.raises(ValueError, match="mean_counts has no entry for loss term 'classify'"):
            train(job, toy.settings(), tmp_path / "lacks")

    run_ranks(run, 1, tmp_path / "ranks")
    output = "".join(path.read_text() for path in (tmp_path / "ranks").glob("*.log"))
    assert "loss term 'regress': loss_counts announced 3 items, got 2" in output


def test_a_batch_without_counts_is_scaled_by_its_own(toy, tmp_path):
    def run(rank):
        def uncounted(samples):
            batch = toy.collate(samples)
            del batch["loss_counts"], batch["record_ids"]
            return batch

        return train(toy.job(collate=uncounted), toy.settings(), tmp_path / "run").last_values["loss/total"]

    assert run_ranks(run, 1, tmp_path / "ranks")[0] > 0


def test_processor_and_epochs(toy, tmp_path):
    class Processor:
        def save_pretrained(self, save_directory):
            with open(f"{save_directory}/processor.txt", "w") as file:  # noqa: PTH123
                file.write("kept")

    def run(rank):
        settings = toy.settings(max_steps=-1, num_epochs=1.5, warmup=0.25, gradient_accumulation_steps=2)
        return train(toy.job(16, processor=Processor()), settings, tmp_path / "run").global_step

    # Sixteen records in steps of four: four steps per epoch.
    assert run_ranks(run, 1, tmp_path / "ranks") == [6]
    assert (tmp_path / "run" / "model" / "processor.txt").read_text() == "kept"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # round(0.25 x 6) = 2 steps of warm-up from 0, then the peak.
    assert [line["lr/body"] for line in lines[:3]] == [0.0, pytest.approx(0.005), pytest.approx(0.01)]


def test_a_trainer_made_by_somebody_else_trains_as_the_engines_own(toy, tmp_path):
    """`train` is `prepare`, the trainer, and `run`."""

    def run_both(rank):
        train(toy.job(), toy.settings(), tmp_path / "whole")
        job = toy.job()
        prepared = prepare(job, toy.settings(), tmp_path / "halves")
        trainer = RegionTrainer(prepared.model, prepared.args, prepared.own)
        result = run(trainer, job, prepared)
        return result.global_step, result.model is prepared.model

    assert run_ranks(run_both, 1, tmp_path / "ranks") == [(4, True)]
    whole = toy.weights(tmp_path / "whole" / "model")
    for name, value in toy.weights(tmp_path / "halves" / "model").items():
        assert torch.equal(value, whole[name]), name
