"""What a training needs, found without building its model."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from lmms.config import DataSettings, ModelSettings, Settings, SyntheticSettings
from lmms.preflight_plan import find_processor, make_plan
from region_training.images import write_png
from region_training.run_folder import write_atomically
from region_training.settings import TrainingSettings


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two records of pictures; a third one's is missing."""
    root = tmp_path_factory.mktemp("data")
    write_png(root / "a.png", np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "a"}]
    rows = {name: json.dumps({"image": name, "conversations": turns}) for name in ("a.png", "b.png")}
    write_atomically(root / "good.jsonl", f"{rows['a.png']}\n" * 2)
    write_atomically(root / "held_out.jsonl", f"{rows['a.png']}\n" * 3)
    write_atomically(root / "bad.jsonl", "".join(f"{row}\n" for row in rows.values()))
    return root


@pytest.fixture
def settings(toy, root, tmp_path):
    return Settings(
        run_dir=str(tmp_path / "run"),
        model=toy.settings(),
        data=DataSettings(root=str(root), train_files=["good.jsonl"], eval_files=["held_out.jsonl"], max_length=512),
        training=TrainingSettings(device="cpu", zero_stage=2, micro_batch_size=2),
    )


def _verdicts(plan):
    return {finding.name: finding.verdict for finding in plan.findings}


def test_records_are_read_and_every_stage_estimated(settings, toy):
    plan = make_plan(settings, toy.processor, 2)
    assert _verdicts(plan) == {"decoder": "PASS", "records": "PASS", "held-out records": "PASS"}
    assert "2 read, up to " in plan.findings[1].text
    assert "3 read, up to " in plan.findings[2].text
    assert list(plan.estimates) == [0, 1, 2, 3]
    assert plan.sizes.num_parameters == sum(weight.numel() for weight in toy.model().parameters())
    smaller = make_plan(replace(settings, training=replace(settings.training, micro_batch_size=1)), toy.processor, 2)
    assert smaller.estimates[2].activations < plan.estimates[2].activations
    assert smaller.estimates[2].weights == plan.estimates[2].weights


@pytest.mark.parametrize(("on_error", "verdict"), [("raise", "FAIL"), ("skip", "WARN")])
def test_a_record_that_cannot_be_read_is_named(settings, toy, on_error, verdict):
    data = replace(settings.data, train_files=["bad.jsonl"], on_error=on_error)
    plan = make_plan(replace(settings, data=data), toy.processor, 1)
    assert _verdicts(plan)["records"] == verdict
    assert "b.png" in plan.findings[1].text


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_held_out_record_that_cannot_be_read_is_named(settings, toy, on_error):
    """Evaluation skips none, and comes when training is over."""
    data = replace(settings.data, eval_files=["bad.jsonl"], on_error=on_error)
    plan = make_plan(replace(settings, data=data), toy.processor, 1)
    assert _verdicts(plan) == {"decoder": "PASS", "records": "PASS", "held-out records": "FAIL"}
    assert "b.png" in plan.findings[2].text
    missing = make_plan(replace(settings, data=replace(data, eval_files=["none.jsonl"])), toy.processor, 1)
    assert "no held-out records in" in missing.findings[2].text
    without = make_plan(replace(settings, data=replace(data, eval_files=[])), toy.processor, 1)
    assert _verdicts(without) == {"decoder": "PASS", "records": "PASS"}


def test_a_world_that_is_not_written_yet_is_no_mistake(settings, toy, tmp_path):
    missing = replace(settings.data, root=str(tmp_path / "none"))
    assert _verdicts(make_plan(replace(settings, data=missing), toy.processor, 1))["records"] == "FAIL"
    later = replace(settings, data=replace(missing, synthetic=SyntheticSettings()))
    plan = make_plan(later, find_processor(later), 1)
    assert _verdicts(plan)["records"] == "PASS"
    assert not (tmp_path / "none").exists()
    assert plan.estimates[0].activations > make_plan(settings, toy.processor, 1).estimates[0].activations


def test_a_decoder_that_cannot_be_used_is_said(settings, toy, monkeypatch):
    lacks = {"torchcodec": None, "pyav": None, "decord": "no module named decord"}
    monkeypatch.setattr("lmms.preflight_plan.available_backends", lambda: lacks)
    monkeypatch.setitem(sys.modules, "decord", None)
    data = replace(settings.data, backend="decord")
    plan = make_plan(replace(settings, data=data), toy.processor, 1)
    assert plan.findings[0].verdict == "FAIL"
    assert "no module named decord" in plan.findings[0].text


def test_a_pretrained_model_is_estimated_from_what_is_on_the_disk(settings, toy, tmp_path):
    toy.config().lmm.save_pretrained(tmp_path / "pretrained")
    model = replace(settings.model, config=None, pretrained=str(tmp_path / "pretrained"))
    own = replace(settings, model=model)
    assert find_processor(own) is None
    plan = make_plan(own, None, 1)
    assert plan.findings[-1].text == f"cannot be read: there is no processor in {model.pretrained}"
    assert plan.sizes.num_parameters == sum(weight.numel() for weight in toy.model().parameters())
    toy.processor.save_pretrained(tmp_path / "pretrained")
    assert type(find_processor(own)) is type(toy.processor)


def test_a_name_of_the_hub_that_is_not_here_cannot_be_known(settings):
    own = replace(settings, model=ModelSettings(pretrained="nobody/no-such-model-here"))
    assert find_processor(own) is None
    plan = make_plan(own, None, 1)
    assert (plan.sizes, plan.estimates) == (None, {})
    assert plan.findings[-1].verdict == "WARN"
    assert "nobody/no-such-model-here is not on this machine" in plan.findings[-1].text
    command = "uv run hf download nobody/no-such-model-here --include '*.json' --include '*.jinja' --include '*.txt'"
    assert f"`{command}` fetches it without the weights" in plan.findings[-1].text


def test_a_run_that_has_a_processor_keeps_it(settings, toy, tmp_path):
    toy.processor.save_pretrained(tmp_path / "run" / "processor")
    assert find_processor(settings).tokenizer.get_vocab() == toy.processor.tokenizer.get_vocab()
