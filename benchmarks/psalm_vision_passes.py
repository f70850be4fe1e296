"""What does one pass of the backbone per step save, against the ancestor's two?

The ancestor runs Swin once for the image tokens and once more for the masks; here one pass serves both. A step is
forward, backward and AdamW of the whole model, in one process and in turn; the backbone is frozen, as published. Sizes
are Swin-B's, Mask2Former's and those of Phi-1.5 with 2 of its 24 layers, at images of 192 pixels: six steps in two
minutes of one thread. Swin's share grows with the image and shrinks with the layers.

    uv run --no-sync python benchmarks/psalm_vision_passes.py
    uv run --no-sync python benchmarks/psalm_vision_passes.py --side 384 --language-layers 4 --rounds 3
"""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from psalm.building import build_model, build_processor
from psalm.collate import SegmentationCollator
from psalm.config import CriterionConfig, DataSettings, ModelSettings, SyntheticSettings
from psalm.data import open_dataset
from psalm.model import PSALMModel
from psalm.synthetic import write_world
from stopwatch import Stopwatch, options_of

QUICK = {
    "swin": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4},
    "mask_decoder": {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_layers": 1},
}


class TwoPasses(PSALMModel):
    """The model with a second, useless pass of the backbone."""

    def _see(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        super()._see(images)
        return super()._see(images)


def step(model: PSALMModel, optimizer: torch.optim.Optimizer, batch: dict) -> None:
    """One training step."""
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = options_of(__doc__)
    parser.add_argument("--side", type=int, default=192, help="side of the image in pixels")
    parser.add_argument("--language-layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(words)
    if options.quick:
        options.side, options.language_layers, options.rounds = 64, 1, 1
    watch = Stopwatch(options.device, options.threads)
    width = 32 if options.quick else 2048
    settings = ModelSettings(
        language={
            "model_type": "phi",
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": options.language_layers,
            "num_attention_heads": max(width // 64, 1),
        },
        criterion=CriterionConfig(num_points=256 if options.quick else 12_544),
        **(QUICK if options.quick else {}),
    )
    batch, processor = make_batch(settings, options.side)
    batch = {name: value.to(options.device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
    torch.manual_seed(0)
    model = build_model(settings, processor).to(options.device).train()
    model.vision_tower.requires_grad_(False).eval()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-6)
    seconds: dict[type[PSALMModel], list[float]] = {PSALMModel: [], TwoPasses: []}
    for round_number in range(options.rounds + 1):
        for kind, taken in seconds.items():
            model.__class__ = kind
            start = watch.seconds()
            step(model, optimizer, batch)
            if round_number > 0:  # the first one warms up
                taken.append(watch.seconds() - start)
    one, two = (statistics.median(taken) for taken in seconds.values())
    print(
        f"{watch.describe()}; {options.side} pixels, {options.language_layers} language layers, one sample per mode\n"
    )
    print("| passes of the backbone | s per step | ratio |\n| ---: | ---: | ---: |")
    print(f"| 1 | {one:.2f} | 1.00 |\n| 2 | {two:.2f} | {two / one:.2f} |")


def make_batch(settings: ModelSettings, side: int) -> tuple[dict, object]:
    """One sample of every mode of a small world at this size, and the processor."""
    with tempfile.TemporaryDirectory() as folder:
        world = SyntheticSettings(train_scenes=4, eval_scenes=2, image_size=side)
        write_world(Path(folder), world)
        data = DataSettings(synthetic=world, synthetic_root=folder, image_size=side)
        dataset = open_dataset(data, "train", training=True)
        processor = build_processor(settings, data, dataset.texts())
        firsts = [sum(len(source) for source in dataset.sources[:number]) for number in range(len(dataset.sources))]
        return SegmentationCollator(processor, settings)([dataset[index] for index in firsts]), processor


if __name__ == "__main__":
    main()
