"""What do the flat matrix product and ranks by counting save beside SPRC's published scripts?

Three paths, each written here from its description and run in turn with ours, on random features:

* scoring: the published script multiplies (queries, 1, 1, D) by (images, D, 32), which copies the whole gallery for
  every query of a batch of 32; ours is `GalleryIndex.search`, best ten images included.
* metrics: it sorts every row, turns the positions into a matrix of names and compares that with names; ours is
  `cirr_metrics`. Both compute the same small matrix product first.
* training: what one similarity of a batch keeps for backward, counted by saved-tensor hooks.

The last column says how far the results are apart: the largest difference of scores, of recalls, of gradients.

    uv run --no-sync python benchmarks/sprc_retrieval.py
    uv run --no-sync python benchmarks/sprc_retrieval.py --device cuda --cirr   # on two CPU cores half an hour
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from sprc.index import GalleryIndex
from sprc.losses import best_similarity
from sprc.metrics import CIRR_RECALLS, CIRR_SUBSET_RECALLS, cirr_metrics
from stopwatch import Stopwatch, options_of
from torch import Tensor
from torch.nn import functional as F

CIRR_QUERIES, CIRR_IMAGES = 4181, 2297
PUBLISHED_BATCH = 32


class Query(NamedTuple):
    """A query of CIRR."""

    pair_id: str
    reference: str
    target: str | None
    members: tuple[str, ...]


def unit_rows(*shape: int, device: str) -> Tensor:
    """Random vectors of length one."""
    generator = torch.Generator().manual_seed(sum(shape))
    return F.normalize(torch.randn(shape, generator=generator), dim=-1).to(device)


def broadcast_similarity(queries: Tensor, features: Tensor) -> Tensor:
    """The published similarity."""
    return (queries[:, None, None, :] @ features.mT).squeeze(2).max(dim=-1).values


def broadcast_scores(queries: Tensor, features: Tensor) -> Tensor:
    """The published scoring of a gallery, batch by batch."""
    return torch.cat([broadcast_similarity(batch, features) for batch in queries.split(PUBLISHED_BATCH)])


def metrics_by_names(index: GalleryIndex, queries: Tensor, triplets: Sequence[Query]) -> dict[str, float]:
    """The published metrics: a sort and matrices of names."""
    scores = broadcast_scores(queries, index.features).cpu()
    names = np.array(index.names)[torch.argsort(1 - scores, dim=-1, stable=True).numpy()]
    count = len(triplets)
    references = np.repeat(np.array([triplet.reference for triplet in triplets]), len(index)).reshape(count, -1)
    names = names[names != references].reshape(count, -1)
    targets = np.repeat(np.array([triplet.target for triplet in triplets]), names.shape[1]).reshape(count, -1)
    labels = names == targets
    members = np.array([triplet.members for triplet in triplets])
    in_set = (names[..., None] == members[:, None, :]).sum(axis=-1).astype(bool)
    subset_labels = labels[in_set].reshape(count, -1)
    recalls = {f"R@{k}": 100 * labels[:, :k].sum() / count for k in CIRR_RECALLS}
    recalls |= {f"Rsub@{k}": 100 * subset_labels[:, :k].sum() / count for k in CIRR_SUBSET_RECALLS}
    return {**recalls, "Avg": (recalls["R@5"] + recalls["Rsub@1"]) / 2}


def kept_for_backward(similarity: Callable[[Tensor, Tensor], Tensor], rows: int, vectors: int, dim: int, device: str):
    """MiB of the memory that a similarity keeps for backward, and the gradient of the targets."""
    queries = unit_rows(rows, dim, device=device).requires_grad_()
    targets = unit_rows(rows, vectors, dim, device=device).requires_grad_()
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        scores = similarity(queries, targets)
    scores.diagonal().sum().backward()
    return sum(kept.values()) / 2**20, targets.grad


def median_times(ways: Sequence[Callable[[], object]], watch: Stopwatch, repeats: int) -> list[float]:
    """Milliseconds of each way, run in turn; the first round only warms up."""
    rounds = []
    for _ in range(repeats + 1):
        times = []
        for way in ways:
            start = watch.seconds()
            way()
            times.append(1000 * (watch.seconds() - start))
        rounds.append(times)
    return [statistics.median(times) for times in zip(*rounds[1:], strict=True)]


def print_row(path: str, size: str, published: float, ours: float, unit: str, difference: float) -> None:
    """One line of the table."""
    values = f"{published:,.1f} {unit} | {ours:,.1f} {unit} | {published / ours:.1f} | {difference:.1e}"
    print(f"| {path} | {size} | {values} |")


def compare_scoring(options: argparse.Namespace, watch: Stopwatch) -> None:
    """Score a gallery both ways."""
    features = unit_rows(options.images, options.vectors, options.dim, device=options.device)
    queries = unit_rows(options.queries, options.dim, device=options.device)
    index = GalleryIndex([str(i) for i in range(options.images)], features)
    ways = (lambda: broadcast_scores(queries, features), lambda: index.search(queries, 10))
    published, ours = median_times(ways, watch, options.repeats)
    best = broadcast_scores(queries, features).sort(dim=1, descending=True).values[:, :10]
    difference = (best - index.search(queries, 10).scores).abs().max().item()
    print_row("scoring", f"{options.queries} x {options.images}", published, ours, "ms", difference)


def compare_metrics(options: argparse.Namespace, watch: Stopwatch) -> None:
    """Compute CIRR's recalls both ways."""
    count, images = options.ranked_queries, options.ranked_images
    names = [f"dev-{i}-{i % 4}-img{i % 2}" for i in range(images)]
    index = GalleryIndex(names, unit_rows(images, 1, 16, device=options.device))
    generator = torch.Generator().manual_seed(0)
    sets = [[names[i] for i in torch.randperm(images, generator=generator)[:6].tolist()] for _ in range(count)]
    triplets = [Query(str(i), own[0], own[1], tuple(own)) for i, own in enumerate(sets)]
    queries = unit_rows(count, 16, device=options.device)
    ways = (lambda: metrics_by_names(index, queries, triplets), lambda: cirr_metrics(index, queries, triplets))
    published, ours = median_times(ways, watch, options.repeats)
    expected, found = metrics_by_names(index, queries, triplets), cirr_metrics(index, queries, triplets).scores()
    difference = max(abs(expected[name] - value) for name, value in found.items())
    print_row("metrics", f"{count} x {images}", published, ours, "ms", difference)


def compare_training(options: argparse.Namespace) -> None:
    """Count what is kept for backward both ways."""
    size = (options.rows, options.vectors, options.dim)
    published, expected = kept_for_backward(broadcast_similarity, *size, options.device)
    ours, gradient = kept_for_backward(best_similarity, *size, options.device)
    difference = (gradient - expected).abs().max().item()
    print_row("training, kept for backward", f"{options.rows} x {options.rows}", published, ours, "MiB", difference)


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = options_of(__doc__)
    parser.add_argument("--queries", type=int, default=64, help="queries of the scoring")
    parser.add_argument("--images", type=int, default=256, help="gallery of the scoring")
    parser.add_argument("--ranked-queries", type=int, default=1000, help="queries of the metrics")
    parser.add_argument("--ranked-images", type=int, default=600, help="gallery of the metrics")
    parser.add_argument("--rows", type=int, default=128, help="batch of the training similarity")
    parser.add_argument("--vectors", type=int, default=32, help="vectors per image")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cirr", action="store_true", help="CIRR's validation: 4,181 queries, 2,297 images")
    options = parser.parse_args(words)
    if options.quick:
        options.queries, options.images, options.ranked_queries, options.ranked_images = 3, 12, 5, 8
        options.rows, options.vectors, options.dim, options.repeats = 4, 3, 8, 1
    if options.cirr:
        options.queries = options.ranked_queries = CIRR_QUERIES
        options.images = options.ranked_images = CIRR_IMAGES
    watch = Stopwatch(options.device, options.threads)
    print(f"{watch.describe()}; float32, {options.vectors} vectors per image, {options.dim} wide")
    print()
    print("| path | size | published | ours | ratio | difference |")
    print("| :--- | ---: | ---: | ---: | ---: | ---: |")
    compare_scoring(options, watch)
    compare_metrics(options, watch)
    compare_training(options)


if __name__ == "__main__":
    main()
