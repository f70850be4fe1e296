import json

import pytest
import torch
from safetensors.torch import save_file
from sprc.index import GalleryIndex, IndexKey
from sprc.ranking import ABSENT
from torch.nn import functional as F

KEY = IndexKey(weights="w" * 8, transform="targetpad-224", constants="eps=1e-06", gallery="CIRR val")


def random_index(num_images=37, num_vectors=5, dim=8, **options):
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(num_images, num_vectors, dim, generator=generator), dim=-1)
    return GalleryIndex([f"image-{i}" for i in range(num_images)], features, **options)


def random_queries(num_queries=19, dim=8):
    return F.normalize(torch.randn(num_queries, dim, generator=torch.Generator().manual_seed(1)), dim=-1)


def plain_scores(index, queries):
    """One product at a time, in float64."""
    features = index.features.double()
    return torch.stack([torch.stack([(image @ query).max() for image in features]) for query in queries.double()])


def unit(*angles):
    """Vectors of two numbers, by their angle in degrees."""
    radians = torch.tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=-1)


def test_the_best_vector_of_an_image_counts():
    features = torch.stack([unit(90.0, 10.0), unit(20.0, 25.0), unit(180.0, 170.0)])
    index = GalleryIndex(["a", "b", "c"], features)
    result = index.search(unit(0.0), 3)
    assert result.positions.tolist() == [[0, 1, 2]]
    assert result.scores[0].tolist() == pytest.approx(unit(10.0, 20.0, 170.0)[:, 0].tolist())
    assert index.ranks(unit(0.0), torch.tensor([1])).tolist() == [2]


@pytest.mark.parametrize("block_bytes", [1, 700, 2**20])
def test_search_and_ranks_agree_with_a_plain_sort(block_bytes):
    index, queries = random_index(block_bytes=block_bytes), random_queries()
    expected = plain_scores(index, queries)
    result = index.search(queries, 37)
    assert torch.equal(result.positions, expected.argsort(dim=1, descending=True))
    assert torch.allclose(result.scores.double(), expected.sort(dim=1, descending=True).values, atol=1e-6)
    targets = torch.arange(19) * 2 % 37
    places = (result.positions == targets[:, None]).int().argmax(dim=1) + 1
    assert torch.equal(index.ranks(queries, targets), places)


def test_a_block_of_queries_equals_one_by_one():
    index, queries = random_index(), random_queries()
    together = index.search(queries, 4).positions
    assert torch.equal(together, torch.cat([index.search(query[None], 4).positions for query in queries]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_features_of_16_bits_are_scored_in_fp32(dtype, tolerance):
    exact = random_index()
    index = GalleryIndex(exact.names, exact.features.to(dtype))
    result = index.search(random_queries(), 3)
    assert result.scores.dtype == torch.float32
    assert torch.allclose(result.scores, exact.search(random_queries(), 3).scores, atol=tolerance)
    rounded = plain_scores(index, random_queries()).max(dim=1).values
    assert torch.allclose(result.scores[:, 0].double(), rounded, atol=1e-6)


def test_the_same_image_twice_is_ordered_by_position():
    image = random_index(1).features
    index = GalleryIndex([f"copy-{i}" for i in range(9)], image.expand(9, -1, -1))
    queries = random_queries(3)
    assert index.search(queries, 9).positions.tolist() == [list(range(9))] * 3
    assert index.ranks(queries, torch.tensor([0, 4, 8])).tolist() == [1, 5, 9]


def test_what_is_excluded_is_not_found():
    index, queries = random_index(6), random_queries(2)
    everything = index.search(queries, 6).positions
    exclude = torch.stack([everything[0, :2], torch.tensor([everything[1, 0], ABSENT])])
    found = index.search(queries, 5, exclude=exclude).positions
    assert found[0].tolist() == [*everything[0, 2:].tolist(), ABSENT]
    assert found[1].tolist() == everything[1, 1:].tolist()
    assert index.ranks(queries, everything[:, 3], exclude).tolist() == [2, 3]


def test_candidates_are_ranked_among_themselves():
    index, queries = random_index(8), random_queries(2)
    everything = index.search(queries, 8).positions
    candidates = torch.stack([everything[0, [7, 1, 4]], torch.tensor([*everything[1, [2, 5]], ABSENT])])
    found = index.search(queries, 3, candidates=candidates).positions
    assert found.tolist() == [everything[0, [1, 4, 7]].tolist(), [*everything[1, [2, 5]].tolist(), ABSENT]]
    targets = torch.stack([everything[0, 4], everything[1, 5]])
    assert index.ranks(queries, targets, candidates=candidates).tolist() == [2, 2]
    exclude = torch.stack([everything[0, 1], everything[1, 7]])[:, None]
    assert index.ranks(queries, targets, exclude, candidates=candidates).tolist() == [1, 2]


def test_candidates_in_small_blocks_have_the_same_ranks():
    queries = random_queries()
    candidates = torch.stack([torch.randperm(37, generator=torch.Generator().manual_seed(i))[:5] for i in range(19)])
    scores = plain_scores(random_index(), queries).gather(1, candidates)
    expected = (scores > scores[:, 2:3]).sum(dim=1) + 1
    for index in (random_index(), random_index(block_bytes=1)):
        assert torch.equal(index.ranks(queries, candidates[:, 2], candidates=candidates), expected)


def test_equal_candidates_are_ordered_by_position_in_the_gallery():
    index = GalleryIndex(list("abc"), random_index(1).features.expand(3, -1, -1))
    ranks = index.ranks(random_queries(1), torch.tensor([1]), candidates=torch.tensor([[2, 1, 0]]))
    assert ranks.tolist() == [2]


def test_names_and_positions():
    index = random_index(4)
    assert len(index) == 4
    assert "image-2" in index
    assert "image-4" not in index
    assert index.positions(["image-3", "image-0"]).tolist() == [3, 0]
    assert index.position_table([["image-1"], [], ["image-2", "image-0"]]).tolist() == [[1, -1], [-1, -1], [2, 0]]
    with pytest.raises(ValueError, match=r"1 images are not in the gallery of 4, the first is 'dog'"):
        index.positions(["image-1", "dog"])


def test_a_part_of_the_gallery():
    index = random_index(6, key=KEY)
    part = index.select(["image-5", "image-1"], gallery="dress")
    assert part.names == ["image-5", "image-1"]
    assert torch.equal(part.features, index.features[[5, 1]])
    assert part.key == IndexKey(KEY.weights, KEY.transform, KEY.constants, "dress")
    assert index.select(["image-5"]).key == KEY


def test_no_query_gives_nothing():
    index, nothing = random_index(3), torch.empty(0, 8)
    result = index.search(nothing, 2)
    assert result.positions.shape == result.scores.shape == (0, 2)
    positions = torch.empty(0, dtype=torch.int64)
    assert index.ranks(nothing, positions).shape == (0,)
    assert index.ranks(nothing, positions, candidates=positions.view(0, 0)).shape == (0,)


def test_galleries_that_cannot_be():
    features = torch.zeros(2, 1, 4)
    with pytest.raises(ValueError, match="got 3 names and features of 2 images"):
        GalleryIndex(["a", "b", "c"], features)
    with pytest.raises(ValueError, match="the image 'a' stands twice"):
        GalleryIndex(["a", "a"], features)
    with pytest.raises(ValueError, match="got 0 names"):
        GalleryIndex([], torch.zeros(0, 1, 4))
    with pytest.raises(ValueError, match=r"got features in torch\.float64"):
        GalleryIndex(["a", "b"], features.double())


def test_wrong_queries_are_named():
    index, queries = random_index(4), random_queries(2)
    with pytest.raises(ValueError, match="got queries 5 wide, expected 8"):
        index.search(queries[:, :5], 1)
    with pytest.raises(ValueError, match="exclude: got 1 rows, expected 2"):
        index.search(queries, 1, exclude=torch.tensor([[0]]))
    with pytest.raises(ValueError, match=r"candidates: got the position 4 for query 1, expected -1 to 3"):
        index.search(queries, 1, candidates=torch.tensor([[0], [4]]))
    with pytest.raises(ValueError, match=r"targets: got the position -1 for query 0, expected 0 to 3"):
        index.ranks(queries, torch.tensor([-1, 0]))
    with pytest.raises(ValueError, match="query 1: the target is excluded"):
        index.ranks(queries, torch.tensor([0, 1]), torch.tensor([[2], [1]]))
    with pytest.raises(ValueError, match="query 0: the target is no candidate"):
        index.ranks(queries, torch.tensor([0, 1]), candidates=torch.tensor([[2, 3], [1, 2]]))
    with pytest.raises(ValueError, match="query 1: a candidate stands twice"):
        index.ranks(queries, torch.tensor([0, 1]), candidates=torch.tensor([[0, 3, -1, -1], [1, 2, 2, 0]]))


def test_nan_is_an_error_and_not_rank_zero():
    index, queries = random_index(block_bytes=700), random_queries()
    queries[11, 3] = torch.nan
    with pytest.raises(ValueError, match="of query 11 and item 0"):
        index.ranks(queries, torch.zeros(19, dtype=torch.int64))
    index.features[30, 2, 0] = torch.nan
    with pytest.raises(ValueError, match="of query 0 and item 30"):
        index.search(random_queries(), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_index_is_the_same(tmp_path, dtype):
    plain = random_index()
    index = GalleryIndex(plain.names, plain.features.to(dtype), key=KEY)
    path = tmp_path / "galleries" / "val.safetensors"
    index.save(path)
    again = GalleryIndex.load(path, key=KEY)
    assert again.names == index.names
    assert again.key == KEY
    assert torch.equal(again.features, index.features)
    assert again.features.dtype == dtype
    assert [file.name for file in path.parent.iterdir()] == ["val.safetensors"]


def test_an_index_of_other_weights_is_refused(tmp_path):
    path = tmp_path / "val.safetensors"
    random_index(key=KEY).save(path)
    other = IndexKey("x" * 8, KEY.transform, "eps=1e-05", "CIRR test1")
    with pytest.raises(
        ValueError, match=r"'wwwwwwww', expected 'xxxxxxxx'; constants 'eps=1e-06', .*; gallery 'CIRR val',"
    ):
        GalleryIndex.load(path, key=other)


def test_files_that_are_no_index(tmp_path):
    with pytest.raises(FileNotFoundError, match="no index at"):
        GalleryIndex.load(tmp_path / "absent", key=KEY)
    with pytest.raises(ValueError, match="an index without a key cannot be saved"):
        random_index().save(tmp_path / "x")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no safetensors")
    plain = tmp_path / "plain.safetensors"
    save_file({"features": torch.zeros(1)}, plain)
    odd = tmp_path / "odd.safetensors"
    save_file({"features": torch.zeros(1)}, odd, metadata={"key": json.dumps({"colour": "red"}), "names": "[]"})
    for path in (damaged, plain, odd):
        with pytest.raises(ValueError, match="not an index of a gallery"):
            GalleryIndex.load(path, key=KEY)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same():
    index, queries = random_index(), random_queries()
    found = index.to("cuda").search(queries, 5, exclude=torch.zeros(19, 1, dtype=torch.int64))
    assert torch.equal(found.positions.cpu(), index.search(queries, 5, exclude=torch.zeros(19, 1).long()).positions)
