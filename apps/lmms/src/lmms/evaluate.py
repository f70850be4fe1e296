"""Held-out evaluation: generated answers and losses, with what they are worth without time and without the video.

Answers are compared word for word. Beside the model's stand its own with the frames shuffled and with another record's
video, which say how much rests on the order of time and on the video at all, and the most frequent answers to the same
words, which need no model. A record that cannot be read is an error here: a score over what is left of a data set is
not its score.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from region_training.ranks import Ranks
from region_training.tables import Table
from tqdm import tqdm

from lmms.answers import FORWARD_KEYS, AnsweredRecord, generate_answers, on_device
from lmms.collate import VideoCollator
from lmms.config import EvaluationSettings
from lmms.controls import ExchangingReader, RememberingReader, ShufflingReader, reading_with, videos_of_others
from lmms.data import VideoDataset
from lmms.model import VideoLMM
from lmms.records import Record
from lmms.sample import VideoSample
from lmms.scoring import LossSums, accuracies, headline_of
from lmms.trivial import QuestionOnly, questions_of

MODEL, SHUFFLED, OTHERS, BLIND = "model", "shuffled frames", "another video", "question only"


@dataclass(frozen=True)
class Evaluation:
    """The scores of held-out records.

    Attributes:
        scores: Who answered -> measure -> value: `KIND/accuracy`, `temporal` and `score` in percent, and the losses.
        records: One entry per record, in the order of the data.
    """

    scores: dict[str, dict[str, float]]
    records: list[AnsweredRecord] = field(default_factory=list)

    @property
    def headline(self) -> float:
        """The number that decides which of two models is better."""
        return headline_of(self.scores[MODEL])

    def table(self) -> Table:
        """The model's scores, with the controls and the blind answers beside them."""
        measures = dict.fromkeys(name for scores in self.scores.values() for name in scores)
        rows = [(name, *(scores.get(name) for scores in self.scores.values())) for name in measures]
        title = f"{len(self.records)} held-out records, accuracies in percent"
        return Table(title, ("measure", *self.scores), tuple(rows))


@dataclass(frozen=True)
class _View:
    """The records as one answerer sees them.

    Attributes:
        prompts: Without answers, for generating.
        whole: With answers, for the losses; None where they say nothing.
        asked: Indices of the records that it is asked about; for the others it sees what the model sees.
    """

    prompts: VideoDataset
    whole: VideoDataset | None
    asked: frozenset[int]


def evaluate(
    model: VideoLMM,
    dataset: VideoDataset,
    settings: EvaluationSettings,
    *,
    train_records: Iterable[Record] = (),
    ranks: Ranks | None = None,
) -> Evaluation:
    """Answer held-out questions and score the answers.

    Args:
        model: The model, in evaluation mode, on its device.
        dataset: The held-out records, with answers; the first answer of each is the true one.
        settings: How many records, how many at a time, and whether with controls.
        train_records: What the blind answers are fitted on; without any there is no such row.
        ranks: The processes that share the work; each runs the model equally often and returns everything.
    """
    count = min(settings.max_records or len(dataset), len(dataset))
    # Spread over the data, so that a part of it holds all kinds.
    chosen = [index * len(dataset) // count for index in range(count)]
    views = _views(dataset, chosen, controls=settings.controls, has_module=model.computes_autoregressive_loss)
    rank, world_size = (0, 1) if ranks is None else (ranks.rank, ranks.world_size)
    batches = batches_of(count, settings.batch_size, rank, world_size)
    said: dict[int, dict[str, str]] = {}
    sums = {name: LossSums() for name in views}
    for positions, is_repeated in tqdm(batches, desc="evaluating", disable=rank != 0, leave=False):
        indices = [chosen[position] for position in positions]
        answers, losses = _ask(model, views, indices, settings.max_new_tokens)
        if not is_repeated:
            said |= answers
            for name, own in losses.items():
                sums[name].merge(own)
    parts = [(said, sums)] if ranks is None else ranks.gather((said, sums))
    joined = {name: LossSums() for name in views}
    for _, own in parts:
        for name, found in own.items():
            joined[name].merge(found)
    everything = {index: answers for part, _ in parts for index, answers in part.items()}
    return _score(dataset, everything, joined, train_records)


def batches_of(count: int, batch_size: int, rank: int, world_size: int) -> list[tuple[list[int], bool]]:
    """Positions that a rank works on, batch by batch, and whether a batch is there for company only.

    Every rank has equally many batches. Where the records do not divide, the last batch of every rank is a single
    record, for some ranks one that another rank has too.
    """
    rounds = -(-count // world_size)
    share = [rank + world_size * turn for turn in range(rounds)]
    alone = share[-1:] if count % world_size else []
    rest = share[: len(share) - len(alone)]
    batches = [(rest[start : start + batch_size], False) for start in range(0, len(rest), batch_size)]
    return batches + [([position % count], position >= count) for position in alone]


def _views(dataset: VideoDataset, indices: Sequence[int], *, controls: bool, has_module: bool) -> dict[str, _View]:
    """Who is asked, in the order of the table."""
    reader = RememberingReader(dataset.reader)  # the model's own view and the shuffled one read the same files
    model = _View(
        reading_with(dataset, reader, with_answers=False),
        reading_with(dataset, reader, with_answers=True),
        frozenset(indices),
    )
    if not controls:
        return {MODEL: model}
    shuffling = ShufflingReader(reader)
    others = videos_of_others(dataset, indices)
    # Records without a video are asked as they are, so that all rows are of the same records.
    without = frozenset(index for index in indices if not dataset.record(index).videos)
    exchanging = ExchangingReader(dataset.reader, {dataset.where(index): videos for index, videos in others.items()})
    return {
        MODEL: model,
        SHUFFLED: _View(
            reading_with(dataset, shuffling, with_answers=False),
            reading_with(dataset, shuffling, with_answers=True) if has_module else None,
            frozenset(indices),
        ),
        OTHERS: _View(reading_with(dataset, exchanging, with_answers=False), None, frozenset(others) | without),
    }


@torch.no_grad()
def _ask(
    model: VideoLMM, views: Mapping[str, _View], indices: Sequence[int], max_new_tokens: int
) -> tuple[dict[int, dict[str, str]], dict[str, LossSums]]:
    """What everyone says about some records, by index and name, and the losses by name."""
    # Record by record, so that files that several views read are decoded once.
    read = [
        {name: (view.prompts[index], _maybe(view.whole, index)) for name, view in views.items()} for index in indices
    ]
    said: dict[int, dict[str, str]] = {index: {} for index in indices}
    losses = {name: LossSums() for name in views}
    for name, view in views.items():
        family = view.prompts.family
        prompts = [samples[name][0] for samples in read]
        answers = generate_answers(model, family, prompts, max_new_tokens=max_new_tokens)
        for index, answer in zip(indices, answers, strict=True):
            if index in view.asked:
                said[index][name] = answer
        whole = [sample for samples in read if (sample := samples[name][1]) is not None]
        if whole:
            batch = VideoCollator(family.processor.tokenizer.pad_token_id, family)(whole)
            terms = model(**on_device(batch, FORWARD_KEYS, model.device)).losses
            losses[name].add(terms)
    return said, losses


def _maybe(dataset: VideoDataset | None, index: int) -> VideoSample | None:
    return None if dataset is None else dataset[index]


def _score(
    dataset: VideoDataset,
    said: Mapping[int, Mapping[str, str]],
    sums: Mapping[str, LossSums],
    train_records: Iterable[Record],
) -> Evaluation:
    asked = [turn for record in train_records for turn in questions_of(record)]
    blind = QuestionOnly(asked)
    records: list[AnsweredRecord] = []
    for index in sorted(said):
        record = dataset.record(index)
        answers = dict(said[index])
        if asked:
            answers[BLIND] = blind.answer(record.kind, record.question)
        records.append(AnsweredRecord(index, record.id, record.kind, record.question, record.answer or "", answers))
    scores: dict[str, dict[str, float]] = {}
    # The same frames shuffled are held against copying them in their right order.
    copy_loss = sums[MODEL].compute().get("ar_copy_loss")
    for who in (*sums, BLIND):
        own = accuracies((record.kind, record.is_right(who)) for record in records if who in record.said)
        losses = sums[who].compute(copy_loss) if who in sums else {}
        if who != MODEL:
            # Their answers are of the records with videos alone, which the losses of words are not.
            losses = {name: value for name, value in losses.items() if name not in ("main_loss", "total_loss")}
        if own or who == MODEL:
            scores[who] = own | losses
    return Evaluation(scores, records)
