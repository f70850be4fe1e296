"""Verdicts: what was found before training, how bad it is, and which setting helps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lmms.config import Settings
from lmms.machine import DeviceState
from lmms.memory import MemoryEstimate

Verdict = Literal["PASS", "WARN", "FAIL"]
VERDICTS: tuple[Verdict, ...] = ("PASS", "WARN", "FAIL")
"""From good to bad; the exit code of `lmms preflight` is the position."""

WARN_ABOVE = 0.8
"""Share of the free memory above which there is little room for what was not counted."""

_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        verdict: How it stands.
        text: What was found, in a sentence.
    """

    name: str
    verdict: Verdict
    text: str


def worst(findings: Sequence[Finding]) -> Verdict:
    """The worst verdict; PASS without any finding."""
    return max((finding.verdict for finding in findings), key=VERDICTS.index, default="PASS")


def judge_memory(name: str, needed: int, state: DeviceState) -> Finding:
    """Whether an estimate fits what is free.

    Args:
        name: What the memory is for.
        needed: Bytes.
        state: Where they have to fit.
    """
    share = needed / max(state.free, 1)
    verdict: Verdict = "FAIL" if share > 1 else "WARN" if share > WARN_ABOVE else "PASS"
    listed = ", ".join(f"process {pid}: {gib(used)}" for pid, used in state.processes.items())
    others = f"; others hold {gib(state.others)}" + (f" ({listed})" if listed else "")
    text = (
        f"{state.name}: about {gib(needed)} needed, {gib(state.free)} of {gib(state.total)} free ({share:.0%}){others}"
    )
    return Finding(name, verdict, text)


def judge_disk(each: int, copies: int, free: int) -> Finding:
    """Whether checkpoints fit the disk.

    Args:
        each: Bytes of one checkpoint.
        copies: Checkpoints that are there at a time, and the exported model.
        free: Bytes free.
    """
    verdict: Verdict = "FAIL" if 2 * each > free else "WARN" if copies * each > WARN_ABOVE * free else "PASS"
    text = f"{copies} times about {gib(each)} for checkpoints and the model, {gib(free)} free"
    return Finding("disk", verdict, text)


def advise(estimate: MemoryEstimate, settings: Settings, *, world_size: int, precision: str, device: str) -> list[str]:
    """Settings to change for less memory, those of the largest component first.

    Args:
        estimate: What is needed.
        settings: As they are.
        world_size: Ranks.
        precision: "bf16" or "fp32".
        device: "cpu" or "cuda".
    """
    training, stage = settings.training, settings.training.zero_stage
    bf16 = ["training.precision: bf16"] if precision == "fp32" and device == "cuda" else []
    partition = {at: [f"training.zero_stage: {at}"] if world_size > 1 and stage < at else [] for at in (1, 2, 3)}
    batch = training.micro_batch_size
    smaller = max(1, batch // 2)
    helps: Mapping[str, list[str]] = {
        "weights": bf16 + partition[3] or ["a smaller model, or more ranks with training.zero_stage: 3"],
        "gradients": partition[2] or ["training.frozen_parts: fewer parts that are trained"],
        "optimizer": partition[1]
        or ["training.frozen_parts, or offload_optimizer in a file named by training.deepspeed_config"],
        "teacher": ["training.frozen_parts: [vision_tower], whose own features are then the targets"],
        "activations": [
            *([] if training.gradient_checkpointing else ["training.gradient_checkpointing: true"]),
            *(
                [
                    f"training.micro_batch_size: {smaller} with gradient_accumulation_steps: "
                    f"{training.gradient_accumulation_steps * batch // smaller}"
                ]
                if batch > 1
                else []
            ),
            "data.max_frames, or a larger model.video_tokens.pool_stride",
        ],
        "buffers": ["reduce_bucket_size in a file named by training.deepspeed_config"],
    }
    return [f"{name} ({gib(vars(estimate)[name])}): {', or '.join(helps[name])}" for name in estimate.largest_first()]


def gib(value: int) -> str:
    """Bytes for readers."""
    return f"{value / _GIB:.2f} GiB" if value >= _GIB / 100 else f"{value / 2**20:.2f} MiB"
