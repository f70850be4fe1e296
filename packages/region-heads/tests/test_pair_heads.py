import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from region_heads import DistanceHead, LeftRightHead

DIM = 6


def _head(kind: type) -> torch.nn.Module:
    torch.manual_seed(0)
    return kind(DIM, hidden_dim=8).double().eval()


def _inputs(num_regions: int, rows: int = 3, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, num_regions, DIM, generator=generator, dtype=torch.float64)
    return features, torch.randn(rows, DIM, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("num_regions", [1, 2, 3, 15])
def test_shapes(num_regions: int) -> None:
    features, question = _inputs(num_regions)
    output = _head(DistanceHead)(features, None, question)
    num_pairs = 1 + num_regions * (num_regions - 1) // 2
    assert output.distance_m.shape == (3,)
    assert output.pair_distance_m.shape == output.pair_probabilities.shape == (3, num_pairs)
    assert output.pairs.shape == (num_pairs, 2)
    assert (output.distance_m >= 0).all()
    torch.testing.assert_close(output.pair_probabilities.sum(1), torch.ones(3, dtype=torch.float64))
    assert _head(LeftRightHead)(features, None, question).logits.shape == (3, 2)


def test_an_untrained_distance_is_about_the_mean() -> None:
    head = DistanceHead(DIM, mean_m=0.3, std_m=0.2)
    torch.nn.init.zeros_(head.metres.weight)
    torch.nn.init.zeros_(head.metres.bias)
    features = torch.randn(2, 4, DIM)
    assert head(features).distance_m.tolist() == pytest.approx([0.3, 0.3])


def test_the_soft_pair_equals_a_plain_loop() -> None:  # T20
    head = _head(DistanceHead)
    features, question = _inputs(4)
    output = head(features, None, question)
    context = head.context(features, None, question)
    for row in range(3):
        regions = context.regions[row]
        scores, metres = [], []
        for i in range(4):
            for j in range(i + 1, 4):
                scores.append(head.selection(regions[i]) + head.selection(regions[j]))
                pair = torch.cat([regions[i] + regions[j], (regions[i] - regions[j]).abs(), regions[i] * regions[j]])
                hidden = torch.nn.functional.gelu(head.mix_pair(pair) + head.mix_question(context.question[row]))
                metres.append(head.std_m * torch.nn.functional.softplus(head.offset + head.metres(hidden)))
        expected = (torch.cat(scores).softmax(0) * torch.cat(metres)).sum()
        torch.testing.assert_close(output.distance_m[row], expected)


def test_two_regions_are_exactly_the_plain_pair() -> None:  # T20
    features, question = _inputs(2)
    output = _head(DistanceHead)(features, None, question)
    assert output.pair_probabilities.tolist() == [[0.0, 1.0]] * 3
    assert output.distance_m.equal(output.pair_distance_m[:, 1])


@settings(max_examples=15, deadline=None)
@given(num_regions=st.integers(1, 6), seed=st.integers(0, 1000), data=st.data())
def test_a_distance_does_not_depend_on_the_order_of_the_regions(
    num_regions: int, seed: int, data: st.DataObject
) -> None:  # T21
    features, question = _inputs(num_regions, seed=seed)
    order = torch.tensor(data.draw(st.permutations(range(num_regions))))
    head = _head(DistanceHead)
    torch.testing.assert_close(
        head(features[:, order], None, question).distance_m, head(features, None, question).distance_m
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_swapping_the_two_regions_swaps_left_and_right(seed: int) -> None:  # T21
    features, question = _inputs(2, seed=seed)
    head = _head(LeftRightHead)
    logits = head(features, None, question).logits
    torch.testing.assert_close(head(features.flip(1), None, question).logits, logits.flip(1))
    assert (logits[:, 0] == -logits[:, 1]).all()
    assert (logits.abs() > 0).all()


def test_one_region_leaves_the_side_open() -> None:
    features, question = _inputs(3)
    head = _head(LeftRightHead)
    assert head(features[:, :1], None, question).logits.tolist() == [[0.0, 0.0]] * 3
    lone = torch.tensor([[True, False, False]] * 3)
    assert head(features, lone, question).logits.tolist() == [[0.0, 0.0]] * 3
    assert head(features, lone, question).probabilities.tolist() == [[0.5, 0.5]] * 3


def test_later_regions_do_not_move_the_side() -> None:
    features, question = _inputs(5)
    head = _head(LeftRightHead)
    torch.testing.assert_close(head(features, None, question).logits, head(features[:, :2], None, question).logits)


@pytest.mark.parametrize("kind", [DistanceHead, LeftRightHead])
@pytest.mark.parametrize("num_regions", [1, 2, 4])
def test_padding_and_batching_change_nothing(kind: type, num_regions: int) -> None:  # T7
    head = _head(kind)
    features, question = _inputs(num_regions)
    alone = torch.cat([vars(head(features[i : i + 1], None, question[i : i + 1]))[_answer(kind)] for i in range(3)])
    padded = torch.cat([features, torch.full((3, 3, DIM), 50.0, dtype=torch.float64)], dim=1)
    mask = torch.arange(num_regions + 3).expand(3, -1) < num_regions
    torch.testing.assert_close(vars(head(padded, mask, question))[_answer(kind)], alone)


def _answer(kind: type) -> str:
    return "distance_m" if kind is DistanceHead else "logits"


def test_no_region_at_all_is_finite() -> None:
    features, question = _inputs(3)
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    assert _head(DistanceHead)(features, nothing, question).distance_m.isfinite().all()
    assert _head(LeftRightHead)(features, nothing, question).logits.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_answers_are_float32_whatever_goes_in(dtype: torch.dtype) -> None:
    features = torch.randn(2, 4, DIM).to(dtype)
    for parameters in (torch.float32, torch.bfloat16):
        output = DistanceHead(DIM).to(parameters)(features)
        assert output.distance_m.dtype == output.pair_log_probabilities.dtype == torch.float32
        assert LeftRightHead(DIM).to(parameters)(features).logits.dtype == torch.float32


@pytest.mark.parametrize("kind", [DistanceHead, LeftRightHead])
def test_gradients(kind: type) -> None:
    head = _head(kind)
    features, question = _inputs(4, rows=2)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])

    def answer(features: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        return vars(head(features, mask, question))[_answer(kind)]

    assert torch.autograd.gradcheck(answer, (features.requires_grad_(), question.requires_grad_()))
    answer(features, question).square().sum().backward()
    assert features.grad is not None
    assert (features.grad[1, 2:] == 0).all()
    assert (features.grad[1, :2] != 0).any()
