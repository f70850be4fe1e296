"""Settings of a training run. No torch here: the command line reads this module for its help and its errors.

Defaults live here and nowhere else. A value that cannot work raises `ConfigError` with the setting's name, what was
got and what is expected, before anything heavy is imported.
"""

import math
from dataclasses import dataclass, field
from typing import Literal


class ConfigError(ValueError):
    """A setting that cannot work; the message names the setting, what was got and what is expected."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained; the same for every application.

    Attributes:
        seed: Seed of the weights, the data order and dropout.
        num_epochs: Passes over the training data; may be a fraction.
        max_steps: Optimizer steps; above 0 it wins over `num_epochs`.
        micro_batch_size: Samples per rank in one forward-backward.
        gradient_accumulation_steps: Micro-batches per rank in one optimizer step.
        learning_rate: Peak learning rate of every part without one of its own.
        part_learning_rates: Peak learning rate by part name.
        frozen_parts: Names of the parts that are not trained: no gradient, no optimizer state, dropout off.
        weight_decay: AdamW weight decay of matrices; norms, biases, gates and other vectors have none.
        adam_beta1: Decay of AdamW's first moment.
        adam_beta2: Decay of AdamW's second moment.
        adam_epsilon: AdamW's epsilon.
        warmup: Steps of linear warm-up; a value below 1 is a share of all steps.
        scheduler: Shape of the learning rate after warm-up.
        max_grad_norm: Gradients are clipped to this global norm; 0 leaves them.
        precision: `auto` is bf16 on CUDA and fp32 on CPU; bf16 keeps fp32 master weights.
        device: `auto` is CUDA where there is one.
        zero_stage: DeepSpeed ZeRO stage: 0 nothing, 1 optimizer state, 2 gradients, 3 parameters are partitioned.
        deepspeed_config: A DeepSpeed JSON file that replaces the preset of `zero_stage`.
        gradient_checkpointing: Recompute activations in backward: less memory, about a third more time.
        log_every: Steps between two lines of metrics.jsonl.
        save_every: Steps between two checkpoints; 0 saves at the end only.
        evaluate_every: Steps between two evaluations; 0 evaluates at the end only.
        keep_checkpoints: Number of newest checkpoints that are kept.
        num_workers: Data loading processes per rank; 0 loads in the training process.
        report_to: Trackers of the HF Trainer (`tensorboard`, `wandb`, ...); their packages must be installed.
        resume: `auto` continues from the newest checkpoint that verifies, `never` starts anew, a path continues from
            that checkpoint.
        communication_timeout_s: A collective that waits longer for another rank ends the run.
    """

    seed: int = 0
    num_epochs: float = 1.0
    max_steps: int = -1
    micro_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-5
    part_learning_rates: dict[str, float] = field(default_factory=dict)
    frozen_parts: list[str] = field(default_factory=list)
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    warmup: float = 0.03
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    max_grad_norm: float = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    zero_stage: Literal[0, 1, 2, 3] = 2
    deepspeed_config: str | None = None
    gradient_checkpointing: bool = False
    log_every: int = 10
    save_every: int = 500
    evaluate_every: int = 0
    keep_checkpoints: int = 2
    num_workers: int = 0
    report_to: list[str] = field(default_factory=list)
    resume: str = "auto"
    communication_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ConfigError: A value cannot work.
        """
        for name in ("micro_batch_size", "gradient_accumulation_steps", "log_every", "keep_checkpoints"):
            self._expect(name, vars(self)[name] >= 1, "1 or more")
        for name in ("seed", "save_every", "evaluate_every", "num_workers"):
            self._expect(name, vars(self)[name] >= 0, "0 or more")
        for name in ("learning_rate", "weight_decay", "warmup", "max_grad_norm"):
            self._expect(name, _at_least_zero(vars(self)[name]), "a finite number of 0 or more")
        for name in ("adam_beta1", "adam_beta2"):
            self._expect(name, 0 <= vars(self)[name] < 1, "a number in [0, 1)")
        for name in ("adam_epsilon", "communication_timeout_s", "num_epochs"):
            self._expect(name, 0 < vars(self)[name] < math.inf, "a finite number above 0")
        self._expect("max_steps", self.max_steps == -1 or self.max_steps > 0, "above 0, or -1 for `num_epochs`")
        self._expect("warmup", self.warmup < 1 or float(self.warmup).is_integer(), "a share below 1 or whole steps")
        self._expect("scheduler", self.scheduler in ("cosine", "linear", "constant"), "cosine, linear or constant")
        self._expect("precision", self.precision in ("auto", "bf16", "fp32"), "auto, bf16 or fp32")
        self._expect("device", self.device in ("auto", "cpu", "cuda"), "auto, cpu or cuda")
        self._expect("zero_stage", self.zero_stage in (0, 1, 2, 3), "0, 1, 2 or 3")
        self._expect("resume", bool(self.resume), "auto, never or the path of a checkpoint")
        for part, rate in self.part_learning_rates.items():
            if not _at_least_zero(rate):
                raise ConfigError(
                    f"training.part_learning_rates.{part}: got {rate!r}, expected a finite number of 0 or more"
                )
        self._expect("frozen_parts", len(set(self.frozen_parts)) == len(self.frozen_parts), "every name once")
        both = sorted(set(self.frozen_parts) & set(self.part_learning_rates))
        if both:
            raise ConfigError(
                f"training.part_learning_rates: got rates for {both}, which training.frozen_parts freezes; "
                "expected each part in one of the two"
            )

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ConfigError(f"training.{name}: got {vars(self)[name]!r}, expected {expected}")


def _at_least_zero(value: float) -> bool:
    return 0 <= value < math.inf
