"""What does `region_training` cost beside a plain HF Trainer with DeepSpeed?

Both train the same toy model on the same samples with the same DeepSpeed preset and AdamW, in one process and in turn;
the engine also counts and logs loss terms, keeps parts frozen, agrees on signals and looks for numbers that are not
finite, in every step. Time runs from the end of one step to the end of the next, logging every ten steps included,
checkpoints not; the first steps of each run are left out. Ratios are per round, the last line is their median.

    uv run --no-sync python benchmarks/engine_overhead.py --rounds 5 --steps 40
"""

import argparse
import logging
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from region_core.losses import LossTerms
from region_training.deepspeed_presets import deepspeed_config
from region_training.engine import TrainingJob, train
from region_training.ranks import join_ranks
from region_training.settings import TrainingSettings
from region_training.trainer import ZeroEngine
from stopwatch import Stopwatch, options_of
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import ModelOutput

WARM_UP_STEPS = 5


class ToyConfig(PreTrainedConfig):
    """Sizes of the toy model."""

    model_type = "region_training_benchmark"
    hidden_size: int = 1024
    num_layers: int = 6


@dataclass
class ToyOutput(ModelOutput):
    """The loss, and for the engine its two terms."""

    loss: Tensor | None = None
    losses: LossTerms | None = None


class ToyModel(PreTrainedModel):
    """Linear layers and two loss terms.

    Args:
        config: Its sizes.
    """

    config_class = ToyConfig
    main_input_name = "inputs"

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.body = nn.ModuleList(nn.Linear(width, width) for _ in range(config.num_layers))
        self.head = nn.Linear(width, 1)
        self.post_init()

    def forward(self, inputs: Tensor, targets: Tensor, loss_counts: dict[str, float] | None = None) -> ToyOutput:
        """Regress the targets."""
        hidden = inputs.to(self.head.weight.dtype)
        for layer in self.body:
            hidden = torch.relu(layer(hidden)) + hidden
        error = self.head(hidden).squeeze(-1).float() - targets
        losses = LossTerms()
        losses.add("square", error.square().sum(), len(targets))
        losses.add("absolute", error.abs().sum(), len(targets), 0.5)
        return ToyOutput(losses.weighted_total(loss_counts), losses)


class ToyData(Dataset):
    """Random rows.

    Args:
        num_samples: Their number.
        width: Their width.
    """

    def __init__(self, num_samples: int, width: int) -> None:
        self.rows = torch.randn(num_samples, width, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        """How many there are."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        """One row."""
        return self.rows[index]


def collate(samples: list[Tensor]) -> dict:
    """The model's own inputs."""
    inputs = torch.stack(samples)
    return {"inputs": inputs, "targets": inputs[:, 0]}


def collate_for_engine(samples: list[Tensor]) -> dict:
    """What the engine wants beside them."""
    counts = {"square": len(samples), "absolute": len(samples)}
    return collate(samples) | {"record_ids": [str(i) for i in range(len(samples))], "loss_counts": counts}


class StepEnds(TrainerCallback):
    """Notes when each step ends.

    Args:
        watch: The clock.
    """

    def __init__(self, watch: Stopwatch) -> None:
        self.seconds: list[float] = []
        self._watch = watch

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Read the clock."""
        self.seconds.append(self._watch.seconds())

    def seconds_per_step(self) -> float:
        """Mean over the steps after the first ones."""
        timed = self.seconds[WARM_UP_STEPS:]
        return (timed[-1] - timed[0]) / (len(timed) - 1)


def run_plain(config: ToyConfig, settings: TrainingSettings, data: ToyData, folder: Path, ends: StepEnds) -> None:
    """HF's Trainer with DeepSpeed, as one writes it by hand."""
    on_cpu = settings.device == "cpu"
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu else "nccl",
        bf16=not on_cpu,
        deepspeed=deepspeed_config(settings),
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.micro_batch_size,
        learning_rate=settings.learning_rate,
        optim="adamw_torch" if on_cpu else "adamw_torch_fused",
        lr_scheduler_type="cosine",
        logging_steps=settings.log_every,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
        report_to="none",
    )
    torch.manual_seed(settings.seed)
    trainer = Trainer(model=ToyModel(config), args=args, train_dataset=data, data_collator=collate, callbacks=[ends])
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
        cast("ZeroEngine", trainer.model_wrapped).destroy()
    finally:
        unset_hf_deepspeed_config()


def run_engine(config: ToyConfig, settings: TrainingSettings, data: ToyData, folder: Path, ends: StepEnds) -> None:
    """The same training by `region_training`."""
    job = TrainingJob(
        build_model=lambda: ToyModel(config),
        train_dataset=data,
        collate=collate_for_engine,
        parts={"body": ("body.",), "head": ("head.",)},
        callbacks=(ends,),
    )
    train(job, settings, folder)


def compare(options: argparse.Namespace, watch: Stopwatch, folder: Path) -> None:
    """Train in turn and print a line per round."""
    settings = TrainingSettings(
        device=options.device,
        max_steps=options.steps + WARM_UP_STEPS + 1,
        micro_batch_size=options.batch_size,
        learning_rate=1e-4,
        zero_stage=options.zero_stage,
        save_every=0,
    )
    join_ranks(options.device, settings.communication_timeout_s)
    torch.set_num_threads(options.threads)
    config = ToyConfig(hidden_size=options.dim, num_layers=options.layers)
    data = ToyData(settings.max_steps * options.batch_size, options.dim)
    ratios, costs = [], []
    print("| round | plain ms per step | region_training ms per step | more ms | more |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for number in range(1, options.rounds + 1):
        # Who goes first changes from round to round: a machine that slows down shall not decide.
        runs = {}
        for run in (run_plain, run_engine) if number % 2 else (run_engine, run_plain):
            ends = StepEnds(watch)
            run(config, settings, data, folder / f"{run.__name__}-{number}", ends)
            runs[run] = ends.seconds_per_step()
        plain, engine = 1000 * runs[run_plain], 1000 * runs[run_engine]
        ratios.append(engine / plain - 1)
        costs.append(engine - plain)
        print(f"| {number} | {plain:.2f} | {engine:.2f} | {costs[-1]:.2f} | {ratios[-1]:.1%} |", flush=True)
    print(f"| median | | | {statistics.median(costs):.2f} | {statistics.median(ratios):.1%} |")


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = options_of(__doc__)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--zero-stage", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(words)
    if options.quick:
        options.dim, options.layers, options.batch_size, options.steps, options.rounds = 8, 1, 2, 3, 1
    watch = Stopwatch(options.device, options.threads)
    logging.getLogger("region_training").setLevel(logging.ERROR)
    print(
        f"{watch.describe()}; {options.layers} layers {options.dim} wide, batch {options.batch_size}, "
        f"ZeRO-{options.zero_stage}"
    )
    with tempfile.TemporaryDirectory() as folder:
        compare(options, watch, Path(folder))


if __name__ == "__main__":
    main()
