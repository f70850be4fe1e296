from typing import NamedTuple

import numpy as np
import pytest
import torch
from sprc.index import GalleryIndex
from sprc.metrics import CIRRMetrics, cirr_metrics, fashioniq_metrics, recall_at
from torch.nn import functional as F


class Query(NamedTuple):
    pair_id: str
    reference: str
    target: str | None
    members: tuple[str, ...] = ()


def gallery_with(scores: dict[str, float]) -> GalleryIndex:
    """A gallery whose images score what is asked for the query (1, 0)."""
    values = torch.tensor(list(scores.values()))
    features = torch.stack([values, (1 - values**2).sqrt()], dim=1)[:, None, :]
    return GalleryIndex(list(scores), features)


def the_query(times: int) -> torch.Tensor:
    return torch.tensor([[1.0, 0.0]]).expand(times, -1)


# The order of the scores: a b c d e f g h.
INDEX = gallery_with(dict(zip("abcdefgh", (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2), strict=True)))


def test_recall_counts_ranks():
    assert recall_at(torch.tensor([1, 2, 6, 11]), (1, 5, 10)) == {1: 25.0, 5: 50.0, 10: 75.0}
    with pytest.raises(ValueError, match="got no ranks"):
        recall_at(torch.tensor([], dtype=torch.int64), (1,))


def test_cirr_worked_by_hand():
    triplets = [
        # The reference is the best image: with it removed the target is first. In the set: c before f, so rank 1.
        Query("0", "a", "b", ("a", "b", "c", "f")),
        # Without h, e is still fifth: four are better. In the set b and d are before it: rank 3.
        Query("1", "h", "e", ("h", "b", "d", "e")),
        # Seventh of eight without the reference a: sixth. In the set only h is behind it: rank 2.
        Query("2", "a", "g", ("a", "b", "g", "h")),
        # Second. First of its set.
        Query("3", "c", "b", ("b", "c", "g", "h")),
    ]
    metrics = cirr_metrics(INDEX, the_query(4), triplets)
    assert metrics.ranks == (1, 5, 6, 2)
    assert metrics.subset_ranks == (1, 3, 2, 1)
    assert metrics.scores() == {
        "R@1": 25.0,
        "R@5": 75.0,
        "R@10": 100.0,
        "R@50": 100.0,
        "Rsub@1": 50.0,
        "Rsub@2": 75.0,
        "Rsub@3": 100.0,
        "Avg": 62.5,
    }
    assert metrics.protocol == "8 images of the split, reference removed; subset: the 3 other members of the set"


def test_chance_of_cirr():
    six = Query("0", "a", "b", tuple("abcdef"))
    chance = cirr_metrics(INDEX, the_query(1), [six]).chance
    # Seven images are left without the reference, five of the set.
    assert chance["R@1"] == pytest.approx(100 / 7)
    assert chance["R@10"] == 100
    assert [chance[f"Rsub@{k}"] for k in (1, 2, 3)] == pytest.approx([20, 40, 60])
    assert chance["Avg"] == pytest.approx((500 / 7 + 20) / 2)


def test_without_sets_there_is_no_average():
    metrics = cirr_metrics(INDEX, the_query(1), [Query("0", "a", "c")])
    assert set(metrics.scores()) == set(metrics.chance) == {"R@1", "R@5", "R@10", "R@50"}
    assert metrics.subset_ranks == ()


def test_fashioniq_keeps_the_candidate():
    twelve = gallery_with({f"dress-{i}": 0.9 - 0.05 * i for i in range(12)})
    dress = [Query("dress-0", "dress-0", "dress-1"), Query("dress-1", "dress-11", "dress-10")]
    shirt = [Query("shirt-0", "a", "h")]
    metrics = fashioniq_metrics(
        {"dress": (twelve, the_query(2), dress), "shirt": (INDEX, the_query(1), shirt)}, gallery="split"
    )
    # Rank 2, because the candidate itself is the best and stays; rank 11.
    assert metrics.categories["dress"].ranks == (2, 11)
    assert metrics.categories["shirt"].ranks == (8,)
    assert metrics.scores() == {
        "dress R@10": 50.0,
        "dress R@50": 100.0,
        "shirt R@10": 100.0,
        "shirt R@50": 100.0,
        "R@10": 75.0,
        "R@50": 100.0,
        "Avg": 87.5,
    }
    assert metrics.chance["dress R@10"] == pytest.approx(1000 / 12)
    assert metrics.chance["shirt R@10"] == 100
    assert metrics.protocol == "the whole split of each category (dress 12, shirt 8 images), candidate kept"


def test_the_union_gallery_is_named():
    metrics = fashioniq_metrics({"dress": (INDEX, the_query(1), [Query("0", "a", "b")])}, gallery="union")
    assert "the union of candidates and targets" in metrics.protocol


def test_what_cannot_be_scored():
    good = Query("7", "a", "b", ("a", "b", "c"))
    with pytest.raises(ValueError, match="got 2 queries for 1 triplets"):
        cirr_metrics(INDEX, the_query(2), [good])
    with pytest.raises(ValueError, match="got 0 queries for 0 triplets"):
        cirr_metrics(INDEX, the_query(0), [])
    with pytest.raises(ValueError, match="triplet '7' has no target: a test split"):
        cirr_metrics(INDEX, the_query(1), [good._replace(target=None)])
    with pytest.raises(ValueError, match="triplet '7': the target 'a' is the reference"):
        cirr_metrics(INDEX, the_query(1), [good._replace(target="a")])
    with pytest.raises(ValueError, match="the first is 'x'"):
        cirr_metrics(INDEX, the_query(1), [good._replace(target="x")])
    with pytest.raises(ValueError, match="the reference 'a' is not among the members"):
        cirr_metrics(INDEX, the_query(1), [good._replace(members=("b", "c"))])
    with pytest.raises(ValueError, match="the target 'b' is not among the members"):
        cirr_metrics(INDEX, the_query(1), [good._replace(members=("a", "c"))])
    with pytest.raises(ValueError, match=r"got the members .*, expected every image once"):
        cirr_metrics(INDEX, the_query(1), [good._replace(members=("a", "b", "b"))])
    # A set for one triplet and none for another is a damaged file.
    with pytest.raises(ValueError, match="triplet '8': the reference 'a' is not among"):
        cirr_metrics(INDEX, the_query(2), [good, good._replace(pair_id="8", members=())])
    with pytest.raises(ValueError, match="got no category"):
        fashioniq_metrics({}, gallery="split")


def by_names(index: GalleryIndex, queries: torch.Tensor, triplets: list[Query]) -> dict[str, float]:
    """CIRR's numbers as its published scripts compute them: sort everything, compare matrices of names."""
    scores = (queries @ index.features.flatten(0, 1).T).unflatten(1, (len(index), -1)).amax(dim=2)
    names = np.array(index.names)[(-scores).argsort(dim=1, stable=True)]
    references = np.array([triplet.reference for triplet in triplets])[:, None]
    names = names[names != references].reshape(len(triplets), -1)
    hits = names == np.array([triplet.target for triplet in triplets])[:, None]
    members = np.array([triplet.members for triplet in triplets])
    in_set = (names[..., None] == members[:, None, :]).sum(-1).astype(bool)
    subset_hits = hits[in_set].reshape(len(triplets), -1)
    recalls = {f"R@{k}": 100 * hits[:, :k].sum() / len(triplets) for k in (1, 5, 10, 50)}
    recalls |= {f"Rsub@{k}": 100 * subset_hits[:, :k].sum() / len(triplets) for k in (1, 2, 3)}
    return {**recalls, "Avg": (recalls["R@5"] + recalls["Rsub@1"]) / 2}


@pytest.mark.parametrize("seed", range(3))
def test_the_same_numbers_as_by_sorting_names(seed):
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(80, 4, 6, generator=generator), dim=-1)
    # Every image stands twice in the gallery under two names: all scores are ties.
    index = GalleryIndex([f"im-{i}" for i in range(80)], features[torch.arange(80) % 40])
    triplets = []
    for number in range(60):
        members = [f"im-{i}" for i in torch.randperm(80, generator=generator)[:6].tolist()]
        triplets.append(Query(str(number), members[2], members[4], tuple(members)))
    queries = F.normalize(torch.randn(60, 6, generator=generator), dim=-1)
    metrics = cirr_metrics(index, queries, triplets)
    assert metrics.scores() == pytest.approx(by_names(index, queries, triplets))
    assert isinstance(metrics, CIRRMetrics)
    assert 0 < metrics.scores()["R@10"] < 100
