"""The engine's settings from the library's `TrainingArguments`, as a guide's call gives them.

What the engine does not read changes nothing, and is named in a warning where it was set.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from region_training.settings import ConfigError, TrainingSettings
from transformers import TrainingArguments

logger = logging.getLogger(__name__)

READ = frozenset(
    {
        *("output_dir", "seed", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
        *("gradient_accumulation_steps", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
        *("warmup_steps", "lr_scheduler_type", "max_grad_norm", "bf16", "fp16", "use_cpu", "deepspeed"),
        *("gradient_checkpointing", "activation_checkpointing", "logging_steps", "save_steps", "save_strategy"),
        *("save_total_limit", "dataloader_num_workers", "report_to", "resume_from_checkpoint"),
    }
)
"""Arguments that set something; `activation_checkpointing` is the newer name of `gradient_checkpointing`."""
SETTLED = frozenset(
    {
        *("remove_unused_columns", "dataloader_pin_memory", "disable_tqdm", "accelerator_config", "debug"),
        *("do_train", "ddp_find_unused_parameters", "ddp_backend", "local_rank"),
    }
)
"""Arguments that the library fills in by itself, or that change nothing that is learned."""
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}


def settings_of(args: TrainingArguments, frozen_parts: Sequence[str]) -> TrainingSettings:
    """The engine's settings from the library's arguments.

    Args:
        args: The arguments.
        frozen_parts: Parts that are not trained.

    Raises:
        ConfigError: An argument asks for what the engine does not have.
    """
    ignored = without_effect(args)
    if ignored and args.process_index == 0:
        logger.warning("TrainingArguments without effect here: %s", ", ".join(ignored))
    scheduler = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if scheduler not in _SCHEDULES:
        raise ConfigError(f"lr_scheduler_type: got {scheduler!r}, expected one of {', '.join(_SCHEDULES)}")
    if args.fp16:
        raise ConfigError("fp16: not supported, since its gradients overflow; use bf16")
    if args.deepspeed is not None and not isinstance(args.deepspeed, str):
        raise ConfigError(f"deepspeed: got a {type(args.deepspeed).__name__}, expected the path of a JSON file")
    stage: Any = 0
    if args.deepspeed is not None:
        stage = json.loads(Path(args.deepspeed).read_text()).get("zero_optimization", {}).get("stage", 0)
    resume = args.resume_from_checkpoint
    return TrainingSettings(
        seed=args.seed,
        num_epochs=float(args.num_train_epochs),
        max_steps=args.max_steps,
        micro_batch_size=args.per_device_train_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        learning_rate=float(args.learning_rate),
        frozen_parts=list(frozen_parts),
        weight_decay=float(args.weight_decay),
        adam_beta1=float(args.adam_beta1),
        adam_beta2=float(args.adam_beta2),
        adam_epsilon=float(args.adam_epsilon),
        warmup=float(args.warmup_steps),
        scheduler=_SCHEDULES[scheduler],  # ty: ignore[invalid-argument-type]
        max_grad_norm=float(args.max_grad_norm),
        precision="bf16" if args.bf16 else "fp32",
        device="cpu" if args.use_cpu else "auto",
        zero_stage=stage,
        deepspeed_config=args.deepspeed,
        gradient_checkpointing=bool(args.gradient_checkpointing),
        log_every=max(1, int(args.logging_steps)),
        save_every=int(args.save_steps) if args.save_strategy == "steps" else 0,
        keep_checkpoints=args.save_total_limit or 2,
        num_workers=args.dataloader_num_workers,
        report_to=[name for name in _as_list(args.report_to) if name != "none"],
        resume=resume if isinstance(resume, str) else "auto",
    )


def _as_list(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])


def without_effect(args: TrainingArguments) -> list[str]:
    """Names of arguments that differ from the library's defaults and that nothing here reads; values may be secret."""
    names = [
        entry.name
        for entry in fields(args)
        if entry.name not in READ | SETTLED and getattr(args, entry.name) != _default(entry)
    ]
    return names if args.save_strategy in ("steps", "no") else [*names, "save_strategy"]


def _default(entry: Field) -> object:
    if entry.default_factory is not MISSING:
        return entry.default_factory()
    return None if entry.default is MISSING else entry.default
