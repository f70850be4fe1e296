"""The small world: edited scenes of shapes, written exactly as CIRR or FashionIQ lie on disk, with files of boxes.

    boxes/pairs.{split}.json    pairs by triplet, marked `preserved` or `changed`
    boxes/images.{split}.json   boxes by image, with labels
    world.json                  the settings; written first

See `scenes.py` for why a caption alone and a reference alone find little. A split whose captions are there is complete:
they are written last.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from region_training.run_folder import write_atomically
from region_training.worlds import claim_world
from rich.progress import track

from sprc.config import SyntheticSettings
from sprc.scenes import Cluster, Edit, Item, Scene, draw_scene, sample_canvas, sample_cluster

SCENES_PER_CLUSTER = 3
MIN_EDITS = 2
NUM_MEMBERS = 6
CATEGORIES = ("dress", "shirt", "toptee")
CIRR_FOLDERS = {"train": "train", "val": "dev", "test1": "test1"}
NUM_TRAIN_FOLDERS = 100
JPEG_QUALITY = 95

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class _DrawnImage:
    """An image on disk: its items, and their normalised boxes by identity."""

    name: str
    size: tuple[int, int]
    items: Scene
    boxes: dict[int, Box]


@dataclass(frozen=True)
class _Pair:
    """A triplet of the world."""

    reference: _DrawnImage
    target: _DrawnImage
    captions: tuple[str, str]
    members: tuple[str, ...]


@dataclass(frozen=True)
class _Split:
    """What was drawn, cluster by cluster."""

    images: list[list[_DrawnImage]] = field(default_factory=list)
    pairs: list[list[_Pair]] = field(default_factory=list)


def write_world(root: Path, settings: SyntheticSettings, *, dataset: Literal["CIRR", "FashionIQ"] = "CIRR") -> None:
    """Write a training and a held-out split, and for CIRR one without targets; a split that is there is kept.

    Args:
        root: Folder of the data set.
        settings: How many scenes and edits; the same settings give the same files.
        dataset: Whose layout to write.

    Raises:
        ValueError: The world would be too small to hold what a caption or a reference is to be mistaken for, or the
            folder holds another one.
    """
    clusters_needed = len(CATEGORIES) if dataset == "FashionIQ" else 1
    for name, number, least in (
        ("train_scenes", settings.train_scenes, SCENES_PER_CLUSTER * clusters_needed),
        ("eval_scenes", settings.eval_scenes, SCENES_PER_CLUSTER * clusters_needed),
        ("edits", settings.edits, MIN_EDITS),
    ):
        if number < least:
            raise ValueError(f"a synthetic {dataset} world needs {name} of at least {least}, got {number}")
    claim_world(
        Path(root),
        {"dataset": dataset, **asdict(settings)},
        parts=("cirr", "img_raw", "captions", "images", "boxes"),
    )
    sizes = {"train": settings.train_scenes, "val": settings.eval_scenes}
    if dataset == "CIRR":
        sizes["test1"] = settings.eval_scenes
    write_split = _write_cirr if dataset == "CIRR" else _write_fashioniq
    for number, (split, num_scenes) in enumerate(sizes.items()):
        write_split(Path(root), split, num_scenes, settings, number)


def _write_cirr(root: Path, split: str, num_scenes: int, settings: SyntheticSettings, number: int) -> None:
    captions = root / "cirr" / "captions" / f"cap.rc2.{split}.json"
    if captions.exists():
        return
    folder = CIRR_FOLDERS[split]
    paths: dict[str, str] = {}

    def path_of(scene: int, variant: int) -> tuple[str, Path]:
        name = f"{folder}-{scene}-{variant}-img0"
        sub_folder = f"{folder}/{scene % NUM_TRAIN_FOLDERS}" if split == "train" else folder
        paths[name] = f"./{sub_folder}/{name}.png"
        return name, root / "img_raw" / sub_folder / f"{name}.png"

    drawn = _draw_split(split, num_scenes, settings, number, path_of)
    pairs = [pair for cluster in drawn.pairs for pair in cluster]
    # Numbers differ between splits, so that a box file of one can't be taken for another's.
    ids = [number * 10_000_000 + index for index in range(len(pairs))]
    records = [_cirr_record(pair, pair_id, split) for pair, pair_id in zip(pairs, ids, strict=True)]
    _write_boxes(root, split, drawn, dict(zip(map(str, ids), pairs, strict=True)))
    _write_json(root / "cirr" / "image_splits" / f"split.rc2.{split}.json", paths)
    _write_json(captions, records)


def _cirr_record(pair: _Pair, pair_id: int, split: str) -> dict[str, object]:
    reference, target = pair.reference.name, pair.target.name
    image_set: dict[str, object] = {
        "id": pair_id,
        "members": list(pair.members),
        "reference_rank": pair.members.index(reference),
    }
    record: dict[str, object] = {"pairid": pair_id, "reference": reference}
    if split != "test1":
        record |= {"target_hard": target, "target_soft": {target: 1.0}}
        image_set["target_rank"] = pair.members.index(target)
    return record | {"caption": pair.captions[0], "img_set": image_set}


def _write_fashioniq(root: Path, split: str, num_scenes: int, settings: SyntheticSettings, number: int) -> None:
    captions = {category: root / "captions" / f"cap.{category}.{split}.json" for category in CATEGORIES}
    if all(file.exists() for file in captions.values()):
        return

    def path_of(scene: int, variant: int) -> tuple[str, Path]:
        name = f"{split.upper()}{scene:05d}{variant:02d}"
        return name, root / "images" / f"{name}.jpg"

    drawn = _draw_split(split, num_scenes, settings, number, path_of)
    # A cluster stays in one category: each category is searched on its own.
    pairs = {
        category: [pair for cluster in drawn.pairs[offset :: len(CATEGORIES)] for pair in cluster]
        for offset, category in enumerate(CATEGORIES)
    }
    by_id = {f"{category}-{index}": pair for category, own in pairs.items() for index, pair in enumerate(own)}
    _write_boxes(root, split, drawn, by_id)
    for offset, category in enumerate(CATEGORIES):
        names = [image.name for cluster in drawn.images[offset :: len(CATEGORIES)] for image in cluster]
        _write_json(root / "image_splits" / f"split.{category}.{split}.json", names)
    for category, own in pairs.items():
        records = [
            {"candidate": pair.reference.name, "target": pair.target.name, "captions": list(pair.captions)}
            for pair in own
        ]
        _write_json(captions[category], records)


def _draw_split(
    split: str,
    num_scenes: int,
    settings: SyntheticSettings,
    number: int,
    path_of: Callable[[int, int], tuple[str, Path]],
) -> _Split:
    """Draw every scene before and after each of its edits; a cluster depends on the seed and its own number alone."""
    drawn = _Split()
    groups = np.array_split(np.arange(num_scenes), num_scenes // SCENES_PER_CLUSTER)
    for index, scenes in enumerate(track(groups, description=f"drawing {split} scenes")):
        rng = np.random.default_rng([settings.seed, number, index])
        cluster = sample_cluster(rng, len(scenes), settings.edits)
        families = [
            list(_draw_family(rng, scene, cluster.edits, settings.image_size, int(position), path_of))
            for scene, position in zip(cluster.scenes, scenes, strict=True)
        ]
        drawn.images.append([image for family in families for image in family])
        drawn.pairs.append(list(_pair_up(rng, cluster, families)))
    return drawn


def _draw_family(
    rng: np.random.Generator,
    scene: Scene,
    edits: Sequence[Edit],
    image_size: int,
    position: int,
    path_of: Callable[[int, int], tuple[str, Path]],
) -> Iterator[_DrawnImage]:
    """A scene, and what each edit makes of it, on one canvas."""
    canvas = sample_canvas(rng, image_size)
    edited = (after for edit in edits if (after := edit.apply(scene)) is not None)
    for variant, items in enumerate((scene, *edited)):
        name, path = path_of(position, variant)
        picture = draw_scene(items, canvas, rng)
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(picture.image, path)
        size = np.array([canvas.width, canvas.height] * 2)
        boxes = {identity: tuple((box / size).round(6).tolist()) for identity, box in picture.boxes_pixels.items()}
        yield _DrawnImage(name, (canvas.width, canvas.height), items, boxes)


def _pair_up(rng: np.random.Generator, cluster: Cluster, families: Sequence[Sequence[_DrawnImage]]) -> Iterator[_Pair]:
    """A triplet per scene and edit, with look-alikes of both kinds: other edits of the scene, the edit of others."""
    for family in families:
        for variant, edit in enumerate(cluster.edits, start=1):
            reference, target = family[0], family[variant]
            same_scene = _shuffled(rng, [image.name for image in family[1:] if image is not target])
            same_edit = _shuffled(rng, [other[variant].name for other in families if other is not family])
            others = _shuffled(rng, [other[0].name for other in families if other is not family])
            num_others = NUM_MEMBERS - 2
            look_alikes = same_edit[: num_others // 2] + same_scene[: num_others // 2]
            look_alikes += [name for name in (*same_edit, *same_scene, *others) if name not in look_alikes]
            members = _shuffled(rng, [reference.name, target.name, *look_alikes[:num_others]])
            yield _Pair(reference, target, edit.captions, tuple(members))


def _write_boxes(root: Path, split: str, drawn: _Split, pairs: dict[str, _Pair]) -> None:
    by_image = {
        image.name: {
            "boxes": [image.boxes[item.identity] for item in image.items],
            "labels": [str(item.name) for item in image.items],
            "size": image.size,
            "format": "xyxy_norm",
        }
        for cluster in drawn.images
        for image in cluster
    }
    _write_json(root / "boxes" / f"images.{split}.json", by_image)
    if split != "test1":
        by_pair = {pair_id: _region_records(pair) for pair_id, pair in pairs.items()}
        _write_json(root / "boxes" / f"pairs.{split}.json", by_pair)


def _region_records(pair: _Pair) -> list[dict[str, object]]:
    """Every item that both images show; one that looks different now is marked `changed`, wherever it lies."""
    after = {item.identity: item for item in pair.target.items}
    return [
        {
            "ref": pair.reference.boxes[item.identity],
            "target": pair.target.boxes[item.identity],
            "label": str(item.name),
            "relation": "preserved" if _looks_like(item, after[item.identity]) else "changed",
        }
        for item in pair.reference.items
        if item.identity in after
    ]


def _looks_like(item: Item, other: Item) -> bool:
    return (item.name, item.large) == (other.name, other.large)


def _save(image: UInt8[np.ndarray, "height width 3"], path: Path) -> None:
    # Lightly compressed: noise hardly compresses, and packing it tightly takes longer than drawing.
    Image.fromarray(image).save(path, quality=JPEG_QUALITY, compress_level=1)


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(value))


def _shuffled(rng: np.random.Generator, names: Sequence[str]) -> list[str]:
    return [names[index] for index in rng.permutation(len(names))]
