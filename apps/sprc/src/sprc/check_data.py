"""`sprc check-data`: read a split from end to end before a training run does, and say what is in it.

What is too small or cut away depends on how images become square and on the patches of the model, so the split is seen
with the settings of a run, a preset or a configuration file.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from region_training.command_line import DEFAULT_PRESET
from region_training.run_folder import RunFolder
from region_training.tables import Table
from rich.console import Console
from rich.progress import track

from sprc.building import build_config
from sprc.config import DataSettings, Settings
from sprc.configuration import SPRCConfig
from sprc.opening import box_file_of, box_options_of, read_split, transform_of
from sprc.regions import RegionReader
from sprc.text import clean_caption, join_captions
from sprc.transforms import ImageTransform
from sprc.triplets import TripletSplit
from sprc.verbs import CheckDataSettings

MAX_SHOWN = 20


def check_data(settings: CheckDataSettings, training: Settings) -> int:
    """Decode every image of a split and read the boxes of every triplet.

    Args:
        settings: What is checked.
        training: Settings of the preset or configuration that `settings` names; those of a run are read here.

    Returns:
        Exit code: 0 when everything can be read and enough triplets have boxes, 1 when not.

    Raises:
        ValueError: The split or the box file itself is faulty; the message names file, record and key.
    """
    data, config, source = _seen_with(settings, training)
    transform, name = transform_of(data, config), settings.split or data.train_split
    split = read_split(data, name, transform)
    faults = _check_images(split, transform)
    rows = [("seen as by", source), ("input", _describe_input(data, config)), *_describe_triplets(split)]
    rows.append(("bad images", str(len(faults))))
    box_file = box_file_of(data, name)
    if box_file is not None or data.dataset == "OACIRR":
        options = box_options_of(data, config, training=name == data.train_split)
        found, bad = _check_boxes(split, RegionReader(split, transform, box_file, options))
        rows += found
        faults += bad
    console = Console()
    Table(f"{data.dataset} {split.name}", ("what", "found"), tuple(rows)).show()
    for fault in faults[:MAX_SHOWN]:
        console.print(f"bad: {fault['reason']}", markup=False, style="red")
    if len(faults) > MAX_SHOWN:
        console.print(f"... and {len(faults) - MAX_SHOWN} more", style="red")
    if settings.report is not None:
        Path(settings.report).write_text("".join(json.dumps(fault) + "\n" for fault in faults))
    return 1 if faults else 0


def _seen_with(settings: CheckDataSettings, training: Settings) -> tuple[DataSettings, SPRCConfig, str]:
    """The data's settings, the model's configuration, and where both come from."""
    if settings.run is not None:
        run = RunFolder.open(settings.run)
        trained = run.load_settings(Settings)
        is_finished = (run.model_path / "config.json").is_file()
        config = SPRCConfig.from_pretrained(run.model_path) if is_finished else build_config(trained.model, None)
        return _with_own(settings, trained.data), config, f"the run {settings.run}"
    data, source = training.data, f"the preset {settings.preset}"
    if settings.config is not None:
        source = f"the configuration {settings.config}"
    elif settings.preset is None:
        source = f"the preset {DEFAULT_PRESET} (no run, preset or config was given)"
        data = replace(data, box_file=None)  # the small world's own
    return _with_own(settings, data), build_config(training.model, None), source


def _with_own(settings: CheckDataSettings, data: DataSettings) -> DataSettings:
    """The data's settings with what the command itself names."""
    names = ("root", "dataset", "box_file", "box_format")
    own = {name: vars(settings)[name] for name in names if vars(settings)[name] is not None}
    return replace(data, synthetic=None, **own)  # nothing is drawn here


def _describe_input(data: DataSettings, config: SPRCConfig) -> str:
    grid = config.grid
    return f"{data.transform} to {config.image_size} pixels, {grid.height} x {grid.width} patches"


def _check_images(split: TripletSplit, transform: ImageTransform) -> list[dict[str, str]]:
    faults = []
    for name in track(split.gallery, description=f"reading images of {split.name}"):
        try:
            transform.read(split.image_path(name))
        except (ValueError, OSError) as error:
            faults.append({"image": name, "reason": str(error)})
    return faults


def _check_boxes(split: TripletSplit, reader: RegionReader) -> tuple[list[tuple[str, str]], list[dict[str, str]]]:
    """Rows of the table, and the triplets whose boxes can't be read."""
    faults = []
    pairs: Counter[int] = Counter()
    weighted = 0
    dropped: Counter[str] = Counter()
    for triplet in track(split.triplets, description=f"reading boxes of {split.name}"):
        try:
            regions = reader.read(triplet)
        except (ValueError, OSError) as error:
            faults.append({"pair": triplet.pair_id, "reason": f"pair {triplet.pair_id!r}: {error}"})
            continue
        pairs[len(regions.weights)] += 1
        weighted += int((regions.weights > 0).sum())
        dropped.update(regions.dropped)
    rows = [
        ("triplets with bad boxes", str(len(faults))),
        ("region pairs per triplet", _listed(dict(sorted(pairs.items())))),
        ("region pairs with a weight", str(weighted)),
        ("dropped", _listed({reason: count for reason, count in dropped.items() if count}) or "none"),
    ]
    if not faults:
        try:
            rows.insert(0, ("boxes", reader.check_coverage(split)))
        except ValueError as error:
            faults.append({"boxes": str(split.name), "reason": str(error)})
    return rows, faults


def _describe_triplets(split: TripletSplit) -> list[tuple[str, str]]:
    captions = [clean_caption(join_captions(triplet.captions)) for triplet in split.triplets]
    num_words = [len(caption.split()) for caption in captions]
    targets = {triplet.target for triplet in split.triplets if triplet.target is not None}
    rows = [
        ("triplets", str(len(split.triplets))),
        ("images", str(len(split.gallery))),
        ("different targets", str(len(targets))),
        ("empty captions", str(num_words.count(0))),
        ("words per caption", f"{sum(num_words) / max(len(num_words), 1):.1f}, at most {max(num_words, default=0)}"),
    ]
    for category, names in split.category_galleries.items():
        own = sum(triplet.category == category for triplet in split.triplets)
        rows.append((category, f"{own} triplets, gallery of {len(names)}"))
    return rows


def _listed(counts: dict) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
