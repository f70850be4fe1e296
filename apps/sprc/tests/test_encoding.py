"""Features of galleries and queries: the same in batches as one by one, on one rank as on two."""

import pytest
import torch
from region_training.ranks import Ranks
from sprc.encoding import compose_queries, encode_gallery, tokens_of

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


class _TwoRanks(Ranks):
    """Stands for two ranks: what this one gathers is joined with what the other one had."""

    def __init__(self, rank, shares):  # without a process group
        self.rank, self.world_size, self._shares = rank, 2, shares

    def gather(self, own):
        self._shares[self.rank] = own
        return list(self._shares.values())


@pytest.fixture(scope="module")
def held_out(cirr):
    return cirr.open()


def _compose(cirr, held_out, rows, **options):
    triplets = [held_out.split.triplets[row] for row in rows]
    captions = [held_out.evaluation_caption(triplet) for triplet in triplets]
    references = [triplet.reference for triplet in triplets]
    asked = {"model": captions, "reversed": captions[::-1]}
    options = {"batch_size": 4, "ablations": True, **options}
    return compose_queries(cirr.model, cirr.tokenizer, references, asked, held_out.read_input, **options)


def test_a_batch_is_as_one_by_one(cirr, held_out):
    names = held_out.split.gallery[:7]
    found = encode_gallery(cirr.model, names, held_out.read_input, batch_size=4)
    single = [encode_gallery(cirr.model, [name], held_out.read_input, batch_size=1) for name in names]
    assert found.shape == (7, 3, 8)
    torch.testing.assert_close(found, torch.cat(single), **TOLERANCE)
    torch.testing.assert_close(found.norm(dim=2), torch.ones(7, 3), **TOLERANCE)
    assert not found.requires_grad


def test_queries_in_a_batch_are_as_one_by_one(cirr, held_out):
    rows = range(5, 12)
    together = _compose(cirr, held_out, rows)
    assert set(together) == {"model", "reversed", "text only", "image only"}
    for position, row in enumerate(rows):
        alone = _compose(cirr, held_out, [row])
        for who in ("model", "text only", "image only"):
            torch.testing.assert_close(together[who][position], alone[who][0], **TOLERANCE)
    for vectors in together.values():
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(7), **TOLERANCE)


def test_every_baseline_sees_its_half_of_the_query_alone(cirr, held_out):
    triplets = held_out.split.triplets
    first = next(row for row in range(1, 48) if triplets[row].reference == triplets[0].reference)
    other = next(row for row in range(1, 48) if triplets[row].reference != triplets[0].reference)
    found = _compose(cirr, held_out, [0, first, other])
    # Two captions about one reference, and another reference.
    torch.testing.assert_close(found["image only"][0], found["image only"][1])
    assert not torch.allclose(found["image only"][0], found["image only"][2], **TOLERANCE)
    assert not torch.allclose(found["model"][0], found["model"][1], **TOLERANCE)
    assert not torch.allclose(found["text only"][0], found["text only"][1], **TOLERANCE)
    # `reversed` composes the same references with other captions.
    # Captions that change places give other queries about the same reference.
    pair = _compose(cirr, held_out, [0, first])
    torch.testing.assert_close(pair["reversed"], pair["model"].flip(0), **TOLERANCE)


@pytest.mark.parametrize("count", [1, 6, 7])
def test_ranks_share_the_work_and_each_has_all_of_it(cirr, held_out, count):
    """An odd number is filled up with what came first, so that both run the model equally often."""
    names = held_out.split.gallery[:count]
    shares = {}
    for rank in range(2):
        joined = encode_gallery(cirr.model, names, held_out.read_input, batch_size=2, ranks=_TwoRanks(rank, shares))
    assert [len(share) for share in shares.values()] == [-(-count // 2)] * 2
    alone = encode_gallery(cirr.model, names, held_out.read_input, batch_size=2)
    torch.testing.assert_close(joined, alone, **TOLERANCE)


def test_ranks_share_the_queries(cirr, held_out):
    triplets = held_out.split.triplets[:5]
    # One kind of query, since the stand-in keeps one share per rank.
    asked = {"model": [held_out.evaluation_caption(triplet) for triplet in triplets]}
    references = [triplet.reference for triplet in triplets]
    shares = {}
    for rank in range(2):
        ranks = _TwoRanks(rank, shares)
        found = compose_queries(
            cirr.model, cirr.tokenizer, references, asked, held_out.read_input, batch_size=2, ranks=ranks
        )
    torch.testing.assert_close(found["model"], _compose(cirr, held_out, range(5))["model"], **TOLERANCE)


def test_tokens_go_as_they_are_and_pixels_through_the_tower(cirr, held_out):
    image = held_out.read_input(held_out.split.gallery[0])[None]
    live = tokens_of(cirr.model, image)
    assert live.shape == (1, 17, 16)
    half = tokens_of(cirr.model, live.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, live, atol=1e-2, rtol=1e-2)


def test_an_image_that_cannot_be_read_is_named(cirr, held_out):
    with pytest.raises(ValueError, match="no image 'nowhere'"):
        encode_gallery(cirr.model, ["nowhere"], held_out.read_input, batch_size=1)
