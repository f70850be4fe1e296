"""The guide's configuration files: a YAML list of `{type: trainer, config: {...}}`, as lmms-engine reads them.

Every key is known here: it sets something, is known to have no effect in this application (and then says so by name),
or is an error with the nearest known key. Nothing is passed on unread: upstream, a misspelt key was an attribute that
nobody looked at.
"""

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from region_training.presets import did_you_mean
from region_training.settings import ConfigError

logger = logging.getLogger(__name__)

Keys = Mapping[str, str | None]

AUTOREGRESSIVE = "autoregressive_trainer"
TRAINER_TYPES = (AUTOREGRESSIVE, "hf_trainer", "fsdp2_trainer")
TRAINING_KEYS: Keys = MappingProxyType(
    {
        "output_dir": "run_dir",
        "num_train_epochs": "training.num_epochs",
        "max_steps": "training.max_steps",
        "per_device_train_batch_size": "training.micro_batch_size",
        "gradient_accumulation_steps": "training.gradient_accumulation_steps",
        "learning_rate": "training.learning_rate",
        "weight_decay": "training.weight_decay",
        "adam_beta1": "training.adam_beta1",
        "adam_beta2": "training.adam_beta2",
        "adam_epsilon": "training.adam_epsilon",
        "warmup_ratio": "training.warmup",
        "warmup_steps": "training.warmup",
        "lr_scheduler_type": "training.scheduler",
        "max_grad_norm": "training.max_grad_norm",
        "gradient_checkpointing": "training.gradient_checkpointing",
        "logging_steps": "training.log_every",
        "save_steps": "training.save_every",
        "eval_steps": "training.evaluate_every",
        "save_total_limit": "training.keep_checkpoints",
        "dataloader_num_workers": "training.num_workers",
        "deepspeed": "training.deepspeed_config",
        "seed": "training.seed",
        "report_to": "training.report_to",
        "freeze_modules": "training.frozen_parts",
        # What our engine settles by itself, or does always.
        "per_device_eval_batch_size": None,
        "remove_unused_columns": None,
        "dataloader_pin_memory": None,
        "save_strategy": None,
        "eval_strategy": None,
        "logging_strategy": None,
        "run_name": None,
        "tf32": None,
        "ddp_find_unused_parameters": None,
        "gradient_checkpointing_kwargs": None,
        "group_by_length": None,
        "use_liger_kernel": None,
        "use_rmpad": None,
        "include_num_input_tokens_seen": None,
        "split_batches": None,
    }
)
MODEL_KEYS: Keys = MappingProxyType(
    {
        "load_from_pretrained_path": "model.pretrained",
        "load_from_config": "model.config",
        "enable_autoregressive": "model.enable_autoregressive",
        "autoregressive_config": "model.autoregressive_config",
        "attn_implementation": None,
        "torch_dtype": None,
    }
)
DATA_KEYS: Keys = MappingProxyType(
    {
        "dataset_path": "data.train_files",
        "data_folder": "data.root",
        "frame_num": "data.max_frames",
        "video_max_frames": "data.max_frames",
        "fps": "data.fps",
        "video_backend": "data.backend",
        "packing": "data.packing",
        "packing_length": "data.max_length",
        "dataset_type": None,
        "dataset_format": None,
        "shuffle": None,
        "packing_strategy": None,
        "video_max_pixels": None,
        "object_storage": None,
        "bucket_name": None,
    }
)
PROCESSOR_KEYS: Keys = MappingProxyType({"processor_name": "model.tokenizer", "processor_type": None})
EXTRA_KEYS: Keys = MappingProxyType(
    {
        "frames_upbound": "data.max_frames",
        "add_time_instruction": "data.time_instruction",
        "mm_spatial_pool_stride": "model.video_tokens.pool_stride",
        "mm_spatial_pool_mode": "model.video_tokens.pool_mode",
        "mm_newline_position": "model.video_tokens.newline",
        "faster_token_stride": "model.video_tokens.faster_stride",
        "force_sample": None,
    }
)
PART_OF_MODULE = MappingProxyType(
    {
        "visual": "vision_tower",
        "vision_tower": "vision_tower",
        "vision_model": "vision_tower",
        "multi_modal_projector": "projector",
        "mm_projector": "projector",
        "merger": "projector",
        "language_model": "language_model",
    }
)
"""Modules that the guide's files freeze, and the parts that they are here."""


class Translation:
    """Settings found so far, by dotted key.

    Args:
        source: Name of the file, for errors.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._values: dict[str, object] = {}
        self._said_by: dict[str, str] = {}

    def put(self, key: str, value: object, said_by: str) -> None:
        """Set a dotted key.

        Raises:
            ConfigError: Another key of the file has set it to something else.
        """
        if key in self._values and self._values[key] != value:
            raise ConfigError(
                f"{self.source}: {said_by} is {value!r}, but {self._said_by[key]} has set {key} to "
                f"{self._values[key]!r}"
            )
        self._values[key] = value
        self._said_by[key] = said_by

    def has(self, key: str) -> bool:
        """Whether a dotted key has been set."""
        return key in self._values

    def tree(self) -> dict[str, object]:
        """The settings as nested mappings."""
        tree: dict[str, object] = {}
        for key, value in self._values.items():
            *sections, last = key.split(".")
            node = tree
            for section in sections:
                node = cast("dict[str, object]", node.setdefault(section, {}))
            node[last] = value
        return tree

    def take(self, values: Mapping[str, object], keys: Keys, where: str) -> None:
        """Read a section by its table of keys.

        Raises:
            ConfigError: A key is not in the table.
        """
        for name, value in values.items():
            if name not in keys:
                raise ConfigError(f"{self.source}: no key {where}.{name}{did_you_mean(name, list(keys))}")
            target = keys[name]
            if target is None:
                logger.warning("%s: %s.%s is known from the guide and has no effect here", self.source, where, name)
            elif value is not None:
                self.put(target, value, f"{where}.{name}")


def translate_config(entries: list[object], source: str) -> dict[str, object]:
    """Read a guide's list.

    Args:
        entries: The list.
        source: Name of the file, for errors.

    Returns:
        Settings as in our own files.

    Raises:
        ConfigError: It is not one trainer, or holds a key or a value that is not known.
    """
    trainers = [entry for entry in entries if isinstance(entry, Mapping) and entry.get("type") == "trainer"]
    if len(entries) != 1 or len(trainers) != 1:
        raise ConfigError(
            f"{source}: expected a list with one entry {{type: trainer, config: {{...}}}}, got {len(entries)} entries, "
            f"{len(trainers)} of them of type trainer"
        )
    (trainer,) = trainers
    if unknown := sorted(set(trainer) - {"type", "config"}):
        raise ConfigError(f"{source}: expected the keys type and config, got also {', '.join(map(str, unknown))}")
    config = dict(_mapping(trainer.get("config"), source, "config"))
    found = Translation(source)
    trainer_type = config.pop("trainer_type", None)
    if trainer_type not in (None, *TRAINER_TYPES):
        raise ConfigError(f"{source}: config.trainer_type is {trainer_type!r}, expected one of {TRAINER_TYPES}")
    if config.pop("trainer_args_type", "sft") != "sft":
        raise ConfigError(f"{source}: config.trainer_args_type: only sft is trained here")
    _take_model(found, config.pop("model_config", None))
    if trainer_type == AUTOREGRESSIVE and not found.has("model.enable_autoregressive"):
        logger.warning(
            "%s: %s without model_config.enable_autoregressive: true has no loss of its own", source, trainer_type
        )
    _take_data(found, config.pop("dataset_config", None))
    arguments = {**_mapping(config.pop("trainer_args", None), source, "config.trainer_args"), **config}
    _take_precision(found, arguments)
    if "freeze_modules" in arguments:
        arguments["freeze_modules"] = _frozen_parts(arguments["freeze_modules"], source)
    if isinstance(arguments.get("report_to"), str):
        arguments["report_to"] = [] if arguments["report_to"] == "none" else [arguments["report_to"]]
    found.take(arguments, TRAINING_KEYS, "config")
    return found.tree()


def _take_model(found: Translation, given: object) -> None:
    values = dict(_mapping(given, found.source, "config.model_config"))
    for name in ("overwrite_config", "monkey_patch_kwargs"):
        if values.pop(name, None):
            raise ConfigError(
                f"{found.source}: config.model_config.{name} sets attributes of the model that nobody checks; write "
                "model.video_tokens or model.autoregressive_config instead"
            )
    found.take(values, MODEL_KEYS, "config.model_config")


def _take_data(found: Translation, given: object) -> None:
    values = dict(_mapping(given, found.source, "config.dataset_config"))
    where = "config.dataset_config"
    strategy = values.pop("video_sampling_strategy", None)
    if strategy is not None:
        rules = {"fps": "fps", "frame_num": "uniform"}
        if strategy not in rules:
            raise ConfigError(
                f"{found.source}: {where}.video_sampling_strategy is {strategy!r}, expected one of {rules}"
            )
        found.put("data.sampling", rules[str(strategy)], f"{where}.video_sampling_strategy")
    if "filter_overlong" in values:
        # A record that is too long is a bad record; filtering is leaving bad records out.
        found.put("data.on_error", "skip" if values.pop("filter_overlong") else "raise", f"{where}.filter_overlong")
    if values.get("video_backend") == "qwen_vl_utils":
        values["video_backend"] = "auto"
    processor = dict(_mapping(values.pop("processor_config", None), found.source, f"{where}.processor_config"))
    extra = _mapping(processor.pop("extra_kwargs", None), found.source, f"{where}.processor_config.extra_kwargs")
    _take_datasets(found, values)
    if isinstance(values.get("dataset_path"), str):
        values["dataset_path"] = [values["dataset_path"]]
    found.take(values, DATA_KEYS, where)
    found.take(processor, PROCESSOR_KEYS, f"{where}.processor_config")
    found.take(extra, EXTRA_KEYS, f"{where}.processor_config.extra_kwargs")


def _take_datasets(found: Translation, values: dict[str, object]) -> None:
    """The inline list of data sets: their files, and one folder for all."""
    where = f"{found.source}: config.dataset_config.datasets"
    entries = values.pop("datasets", None)
    if entries is None:
        return
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{where}: expected a list of {{path, data_folder}}, got {entries!r}")
    files: list[str] = []
    for entry in entries:
        row = dict(_mapping(entry, found.source, "config.dataset_config.datasets"))
        path = row.pop("path", row.pop("json_path", None))
        if not isinstance(path, str):
            raise ConfigError(f"{where}: every data set needs a path, got {entry!r}")
        files.append(path)
        if (folder := row.pop("data_folder", None)) is not None:
            found.put("data.root", folder, "config.dataset_config.datasets.data_folder")
        row.pop("data_type", None)  # the file's ending says it
        if row:
            raise ConfigError(f"{where}: unknown keys {sorted(row)}; known are path, data_folder, data_type")
    found.put("data.train_files", files, "config.dataset_config.datasets")


def _take_precision(found: Translation, arguments: dict[str, object]) -> None:
    bf16, fp16 = arguments.pop("bf16", None), arguments.pop("fp16", None)
    if fp16:
        raise ConfigError(f"{found.source}: config.fp16: float16 is not trained in here; bf16: true is")
    if bf16 is not None:
        found.put("training.precision", "bf16" if bf16 else "fp32", "config.bf16")


def _frozen_parts(given: object, source: str) -> list[str]:
    names = given if isinstance(given, list) else [given]
    unknown = [name for name in names if name not in PART_OF_MODULE]
    if unknown:
        raise ConfigError(f"{source}: config.freeze_modules: unknown {unknown}, known are {', '.join(PART_OF_MODULE)}")
    return list(dict.fromkeys(PART_OF_MODULE[str(name)] for name in names))


def _mapping(value: object, source: str, where: str) -> Mapping[str, object]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{source}: {where} is {value!r}, expected a mapping")
    return value
