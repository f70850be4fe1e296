"""Colours, outlines and labels on pictures."""

import numpy as np
import pytest
from psalm.overlays import Panel, draw_panels, paint_masks

RED, BLUE = np.array([[1.0, 0.0, 0.0]]), np.array([[0.0, 0.0, 1.0]])


def test_a_mask_is_translucent_inside_and_opaque_at_its_outline():
    image = np.full((7, 7, 3), 100, dtype=np.uint8)
    mask = np.zeros((1, 7, 7), dtype=bool)
    mask[0, 1:6, 1:6] = True
    painted = paint_masks(image, mask, RED, opacity=0.5)
    assert painted[3, 3].tolist() == [178, 50, 50]
    assert painted[1, 3].tolist() == [255, 0, 0]
    assert painted[0, 0].tolist() == [100, 100, 100]
    assert (image == 100).all()


def test_the_last_mask_lies_on_top():
    image = np.zeros((5, 5, 3), dtype=np.uint8)
    whole = np.ones((2, 5, 5), dtype=bool)
    painted = paint_masks(image, whole, np.concatenate([RED, BLUE]), opacity=1.0)
    assert painted[2, 2].tolist() == [0, 0, 255]


def test_no_mask_leaves_the_image_as_it_is():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert (paint_masks(image, np.zeros((0, 4, 4), dtype=bool), np.zeros((0, 3))) == image).all()


def _panel(title: str, keys: tuple[str, ...], **changes) -> Panel:
    masks = np.zeros((len(keys), 12, 16), dtype=bool)
    for number, mask in enumerate(masks):
        mask[:, 4 * number : 4 * number + 4] = True
    values = {"title": title, "image": np.full((12, 16, 3), 200, dtype=np.uint8), "masks": masks, "keys": keys}
    return Panel(**values | {"labels": keys} | changes)


def _pixels(figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


def test_the_same_class_has_the_same_colour_in_target_and_prediction():
    first = draw_panels([_panel("target", ("sky", "car")), _panel("found", ("car", "sky"))])
    shown = [axes.get_images()[0].get_array() for axes in first.axes]
    assert (shown[0][6, 1] == shown[1][6, 5]).all()
    assert (shown[0][6, 1] != shown[0][6, 5]).any()


@pytest.mark.parametrize(
    "label", ["$x_1$ and $", "a very long label that nobody can read in a small picture", "a\x00b"]
)
def test_words_that_somebody_wrote_are_drawn_as_they_are(label):
    figure = draw_panels([_panel("target", (label,))], title=label * 3)
    pixels = _pixels(figure)
    assert pixels.std() > 0


def test_panels_without_masks_and_with_empty_masks_are_legal():
    empty = _panel("found", ("sky",), masks=np.zeros((1, 12, 16), dtype=bool))
    figure = draw_panels([_panel("nothing", ()), empty])
    assert len(figure.axes) == 2
    assert not any(axes.texts for axes in figure.axes)


def test_the_label_of_a_ring_stands_on_the_ring():
    rows, columns = np.mgrid[:41, :41] - 20
    ring = (rows**2 + columns**2 < 400) & (rows**2 + columns**2 > 150)
    panel = Panel("ring", np.zeros((41, 41, 3), dtype=np.uint8), ring[None], ("ring",), ("ring",))
    (text,) = draw_panels([panel]).axes[0].texts
    column, row = text.get_position()
    assert ring[int(row), int(column)]
