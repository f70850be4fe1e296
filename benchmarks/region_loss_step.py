"""What does the region loss cost in a training step of SPRC, with a live tower and with cached tokens?

A step is forward, backward and AdamW, with and without the region loss, in one process and in turn. The sizes are those
of BLIP-2's ViT-g and Q-Former with every width and depth divided by `--shrink`, so that the parts keep about their
proportions; `--shrink 1` is the real thing (a billion random weights, minutes per step on a CPU).

    uv run --no-sync python benchmarks/region_loss_step.py --shrink 1 --batch-size 2 --rounds 2
"""

import statistics
from collections.abc import Sequence

import torch
from sprc import SPRCConfig, SPRCModel
from stopwatch import Stopwatch, options_of


def make_config(shrink: int, region_queries: int) -> SPRCConfig:
    """Sizes of ViT-g and BERT-base, divided; heads of the published width of 88 and 64."""
    vision_heads, text_heads = max(16 // shrink, 1), max(12 // shrink, 1)
    return SPRCConfig(
        vision_config={
            "hidden_size": 88 * vision_heads,
            "intermediate_size": 384 * vision_heads,
            "num_hidden_layers": max(39 // shrink, 1),
            "num_attention_heads": vision_heads,
            "image_size": 224,
            "patch_size": 14,
        },
        qformer_config={
            "hidden_size": 64 * text_heads,
            "intermediate_size": 256 * text_heads,
            "num_hidden_layers": max(12 // shrink, 2),
            "num_attention_heads": text_heads,
            "vocab_size": 30_523,
        },
        image_text_hidden_size=256 // shrink,
        use_region_loss=True,
        region_queries=region_queries,
    )


def make_batch(config: SPRCConfig, batch_size: int, pairs: int) -> dict[str, torch.Tensor]:
    """Random images and captions, with `pairs` pairs of boxes per triplet."""
    generator = torch.Generator().manual_seed(0)
    side = config.image_size
    images = torch.randint(256, (2, batch_size, 3, side, side), generator=generator, dtype=torch.uint8)
    corners = torch.rand(2, batch_size * pairs, 2, generator=generator) * 0.5
    boxes = torch.cat([corners, corners + 0.4], dim=-1)
    words = torch.randint(1000, 30_000, (batch_size, config.max_caption_tokens), generator=generator)
    return {
        "reference_images": images[0],
        "target_images": images[1],
        "input_ids": words,
        "attention_mask": torch.ones_like(words),
        "reference_boxes": boxes[0],
        "target_boxes": boxes[1],
        "pair_owner": torch.arange(batch_size).repeat_interleave(pairs),
    }


def step(model: SPRCModel, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], regions: bool) -> None:
    """One training step."""
    model.use_region_loss = regions
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = options_of(__doc__)
    parser.add_argument("--shrink", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=2, help="pairs of boxes per triplet")
    parser.add_argument("--region-queries", type=int, default=SPRCConfig.region_queries, help="queries per region")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(words)
    if options.quick:
        options.shrink, options.batch_size, options.rounds = 16, 2, 1
    watch = Stopwatch(options.device, options.threads)
    torch.manual_seed(0)
    config = make_config(options.shrink, options.region_queries)
    model = SPRCModel(config).to(options.device).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-5)
    live = {
        name: value.to(options.device) for name, value in make_batch(config, options.batch_size, options.pairs).items()
    }
    cached = dict(live)
    for side in ("reference", "target"):
        cached[f"{side}_tokens"] = model.image_tokens(cached.pop(f"{side}_images"))
    print(
        f"{watch.describe()}; sizes / {options.shrink}, batch {options.batch_size}, {options.pairs} pairs per triplet, "
        f"{options.region_queries} queries per region\n"
    )
    print("| images | without s | with region loss s | more |\n| :--- | ---: | ---: | ---: |")
    for name, batch in (("live tower", live), ("cached tokens", cached)):
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for round_number in range(options.rounds + 1):
            for regions, taken in seconds.items():
                start = watch.seconds()
                step(model, optimizer, batch, regions)
                if round_number > 0:  # the first one warms up
                    taken.append(watch.seconds() - start)
        without, with_regions = (statistics.median(seconds[regions]) for regions in (False, True))
        print(f"| {name} | {without:.2f} | {with_regions:.2f} | {100 * (with_regions / without - 1):.1f} % |")


if __name__ == "__main__":
    main()
