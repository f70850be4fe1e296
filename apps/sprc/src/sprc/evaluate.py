"""Held-out retrieval: the recalls of CIRR, FashionIQ and OACIRR, with what can be had from half of the query."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from region_training.ranks import Ranks
from region_training.tables import Table
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sprc.config import EvaluationSettings
from sprc.data import Triplet, TripletDataset
from sprc.encoding import compose_queries, encode_gallery
from sprc.index import GalleryIndex, SearchResult
from sprc.metrics import cirr_metrics, fashioniq_metrics
from sprc.model import SPRCModel

MODEL, SHUFFLED, CHANCE = "model", "captions of others", "chance"
HEADLINE = "Avg"


@dataclass(frozen=True)
class RetrievedRecord:
    """One held-out query with what the model found.

    Attributes:
        pair_id: The triplet.
        rank: Rank of the target, from 1, by the data set's protocol.
        subset_rank: Rank among the set's members; None without a set.
        found: Names of the best images, best first.
        similarities: Their similarities.
        subset: The set's members without the reference, best first; empty without a set.
        subset_similarities: Their similarities.
    """

    pair_id: str
    rank: int
    subset_rank: int | None
    found: tuple[str, ...]
    similarities: tuple[float, ...]
    subset: tuple[str, ...] = ()
    subset_similarities: tuple[float, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """The recalls of a split.

    Attributes:
        scores: Who asked -> recalls in percent: the model, half of the query, captions of other queries, chance.
        protocol: What was ranked, in words.
        records: One entry per query, in the order of the split.
        note: What stands below the table; empty where there is nothing to say.
    """

    scores: dict[str, dict[str, float]]
    protocol: str
    records: list[RetrievedRecord]
    note: str = ""

    @property
    def headline(self) -> float:
        """The number that decides which of two models is better."""
        own = self.scores[MODEL]
        return own[HEADLINE] if HEADLINE in own else float(np.mean(list(own.values())))

    def table(self) -> Table:
        """The model's recalls, with the baselines beside them."""
        rows = [(measure, *(scores.get(measure) for scores in self.scores.values())) for measure in self.scores[MODEL]]
        title = f"{len(self.records)} held-out queries, recall in percent ({self.protocol})"
        return Table(title, ("measure", *self.scores), tuple(rows))


def evaluate(
    model: SPRCModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: TripletDataset,
    settings: EvaluationSettings,
    *,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Search the gallery of a split for every one of its queries.

    Args:
        model: The model, in evaluation mode, on its device.
        tokenizer: The model's tokenizer.
        dataset: The held-out triplets.
        settings: How many at a time, and which ablations.
        ranks: The processes that share the work; each runs the model equally often and returns everything.
    """
    triplets = dataset.split.triplets
    captions = [dataset.evaluation_caption(triplet) for triplet in triplets]
    asked = {MODEL: captions}
    if settings.ablations:
        asked[SHUFFLED] = others(captions)
    queries = compose_queries(
        model,
        tokenizer,
        [triplet.reference for triplet in triplets],
        asked,
        dataset.read_input,
        batch_size=settings.batch_size,
        ablations=settings.ablations,
        ranks=ranks,
    )
    names = dataset.split.gallery
    features = encode_gallery(model, names, dataset.read_input, batch_size=settings.batch_size, ranks=ranks)
    return rank_queries(GalleryIndex(names, features).to(model.device), queries, dataset, settings.top_k)


def rank_queries(index: GalleryIndex, queries: dict[str, Tensor], dataset: TripletDataset, top_k: int) -> Evaluation:
    """Score what was asked by the protocol of the data set.

    Args:
        index: All images of the split.
        queries: Who asked -> a vector per triplet of the data set.
        dataset: The triplets.
        top_k: How many retrieved images to keep per query.
    """
    split = dataset.split
    if split.category_galleries:
        return _rank_by_category(index, queries, dataset, top_k)
    results = {who: cirr_metrics(index, vectors, split.triplets) for who, vectors in queries.items()}
    own = results[MODEL]
    references = index.positions([triplet.reference for triplet in split.triplets])[:, None]
    records = _records(index, queries[MODEL], split.triplets, own.ranks, own.subset_ranks, top_k, exclude=references)
    scores = {who: metrics.scores() for who, metrics in results.items()} | {CHANCE: own.chance}
    return Evaluation(scores, own.protocol, records)


def _rank_by_category(
    index: GalleryIndex, queries: dict[str, Tensor], dataset: TripletDataset, top_k: int
) -> Evaluation:
    split = dataset.split
    rows = {
        category: [position for position, triplet in enumerate(split.triplets) if triplet.category == category]
        for category in split.category_galleries
    }
    galleries = {category: index.select(names) for category, names in split.category_galleries.items()}
    results = {
        who: fashioniq_metrics(
            {
                category: (galleries[category], vectors[own], [split.triplets[row] for row in own])
                for category, own in rows.items()
            },
            gallery=split.gallery_protocol,
        )
        for who, vectors in queries.items()
    }
    found: dict[int, RetrievedRecord] = {}
    for category, own in rows.items():
        triplets = [split.triplets[row] for row in own]
        ranks = results[MODEL].categories[category].ranks
        records = _records(galleries[category], queries[MODEL][own], triplets, ranks, (), top_k)
        found |= dict(zip(own, records, strict=True))
    scores = {who: metrics.scores() for who, metrics in results.items()} | {CHANCE: results[MODEL].chance}
    return Evaluation(scores, results[MODEL].protocol, [found[row] for row in sorted(found)])


def _records(
    index: GalleryIndex,
    queries: Tensor,
    triplets: Sequence[Triplet],
    ranks: Sequence[int],
    subset_ranks: Sequence[int],
    top_k: int,
    *,
    exclude: Tensor | None = None,
) -> list[RetrievedRecord]:
    found = _named(index, index.search(queries, min(top_k, len(index)), exclude=exclude))
    subsets = [((), ())] * len(triplets)
    if subset_ranks:
        largest = max(len(triplet.members) for triplet in triplets)
        members = index.position_table([triplet.members for triplet in triplets])
        subsets = _named(index, index.search(queries, largest, exclude=exclude, candidates=members))
    return [
        RetrievedRecord(
            triplet.pair_id, ranks[row], subset_ranks[row] if subset_ranks else None, *found[row], *subsets[row]
        )
        for row, triplet in enumerate(triplets)
    ]


def _named(index: GalleryIndex, result: SearchResult) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    """Names and similarities of every query's images, without what is absent."""
    rows = []
    for positions, scores in zip(result.positions.tolist(), result.scores.tolist(), strict=True):
        kept = [
            (index.names[position], score) for position, score in zip(positions, scores, strict=True) if position >= 0
        ]
        rows.append((tuple(name for name, _ in kept), tuple(score for _, score in kept)))
    return rows


def others(captions: Sequence[str]) -> list[str]:
    """For every query the caption of another one, always the same: what a model scores that does not read."""
    if len(captions) < 2:
        return list(captions)
    order = sorted(range(len(captions)), key=lambda row: hashlib.sha256(str(row).encode()).digest())
    taken = [""] * len(captions)
    for row, other in zip(order, order[1:] + order[:1], strict=True):
        taken[row] = captions[other]
    return taken
