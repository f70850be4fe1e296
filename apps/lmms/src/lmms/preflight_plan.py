"""What a training needs: a processor, records that can be read, a decoder, and memory by ZeRO stage."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from region_training.deepspeed_presets import deepspeed_config
from region_training.engine import choose_precision
from region_training.ranks import choose_device
from transformers import AutoConfig, AutoProcessor, ProcessorMixin
from video_autoregressive.backends import available_backends

from lmms.activations import Workload, estimate_activations
from lmms.building import build_config, build_processor
from lmms.config import Settings
from lmms.configuration import VideoLMMConfig
from lmms.data import VideoDataset
from lmms.families import family_of
from lmms.findings import Finding
from lmms.media import chosen_backend
from lmms.memory import STAGES, MemoryEstimate, estimate_memory
from lmms.model_sizes import ModelSizes, measure_model
from lmms.records import read_texts
from lmms.rows import find_files, read_rows
from lmms.sample import VideoSample

NUM_SAMPLES = 4
"""Records that are read to see how large a batch is; and as many held-out ones, to see that they can be read."""

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
SMALL_FILES = ("*.json", "*.jinja", "*.txt")
"""What a configuration and a processor are made of, on the hub: all but the weights."""


@dataclass(frozen=True)
class Plan:
    """What a training needs, whatever is free now.

    Attributes:
        sizes: Elements of the model; None where they cannot be known.
        estimates: ZeRO stage -> bytes of one rank; empty where they cannot be known.
        findings: What was found besides memory.
    """

    sizes: ModelSizes | None
    estimates: dict[int, MemoryEstimate]
    findings: Sequence[Finding]


def make_plan(settings: Settings, processor: ProcessorMixin | None, world_size: int) -> Plan:
    """Find out what a training needs.

    Args:
        settings: Of the run.
        processor: The run's; None where it is not on this machine.
        world_size: Ranks.
    """
    findings = [_find_backend(settings)]
    config = _find_config(settings, processor)
    samples: list[VideoSample] = []
    if processor is not None and findings[0].verdict == "PASS":  # without a decoder nothing can be read
        samples, finding = _read_samples(settings, processor, settings.data.train_files, "records")
        findings.append(finding)
        if settings.data.eval_files:
            findings.append(_read_samples(settings, processor, settings.data.eval_files, "held-out records")[1])
    if processor is None and config is not None:
        text = f"cannot be read: {_is_missing('processor', str(settings.model.pretrained))}"
        findings.append(Finding("records", "WARN", text))
    if config is None:
        text = f"cannot be known: {_is_missing('configuration', str(settings.model.pretrained))}"
        return Plan(None, {}, [*findings, Finding("model", "WARN", text)])
    sizes = measure_model(config, settings.training.frozen_parts)
    rows = settings.training.micro_batch_size
    workload = Workload.of_samples(samples, rows, config) if samples else Workload.worst(settings.data, rows, config)
    if settings.data.packing:
        workload = replace(workload, tokens=settings.data.max_length)
    return Plan(sizes, _estimates(settings, config, sizes, workload, world_size), findings)


def find_processor(settings: Settings) -> ProcessorMixin | None:
    """The run's processor, or the one that it will get; None for a pretrained one that is not on this machine."""
    saved = Path(str(settings.run_dir)) / "processor"
    if saved.is_dir():
        return cast("ProcessorMixin", AutoProcessor.from_pretrained(saved))
    if settings.model.pretrained is not None:
        try:
            return cast(
                "ProcessorMixin", AutoProcessor.from_pretrained(settings.model.pretrained, local_files_only=True)
            )
        except (OSError, ValueError):
            return None
    root, files = Path(settings.data.root), settings.data.train_files
    return build_processor(settings.model, read_texts(read_rows(root, files)) if _are_there(settings, files) else ())


def _estimates(
    settings: Settings, config: VideoLMMConfig, sizes: ModelSizes, workload: Workload, world_size: int
) -> dict[int, MemoryEstimate]:
    """Bytes of one rank at every ZeRO stage."""
    training = settings.training
    device = choose_device(training.device)
    precision = choose_precision(training, device)
    activations = estimate_activations(
        config,
        workload,
        trained_parts=sizes.trained_parts,
        value_bytes=2 if precision == "bf16" else 4,
        checkpointing=training.gradient_checkpointing,
    )
    estimates = {}
    for stage in STAGES:
        # A file of the user's own is for the stage asked for alone.
        changes: dict[str, Any] = (
            {} if stage == training.zero_stage else {"zero_stage": stage, "deepspeed_config": None}
        )
        estimates[stage] = estimate_memory(
            sizes,
            deepspeed_config(replace(training, **changes)),
            world_size=world_size,
            precision=precision,
            activations=activations,
            device=device,
        )
    return estimates


def _find_config(settings: Settings, processor: ProcessorMixin | None) -> VideoLMMConfig | None:
    """The model's configuration; None for a pretrained one that is not on this machine."""
    model = settings.model
    if model.pretrained is not None:
        try:
            lmm = AutoConfig.from_pretrained(model.pretrained, local_files_only=True)
        except (OSError, ValueError):
            return None
        if processor is None:
            module = vars(model.autoregressive_config) if model.enable_autoregressive else None
            return VideoLMMConfig(lmm_config=lmm, video_tokens=vars(model.token_layout), autoregressive_config=module)
    assert processor is not None  # only that of a pretrained model can be absent
    return build_config(model, processor)


def _find_backend(settings: Settings) -> Finding:
    reasons = available_backends()
    name = settings.data.backend
    if name != "auto" and reasons[name] is not None:
        return Finding("decoder", "FAIL", f"data.backend {name} cannot be used: {reasons[name]}")
    try:
        chosen = chosen_backend(name)
    except ImportError as error:
        return Finding("decoder", "FAIL", str(error))
    why = [f"{other} cannot be used ({reason})" for other, reason in reasons.items() if reason is not None]
    return Finding("decoder", "PASS", "; ".join([f"{chosen}, since data.backend is {name}", *why]))


def _is_missing(what: str, pretrained: str) -> str:
    """Says that a pretrained model's configuration or processor is not here, and what fetches both without weights."""
    if Path(pretrained).is_dir() or not HUB_NAME.fullmatch(pretrained):
        return f"there is no {what} in {pretrained}"
    patterns = " ".join(f"--include '{pattern}'" for pattern in SMALL_FILES)
    return (
        f"the {what} of {pretrained} is not on this machine; `uv run hf download {pretrained} {patterns}` fetches it "
        "without the weights"
    )


def _read_samples(
    settings: Settings, processor: ProcessorMixin, files: Sequence[str], name: str
) -> tuple[list[VideoSample], Finding]:
    """Some records of some files, spread over the data, and what was found under a name."""
    if not _are_there(settings, files):
        later = " yet; training writes the synthetic world" if settings.data.synthetic is not None else ""
        sizes = "; the longest sequence that is allowed is taken" if name == "records" else ""
        text = f"no {name} in {settings.data.root}{later}{sizes}"
        return [], Finding(name, "PASS" if later else "FAIL", text)
    module = settings.model.autoregressive_config if settings.model.enable_autoregressive else None
    family = family_of(processor, settings.model.token_layout)
    try:
        dataset = VideoDataset.open(settings.data, files, family, autoregressive=module)
    except ValueError as error:
        return [], Finding(name, "FAIL", str(error))
    count = min(NUM_SAMPLES, len(dataset))
    samples, problems = [], []
    for index in [place * len(dataset) // count for place in range(count)]:
        try:
            samples.append(dataset[index])
        except ValueError as error:
            problems.append(str(error))
    if problems:
        # Training may skip a bad record; evaluation does not.
        skipped = name == "records" and settings.data.on_error == "skip" and bool(samples)
        return samples, Finding(name, "WARN" if skipped else "FAIL", "; ".join(problems))
    if not samples:
        return [], Finding(name, "FAIL", f"{', '.join(files)}: no record that can be used")
    longest = max(samples, key=lambda sample: len(sample.input_ids))
    text = (
        f"{count} read, up to {len(longest.input_ids)} tokens and {max(sample.num_frames for sample in samples)} "
        f"frames, decoded in {max(sample.decode_ms for sample in samples):.0f} ms"
    )
    return samples, Finding(name, "PASS", text)


def _are_there(settings: Settings, files: Sequence[str]) -> bool:
    try:
        find_files(settings.data.root, files)
    except ValueError:
        return False
    return True
