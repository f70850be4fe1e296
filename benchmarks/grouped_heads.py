"""How much faster are the grouped region heads than one call per sample?

Both ways run the same modules with the same weights on the same batch, forward and backward, in one process and in
turn; the table gives the median of each and the ratio. "loop" is the guide's forward: for every sample, its head on
`features[i:i+1]` and its loss (summed here; the guide keeps the last one only).

    uv run python benchmarks/grouped_heads.py --device cpu --dtype float32 --dim 4096 --regions 8 --repeats 5
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from region_heads import Label, RegionHeads, RegionTargets, TaskType
from region_heads.losses import choice_loss, counting_loss, distance_loss, left_right_loss
from torch import Tensor

BATCH_SIZES = (8, 64, 256)


def make_batch(
    batch_size: int, num_regions: int, dim: int, device: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, RegionTargets, Tensor]:
    """Draw features, tasks in random order, targets and questions."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch_size, num_regions, dim, generator=generator).to(device, dtype).requires_grad_()
    question = torch.randn(batch_size, dim, generator=generator).to(device, dtype)
    tasks = torch.randint(4, (batch_size,), generator=generator)
    labels = [Label(TaskType(task), 1.0 if task == 0 else 1) for task in tasks.tolist()]
    targets = RegionTargets.from_labels(labels, tasks.tolist(), [num_regions] * batch_size)
    return features, tasks.to(device), targets.to(device), question


def loop(heads: RegionHeads, features: Tensor, tasks: Tensor, targets: RegionTargets, question: Tensor) -> Tensor:
    """The guide's forward: one head call and one loss per sample."""
    losses: list[Tensor] = []
    for i, number in enumerate(tasks.tolist()):
        task = TaskType(number)
        output = heads.heads[task.label](features[i : i + 1], None, question[i : i + 1])
        if task is TaskType.DISTANCE:
            std_m = heads.config.distance_std_m
            losses.append(distance_loss(output, targets.distance_m[i : i + 1], kind="mse", std_m=std_m))
        elif task is TaskType.LEFT_RIGHT:
            losses.append(left_right_loss(output, targets.left_right[i : i + 1]))
        elif task is TaskType.MULTIPLE_CHOICE:
            losses.append(choice_loss(output, targets.choice[i : i + 1]))
        else:
            losses.append(counting_loss(output, targets.count[i : i + 1], kind="cross_entropy"))
    return torch.cat(losses).sum()


def grouped(heads: RegionHeads, features: Tensor, tasks: Tensor, targets: RegionTargets, question: Tensor) -> Tensor:
    """One call for the batch."""
    losses = heads(features, tasks, targets, None, question).losses
    return torch.stack([term.total for term in losses.values()]).sum()


def time_step(step: Callable[[], Tensor], heads: RegionHeads, device: str) -> float:
    """Seconds of one forward and backward."""
    heads.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step().backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--regions", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
    torch.manual_seed(0)
    heads = RegionHeads(options.dim, None).to(options.device, dtype).eval()
    print(f"{options.device} {options.dtype}, D {options.dim}, N {options.regions}, torch {torch.__version__}")
    print(f"{'B':>5} {'loop ms':>10} {'grouped ms':>11} {'ratio':>7} {'equal to':>9}")
    for batch_size in BATCH_SIZES:
        features, tasks, targets, question = make_batch(batch_size, options.regions, options.dim, options.device, dtype)
        batch = (heads, features, tasks, targets, question)
        ways = (lambda batch=batch: loop(*batch), lambda batch=batch: grouped(*batch))
        difference = abs(ways[0]().item() - ways[1]().item()) / ways[0]().item()
        times: tuple[list[float], list[float]] = ([], [])
        for repeat in range(options.repeats + 1):
            for way, seconds in zip(ways, times, strict=True):
                elapsed = time_step(way, heads, options.device)
                if repeat > 0:
                    seconds.append(elapsed)
        slow, fast = (1000 * statistics.median(seconds) for seconds in times)
        print(f"{batch_size:>5} {slow:>10.1f} {fast:>11.1f} {slow / fast:>7.1f} {difference:>9.1e}")


if __name__ == "__main__":
    main()
