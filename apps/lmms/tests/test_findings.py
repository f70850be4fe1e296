"""Verdicts and advice."""

from dataclasses import replace

import pytest
from lmms.config import Settings
from lmms.findings import Finding, advise, gib, judge_disk, judge_memory, worst
from lmms.machine import DeviceState
from lmms.memory import MemoryEstimate
from region_training.settings import TrainingSettings

GIB = 2**30
STATE = DeviceState("cuda:0 Chip", free=10 * GIB, total=40 * GIB, others=30 * GIB, processes={57: 27 * GIB})
ESTIMATE = MemoryEstimate(weights=2 * GIB, gradients=GIB, optimizer=6 * GIB, teacher=0, activations=4 * GIB, buffers=0)


@pytest.mark.parametrize(("needed", "verdict"), [(8, "PASS"), (8.1, "WARN"), (10, "WARN"), (10.1, "FAIL")])
def test_four_fifths_of_the_free_memory_are_enough(needed, verdict):
    finding = judge_memory("memory", int(needed * GIB), STATE)
    assert finding.verdict == verdict
    assert f"about {needed:.2f} GiB needed, 10.00 GiB of 40.00 GiB free" in finding.text
    assert finding.text.endswith("others hold 30.00 GiB (process 57: 27.00 GiB)")


def test_a_disk_has_to_hold_a_checkpoint_and_the_model():
    assert judge_disk(10, 4, 100).verdict == "PASS"
    assert judge_disk(10, 4, 45).verdict == "WARN"
    assert judge_disk(10, 4, 19).verdict == "FAIL"


def test_the_worst_counts():
    findings = [Finding("a", verdict, "") for verdict in ("PASS", "FAIL", "WARN")]
    assert worst(findings) == "FAIL"
    assert worst([]) == "PASS"


def _advice(world_size=4, precision="bf16", **training):
    settings = replace(Settings(), training=TrainingSettings(**training))
    return advise(ESTIMATE, settings, world_size=world_size, precision=precision, device="cuda")


def test_advice_begins_with_the_largest_and_says_what_is_not_set_yet():
    advice = _advice(zero_stage=0, micro_batch_size=8, gradient_accumulation_steps=2)
    assert [line.split()[0] for line in advice] == ["optimizer", "activations", "weights", "gradients"]
    assert "training.zero_stage: 1" in advice[0]
    assert "training.gradient_checkpointing: true" in advice[1]
    assert "training.micro_batch_size: 4 with gradient_accumulation_steps: 4" in advice[1]
    assert "training.zero_stage: 3" in advice[2]
    assert "training.zero_stage: 2" in advice[3]


def test_advice_names_nothing_that_is_done_already():
    advice = "\n".join(_advice(zero_stage=3, micro_batch_size=1, gradient_checkpointing=True))
    assert "zero_stage: 1" not in advice
    assert "gradient_checkpointing" not in advice
    assert "micro_batch_size" not in advice
    assert "offload_optimizer" in advice
    assert "precision" not in advice
    assert "training.precision: bf16" in "\n".join(_advice(precision="fp32"))
    assert "zero_stage: 1" not in "\n".join(_advice(world_size=1, zero_stage=0))


def test_sizes_are_readable():
    assert [gib(value) for value in (3 * GIB, 2**20, 0)] == ["3.00 GiB", "1.00 MiB", "0.00 MiB"]
