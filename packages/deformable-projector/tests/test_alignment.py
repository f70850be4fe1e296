import pytest
import torch
from deformable_projector import MultiScaleDeformableCrossAttentionAlignment

DIMS = (4, 6, 8, 10)
MODES = ("grid", "similarity", "topk", "centre")


def aligner(**options):
    return MultiScaleDeformableCrossAttentionAlignment(12, DIMS, 8, 2, 3, **options)


def test_parameters_of_the_real_sizes():
    """Swin-B and Phi-1.5 by the sizes of the design; a second value projection inside would be 65 792 more."""
    align = MultiScaleDeformableCrossAttentionAlignment(2048, (128, 256, 512, 1024))
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in align.named_children()}
    values = align.values
    assert counts["query_proj"] == 524_544
    assert sum(p.numel() for p in values.level_proj.parameters()) == 492_544
    assert (counts["sampling_offsets"], counts["attention_weights"]) == (65_792, 32_896)
    assert (counts["output_proj"], counts["out_proj"], values.level_embed.numel()) == (65_792, 526_336, 1_024)
    extra = counts["key_proj"] + values.region_embed.numel()
    assert extra == 1024 * 256 + 512
    assert sum(counts.values()) - extra == 1_774_720 - 65_792


@pytest.mark.parametrize("mode", MODES)
def test_the_result_is_exactly_zero_at_initialisation(pyramid, mode):
    result = aligner(reference_points=mode)(torch.randn(2, 4, 12), pyramid())
    assert result.tokens.shape == (2, 4, 12)
    assert not result.tokens.any()


@pytest.mark.parametrize("mode", MODES)
def test_weights_sum_to_one_and_locations_start_as_a_star(pyramid, mode):
    align = aligner(reference_points=mode, top_k=2)
    shapes = [(6, 6), (4, 4), (3, 3), (2, 2)]
    result = align(torch.randn(2, 4, 12), pyramid(shapes=shapes))
    points = 6 if mode == "topk" else 3
    assert result.locations.shape == (2, 4, 2, 4, points, 2)
    torch.testing.assert_close(result.weights.sum(dim=(3, 4)), torch.ones(2, 4, 2))
    if mode in ("grid", "centre"):
        centre = torch.tensor([0.5, 0.5] if mode == "centre" else [0.25, 0.25])
        # Head 0 looks right, head 1 left; the k-th point is k + 1 cells of its level away.
        right = centre + torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]) / 6
        torch.testing.assert_close(result.locations[0, 0, 0, 0], right)
        torch.testing.assert_close(result.locations[0, 0, 1, 3], centre - (right - centre) * 6 / 2)


def test_another_width_may_come_out(pyramid):
    align = MultiScaleDeformableCrossAttentionAlignment(12, DIMS, 8, 2, 3, 20, reference_points="centre")
    assert align(torch.randn(2, 5, 12), pyramid()).tokens.shape == (2, 5, 20)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_is_its_images_one_by_one(pyramid, valid_masks, wake, mode):
    align = wake(aligner(reference_points=mode, top_k=3))
    queries, maps = torch.randn(2, 4, 12), pyramid()
    masks, regions = valid_masks([(1, 1), (0.5, 0.75)]), torch.rand(2, 8, 8)
    whole = align(queries, maps, valid_masks=masks, region_maps=regions)
    for image in range(2):
        one = slice(image, image + 1)
        single = align(
            queries[one],
            [feature_map[one] for feature_map in maps],
            valid_masks=[mask[one] for mask in masks],
            region_maps=regions[one],
        )
        torch.testing.assert_close(single.tokens, whole.tokens[one], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(single.locations, whole.locations[one], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["similarity", "topk", "centre"])
def test_queries_do_not_see_each_other(pyramid, wake, mode):
    align = wake(aligner(reference_points=mode))
    queries, maps = torch.randn(2, 5, 12), pyramid()
    expected = align(queries, maps).tokens
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(align(queries[:, order], maps).tokens, expected[:, order])


def test_padding_queries_give_zeros_and_change_nothing(pyramid, wake):
    align = wake(aligner(reference_points="similarity"))
    queries, maps = torch.randn(2, 3, 12), pyramid()
    expected = align(queries, maps).tokens
    padded = torch.cat([queries, torch.full((2, 2, 12), float("nan"))], dim=1).requires_grad_()
    query_mask = torch.arange(5).expand(2, 5) < 3
    result = align(padded, maps, query_mask=query_mask).tokens
    torch.testing.assert_close(result[:, :3], expected)
    assert not result[:, 3:].any()
    result.sum().backward()
    assert padded.grad.isfinite().all()
    assert not padded.grad[:, 3:].any()
    assert all(parameter.grad.isfinite().all() for parameter in align.parameters())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sample_first", [False, True])
def test_no_queries_are_legal_and_every_gradient_is_defined(pyramid, mode, sample_first):
    align = aligner(reference_points=mode, sample_first=sample_first)
    result = align(torch.randn(2, 0, 12), pyramid())
    assert result.tokens.shape == (2, 0, 12)
    result.tokens.sum().backward()
    assert all(not parameter.grad.any() for parameter in align.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_reaches_what_it_should(pyramid, wake, mode):
    align = wake(aligner(reference_points=mode))
    shapes = [(8, 8), (6, 6), (5, 5), (4, 6)]
    queries, maps = torch.randn(2, 4, 12, requires_grad=True), pyramid(shapes=shapes, requires_grad=True)
    align(queries, maps, region_maps=torch.rand(2, 4, 4)).tokens.square().sum().backward()
    searches = mode in ("similarity", "topk")
    for name, parameter in align.named_parameters():
        assert bool(parameter.grad.any()) == (searches or name != "key_proj.weight"), name
    assert queries.grad.any()
    assert all(feature_map.grad.any() for feature_map in maps)


@pytest.mark.parametrize("mode", ["similarity", "topk"])
def test_the_place_itself_teaches_queries_and_keys(pyramid, wake, mode):
    """Only through the place: the output is the location in one case, the peaks' weights in the other."""
    align = wake(aligner(reference_points=mode))
    result = align(torch.randn(2, 4, 12), pyramid(shapes=[(8, 8), (6, 6), (6, 6), (6, 6)]))
    (result.locations if mode == "similarity" else result.weights).square().sum().backward()
    assert align.key_proj.weight.grad.any()
    assert align.query_proj.weight.grad.any()


def test_similarity_finds_the_cell_that_looks_like_the_query(pyramid):
    align = aligner(reference_points="similarity", similarity_temperature=0.01)
    maps = pyramid(1, shapes=[(8, 8), (6, 6), (5, 5), (4, 6)])
    with torch.no_grad():
        key = align.key_proj(maps[-1][0, :, 2, 4])
        align.query_proj.bias.copy_(key)
        align.query_proj.weight.zero_()
        align.sampling_offsets.bias.zero_()
    result = align(torch.randn(1, 1, 12), maps)
    torch.testing.assert_close(result.locations[0, 0, 0, 0, 0], torch.tensor([4.5 / 6, 2.5 / 4]), atol=0.02, rtol=0)
    assert result.similarity.shape == (1, 1, 4, 6)
    assert result.similarity.argmax() == 2 * 6 + 4
    assert result.similarity.max().item() == pytest.approx(100.0, rel=1e-4)


def test_points_and_boxes_are_shares_of_the_valid_area(pyramid, valid_masks):
    align = aligner()
    shapes = [(8, 8), (4, 4), (2, 2), (2, 2)]
    masks = valid_masks([(1, 1), (0.5, 0.25)], shapes=shapes)
    with torch.no_grad():
        align.sampling_offsets.bias.fill_(1.0)
    queries, maps = torch.randn(2, 1, 12), pyramid(shapes=shapes)
    result = align(queries, maps, valid_masks=masks, reference_points=torch.full((2, 1, 2), 0.5))
    torch.testing.assert_close(result.locations[0, 0, 0, 0, 0], torch.tensor([0.5 + 1 / 8, 0.5 + 1 / 8]))
    torch.testing.assert_close(result.locations[1, 0, 0, 0, 0], torch.tensor([0.125 + 1 / 8, 0.25 + 1 / 8]))
    boxes = torch.tensor([0.5, 0.5, 0.6, 0.3]).expand(2, 1, 4)
    result = align(queries, maps, valid_masks=masks, reference_points=boxes)
    # One offset is a third of half the box's side, because there are three points.
    torch.testing.assert_close(result.locations[0, 0, 0, 0, 0], torch.tensor([0.6, 0.55]))
    torch.testing.assert_close(result.locations[1, 0, 0, 0, 0], torch.tensor([0.125 + 0.025, 0.25 + 0.025]))


def test_the_cells_of_a_grid_are_shares_of_the_frame(pyramid, valid_masks):
    """Trap: scaling them by the valid ratio, as given points are, would move every token's own cell."""
    align = aligner()
    with torch.no_grad():
        align.sampling_offsets.bias.zero_()
    shapes = [(8, 8), (4, 4), (4, 4), (2, 2)]
    masks = valid_masks([(0.5, 0.5)], shapes=shapes)
    result = align(torch.randn(1, 4, 12), pyramid(1, shapes=shapes), valid_masks=masks)
    torch.testing.assert_close(result.locations[0, 1, 0, 2, 0], torch.tensor([0.75, 0.25]))


def test_a_grid_that_is_no_square_must_be_given(pyramid):
    align = aligner()
    queries = torch.randn(2, 6, 12)
    assert align(queries, pyramid(), grid=(2, 3)).tokens.shape == (2, 6, 12)
    with pytest.raises(ValueError, match="6 queries do not form a grid of 2 x 2"):
        align(queries, pyramid())
    with pytest.raises(ValueError, match="6 queries do not form a grid of 3 x 3"):
        align(queries, pyramid(), grid=(3, 3))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sample_first", [False, True])
def test_bfloat16_autocast_is_close_to_float32(pyramid, wake, mode, sample_first):
    align = wake(aligner(reference_points=mode, sample_first=sample_first))
    queries, maps = torch.randn(2, 4, 12), pyramid()
    expected = align(queries, maps).tokens
    with torch.autocast("cpu", torch.bfloat16):
        result = align(queries, maps)
    assert result.locations.dtype == torch.float32
    assert (result.tokens.float() - expected).norm() < 0.1 * expected.norm()
    result.tokens.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in align.parameters())


@pytest.mark.parametrize("sample_first", [False, True])
def test_a_module_in_bfloat16_runs(pyramid, wake, sample_first):
    align = wake(aligner(reference_points="similarity", sample_first=sample_first)).bfloat16()
    maps = pyramid(dtype=torch.bfloat16)
    result = align(torch.randn(2, 4, 12).bfloat16(), maps, region_maps=torch.rand(2, 4, 4))
    assert result.tokens.dtype == torch.bfloat16
    assert result.tokens.isfinite().all()


@pytest.mark.parametrize("mode", ["grid", "similarity"])
def test_gradcheck_in_float64(wake, mode):
    align = wake(MultiScaleDeformableCrossAttentionAlignment(4, (2, 3), 4, 2, 1, reference_points=mode)).double()
    queries = torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)
    maps = [torch.randn(1, 2, 4, 5).double().requires_grad_(), torch.randn(1, 3, 2, 3).double().requires_grad_()]
    torch.autograd.gradcheck(lambda rows, *levels: align(rows, levels).tokens, (queries, *maps))


def test_the_offsets_are_named_for_their_learning_rate():
    align = aligner()
    names = dict(align.named_parameters())
    assert [names[name].shape[0] for name in align.offset_parameter_names()] == [48, 48]


def test_sizes_that_do_not_fit_are_refused(pyramid):
    with pytest.raises(ValueError, match="--mm_n_heads"):
        MultiScaleDeformableCrossAttentionAlignment(12, DIMS, 10, 4)
    with pytest.raises(ValueError, match="at least one level"):
        MultiScaleDeformableCrossAttentionAlignment(12, ())
    with pytest.raises(ValueError, match="expected 4 feature maps"):
        aligner()(torch.randn(2, 4, 12), pyramid()[:2])
