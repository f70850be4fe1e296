import pytest
import torch
from deformable_projector import (
    DeformableProjector,
    DeformableProjectorConfig,
    SwinConvProjector,
    build_projector,
    describe,
)

DIMS = (4, 6, 8, 10)
SHAPES = ((16, 24), (8, 12), (4, 6), (3, 5))
MODES = ("grid", "similarity", "topk", "centre")


def build(mode="grid", output_dim=12):
    config = DeformableProjectorConfig(hidden_dim=8, num_heads=2, num_points=3, reference_points=mode)
    return build_projector("deformable", DIMS, output_dim, config=config, conv_dim=16, conv2_repeats=2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("train", [False, True])
def test_a_fresh_deformable_projector_is_its_baseline_to_the_bit(pyramid, valid_masks, mode, train):
    projector = build(mode).train(train)
    maps, reference = pyramid(shapes=SHAPES), pyramid()
    expected = projector.base(maps[-1])
    masks = valid_masks([(1, 1), (0.5, 0.8)], shapes=SHAPES)
    alone = projector(maps, valid_masks=masks)
    paired = projector(maps, reference_maps=reference, reference_regions=torch.rand(2, 32, 32))
    assert alone.grid == (2, 3)
    for result in (alone, paired):
        assert torch.equal(result.tokens, expected)


def test_by_itself_an_image_uses_its_grid_whatever_the_choice(pyramid, wake):
    maps = pyramid(shapes=SHAPES)
    projectors = [wake(build(mode)).eval() for mode in MODES]
    for projector in projectors[1:]:
        projector.load_state_dict(projectors[0].state_dict())
    results = [projector(maps) for projector in projectors]
    assert not torch.equal(results[0].tokens, projectors[0].base(maps[-1]))
    for result in results:
        assert torch.equal(result.tokens, results[0].tokens)
        assert result.similarity is None


@pytest.mark.parametrize(
    ("mode", "searches"), [("grid", True), ("similarity", True), ("topk", True), ("centre", False)]
)
def test_in_a_reference_image_tokens_search(pyramid, wake, mode, searches):
    projector = wake(build(mode)).eval()
    maps, reference = pyramid(shapes=SHAPES), pyramid()
    regions = torch.zeros(2, 16, 16)
    regions[:, :8] = 1.0
    result = projector(maps, reference_maps=reference, reference_regions=regions)
    assert result.tokens.shape == (2, 6, 12)
    assert (result.similarity is not None) == searches
    if searches:
        assert result.similarity.shape == (2, 6, 1, 1)
    elsewhere = projector(maps, reference_maps=reference, reference_regions=regions.flip(1))
    assert not torch.allclose(result.tokens, elsewhere.tokens)


def test_padding_of_the_reference_does_not_matter(pyramid, valid_masks, wake):
    projector = wake(build()).eval()
    maps, reference = pyramid(shapes=SHAPES), pyramid(shapes=SHAPES)
    masks = valid_masks([(1, 1), (0.5, 0.5)], shapes=SHAPES)
    spoilt = [level.masked_fill(~mask[:, None], 1e6) for level, mask in zip(reference, masks, strict=True)]
    one, other = (
        projector(maps, reference_maps=levels, reference_valid_masks=masks).tokens for levels in (reference, spoilt)
    )
    torch.testing.assert_close(one, other)


def test_region_vectors_look_at_an_image(pyramid, wake):
    projector = build()
    queries = torch.randn(2, 3, 12)
    assert not projector.attend(queries, pyramid()).tokens.any()
    wake(projector)
    result = projector.attend(queries, pyramid(), query_mask=torch.tensor([[True, True, False]] * 2))
    assert result.tokens[:, :2].abs().sum() > 0
    assert not result.tokens[:, 2].any()
    assert result.similarity.shape == (2, 3, 1, 1)
    given = projector.attend(queries, pyramid(), reference_points=torch.rand(2, 3, 4), region_maps=torch.rand(2, 4, 4))
    assert given.similarity is None


@pytest.mark.parametrize("cross", [False, True])
def test_every_parameter_has_a_gradient_in_every_kind_of_step(pyramid, cross):
    """Trap: a parameter that only some steps use stops data-parallel training."""
    projector = build()
    reference = {"reference_maps": pyramid(), "reference_regions": torch.rand(2, 8, 8)} if cross else {}
    projector(pyramid(shapes=SHAPES), **reference).tokens.square().sum().backward()
    assert [name for name, parameter in projector.named_parameters() if parameter.grad is None] == []


def test_something_of_a_reference_without_its_maps_is_refused(pyramid):
    with pytest.raises(ValueError, match="need reference_maps"):
        build()(pyramid(shapes=SHAPES), reference_regions=torch.rand(2, 8, 8))


def test_types_of_projectors():
    assert isinstance(build(), DeformableProjector)
    plain = build_projector("swin_conv", DIMS, 12, conv_dim=16)
    assert isinstance(plain, SwinConvProjector)
    assert plain.in_dim == 10


def test_the_lines_that_the_guide_promises():
    """Its troubleshooting searches the log for the class and for exactly these sizes."""
    projector = build_projector("deformable", DIMS, 12, conv_dim=16)
    first, second = describe(projector)
    assert "MultiScaleDeformableCrossAttentionAlignment" in first
    assert second == "n_levels=4, n_heads=8, n_points=4"
    (line,) = describe(build_projector("swin_conv", DIMS, 12, conv_dim=16, conv2_repeats=2))
    assert line == "SwinConvProjector: in_dim=10, conv_dim=16, output_dim=12, conv2_repeats=2"


def test_the_offsets_are_named_for_their_learning_rate():
    projector = build()
    assert set(projector.offset_parameter_names()) < {name for name, _ in projector.named_parameters()}


def test_a_saved_projector_computes_the_same(pyramid, wake, tmp_path):
    projector = wake(build()).eval()
    torch.save(projector.state_dict(), tmp_path / "projector.pt")
    again = build().eval()
    again.load_state_dict(torch.load(tmp_path / "projector.pt", weights_only=True))
    maps = pyramid(shapes=SHAPES)
    assert torch.equal(again(maps).tokens, projector(maps).tokens)
