import pytest
import torch
import torch.nn.functional as F
from torch import nn
from video_autoregressive.masks import FrameLevelMaskGenerator, to_blocked

generator = FrameLevelMaskGenerator()


def by_hand(allowed, counts):
    """A mask pair by pair of patches, from a rule over pairs of frames."""
    frame_of = [frame for frame, count in enumerate(counts) for _ in range(count)]
    return torch.tensor([[allowed(query, key) for key in frame_of] for query in frame_of])


@pytest.mark.parametrize("counts", [3, [3, 1, 2, 4], [2, 0, 1, 2]])
def test_causal(counts):
    every = [counts] * 4 if isinstance(counts, int) else counts
    mask = generator.create_causal_frame_mask(4, counts)
    assert torch.equal(mask, by_hand(lambda query, key: key <= query, every))


@pytest.mark.parametrize("counts", [3, [3, 1, 2, 4]])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 9])
def test_sliding_window(counts, window):
    every = [counts] * 4 if isinstance(counts, int) else counts
    mask = generator.create_sliding_window_frame_mask(4, counts, window_size=window)
    assert torch.equal(mask, by_hand(lambda query, key: query - window < key <= query, every))


def test_the_guides_call():
    mask = FrameLevelMaskGenerator().create_causal_frame_mask(num_frames=4, num_patches_per_frame=9)
    assert mask.shape == (36, 36)
    assert mask.dtype == torch.bool
    assert mask[:9, :9].all()
    assert not mask[:9, 9:].any()


def test_slow_frames_see_slow_ones_and_fast_frames_all():
    mask = generator.create_fast_slow_frame_mask(num_fast=2, num_slow=3, num_patches_per_frame=1)
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


def test_slow_and_fast_frames_in_order_of_time():
    mask = generator.create_fast_slow_frame_mask(2, 2, [1, 2, 1, 1], fast=[False, True, False, True])
    frames = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]]
    assert torch.equal(mask, by_hand(lambda query, key: bool(frames[query][key]), [1, 2, 1, 1]))


@pytest.mark.parametrize(
    "mask",
    [
        generator.create_causal_frame_mask(5, 2),
        generator.create_sliding_window_frame_mask(5, 2),
        generator.create_fast_slow_frame_mask(3, 2, 2),
        generator.create_fast_slow_frame_mask(3, 2, 2, fast=[True, False, True, False, True]),
    ],
)
def test_no_mask_lets_a_frame_see_a_later_one_or_miss_itself(mask):
    frame = torch.arange(5).repeat_interleave(2)
    assert not mask[frame[:, None] < frame].any()
    assert mask[frame[:, None] == frame].all()


@pytest.mark.parametrize("frames", [0, 1])
def test_no_and_one_frame(frames):
    assert generator.create_causal_frame_mask(frames, 3).tolist() == torch.ones(3 * frames, 3 * frames).bool().tolist()


@pytest.mark.parametrize(
    ("fast", "message"),
    [([True, False], "got 1 fast and 1 slow frames, expected 2 and 1"), ([True] * 3, "got 3 fast and 0 slow")],
)
def test_the_kinds_must_be_those_counted(fast, message):
    with pytest.raises(ValueError, match=message):
        generator.create_fast_slow_frame_mask(2, 1, 4, fast=fast)


def test_a_window_holds_the_frame_itself():
    with pytest.raises(ValueError, match="window_size: got 0"):
        generator.create_sliding_window_frame_mask(2, 3, window_size=0)


def test_every_frame_has_its_count():
    with pytest.raises(ValueError, match="got 2 counts for 3 frames"):
        generator.create_causal_frame_mask(3, [1, 2])


@pytest.mark.parametrize(("counts", "expected"), [(2, [0, 0, 1, 1, 2, 2]), ([1, 3, 2], [0, 1, 1, 1, 2, 2])])
def test_position_ids_name_the_frame(counts, expected):
    assert generator.create_frame_position_ids(3, counts).tolist() == expected


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_masks_are_made_on_the_device(device):
    assert generator.create_causal_frame_mask(2, 3, device=device).device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_masks_of_a_cuda_device_are_those_of_the_cpu():
    for counts in (3, [3, 1, 2, 4]):
        mask = generator.create_sliding_window_frame_mask(4, counts, device="cuda")
        assert torch.equal(mask.cpu(), generator.create_sliding_window_frame_mask(4, counts))


def test_true_may_attend_in_scaled_dot_product_attention():
    mask = generator.create_causal_frame_mask(3, 2)
    states = torch.randn(1, 1, 6, 4, requires_grad=True)
    F.scaled_dot_product_attention(states, states, states, attn_mask=mask)[0, 0, :2].sum().backward()
    assert (states.grad[0, 0, :2] != 0).any()
    assert not states.grad[0, 0, 2:].any()


@pytest.mark.parametrize("module", ["attention", "encoder"])
def test_blocked_masks_are_what_modules_expect(module):
    blocked = to_blocked(generator.create_causal_frame_mask(3, 2))
    states = torch.randn(1, 6, 4, requires_grad=True)
    if module == "attention":
        result = nn.MultiheadAttention(4, 2, batch_first=True)(states, states, states, attn_mask=blocked)[0]
    else:
        result = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)(states, src_mask=blocked)
    (result[0, :2] ** 2).sum().backward()
    assert (states.grad[0, :2] != 0).any()
    assert not states.grad[0, 2:].any()


def test_visualize_mask_names_the_picture_after_its_title(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="needs the extra 'pictures'")
    monkeypatch.chdir(tmp_path)
    mask = generator.create_causal_frame_mask(4, 9)
    assert generator.visualize_mask(mask, title="Frame Causal Mask").name == "frame_causal_mask.png"
    assert (tmp_path / "frame_causal_mask.png").is_file()
    assert generator.visualize_mask(mask, path=tmp_path / "there.png", num_patches_per_frame=9).is_file()
