"""`AutoregressiveTrainer`: the engine's trainer, with the guide's names in the log and the guide's call.

    trainer = AutoregressiveTrainer(
        model=model, args=TrainingArguments(output_dir="out", num_train_epochs=3, bf16=True),
        train_dataset=dataset, enable_autoregressive=True,
    )
    trainer.train()

The loss terms are the model's; nothing is added here, so their gradients do not depend on accumulation steps or ranks.
What is logged as `autoregressive_loss` is the weighted term: `main_loss` and it add up to `total_loss`.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from region_core.losses import LossTerms
from region_training.engine import Preparation, TrainingJob, TrainingResult, prepare, run
from region_training.loss_log import LossLog
from region_training.ranks import Ranks
from region_training.run_folder import RunFolder
from region_training.safe_dataset import SizedDataset
from region_training.settings import ConfigError
from region_training.trainer import RegionTrainer, TrainerParts
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.utils import ModelOutput
from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.layout import FrameBatch
from video_autoregressive.targets import COPY_TERM, term_names

from lmms.building import parts_of
from lmms.causality import check_causality, check_samples
from lmms.collate import VideoCollator
from lmms.data import VideoDataset
from lmms.hf_arguments import settings_of
from lmms.model import VideoLMM
from lmms.teachers import agree_on_teacher
from lmms.training_data import training_samples

logger = logging.getLogger(__name__)

USUAL_RATIO = (0.01, 0.25)
"""Share of the reconstruction loss in the main one below and above which it does nothing, or everything."""
WEIGHTED = "weighted"
"""Begins the names under which the weighted terms are added up; they are not logged."""
JUDGED_LINES = range(5, 21)
"""Lines of the log in which the share is judged: before them the module has not learned the features' size, and once
the answers are learned the main loss says nothing about it."""


class VideoLossLog(LossLog):
    """The engine's log with the names of the guide beside its own.

    Args:
        ranks: The ranks to add up with.
        main_weight: Weight of the language model's loss.
        settings: The reconstruction module's; None without it.
    """

    def __init__(self, ranks: Ranks, main_weight: float, settings: AutoregressiveConfig | None) -> None:
        super().__init__(ranks)
        self.weight = 0.0
        """Weight of the reconstruction loss in the current step."""
        self._everybody = ranks
        self._main_weight = main_weight
        self._terms = [] if settings is None else term_names(settings)
        self._num_lines, self._warned = 0, False
        self._begin()

    def _begin(self) -> None:
        self._since, self._num_frames = time.monotonic(), 0
        self._decode_ms: list[float] = []
        self._targets: Tensor | int | float = 0

    def note_batch(self, num_frames: int, decode_ms: Sequence[float]) -> None:
        """Count the frames of a micro-batch, and the time that decoding each of its samples took."""
        self._num_frames += num_frames
        self._decode_ms += decode_ms

    def add(self, loss: Tensor, terms: LossTerms, expected: Mapping[str, float] | None) -> None:
        """Add one micro-batch."""
        # Counted beside the terms themselves, since the weight may be another one in every step.
        weighted = LossTerms(terms)
        for name in self._terms:
            if name in terms:
                weighted.add(f"{WEIGHTED}/{name}", self.weight * terms[name].total, terms[name].count)
        super().add(loss, weighted, expected)
        if COPY_TERM in terms:
            self._targets = self._targets + terms[COPY_TERM].count

    def drain(self) -> tuple[dict[str, float], list[str]]:
        """Add up over the ranks and start anew; every rank must call it.

        Returns:
            The engine's values and `main_loss`, `autoregressive_loss` (weighted, each step by its own weight),
            `total_loss`, `autoregressive_loss_raw`, `ar_copy_loss`, `ar_skill` (1 - raw / copy at the first scale),
            `ar_targets` (tokens compared), `ar_ratio` (autoregressive to main), `frames_per_s` and `decode_ms`; what
            had no items is absent. And the engine's sentences.
        """
        values, surprises = super().drain()
        seconds = time.monotonic() - self._since
        reports = self._everybody.gather(
            (self._num_frames, sum(self._decode_ms), len(self._decode_ms), float(self._targets))
        )
        frames, decode_ms, samples, targets = (sum(column) for column in zip(*reports, strict=True))
        self._begin()
        if not values:
            return values, surprises
        values["frames_per_s"] = frames / max(seconds, 1e-9)
        if samples:
            values["decode_ms"] = decode_ms / samples
        values["total_loss"] = 0.0
        if "loss/main" in values:
            values["main_loss"] = self._main_weight * values["loss/main"]
            values["total_loss"] = values["main_loss"]
        scales = [values[f"loss/{name}"] for name in self._terms if f"loss/{name}" in values]
        weighted = [values.pop(key) for name in self._terms if (key := f"loss/{WEIGHTED}/{name}") in values]
        if scales:
            self._describe(values, scales, weighted, targets)
        return values, surprises

    def _describe(
        self, values: dict[str, float], scales: Sequence[float], weighted: Sequence[float], targets: float
    ) -> None:
        """Add what there is to say about the reconstruction loss."""
        raw, copy = sum(scales) / len(scales), values[f"loss/{COPY_TERM}"]
        values["autoregressive_loss_raw"] = raw
        values["autoregressive_loss"] = sum(weighted) / len(weighted)
        values["total_loss"] += values["autoregressive_loss"]
        values["ar_copy_loss"] = copy
        values["ar_targets"] = targets
        if copy > 0:
            values["ar_skill"] = 1 - scales[0] / copy
        if values.get("main_loss", 0.0) > 0:
            ratio = values["ar_ratio"] = values["autoregressive_loss"] / values["main_loss"]
            low, high = USUAL_RATIO
            self._num_lines += 1
            judged = self.weight > 0 and self._num_lines in JUDGED_LINES and self._everybody.is_first
            if judged and not self._warned and not low <= ratio <= high:
                logger.warning(
                    "the reconstruction loss is %.3g of the main loss, outside %g to %g: change loss_weight (%g)",
                    ratio,
                    low,
                    high,
                    self.weight,
                )
                self._warned = True


class AutoregressiveTrainer(RegionTrainer):
    """Trains a `VideoLMM`.

    Args:
        model: The model.
        args: In the guide's call the caller's arguments; else HF's, made by the engine.
        own: Everything that HF does not know; None in the guide's call.
        train_dataset: The guide's call: a `VideoDataset`, or another one with `data_collator`.
        data_collator: The guide's call: by default the `VideoCollator` of the dataset's family.
        enable_autoregressive: Whether the reconstruction loss counts. In the guide's call it is off by default, and its
            module then stays as it is; the engine leaves it to the model.
        callbacks: The guide's call: further callbacks.

    The guide's call checks what `lmms train` checks: that the model is causal, on the data's own frames, and that its
    teacher is the same after a resume. A `VideoDataset` is read by its settings (`on_error`, `packing`), and bad
    records are counted in `bad_records.jsonl` in the output folder.

    Raises:
        ConfigError: The model has no reconstruction module, or the arguments ask for what the engine does not have.
        ValueError: The model looks ahead, the teacher has changed, or the samples cannot be packed.
    """

    network: VideoLMM
    loss_log: VideoLossLog

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        own: TrainerParts | None = None,
        *,
        train_dataset: Dataset | None = None,
        data_collator: Callable[[list], dict] | None = None,
        enable_autoregressive: bool | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        if not isinstance(model, VideoLMM):
            raise TypeError(
                f"model: got {type(model).__name__}, expected a VideoLMM: lmms.wrap_model(model, processor, "
                "AutoregressiveConfig(embedding_dim=...)) makes one of a model that is loaded, lmms.build_model of "
                "settings"
            )
        module = model.autoregressive_module
        if enable_autoregressive and module is None:
            raise ConfigError(
                "enable_autoregressive: the model has no autoregressive_module; build it with "
                "model.enable_autoregressive true"
            )
        self._guide: tuple[TrainingJob, Preparation] | None = None
        if own is None:
            enable_autoregressive = bool(enable_autoregressive)
            if train_dataset is None:
                raise ConfigError("train_dataset: got none")
            guided, run = model, RunFolder(str(args.output_dir))
            settings = settings_of(args, _frozen_parts(model, enable_autoregressive))
            job = _job_of(model, train_dataset, data_collator, callbacks, run, settings.seed, enable_autoregressive)
            prepared = prepare(job, settings, run.path)
            self._guide = job, prepared
            model, args, own = prepared.model, prepared.args, prepared.own
            if enable_autoregressive:
                agree_on_teacher(guided, run.path, own.ranks)
        super().__init__(model, args, own)
        if module is not None and args.bf16:
            module.teacher.cast(torch.bfloat16)
        self._enabled = module is not None if enable_autoregressive is None else enable_autoregressive
        config = self.network.config
        settings = config.autoregressive if self._enabled else None
        self.loss_log = VideoLossLog(own.ranks, config.main_loss_weight, settings)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train: in the guide's call the whole run with checkpoints and export, whose `TrainingResult` is returned."""
        if self._guide is None:
            return super().train(*args, **kwargs)
        (job, prepared), self._guide = self._guide, None
        return self._run_guide(job, prepared)

    def _run_guide(self, job: TrainingJob, prepared: Preparation) -> TrainingResult:
        # It calls `train` again, which is the library's then.
        return run(self, job, prepared)

    def autoregressive_weight(self) -> float:
        """Weight of the reconstruction loss in this step, after the schedule."""
        module = self.network.autoregressive_module
        if module is None or not self._enabled:
            return 0.0
        warmup = module.config.weight_warmup * self.state.max_steps
        if module.config.weight_schedule == "constant" or warmup <= 0:
            return module.loss_weight
        return module.loss_weight * min(1.0, (self.state.global_step + 1) / warmup)

    def _prepare_inputs(self, inputs: Mapping[str, object]) -> dict[str, object]:
        """Move a batch to the device, but not the frames' layout: kept here, it makes no step wait for the device."""
        prepared = super()._prepare_inputs({name: value for name, value in inputs.items() if name != "frames"})
        return {**prepared, "frames": inputs["frames"]}

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, object],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, ModelOutput]:
        """Run the model with the weight of this step."""
        given = dict(inputs)
        decode_ms, frames = given.pop("decode_ms", ()), given["frames"]
        self.loss_log.note_batch(frames.num_frames if isinstance(frames, FrameBatch) else 0, list(decode_ms))  # ty: ignore[invalid-argument-type]
        self.loss_log.weight = given["autoregressive_weight"] = self.autoregressive_weight()
        return super().compute_loss(model, given, return_outputs, num_items_in_batch)


def _frozen_parts(model: VideoLMM, enable_autoregressive: bool) -> list[str]:
    """Parts of which nothing asks for a gradient, and the reconstruction module if it is off."""
    frozen = []
    for part, prefixes in parts_of(model.config).items():
        own = [parameter for name, parameter in model.named_parameters() if name.startswith(prefixes)]
        if (part == "autoregressive" and not enable_autoregressive) or not any(p.requires_grad for p in own):
            frozen.append(part)
    return frozen


def _job_of(
    model: VideoLMM,
    dataset: Dataset,
    collate: Callable[[list], dict] | None,
    callbacks: Sequence[TrainerCallback],
    run: RunFolder,
    seed: int,
    enable_autoregressive: bool,
) -> TrainingJob:
    """The engine's job from the guide's arguments: what `lmms train` does with the same data, and its checks."""
    processor, samples, fingerprint = None, dataset, ""
    if isinstance(dataset, VideoDataset):
        processor = dataset.family.processor
        collate = collate or VideoCollator(
            processor.tokenizer.pad_token_id, dataset.family, autoregressive=model.config.autoregressive
        )
        samples = training_samples(dataset, counted_in=run.bad_records_path, seed=seed)
        fingerprint = dataset.rows.fingerprint
    if collate is None:
        raise ConfigError(f"data_collator: needed for a {type(dataset).__name__}; a VideoDataset brings its own")
    batch_of = collate

    def build() -> VideoLMM:
        if not enable_autoregressive:
            return model
        if isinstance(dataset, VideoDataset):
            check_causality(model, dataset)
        else:
            check_samples(model, cast("SizedDataset[Any]", dataset), batch_of)
        return model

    return TrainingJob(
        build_model=build,
        train_dataset=samples,
        collate=collate,
        parts=parts_of(model.config),
        processor=processor,
        dataset_fingerprint=fingerprint,
        callbacks=tuple(callbacks),
        trainer_class=AutoregressiveTrainer,
    )
