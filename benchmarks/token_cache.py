"""How much faster is an epoch of SPRC's training with cached tokens, and after how many epochs has the cache paid?

An epoch is the real loader over the triplets of a small world on disk, and for each batch forward, backward and AdamW:
once from images, through the frozen tower, and once from cached tokens, in one process and in turn. The tower and the
Q-Former are ViT-g and BERT-base with every width and depth divided by `--shrink`, so that the parts keep about their
proportions. Making the cache is timed once, before. It has paid after as many epochs as its making takes seconds,
divided by the seconds that each epoch saves.

    uv run --no-sync python benchmarks/token_cache.py --shrink 4 --scenes 12
"""

import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from region_loss_step import make_config
from sprc import SPRCConfig, SPRCModel, TripletCollator, TripletDataset, write_world
from sprc.config import DataSettings, SyntheticSettings
from sprc.opening import open_dataset, use_cached_tokens
from sprc.tokenizer import train_tokenizer
from stopwatch import Stopwatch, options_of
from torch.utils.data import DataLoader


def make_loader(dataset: TripletDataset, max_length: int, batch_size: int) -> DataLoader:
    """Batches of a split, read in this process, whose time is taken."""
    captions = [dataset.evaluation_caption(triplet) for triplet in dataset.split.triplets]
    collate = TripletCollator(train_tokenizer(captions, 512), max_length, use_region_loss=False)
    return DataLoader(dataset, batch_size=batch_size, collate_fn=collate, shuffle=True, drop_last=True)


def run_epoch(model: SPRCModel, optimizer: torch.optim.Optimizer, loader: DataLoader) -> None:
    """One training step per batch."""
    for batch in loader:
        inputs = {name: value.to(model.device) for name, value in batch.items() if torch.is_tensor(value)}
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = options_of(__doc__)
    parser.add_argument("--shrink", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--scenes", type=int, default=12, help="scenes of the world; each has 5 images and 4 triplets")
    parser.add_argument("--image-size", type=int, default=448, help="shorter side of the images on disk, in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(words)
    if options.quick:
        options.shrink, options.batch_size, options.scenes, options.image_size, options.rounds = 16, 4, 3, 64, 1
    watch = Stopwatch(options.device, options.threads)
    torch.manual_seed(0)
    config = make_config(options.shrink, SPRCConfig.region_queries)
    config.use_region_loss = False
    model = SPRCModel(config).to(options.device).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-5)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "world"
        world = SyntheticSettings(
            train_scenes=options.scenes, eval_scenes=3, edits=4, image_size=options.image_size, seed=0
        )
        write_world(root, world)
        live, cached = (open_dataset(DataSettings(root=str(root)), config, "train", training=True) for _ in range(2))
        start = watch.seconds()
        use_cached_tokens(cached, Path(folder) / "tokens", model, batch_size=options.batch_size, show=False)
        build_s = watch.seconds() - start
        seconds: dict[str, list[float]] = {"images": [], "tokens": []}
        for _ in range(options.rounds):
            for name, dataset in (("images", live), ("tokens", cached)):
                loader = make_loader(dataset, config.max_caption_tokens, options.batch_size)
                start = watch.seconds()
                run_epoch(model, optimizer, loader)
                seconds[name].append(watch.seconds() - start)
    print(f"{watch.describe()}; sizes / {options.shrink}, {len(live)} triplets, batch {options.batch_size}\n")
    print("| images | epoch from images s | epoch from tokens s | ratio | making the cache s | paid after epochs |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    slow, fast = (statistics.median(taken) for taken in seconds.values())
    paid = math.ceil(build_s / (slow - fast)) if slow > fast else "never"
    print(f"| {len(cached.tokens or ())} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} | {build_s:.2f} | {paid} |")


if __name__ == "__main__":
    main()
