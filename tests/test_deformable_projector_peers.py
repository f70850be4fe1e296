"""The deformable projector's sampling against the implementation in transformers, with the same weights."""

import pytest
import torch
from deformable_projector import MultiScaleDeformableCrossAttentionAlignment, multi_scale_deformable_attention
from deformable_projector.references import sine_embedding
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention as PeerModule,
)
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention as peer_function

DIMS = (4, 6, 8)
SHAPES = [(9, 12), (5, 6), (2, 3)]
DIM, HEADS, POINTS = 16, 4, 3


@pytest.mark.parametrize("backend", ["auto", "reference", "bags"])
def test_the_function_and_its_gradients_are_those_of_transformers(backend):
    torch.manual_seed(0)
    positions = sum(height * width for height, width in SHAPES)
    inputs = (
        torch.randn(2, positions, HEADS, 8),
        torch.rand(2, 7, HEADS, len(SHAPES), POINTS, 2) * 1.4 - 0.2,
        torch.rand(2, 7, HEADS, len(SHAPES), POINTS),
    )
    results = []
    for function, options in ((multi_scale_deformable_attention, {"backend": backend}), (peer_function, {})):
        value, locations, weights = (tensor.double().requires_grad_() for tensor in inputs)
        result = function(value, SHAPES, locations, weights, **options)
        result.sin().sum().backward()
        results.append((result, value.grad, locations.grad, weights.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_the_bfloat16_function_is_finite_where_half_precision_sampling_is_not():
    """From 16 x 16 maps up, half-precision sampling of the peer on the CPU gives anything up to NaN."""
    torch.manual_seed(0)
    value = torch.randn(1, 32 * 32, HEADS, 32).bfloat16()
    locations, weights = torch.rand(1, 50, HEADS, 1, 4, 2), torch.rand(1, 50, HEADS, 1, 4)
    expected = peer_function(value.float(), [(32, 32)], locations, weights)
    result = multi_scale_deformable_attention(value, [(32, 32)], locations, weights)
    torch.testing.assert_close(result.float(), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("sample_first", [False, True])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_the_aligner_is_the_peers_module_with_the_same_weights(sample_first, coordinates):
    """The peer has a second value projection, which becomes the identity, and no projections around it."""
    torch.manual_seed(0)
    align = MultiScaleDeformableCrossAttentionAlignment(10, DIMS, DIM, HEADS, POINTS, sample_first=sample_first)
    peer = PeerModule(DIM, HEADS, len(DIMS), POINTS)
    with torch.no_grad():
        for name, parameter in align.named_parameters():
            if name != "values.region_embed":
                parameter.add_(0.2 * torch.randn_like(parameter))
        for name in ("sampling_offsets", "attention_weights", "output_proj"):
            peer.get_submodule(name).load_state_dict(align.get_submodule(name).state_dict())
        peer.value_proj.weight.copy_(torch.eye(DIM))
        peer.value_proj.bias.zero_()
    queries = torch.randn(2, 5, 10)
    maps = [torch.randn(2, dim, *shape) for dim, shape in zip(DIMS, SHAPES, strict=True)]
    masks = [torch.ones(2, *shape, dtype=torch.bool) for shape in SHAPES]
    masks[0][1, :, 8:] = masks[1][1, :, 4:] = masks[2][1, :, 2:] = False  # the right third of the second image
    references = torch.rand(2, 5, coordinates)
    ours = align(queries, maps, valid_masks=masks, reference_points=references)

    places = references[:, :, None].expand(-1, -1, len(DIMS), -1).clone()
    places[1, :, :, 0::2] *= 2 / 3  # from the valid area to the whole map
    hidden = align.query_proj(F.layer_norm(queries, (10,)))
    values = torch.cat(
        [
            projection(feature_map.flatten(2).mT) + align.values.level_embed[level]
            for level, (projection, feature_map) in enumerate(zip(align.values.level_proj, maps, strict=True))
        ],
        dim=1,
    )
    padding = torch.cat([~mask.flatten(1) for mask in masks], dim=1)
    seen, _ = peer(
        hidden,
        attention_mask=padding,
        encoder_hidden_states=values,
        position_embeddings=sine_embedding(places[:, :, 0, :2], DIM),
        reference_points=places,
        spatial_shapes_list=SHAPES,
    )
    torch.testing.assert_close(ours.tokens, align.out_proj(seen), rtol=1e-4, atol=1e-5)
