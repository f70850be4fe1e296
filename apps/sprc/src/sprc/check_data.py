"""`sprc check-data`: read a split from end to end before a training run does, and say what is in it."""

import json
from collections import Counter
from pathlib import Path

from region_training.tables import Table
from rich.console import Console
from rich.progress import track

from sprc.cirr import read_cirr
from sprc.config import CheckDataSettings
from sprc.fashioniq import read_fashioniq
from sprc.oacirr import read_oacirr
from sprc.regions import BoxOptions, RegionReader
from sprc.text import clean_caption, join_captions
from sprc.transforms import ImageTransform, build_transform
from sprc.triplets import TripletSplit

MAX_SHOWN = 20
IMAGE_SIZE = 224  # BLIP-2; where the preprocessing moves boxes is nearly the same at any size


def check_data(settings: CheckDataSettings) -> int:
    """Decode every image of a split and read the boxes of every triplet.

    Returns:
        Exit code: 0 when everything can be read, 1 when something can't.

    Raises:
        ValueError: The split or the box file itself is faulty; the message names file, record and key.
    """
    transform = build_transform("targetpad", IMAGE_SIZE)
    split = _read_split(settings, transform)
    faults = _check_images(split, transform)
    rows: list[tuple[str, str]] = _describe_triplets(split)
    rows.append(("bad images", str(len(faults))))
    if settings.box_file is not None or settings.dataset == "OACIRR":
        options = BoxOptions(box_format=settings.box_format)
        found, bad = _check_boxes(split, RegionReader(split, transform, settings.box_file, options))
        rows += found
        faults += bad
    console = Console()
    console.print(Table(f"{settings.dataset} {split.name}", ("what", "found"), tuple(rows)).to_rich())
    for fault in faults[:MAX_SHOWN]:
        console.print(f"bad: {fault['reason']}", markup=False, style="red")
    if len(faults) > MAX_SHOWN:
        console.print(f"... and {len(faults) - MAX_SHOWN} more", style="red")
    if settings.report is not None:
        Path(settings.report).write_text("".join(json.dumps(fault) + "\n" for fault in faults))
    return 1 if faults else 0


def _read_split(settings: CheckDataSettings, transform: ImageTransform) -> TripletSplit:
    if settings.dataset == "CIRR":
        return read_cirr(settings.root, settings.split)
    if settings.dataset == "FashionIQ":
        return read_fashioniq(settings.root, settings.split)
    return read_oacirr(settings.root, settings.split, transform)


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
        rows.insert(0, ("boxes", reader.check_coverage(split)))
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
