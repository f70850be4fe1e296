"""Held-out evaluation: the heads' answers, the generated answers, and what can be had without looking."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from region_heads.decoding import decode
from region_heads.labels import Label, RegionPrediction
from region_heads.metrics import Baselines, RegionMetrics, within
from region_heads.tasks import TaskType
from region_training.ranks import Ranks
from region_training.tables import Table
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from spatialrgpt.answers import QuestionOnlyBaseline, parse_answer
from spatialrgpt.collate import RegionDataCollator
from spatialrgpt.config import EvaluationSettings
from spatialrgpt.data import RegionDataset, RegionSample
from spatialrgpt.model import SpatialRGPTForConditionalGeneration

MODEL_INPUTS = (
    "input_ids",
    "attention_mask",
    "pixel_values",
    "depth_values",
    "depth_images",
    "region_masks",
    "region_images",
    "region_geometry",
)
MEASURES = {
    "left_right/accuracy": "left_right accuracy",
    "multiple_choice/accuracy": "multiple_choice accuracy",
    "counting/accuracy": "counting accuracy",
    "distance/success_10": "distance within 10 %",
    "distance/success_25": "distance within 25 %",
    "distance/mae_m": "distance MAE (m)",
    "score": "mean of the four tasks",
}
"""The measures of the printed table; all others are in the run's results."""


@dataclass(frozen=True)
class AnsweredRecord:
    """One held-out question with everything that was said about it.

    Attributes:
        index: Position in the dataset.
        label: The truth.
        num_regions: Regions of the question.
        head: What the typed head answers.
        text: The generated sentence; None where generation was off.
        parsed: The typed answer read out of the sentence.
    """

    index: int
    label: Label
    num_regions: int
    head: RegionPrediction | None
    text: str | None
    parsed: RegionPrediction | None


@dataclass(frozen=True)
class Evaluation:
    """Answers to a split's questions, with their scores.

    Attributes:
        records: One entry per question with a label.
        baselines: Name -> scores of the answers that can be had without looking.
    """

    records: list[AnsweredRecord]
    baselines: dict[str, dict[str, float]]

    @cached_property
    def heads(self) -> RegionMetrics | None:
        """Scores of the typed heads; None without heads."""
        answers = [record.head for record in self.records]
        return None if all(answer is None for answer in answers) else _score(self.records, answers)

    @cached_property
    def text(self) -> RegionMetrics | None:
        """Scores of the parsed sentences; None where none was generated."""
        spoken = [record for record in self.records if record.text is not None]
        return _score(spoken, [record.parsed for record in spoken]) if spoken else None

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """Scores by who answered: `heads`, `text`, and every baseline."""
        own = {"heads": self.heads, "text": self.text}
        return {name: metrics.compute() for name, metrics in own.items() if metrics is not None} | self.baselines

    def table(self) -> Table:
        """The main measures, with the baselines beside them."""
        rows = [
            (title, *(scores.get(key) for scores in self.scores.values()))
            for key, title in MEASURES.items()
            if any(key in scores for scores in self.scores.values())
        ]
        return Table(f"{len(self.records)} held-out questions", ("measure", *self.scores), tuple(rows))

    def agreement(self) -> float | None:
        """Share of the generated answers that say the same as the head (distances: within ten per cent)."""
        pairs = [(item.head, item.parsed) for item in self.records if item.head is not None and item.parsed is not None]
        return sum(_same(head, parsed) for head, parsed in pairs) / len(pairs) if pairs else None


def evaluate(
    model: SpatialRGPTForConditionalGeneration,
    dataset: RegionDataset,
    settings: EvaluationSettings,
    *,
    train_dataset: RegionDataset | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Answer a split's questions and score the answers.

    Args:
        model: The model, in evaluation mode, on its device.
        dataset: The held-out records, opened without answers.
        settings: How many questions, and for how many the text is generated.
        train_dataset: What the baselines are fitted on; without it there are none.
        ranks: The processes that share the work; each runs the model equally often and returns everything.
    """
    count = min(settings.max_records or len(dataset), len(dataset))
    rank, world_size = (0, 1) if ranks is None else (ranks.rank, ranks.world_size)
    # Spread over the split, so that a part of it holds all scenes and tasks; the end is repeated to fill all ranks up.
    chosen = [index * len(dataset) // count for index in range(count)]
    share = [chosen[position % count] for position in range(rank, -(-count // world_size) * world_size, world_size)]
    generated = settings.generate_records if settings.generate_records >= 0 else count
    own = _answer(model, dataset, share, settings, -(-generated // world_size), show=rank == 0)
    gathered = [own] if ranks is None else ranks.gather(own)
    records = list({record.index: record for part in gathered for record in part}.values())
    return Evaluation(records, {} if train_dataset is None else _baselines(train_dataset, dataset, records))


@torch.no_grad()
def _answer(
    model: SpatialRGPTForConditionalGeneration,
    dataset: RegionDataset,
    indices: Sequence[int],
    settings: EvaluationSettings,
    num_generated: int,
    *,
    show: bool,
) -> list[AnsweredRecord]:
    tokenizer = dataset.processor.tokenizer
    collate = RegionDataCollator(tokenizer.pad_token_id, padding_side="left")
    loader = DataLoader(Subset(dataset, indices), batch_size=settings.batch_size, collate_fn=list)
    records: list[AnsweredRecord] = []
    num_seen = 0
    for samples in tqdm(loader, desc="answering", disable=not show, leave=False):
        inputs = model_inputs(collate(samples), model.device)
        tasks = torch.tensor([sample.task_type for sample in samples], device=model.device)
        # Padded on the left, every question ends with the batch.
        positions = torch.full_like(tasks, inputs["input_ids"].shape[1] - 1)
        output = model(**inputs, task_types=tasks, question_positions=positions)
        heads = [None] * len(samples) if output.regions is None else decode(output.regions)
        texts: Sequence[str | None] = [None] * len(samples)
        if num_seen < num_generated:
            new = model.generate(
                **inputs, max_new_tokens=settings.max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
            texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        num_seen += len(samples)
        for sample, head, text in zip(samples, heads, texts, strict=True):
            if sample.label is not None:
                records.append(_answered(sample, sample.label, head, text))
    return records


def model_inputs(batch: dict[str, object], device: torch.device) -> dict[str, torch.Tensor]:
    """The part of a collated batch that answering needs, on the model's device."""
    return {key: value.to(device) for key, value in batch.items() if key in MODEL_INPUTS and torch.is_tensor(value)}


def _answered(sample: RegionSample, label: Label, head: RegionPrediction | None, text: str | None) -> AnsweredRecord:
    num_regions = len(sample.region_masks)
    parsed = None if text is None else parse_answer(label.task, text, num_regions)
    return AnsweredRecord(sample.index, label, num_regions, head, text, parsed)


def _score(records: Sequence[AnsweredRecord], predictions: Sequence[RegionPrediction | None]) -> RegionMetrics:
    metrics = RegionMetrics()
    metrics.update(predictions, [record.label for record in records], [record.num_regions for record in records])
    return metrics


def _baselines(
    train_dataset: RegionDataset, dataset: RegionDataset, records: Sequence[AnsweredRecord]
) -> dict[str, dict[str, float]]:
    """Scores without looking: the words of the question alone, and constants."""
    labels = train_dataset.labels
    constants = Baselines.fit(labels)
    # A record without a label may be a bad one that training skipped; its question is not needed.
    labelled = [(index, label) for index, label in enumerate(labels) if label is not None]
    blind = QuestionOnlyBaseline(((train_dataset.question(index), label) for index, label in labelled), constants)
    by_words = [blind.predict(dataset.question(record.index), record.label.task) for record in records]
    by_constant = [constants.predict(record.label.task) for record in records]
    predictions = {"question only": by_words, "majority / mean": by_constant}
    return {name: _score(records, answers).compute() for name, answers in predictions.items()}


def _same(head: RegionPrediction, parsed: RegionPrediction) -> bool:
    if head.task is TaskType.DISTANCE:
        return within(float(parsed.value), float(head.value), 0.10)
    return head.value == parsed.value
