import os
import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from region_heads import (
    Label,
    RegionHeads,
    RegionHeadsConfig,
    RegionTargets,
    TaskType,
    count_loss_items,
)

DIM = 6
LABELS = [
    Label(TaskType.DISTANCE, 2.5, frozenset({0, 2})),
    Label(TaskType.LEFT_RIGHT, 1),
    Label(TaskType.MULTIPLE_CHOICE, 1),
    Label(TaskType.COUNTING, 2, frozenset({1, 3})),
    Label(TaskType.DISTANCE, 0.0),
    None,
    Label(TaskType.COUNTING, 1),
    Label(TaskType.MULTIPLE_CHOICE, 0),
    None,
]
TASKS = [0, 1, 2, 3, 0, -1, 3, 2, 1]
NUM_REGIONS = [4, 2, 3, 4, 2, 3, 1, 2, 2]


def _heads(config: dict[str, object] | None = None) -> RegionHeads:
    torch.manual_seed(0)
    return RegionHeads(DIM, {"hidden_dim": 8, **(config or {})})


def _batch(
    tasks: list[int] = TASKS, labels: list[Label | None] = LABELS, num_regions: list[int] = NUM_REGIONS
) -> dict[str, object]:
    generator = torch.Generator().manual_seed(1)
    width = max(num_regions, default=0)
    return {
        "features": torch.randn(len(tasks), width, DIM, generator=generator),
        "task_types": torch.tensor(tasks, dtype=torch.long),
        "targets": RegionTargets.from_labels(labels, tasks, num_regions),
        "region_mask": torch.arange(width) < torch.tensor(num_regions, dtype=torch.long)[:, None],
        "question": torch.randn(len(tasks), DIM, generator=generator),
    }


def test_outputs_come_grouped_with_their_rows() -> None:
    output = _heads()(**_batch())
    assert {name: rows.tolist() for name, rows in output.rows.items()} == {
        "distance": [0, 4],
        "left_right": [1, 8],
        "multiple_choice": [2, 7],
        "counting": [3, 6],
    }
    assert output.outputs["distance"].distance_m.shape == (2,)
    assert output.outputs["multiple_choice"].logits.shape == (2, 4)
    assert output.batch_size == 9


def test_losses_are_sums_over_all_rows_of_a_task() -> None:  # T6
    losses = _heads().eval()(**_batch()).losses
    assert {name: int(term.count) for name, term in losses.items()} == {
        "distance": 2,
        "distance_pair": 1,
        "left_right": 1,
        "multiple_choice": 2,
        "counting": 2,
        "counting_members": 1,
    }
    for name, term in losses.items():
        assert term.total.dtype == torch.float32
        assert term.total.item() > 0, name


def test_the_grouped_call_equals_one_call_per_row() -> None:  # T5, T6
    heads, batch = _heads().eval(), _batch()
    whole = heads(**batch)
    totals = dict.fromkeys(whole.losses, 0.0)
    for row in range(len(TASKS)):
        one = torch.tensor([row])
        single = heads(
            batch["features"][one, : NUM_REGIONS[row]],
            batch["task_types"][one],
            batch["targets"].select(one),
            None,
            batch["question"][one],
        )
        for name, term in single.losses.items():
            totals[name] += term.total.item()
        for name, output in single.outputs.items():
            position = whole.rows[name].tolist().index(row)
            for field in {"distance_m", "log_probabilities", "expected_count"} & set(vars(output)):
                torch.testing.assert_close(
                    vars(whole.outputs[name])[field][position : position + 1], vars(output)[field], rtol=1e-4, atol=1e-5
                )
    assert {name: term.total.item() for name, term in whole.losses.items()} == pytest.approx(totals, rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_items_counted_without_the_model_equal_the_terms_counts(data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, 6))
    tasks, labels, num_regions = [], [], []
    for _ in range(rows):
        task = data.draw(st.integers(-1, 3))
        regions = data.draw(st.integers(0, 4))
        tasks.append(task)
        num_regions.append(regions)
        value = data.draw(st.integers(0, 5))
        involved = data.draw(st.none() | st.frozensets(st.integers(0, 4), max_size=3))
        labels.append(None if task < 0 or data.draw(st.booleans()) else Label(TaskType(task), value, involved))
    config = RegionHeadsConfig.from_dict(
        {"hidden_dim": 8, "max_count": 3, "counting": {"enabled": data.draw(st.booleans())}}
    )
    batch = _batch(tasks, labels, num_regions)
    losses = RegionHeads(DIM, config)(**batch).losses
    expected = count_loss_items(batch["task_types"], batch["targets"], config)
    assert {name: int(term.count) for name, term in losses.items()} == expected
    assert all(term.total.isfinite() for term in losses.values())


@pytest.mark.parametrize("tasks", [[0], [1, 1], [2], [3, 3, 3], [-1, -1], []])
@pytest.mark.parametrize("with_targets", [True, False])
def test_every_parameter_gets_a_gradient_whatever_the_batch_holds(tasks: list[int], with_targets: bool) -> None:  # T38
    heads = _heads()
    batch = _batch(tasks, [None] * len(tasks), [2] * len(tasks))
    if not with_targets:
        batch["targets"] = None
    features = batch["features"].requires_grad_()
    output = heads(**batch)
    assert all(int(term.count) == 0 for term in output.losses.values())
    assert output.losses.means() == {}
    output.losses.weighted_total().backward()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad == 0).all(), name
    # The modules before the heads stay in the graph too.
    assert features.grad is not None
    assert (features.grad == 0).all()


def test_dummy_rows_do_not_change_the_gradient() -> None:  # T38
    batch = _batch([0, 0], [Label(TaskType.DISTANCE, 1.0), Label(TaskType.DISTANCE, 3.0)], [2, 3])
    gradients = []
    for config in ({}, {name: {"enabled": False} for name in ("left_right", "multiple_choice", "counting")}):
        heads = _heads(config).eval()
        heads(**batch).losses.weighted_total().backward()
        gradients.append({name: p.grad for name, p in heads.named_parameters() if name.startswith("heads.distance")})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_ignored_rows_are_counted_by_reason() -> None:  # T7, T8, T17
    tasks = [-1, 1, 0, 2, 2, 3, 3, 3]
    labels = [
        None,
        Label(TaskType.LEFT_RIGHT, 0),  # its head is disabled
        None,  # no target
        Label(TaskType.MULTIPLE_CHOICE, 3),  # points at padding
        Label(TaskType.MULTIPLE_CHOICE, 9),  # points nowhere
        Label(TaskType.COUNTING, 4),  # more than there are regions
        Label(TaskType.COUNTING, 3),  # the last class
        Label(TaskType.COUNTING, 1),
    ]
    heads = _heads({"left_right": {"enabled": False}, "max_count": 3})
    output = heads(**_batch(tasks, labels, [2, 2, 2, 3, 3, 2, 4, 4]))
    assert output.ignored == {
        "unknown_task": 1,
        "disabled_task": 1,
        "missing_target": 1,
        "impossible_target": 3,
        "clipped_count": 1,
    }
    assert "left_right" not in output.outputs
    assert "left_right" not in output.losses
    total = output.losses.weighted_total()
    assert total.isfinite()
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())


def test_a_target_that_is_not_finite_leaves_no_trace() -> None:
    batch = _batch([0, 0], [Label(TaskType.DISTANCE, float("nan")), Label(TaskType.DISTANCE, 2.0)], [2, 2])
    for loss in ("mse", "log_huber"):
        heads = _heads({"distance_loss": loss})
        output = heads(**batch)
        assert output.ignored["impossible_target"] == 1
        output.losses.weighted_total().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())


def test_weights() -> None:  # T10, T11
    weights = {"distance": 2.0, "left_right": 0.5, "multiple_choice": 3.0, "counting": 4.0}
    heads = _heads({**{name: {"weight": weight} for name, weight in weights.items()}, "selection_weight": 0.25}).eval()
    losses = heads(**_batch()).losses
    assert {name: term.weight for name, term in losses.items()} == {
        **weights,
        "distance_pair": 0.5,
        "counting_members": 1.0,
    }
    expected = sum(term.total.item() / int(term.count) * term.weight for term in losses.values())
    assert losses.weighted_total().item() == pytest.approx(expected, rel=1e-5)


def test_without_any_head_there_is_nothing() -> None:
    heads = _heads({task.label: {"enabled": False} for task in TaskType})
    output = heads(**_batch())
    assert not output.outputs
    assert len(output.losses) == 0
    assert output.ignored["disabled_task"] == 8


def test_parameters_are_only_built_where_enabled() -> None:
    assert set(_heads({"distance": {"enabled": False}}).heads) == {"left_right", "multiple_choice", "counting"}


def test_errors_say_what_is_wrong() -> None:
    heads, batch = _heads(), _batch()
    with pytest.raises(ValueError, match=r"task types must be -1 \(unknown\) or 0..3, got .*7"):
        heads(**{**batch, "task_types": torch.tensor([0, 1, 2, 3, 0, -1, 3, 2, 7])})
    with pytest.raises(ValueError, match="targets hold 1 rows, the features 9"):
        heads(**{**batch, "targets": batch["targets"].select(torch.tensor([0]))})
    with pytest.raises(ValueError, match="another number of regions in the targets"):
        heads(**{**batch, "region_mask": None})
    with pytest.raises(ValueError, match="padding before a true region"):
        heads(**{**batch, "region_mask": batch["region_mask"].flip(1)})
    with pytest.raises(ValueError, match="expected region features of width 6"):
        heads(**{**batch, "features": batch["features"][..., :4], "question": None})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_and_parameters(dtype: torch.dtype) -> None:
    batch = _batch()
    batch = {**batch, "features": batch["features"].to(dtype), "question": batch["question"].to(dtype)}
    for heads in (_heads(), _heads().to(torch.bfloat16)):
        losses = heads(**batch).losses
        losses.weighted_total().backward()
        assert all(term.total.dtype == torch.float32 and term.total.isfinite() for term in losses.values())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())


def test_autocast_changes_little() -> None:
    heads, batch = _heads().eval(), _batch()
    plain = heads(**batch).losses.weighted_total().item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = heads(**batch).losses
    assert mixed.weighted_total().item() == pytest.approx(plain, rel=0.05)


def test_a_state_dict_opens_in_a_new_module() -> None:
    heads = _heads().eval()
    again = RegionHeads(DIM, heads.config).eval()
    again.load_state_dict(heads.state_dict())
    assert again(**_batch()).losses.weighted_total().equal(heads(**_batch()).losses.weighted_total())


def test_the_heads_learn_a_small_world() -> None:
    """Regions are points in a plane; the four answers follow from their coordinates and the question."""
    torch.manual_seed(0)
    heads = RegionHeads(4, {"hidden_dim": 32, **{task.label: {"dropout": 0.0} for task in TaskType}})
    optimizer = torch.optim.Adam(heads.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)

    def step() -> dict[str, float]:
        rows, num_regions = 64, 3
        points = torch.rand(rows, num_regions, 2, generator=generator)
        features = torch.cat([points, points.flip(2)], dim=2)
        tasks = torch.arange(rows) % 4
        sizes = [2 if task < 2 else 3 for task in tasks.tolist()]
        labels = []
        for row, task in enumerate(tasks.tolist()):
            x, y = points[row, :, 0], points[row, :, 1]
            distance = 10 * float((points[row, 0] - points[row, 1]).norm())
            answers = [distance, int(x[0] > x[1]), int(x.argmax()), int((y > 0.5).sum())]
            labels.append(Label(TaskType(task), answers[task]))
        targets = RegionTargets.from_labels(labels, tasks.tolist(), sizes)
        mask = torch.arange(num_regions) < torch.tensor(sizes)[:, None]
        losses = heads(features, tasks, targets, mask).losses
        optimizer.zero_grad()
        losses.weighted_total().backward()
        optimizer.step()
        return losses.means()

    first = step()
    for _ in range(60):
        last = step()
    assert all(last[task.label] < 0.4 * first[task.label] for task in TaskType), (first, last)


def _train_on_rank(rank: int, rendezvous: str, tasks: list[list[int]], queue: "torch.multiprocessing.Queue") -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    heads = _heads().eval()
    # DDP without find_unused_parameters fails in the second step if a parameter was left out of the first.
    parallel = torch.nn.parallel.DistributedDataParallel(heads)
    for _ in range(2):
        labels = [None if task < 0 else Label(TaskType(task), 1) for task in tasks[rank]]
        parallel(**_batch(tasks[rank], labels, [2] * len(labels))).losses.weighted_total().backward()
    queue.put((rank, float(heads.heads["left_right"].score.weight.grad.abs().sum())))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_two_ranks_with_different_tasks_finish() -> None:  # T38
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (os.path.join(folder, "rendezvous"), [[1, 1], [-1]], queue)  # noqa: PTH118
        processes = [context.Process(target=_train_on_rank, args=(rank, *arguments)) for rank in range(2)]
        for process in processes:
            process.start()
        results = dict(queue.get(timeout=60) for _ in processes)
        for process in processes:
            process.join(timeout=60)
            assert process.exitcode == 0
    # The rank without a left/right question received the other's gradient.
    assert results[0] == results[1] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    heads, batch = _heads().eval(), _batch()
    expected = heads(**batch).losses.weighted_total()
    batch["targets"] = batch["targets"].pin_memory()
    moved = {name: value.to("cuda") for name, value in batch.items()}
    result = heads.to("cuda")(**moved).losses.weighted_total()
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-3, atol=1e-4)
