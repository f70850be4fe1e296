"""A trained run's model opened in a fresh process by what its model card says, without our training code."""

import json
import re
import subprocess
import sys

import pytest

# The answers are given in the batches and with the one thread of the training run's own evaluation.
ANSWER = """
import json, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from spatialrgpt.config import EvaluationSettings
from spatialrgpt.data import RegionDataset
from spatialrgpt.evaluate import evaluate

settings = EvaluationSettings(batch_size=8, max_records=8, generate_records=4, max_new_tokens=6)
dataset = RegionDataset(Path(sys.argv[1]), "val", processor, with_answers=False)
answers = [
    {"index": item.index, "head": [item.head.value, item.head.confidence], "text": item.text}
    for item in evaluate(model.eval(), dataset, settings).records
]
training_code = [
    name
    for name in sys.modules
    if name.partition(".")[0] == "deepspeed"
    or name in ("spatialrgpt.train", "region_training.engine", "region_training.trainer")
]
print(json.dumps({"answers": answers, "training_code": training_code}))
"""


@pytest.mark.slow
def test_the_model_card_opens_the_trained_model(trained, small, tmp_path):
    card = (trained / "model" / "README.md").read_text()
    load = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    script = tmp_path / "script.py"
    script.write_text(load.replace("path/to/model", str(trained / "model")) + ANSWER)
    done = subprocess.run(
        [sys.executable, str(script), str(small.root)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["training_code"] == []
    lines = [json.loads(line) for line in (trained / "answers.jsonl").read_text().splitlines()]
    told = {line["index"]: {"index": line["index"], "head": line["head"], "text": line["text"]} for line in lines}
    assert {answer["index"]: answer for answer in printed["answers"]} == told
    assert any(line["text"] is not None for line in lines)


# What a program without our code in sight would write.
BY_AUTO_CLASSES = """
import sys
from spatialrgpt import SpatialRGPTForConditionalGeneration, SpatialRGPTProcessor
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1])
assert type(model) is SpatialRGPTForConditionalGeneration
assert type(processor) is SpatialRGPTProcessor
assert AutoConfig.from_pretrained(sys.argv[1]).model_type == "spatialrgpt"
assert not [name for name in sys.modules if name.partition(".")[0] == "deepspeed"]
"""


@pytest.mark.slow
def test_the_auto_classes_know_the_model(trained, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BY_AUTO_CLASSES, str(trained / "model")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
