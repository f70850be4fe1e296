"""Evaluation of a split in all modes in one pass, with what the untrained model and trivial answers score beside it.

Everything is measured at the size of the image on disk, record by record, and added up; so the scores depend neither on
the batches nor on the number of ranks. A record that cannot be read is an error here: a score over what is left of a
data set is not its score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from region_training.ranks import Ranks
from region_training.tables import Table
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from psalm.answers import answer_samples
from psalm.config import EvaluationSettings
from psalm.data import SegmentationDataset
from psalm.model import PSALMModel
from psalm.modes import Mode
from psalm.processing import PSALMProcessor
from psalm.records import EvaluatedRecord, make_record
from psalm.samples import Scene, SegmentationSample
from psalm.scoring import ModeScores
from psalm.trivial import FITTED_ON, TrivialAnswers
from psalm.untrained import fingerprint, fresh_model, keep, read_kept

MODEL, UNTRAINED, TRIVIAL = "model", "untrained", "trivial"
SCORE = "score"
Place = tuple[int, int]
"""Number of the source, and of the record in it."""

Totals = dict[tuple[str, str], ModeScores]
"""Group and who answered -> scores."""


@dataclass(frozen=True)
class Group:
    """The records of one data set.

    Attributes:
        mode: What they ask.
        num_records: How many were evaluated.
        measure: Their main measure; see `ModeScores.main_measure`.
        trivial: The trivial answer that scored best; None where none was asked for.
    """

    mode: Mode
    num_records: int
    measure: str
    trivial: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """The scores of a split.

    Attributes:
        scores: Who answered -> `group/measure` -> percent, and `score`, the mean of the modes' main measures.
        groups: The data sets: named by their mode, and by their own name where a mode has several.
        split: Name of the split.
        records: One entry per record, in the order of the data.
    """

    scores: dict[str, dict[str, float]]
    groups: dict[str, Group]
    split: str
    records: list[EvaluatedRecord] = field(default_factory=list)

    @property
    def headline(self) -> float:
        """The number that decides which of two models is better; 0 where nothing could be scored."""
        return self.scores[MODEL].get(SCORE, 0.0)

    def table(self) -> Table:
        """The model's scores, with the baselines beside them."""
        measures = dict.fromkeys(name for scores in self.scores.values() for name in scores)
        rows = [(name, *(scores.get(name) for scores in self.scores.values())) for name in measures if name != SCORE]
        rows.append(("mean of the modes", *(scores.get(SCORE) for scores in self.scores.values())))
        total = sum(group.num_records for group in self.groups.values())
        title = f"{total} records of the split {self.split!r}, in percent"
        return Table(title, ("measure", *self.scores), tuple(rows))


def evaluate(
    model: PSALMModel,
    processor: PSALMProcessor,
    dataset: SegmentationDataset,
    settings: EvaluationSettings,
    *,
    ranks: Ranks | None = None,
    num_workers: int = 0,
    main_mode: Mode | None = None,
    untrained_cache: Path | None = None,
) -> Evaluation:
    """Answer a split's records and score the answers.

    Args:
        model: The model, in evaluation mode, on its device.
        processor: The model's processor.
        dataset: The split's records.
        settings: How many records, thresholds, baselines.
        ranks: The processes that share the work; each runs the model equally often and returns everything.
        num_workers: Data loading processes per rank; 0 loads in this process. The scores do not depend on it.
        main_mode: The headline is this mode's main measure; by default, and where it was not scored, all modes' mean.
        untrained_cache: File that keeps the untrained model's scores; without it there is no such row.
    """
    groups = name_groups(dataset)
    totals, records = _answer_all(model, processor, dataset, settings, groups, ranks, num_workers)
    summaries = {
        name: Group(
            dataset.sources[place].mode,
            sum(record.group == name for record in records),
            totals[name, MODEL].main_measure,
        )
        for name, place in groups.items()
    }
    scores = {MODEL: _flatten({name: totals[name, MODEL].compute() for name in groups}, summaries, main_mode)}
    if settings.baselines and untrained_cache is not None:
        key = fingerprint(model, dataset, settings, main_mode)
        kept = read_kept(untrained_cache, key, ranks)
        if kept is None:
            fresh = fresh_model(model)
            alone = replace(settings, baselines=False)
            found = evaluate(
                fresh, processor, dataset, alone, ranks=ranks, num_workers=num_workers, main_mode=main_mode
            )
            kept = found.scores[MODEL]
            keep(untrained_cache, key, kept, ranks)
        scores[UNTRAINED] = kept
    if settings.baselines:
        best = {name: _best_trivial(totals, name, summary.measure) for name, summary in summaries.items()}
        summaries = {name: replace(summary, trivial=best[name][0]) for name, summary in summaries.items()}
        scores[TRIVIAL] = _flatten({name: values for name, (_, values) in best.items()}, summaries, main_mode)
    return Evaluation(scores, summaries, dataset.split, records)


def _flatten(
    found: Mapping[str, Mapping[str, float]], groups: Mapping[str, Group], main_mode: Mode | None
) -> dict[str, float]:
    """`group/measure` -> percent, and the mean of the main measures over the modes."""
    scores = {f"{name}/{measure}": value for name, values in found.items() for measure, value in values.items()}
    by_mode: dict[Mode, list[float]] = {}
    for name, values in found.items():
        mode, measure = groups[name].mode, groups[name].measure
        if measure in values:
            by_mode.setdefault(mode, []).append(values[measure])
    # A mode counts once, however many data sets it has.
    means = {mode: sum(values) / len(values) for mode, values in by_mode.items()}
    if main_mode in means:
        return scores | {SCORE: means[main_mode]}
    return scores | ({SCORE: sum(means.values()) / len(means)} if means else {})


def _best_trivial(totals: Totals, name: str, measure: str) -> tuple[str, dict[str, float]]:
    """The trivial answer with the best main measure, and its scores."""
    scores = {who: own.compute() for (group, who), own in totals.items() if group == name and who != MODEL}
    best = max(scores, key=lambda who: scores[who].get(measure, 0.0))
    return best, scores[best]


def name_groups(dataset: SegmentationDataset) -> dict[str, int]:
    """Name of every source's scores -> number of the source."""
    modes = [source.mode for source in dataset.sources]
    return {
        mode if modes.count(mode) == 1 else f"{mode}/{dataset.sources[place].name}": place
        for place, mode in enumerate(modes)
    }


def choose_places(dataset: SegmentationDataset, max_samples: int) -> list[Place]:
    """The records to evaluate: of every source all, or some at equal steps."""
    places: list[Place] = []
    for number, source in enumerate(dataset.sources):
        count = min(max_samples or len(source), len(source))
        places += [(number, index * len(source) // count) for index in range(count)]
    return places


@lru_cache(maxsize=1)
def fit_trivial(dataset: SegmentationDataset) -> dict[str, TrivialAnswers]:
    """The trivial answers of every group; fitted once per process, since hundreds of scenes are read for them."""
    fitted = {}
    for name, number in name_groups(dataset).items():
        source = dataset.sources[number]
        count = min(len(source), FITTED_ON)
        fitted[name] = TrivialAnswers.fit(source.load(step * len(source) // count, None) for step in range(count))
    return fitted


class _Scenes(Dataset):
    """Scenes with their samples, by position among the chosen places."""

    def __init__(self, dataset: SegmentationDataset, places: Sequence[Place], positions: Sequence[int]) -> None:
        self._dataset = dataset
        self._places = places
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> tuple[int, Scene, SegmentationSample]:
        position = self._positions[index]
        number, within = self._places[position % len(self._places)]
        scene = self._dataset.sources[number].load(within, None)
        return position, scene, self._dataset.transform(scene, None)


def _answer_all(
    model: PSALMModel,
    processor: PSALMProcessor,
    dataset: SegmentationDataset,
    settings: EvaluationSettings,
    groups: dict[str, int],
    ranks: Ranks | None,
    num_workers: int,
) -> tuple[Totals, list[EvaluatedRecord]]:
    """Scores by group and by who answered, and all records, of all ranks."""
    places = choose_places(dataset, settings.max_samples)
    rank, world_size = (0, 1) if ranks is None else (ranks.rank, ranks.world_size)
    # The first records once more fill all ranks up; what is said of them again is thrown away.
    share = range(rank, -(-len(places) // world_size) * world_size, world_size)
    names = {number: name for name, number in groups.items()}
    trivial = fit_trivial(dataset) if settings.baselines else {}
    totals: Totals = {}
    records: list[EvaluatedRecord] = []
    loader = DataLoader(
        _Scenes(dataset, places, share),
        batch_size=settings.batch_size,
        collate_fn=list,
        num_workers=num_workers,
        # A generator of its own: an evaluation must not draw from the global one, or training after it is another.
        generator=torch.Generator(),
    )
    for batch in tqdm(loader, desc="evaluating", disable=rank != 0, leave=False):
        answers = answer_samples(model, processor, [sample for _, _, sample in batch], settings)
        for (position, scene, _), answer in zip(batch, answers, strict=True):
            if position >= len(places):
                continue
            number, index = places[position]
            name = names[number]
            own = ModeScores(scene.mode)
            own.update(position, scene, answer)
            _add(totals, (name, MODEL), own)
            records.append(make_record(position, name, index, scene, answer, own.main()))
            for who, said in trivial[name].answers(scene).items() if name in trivial else ():
                other = ModeScores(scene.mode)
                other.update(position, scene, said)
                _add(totals, (name, who), other)
    parts = [(totals, records)] if ranks is None else ranks.gather((totals, records))
    joined: Totals = {}
    for part, _ in parts:
        for key, scores in part.items():
            _add(joined, key, scores)
    return joined, sorted((record for _, part in parts for record in part), key=lambda record: record.position)


def _add(totals: Totals, key: tuple[str, str], scores: ModeScores) -> None:
    totals.setdefault(key, ModeScores(scores.mode)).merge(scores)
