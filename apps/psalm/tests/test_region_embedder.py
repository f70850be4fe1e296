"""Region vectors: means under prompts, in any order, also where a prompt is tiny, empty or absent."""

import torch
from psalm.region_embedder import RegionEmbedder


def embed(embedder, maps, boxes, images):
    """Vectors of boxes (top, left, bottom, right) in a frame of 8 x 8 pixels."""
    masks = torch.zeros(len(boxes), 8, 8, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return embedder(maps, masks, torch.tensor(images, dtype=torch.long))


def test_a_region_is_the_mean_of_the_tokens_it_covers_by_area():
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    rows = embed(RegionEmbedder(1, geometry=False), maps, [(0, 0, 8, 8), (0, 0, 4, 4), (0, 2, 4, 8)], [0, 0, 0])
    # The last prompt covers half of the first cell and all of the second: (0.5 * 1 + 2) / 1.5.
    torch.testing.assert_close(rows[:, 0], torch.tensor([2.5, 1.0, 2.5 / 1.5]))


def test_a_prompt_of_one_pixel_has_a_vector():  # upstream loses it at resizing
    rows = embed(RegionEmbedder(1, geometry=False), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), [(7, 0, 8, 1)], [0])
    assert rows.tolist() == [[3.0]]


def test_an_empty_prompt_gives_zeros_and_a_gradient_that_is_finite():
    maps = torch.randn(1, 4, 2, 2, requires_grad=True)
    rows = embed(RegionEmbedder(4, geometry=False), maps, [(0, 0, 0, 0)], [0])
    assert rows.tolist() == [[0.0] * 4]
    rows.sum().backward()
    assert maps.grad is not None
    assert maps.grad.abs().sum() == 0


def test_regions_of_several_images_come_in_any_order():
    torch.manual_seed(0)
    embedder, maps = RegionEmbedder(4, geometry=True), torch.randn(3, 4, 2, 2)
    boxes, images = [(0, 0, 4, 4), (2, 2, 8, 8), (0, 4, 8, 8), (1, 1, 3, 7)], [2, 0, 2, 1]
    together = embed(embedder, maps, boxes, images)
    for row, box, image in zip(together, boxes, images, strict=True):
        torch.testing.assert_close(row, embed(embedder, maps[image : image + 1], [box], [0])[0])


def test_geometry_tells_two_places_of_the_same_cell_apart():
    torch.manual_seed(0)
    maps = torch.randn(1, 4, 1, 1)
    boxes = [(0, 0, 2, 2), (6, 6, 8, 8)]
    blind = embed(RegionEmbedder(4, geometry=False), maps, boxes, [0, 0])
    torch.testing.assert_close(blind[0], blind[1])
    seeing = embed(RegionEmbedder(4, geometry=True), maps, boxes, [0, 0])
    assert (seeing[0] - seeing[1]).abs().max() > 0.1


def test_levels_tell_two_things_in_the_same_cell_apart():
    torch.manual_seed(0)
    embedder, tokens, fine = (
        RegionEmbedder(4, geometry=False, level_dims=[3]),
        torch.randn(2, 4, 1, 1),
        torch.randn(2, 3, 8, 8),
    )
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, :2, :2] = masks[1, 6:, 6:] = masks[2, 6:, 6:] = True
    images = torch.tensor([1, 1, 0])
    rows = embedder(tokens, masks, images, [fine])
    torch.testing.assert_close(rows, tokens[images, :, 0, 0])  # what is added starts at zero
    weight = torch.nn.init.normal_(embedder.levels[0].weight)
    added = embedder(tokens, masks, images, [fine]) - rows
    pixels = torch.stack([fine[1, :, :2, :2], fine[1, :, 6:, 6:], fine[0, :, 6:, 6:]])
    torch.testing.assert_close(added, pixels.mean((2, 3)) @ weight.T)
    embedder(tokens, masks[:0], images[:0], [fine]).sum().backward()
    assert embedder.levels[0].weight.grad.abs().sum() == 0  # without regions too


def test_the_same_in_training_and_evaluation():  # upstream draws random points in evaluation too
    torch.manual_seed(0)
    embedder, maps = RegionEmbedder(4, geometry=True), torch.randn(1, 4, 2, 2)
    rows = [embed(embedder.train(mode), maps, [(1, 1, 7, 5)], [0]) for mode in (True, False, False)]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[1], rows[2])


def test_without_regions_the_geometry_still_has_a_gradient():
    embedder, maps = RegionEmbedder(4, geometry=True), torch.randn(2, 4, 2, 2, requires_grad=True)
    rows = embed(embedder, maps, [], [])
    assert rows.shape == (0, 4)
    rows.sum().backward()
    assert all(parameter.grad is not None for parameter in embedder.parameters())
    assert maps.grad is not None
