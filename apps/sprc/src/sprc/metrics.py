"""Recall of CIRR and FashionIQ, in percent, with the protocol and the chance level beside every number.

CIRR (Liu et al. 2021): the reference is removed from the gallery; the subset's recall is among the other members of
its set; Avg is the mean of R@5 and Rsub@1. FashionIQ (Wu et al. 2021): each category has a gallery of its own, from
which the candidate is *not* removed; Avg is the mean of the mean R@10 and the mean R@50. FashionIQ's numbers over the
whole split and over the union of candidates and targets are not comparable, so the gallery stands in the result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor

from sprc.index import GalleryIndex

CIRR_RECALLS = (1, 5, 10, 50)
CIRR_SUBSET_RECALLS = (1, 2, 3)
FASHIONIQ_RECALLS = (10, 50)


@runtime_checkable
class RetrievalQuery(Protocol):
    """What the metrics need to know of a triplet."""

    @property
    def pair_id(self) -> str:
        """Names the query in errors and in files."""
        ...

    @property
    def reference(self) -> str:
        """The name of the reference image."""
        ...

    @property
    def target(self) -> str | None:
        """The name of the target image; None where it is kept secret."""
        ...

    @property
    def members(self) -> tuple[str, ...]:
        """CIRR's set of similar images, the reference included; empty elsewhere."""
        ...


@dataclass(frozen=True)
class CIRRMetrics:
    """The numbers of CIRR.

    Attributes:
        recalls: k -> R@k in percent, the reference removed.
        subset_recalls: k -> Rsub@k in percent; empty where no triplet has a set.
        chance: What a random order scores, by the names of `scores`.
        ranks: The rank of each target in the gallery, for reports.
        subset_ranks: Likewise in its set.
        protocol: How it was ranked, in words.
    """

    recalls: dict[int, float]
    subset_recalls: dict[int, float]
    chance: dict[str, float]
    ranks: tuple[int, ...]
    subset_ranks: tuple[int, ...]
    protocol: str

    def scores(self) -> dict[str, float]:
        """Everything under its usual name; `"Avg"` is there where the triplets have sets."""
        return _cirr_names(self.recalls, self.subset_recalls)


@dataclass(frozen=True)
class CategoryRecalls:
    """One category of FashionIQ.

    Attributes:
        recalls: k -> R@k in percent, the candidate kept.
        gallery_size: How many images were ranked.
        ranks: The rank of each target, for reports.
    """

    recalls: dict[int, float]
    gallery_size: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class FashionIQMetrics:
    """The numbers of FashionIQ.

    Attributes:
        categories: Category -> its numbers.
        gallery: Which images are ranked: the category's whole split, or the union of its candidates and targets.
    """

    categories: dict[str, CategoryRecalls]
    gallery: Literal["split", "union"]

    @property
    def protocol(self) -> str:
        """How it was ranked, in words."""
        sizes = ", ".join(f"{name} {category.gallery_size}" for name, category in self.categories.items())
        images = "the whole split" if self.gallery == "split" else "the union of candidates and targets"
        return f"{images} of each category ({sizes} images), candidate kept"

    @property
    def chance(self) -> dict[str, float]:
        """What a random order scores, by the names of `scores`."""
        return _fashioniq_names(
            {
                name: {k: _chance(k, category.gallery_size) for k in FASHIONIQ_RECALLS}
                for name, category in self.categories.items()
            }
        )

    def scores(self) -> dict[str, float]:
        """Everything under its usual name: `"dress R@10"`, ..., the means `"R@10"` and `"R@50"`, and `"Avg"`."""
        return _fashioniq_names({name: category.recalls for name, category in self.categories.items()})


def recall_at(ranks: Int64[Tensor, " queries"], ks: Sequence[int]) -> dict[int, float]:
    """The share of ranks that are at most k, in percent, for every k.

    Raises:
        ValueError: There is no rank.
    """
    if not len(ranks):
        raise ValueError("got no ranks, expected one per query")
    return {k: 100 * int((ranks <= k).sum()) / len(ranks) for k in ks}


def cirr_metrics(
    index: GalleryIndex, queries: Float[Tensor, "queries dim"], triplets: Sequence[RetrievalQuery]
) -> CIRRMetrics:
    """Rank the gallery for every query of CIRR.

    Args:
        index: All images of the split.
        queries: What the model composed, in the order of the triplets.
        triplets: With targets. Either all have a set of members or none.

    Raises:
        ValueError: A target is unknown or is the reference, a set lacks one of them, or the counts differ.
    """
    _check_queries(queries, triplets)
    references = index.positions([triplet.reference for triplet in triplets])[:, None]
    targets = index.positions([_target(triplet) for triplet in triplets])
    for triplet in triplets:
        if triplet.reference == triplet.target:
            raise ValueError(f"triplet {triplet.pair_id!r}: the target {triplet.target!r} is the reference")
    ranks = index.ranks(queries, targets, references)
    recalls = recall_at(ranks, CIRR_RECALLS)
    chance = {k: _chance(k, len(index) - 1) for k in CIRR_RECALLS}
    subset_ranks: tuple[int, ...] = ()
    subset_recalls: dict[int, float] = {}
    subset_chance: dict[int, float] = {}
    protocol = f"{len(index)} images of the split, reference removed"
    if any(triplet.members for triplet in triplets):
        for triplet in triplets:
            check_members(triplet)
        members = index.position_table([triplet.members for triplet in triplets])
        in_set = index.ranks(queries, targets, references, candidates=members)
        subset_ranks = tuple(in_set.tolist())
        subset_recalls = recall_at(in_set, CIRR_SUBSET_RECALLS)
        sizes = [len(triplet.members) - 1 for triplet in triplets]
        subset_chance = {k: fmean(_chance(k, size) for size in sizes) for k in CIRR_SUBSET_RECALLS}
        protocol += f"; subset: the {'/'.join(str(size) for size in sorted(set(sizes)))} other members of the set"
    names = _cirr_names(chance, subset_chance)
    return CIRRMetrics(recalls, subset_recalls, names, tuple(ranks.tolist()), subset_ranks, protocol)


def fashioniq_metrics(
    categories: Mapping[str, tuple[GalleryIndex, Float[Tensor, "queries dim"], Sequence[RetrievalQuery]]],
    *,
    gallery: Literal["split", "union"],
) -> FashionIQMetrics:
    """Rank each category's gallery for its queries.

    Args:
        categories: Category -> its gallery, what the model composed, and the triplets in the same order.
        gallery: Which images the galleries hold; it is written beside the numbers.

    Raises:
        ValueError: There is no category, a target is unknown, or the counts differ.
    """
    if not categories:
        raise ValueError("got no category, expected at least one of FashionIQ's")
    results: dict[str, CategoryRecalls] = {}
    for name, (index, queries, triplets) in categories.items():
        _check_queries(queries, triplets)
        ranks = index.ranks(queries, index.positions([_target(triplet) for triplet in triplets]))
        recalls = recall_at(ranks, FASHIONIQ_RECALLS)
        results[name] = CategoryRecalls(recalls, len(index), tuple(ranks.tolist()))
    return FashionIQMetrics(results, gallery)


def check_members(triplet: RetrievalQuery) -> None:
    """Check CIRR's set of similar images.

    Raises:
        ValueError: It lacks the reference or the target, or names an image twice.
    """
    members = triplet.members
    where = f"triplet {triplet.pair_id!r}"
    if len(set(members)) != len(members):
        raise ValueError(f"{where}: got the members {members}, expected every image once")
    for role, name in (("reference", triplet.reference), ("target", triplet.target)):
        if name is not None and name not in members:
            raise ValueError(f"{where}: the {role} {name!r} is not among the members {members}")


def _target(triplet: RetrievalQuery) -> str:
    if triplet.target is None:
        raise ValueError(
            f"triplet {triplet.pair_id!r} has no target: a test split is scored by its server, from a submission file"
        )
    return triplet.target


def _check_queries(queries: Tensor, triplets: Sequence[RetrievalQuery]) -> None:
    if len(queries) != len(triplets) or not triplets:
        raise ValueError(f"got {len(queries)} queries for {len(triplets)} triplets, expected one each and at least one")


def _chance(k: int, num_images: int) -> float:
    return 100 * min(k, num_images) / num_images


def _cirr_names(recalls: Mapping[int, float], subset_recalls: Mapping[int, float]) -> dict[str, float]:
    names = {f"R@{k}": value for k, value in recalls.items()}
    if subset_recalls:
        names |= {f"Rsub@{k}": value for k, value in subset_recalls.items()}
        names["Avg"] = (recalls[5] + subset_recalls[1]) / 2
    return names


def _fashioniq_names(recalls: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    names = {f"{category} R@{k}": value for category, values in recalls.items() for k, value in values.items()}
    means = {f"R@{k}": fmean(values[k] for values in recalls.values()) for k in FASHIONIQ_RECALLS}
    return {**names, **means, "Avg": fmean(means.values())}
