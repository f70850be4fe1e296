"""A saved model: opened by the Auto classes in a fresh process to the same bits, and never with a weight missing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from region_heads.tasks import TaskType
from safetensors.torch import load_file, save_file
from spatialrgpt.config import BackboneSettings
from spatialrgpt.model import SpatialRGPTForConditionalGeneration
from transformers import AutoConfig, AutoModelForCausalLM

FRESH_PROCESS = """
import sys
import torch
from spatialrgpt import SpatialRGPTForConditionalGeneration
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(f"{folder}/model").eval()
assert isinstance(model, SpatialRGPTForConditionalGeneration)
# As torch's allocator places them: kernels round by the place, and a mapped file puts weights anywhere.
for tensor in (*model.parameters(), *model.buffers()):
    tensor.data = tensor.data.clone()
with torch.no_grad():
    output = model(**torch.load(f"{folder}/batch.pt"))
heads = {name: vars(values) for name, values in output.regions.outputs.items()}
torch.save({"logits": output.logits, "heads": heads, "weights": model.state_dict()}, f"{folder}/fresh.pt")
heavy = [name for name in ("deepspeed", "region_training.engine", "region_training.trainer") if name in sys.modules]
assert not heavy, heavy
"""


def batch_of(toy) -> dict:
    return toy.batch(
        [
            toy.sample((0, 0), seed=0, task=TaskType.DISTANCE),
            toy.sample((1, 0, 1), depths=(True, False), seed=1, task=TaskType.COUNTING),
            toy.sample((), depths=(), seed=2, task=None),
            toy.sample((0, 0), seed=3, task=TaskType.LEFT_RIGHT),
            toy.sample((0, 0, 0), seed=4, task=TaskType.MULTIPLE_CHOICE),
        ]
    )


@pytest.mark.slow
def test_a_fresh_process_opens_it_to_the_same_bits(toy, model, tmp_path):
    batch = batch_of(toy)
    model.save_pretrained(tmp_path / "model")
    torch.save(batch, tmp_path / "batch.pt")
    command = [sys.executable, "-W", "error::FutureWarning", "-c", FRESH_PROCESS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    fresh = torch.load(tmp_path / "fresh.pt")
    assert fresh["weights"].keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(fresh["weights"][name], weight), name
    with torch.no_grad():
        output = model(**batch)
    assert torch.equal(fresh["logits"], output.logits)
    assert set(fresh["heads"]) == {"distance", "left_right", "multiple_choice", "counting"}
    for name, values in fresh["heads"].items():
        for key, value in values.items():
            assert torch.equal(value, vars(output.regions.outputs[name])[key]), (name, key)


TIED = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize("text", [None, TIED], ids=["untied", "tied"])
def test_every_weight_comes_back(toy, tmp_path, text):
    switches = {} if text is None else {"text": BackboneSettings(config=text)}
    model = toy.model(**switches, refine_depth=True)
    model.save_pretrained(tmp_path)
    loaded = SpatialRGPTForConditionalGeneration.from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    embeddings = loaded.get_input_embeddings().weight
    assert (loaded.language_model.lm_head.weight is embeddings) == (text is not None)
    with torch.no_grad():
        assert torch.equal(loaded(**batch_of(toy)).logits, model(**batch_of(toy)).logits)


def test_the_auto_classes_know_it(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert loaded == model.config.to_dict() | {"_name_or_path": str(tmp_path)}
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), SpatialRGPTForConditionalGeneration)


def test_it_can_be_opened_in_another_precision(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = SpatialRGPTForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "key", ["region_heads.heads.counting", "region_encoder.enhancer.gate.gate", "vision_tower", "language_model"]
)
def test_a_missing_weight_is_an_error_that_names_it(model, tmp_path, key):  # T35
    model.save_pretrained(tmp_path)
    name = next(name for name in model.state_dict() if name.startswith(key))
    change_weights(tmp_path, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=f"missing from the files: {name}"):
        SpatialRGPTForConditionalGeneration.from_pretrained(tmp_path)
