"""What the reconstruction loss must and must not change, on models that the real `lmms train` has trained."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

# Clipping would scale by a norm over all gradients, whose last bit hangs on how many zeros are added up.
QUICK = (
    *("--training.max_steps", "3", "--training.max_grad_norm", "0"),
    *("--evaluation.controls", "false", "--evaluation.max_records", "2"),
)
RUNS = {
    "plain": ("--model.enable_autoregressive", "false"),
    "weight 0": ("--model.autoregressive_config.loss_weight", "0"),
    "on": ("--model.autoregressive_config.loss_weight", "1"),
}


def _log(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss/total" in line]


@pytest.fixture(scope="module")
def runs(lmms_small, lmms_commands, tmp_path_factory):
    """The same steps without the module, with its weight 0, and with it; nothing is dropped out at random."""
    folder = tmp_path_factory.mktemp("lmms-objective")
    content = yaml.safe_load(lmms_small.config.read_text())
    content["model"]["config"]["text_config"]["attention_dropout"] = 0.0
    content["model"]["autoregressive_config"]["dropout"] = 0.0
    quiet = dataclasses.replace(lmms_small, config=folder / "quiet.yaml")
    quiet.config.write_text(yaml.safe_dump(content))
    commands = [quiet.train(folder / name, *QUICK, *words) for name, words in RUNS.items()]
    for code, output in lmms_commands(commands, folder / "ranks"):
        assert code == 0, output
    return {name: folder / name for name in RUNS}


def _weights(run):
    return load_file(run / "model" / "model.safetensors")


def test_with_weight_0_the_model_is_to_the_bit_the_one_without_the_module(runs):
    plain, zero, on = (_weights(runs[name]) for name in RUNS)
    assert plain.keys() == zero.keys() == on.keys()
    for name, value in plain.items():
        assert torch.equal(zero[name], value), name
    # With the module on, everything below the hidden states is another: the tower, the projector, the language model.
    different = [name for name, value in plain.items() if not torch.equal(on[name], value)]
    for part in ("vision_tower", "multi_modal_projector", "language_model"):
        assert any(part in name for name in different), part


def test_with_weight_0_the_main_loss_is_the_same_and_the_reconstruction_loss_is_still_told(runs):
    plain, zero = _log(runs["plain"]), _log(runs["weight 0"])
    assert len(plain) == len(zero) == 3
    for line, other in zip(plain, zero, strict=True):
        assert other["main_loss"] == line["main_loss"] == line["total_loss"] == other["total_loss"]
        assert other["grad_norm"] == pytest.approx(line["grad_norm"], rel=1e-6)
        assert not [name for name in line if name.startswith(("ar_", "autoregressive"))]
        assert other["autoregressive_loss"] == 0
        assert other["autoregressive_loss_raw"] > 0.1


def test_without_the_module_nothing_of_it_is_there(runs):
    run = runs["plain"]
    assert not (run / "model" / "autoregressive" / "model.safetensors").exists()
    assert not (run / "teacher.json").exists()
    assert "autoregressive" not in [part["name"] for part in json.loads((run / "parts.json").read_text())]
    scores = json.loads((run / "results.json").read_text())["scores"]
    assert not [name for name in scores["model"] if name.startswith(("ar_", "autoregressive"))]


def test_training_lowers_the_reconstruction_loss(runs):
    first, *_, last = (line["autoregressive_loss_raw"] for line in _log(runs["on"]))
    assert last < first


def test_no_tensor_of_the_teacher_is_in_the_checkpoint_the_optimizer_or_the_export(lmms_trained):
    """The tower was trained, so its first weights are a teacher; they may be anywhere but here."""
    assert json.loads((lmms_trained / "teacher.json").read_text())["kind"] == "snapshot"
    parts = json.loads((lmms_trained / "parts.json").read_text())
    trained = sum(part["num_trained"] for part in parts)
    (states,) = (lmms_trained / "checkpoint-4").rglob("mp_rank_00_model_states.pt")
    (optimizer,) = (lmms_trained / "checkpoint-4").rglob("*optim_states.pt")
    # Our own checkpoint of a moment ago.
    module = torch.load(states, weights_only=False)["module"]
    flat = torch.load(optimizer, weights_only=False)["optimizer_state_dict"]["single_partition_of_fp32_groups"]
    exported = load_file(lmms_trained / "model" / "model.safetensors")
    own = load_file(lmms_trained / "model" / "autoregressive" / "model.safetensors")
    assert {f"lmm.{name}" for name in exported} | set(own) == set(module)
    assert not [name for name in module if "teacher" in name]
    assert sum(value.numel() for value in module.values()) == trained
    # Each group is filled up to a multiple of a few elements.
    assert 0 <= sum(values.numel() for values in flat) - trained < 16 * len(flat)


# What a program without our code in sight would write.
PLAIN = """
import json, sys
import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

torch.set_num_threads(1)
folder, clip, question = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
processor = AutoProcessor.from_pretrained(folder)
content = [{"type": "video"}, {"type": "text", "text": question}]
prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
inputs = processor(text=prompt, videos=[np.load(clip)], return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits[0, -1]
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
ours = [name for name in sys.modules if name.partition(".")[0] in ("lmms", "video_autoregressive", "region_core")]
answer = processor.tokenizer.decode(tokens, skip_special_tokens=True)
print(json.dumps({"answer": answer, "logits": logits.tolist(), "ours": ours, "class": type(model).__name__}))
"""


def test_the_exported_folder_opens_in_plain_transformers_and_answers_the_same(lmms_trained, lmms_small, tmp_path):
    from lmms.answers import PROMPT_KEYS, generate_answers, on_device
    from lmms.collate import VideoCollator
    from lmms.config import Settings
    from lmms.data import VideoDataset
    from lmms.loading import load_model
    from region_training.run_folder import RunFolder

    model, family = load_model(lmms_trained, "cpu")
    data = RunFolder.open(lmms_trained).load_settings(Settings).data
    prompts = VideoDataset.open(data, ["val.json"], family, with_answers=False)
    record = prompts.record(0)
    (clip,) = prompts.reader.read(record, prompts.where(0)).clips
    np.save(tmp_path / "clip.npy", clip.frames.numpy())
    (tmp_path / "script.py").write_text(PLAIN)
    command = [sys.executable, "script.py", str(lmms_trained / "model"), "clip.npy", record.question]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["ours"] == []
    assert printed["class"] == "LlavaOnevisionForConditionalGeneration"
    batch = VideoCollator(family.processor.tokenizer.pad_token_id, family, padding_side="left")([prompts[0]])
    with torch.no_grad():
        logits = model(**on_device(batch, PROMPT_KEYS, model.device)).logits[0, -1]
    torch.testing.assert_close(torch.tensor(printed["logits"]), logits, rtol=1e-5, atol=1e-5)
    (answer,) = generate_answers(model, family, [prompts[0]], max_new_tokens=4)
    assert printed["answer"].strip() == answer.strip()
    told = json.loads((lmms_trained / "answers.jsonl").read_text().splitlines()[0])
    assert told["said"]["model"] == answer


def test_the_model_card_opens_the_trained_model_in_a_fresh_process(lmms_trained, tmp_path):
    card = (lmms_trained / "model" / "README.md").read_text()
    load = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    script = load.replace("path/to/model", str(lmms_trained / "model")) + (
        "import sys\n"
        "assert len(list(plain.parameters())) < len(list(model.parameters()))\n"
        "assert not [name for name in sys.modules if name in ('deepspeed', 'lmms.train', 'region_training.engine')]\n"
    )
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
