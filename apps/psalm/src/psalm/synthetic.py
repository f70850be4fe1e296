"""The small world: panoptic scenes and image pairs, written as COCO, RefCOCO and PSALM's own data lie on disk.

    coco/                                  a COCO root: images, panoptic maps, panoptic and instance annotations
    refcoco/refcoco_{split}.json           sentences about the COCO images; some are about nothing
    coco_interactive_{split}_psalm.json    visual prompts for the things of the COCO images
    pairs/{split}/                         images of the pairs
    world.json                             the settings; written first
    cross_image_category_{split}.json      pairs by category: a region's targets are all things of its class
    cross_image_{split}.json               pairs by object, as PSALM's files of DAVIS; written last

A split whose last file is there is complete. A scene depends on the seed, its split and its number alone. A folder
holds one world: where other settings were written, or nobody knows which, nothing is written or reused.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from PIL import Image
from region_core import encode_rle
from region_training.images import write_png
from region_training.run_folder import write_atomically
from region_training.worlds import claim_world
from rich.progress import track

from psalm.config import SyntheticSettings
from psalm.prompt_drawing import draw_prompts
from psalm.scenes import STUFF, THINGS, DrawnScene, ScenePair, sample_pair, sample_scene
from psalm.sentences import looks_of, phrases_for, sample_absent_phrase, sample_phrases

SPLITS = ("train", "val")
SCENES_PER_PAIR = 2
SMALLEST_IMAGE = 32
JPEG_QUALITY = 92
SENTENCES_PER_THING = 2
NO_TARGET_SHARE = 0.1
"""So many of all sentences are about nothing, as some are in gRefCOCO."""
DRAWING = 2
"""With the first, mask prompts were the objects themselves but for their edge."""
IDS_PER_SPLIT = 10_000_000  # an id of one split can't be taken for one of the other
IDS_PER_IMAGE = 100
SEGMENT_IDS = 2**24  # three bytes of a panoptic map; 0 is void

# With gaps, as COCO's are: whoever takes an id for a position is wrong.
CATEGORY_IDS: Mapping[str, int] = MappingProxyType(
    {name: 3 * position + 2 for position, name in enumerate(THINGS)}
    | {name: 5 * position + 92 for position, name in enumerate(STUFF)}
)

Record = dict[str, object]
Mask = Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class _Split:
    """The records of a split, by the file that they go to."""

    images: list[Record] = field(default_factory=list)
    panoptic: list[Record] = field(default_factory=list)
    instances: list[Record] = field(default_factory=list)
    referring: list[Record] = field(default_factory=list)
    interactive: list[Record] = field(default_factory=list)
    pairs_by_object: list[Record] = field(default_factory=list)
    pairs_by_category: list[Record] = field(default_factory=list)


def write_world(root: Path, settings: SyntheticSettings) -> None:
    """Write a training and a held-out split; a split of the same world that is there is kept.

    Args:
        root: Folder of the world.
        settings: How many scenes of which size; the same settings give the same files.

    Raises:
        ValueError: A split would have no pair, the images are too small to show what things are, or the folder holds
            another world.
    """
    sizes = {"train_scenes": settings.train_scenes, "eval_scenes": settings.eval_scenes}
    for name, number in sizes.items():
        if number < SCENES_PER_PAIR:
            raise ValueError(f"a synthetic world needs {name} of at least {SCENES_PER_PAIR}, got {number}")
    if settings.image_size < SMALLEST_IMAGE:
        raise ValueError(f"a synthetic world needs image_size of at least {SMALLEST_IMAGE}, got {settings.image_size}")
    claim_world(root, asdict(settings), parts=("coco", "pairs"), setting="data.synthetic_root", drawing=DRAWING)
    for number, (split, num_scenes) in enumerate(zip(SPLITS, sizes.values(), strict=True)):
        if not _last_file(root, split).exists():
            _write_split(root, split, num_scenes, settings, number)


def paths_of(root: Path) -> dict[str, str]:
    """The world's paths by the name of their data setting, with `{split}` where the split's name goes."""
    images = str(root / "coco" / "{split}2017")
    return {
        "coco_root": str(root / "coco"),
        "ref_coco": str(root / "refcoco" / "refcoco_{split}.json"),
        "refcoco_images": images,
        "region_json": str(root / "coco_interactive_{split}_psalm.json"),
        "region_images": images,
        "cross_image_json": str(_last_file(root, "{split}")),
        "cross_image_images": str(root / "pairs" / "{split}"),
    }


def _last_file(root: Path, split: str) -> Path:
    return root / f"cross_image_{split}.json"


def _write_split(root: Path, split: str, num_scenes: int, settings: SyntheticSettings, number: int) -> None:
    drawn = _Split()
    first_id = number * IDS_PER_SPLIT + 1
    for index in track(range(num_scenes), description=f"drawing {split} scenes"):
        rng = np.random.default_rng([settings.seed, number, 0, index])
        scene = sample_scene(rng, settings.image_size)
        _add_scene(drawn, root / "coco", split, scene, first_id + index, rng)
    for index in track(range(num_scenes // SCENES_PER_PAIR), description=f"drawing {split} pairs"):
        rng = np.random.default_rng([settings.seed, number, 1, index])
        pair = sample_pair(rng, settings.image_size)
        _add_pair(drawn, root / "pairs" / split, pair, first_id + 2 * index, rng)
    things, stuff = ([_category(name) for name in group] for group in (THINGS, STUFF))
    files: dict[str, object] = {
        f"coco/annotations/panoptic_{split}2017.json": {
            "images": drawn.images,
            "annotations": drawn.panoptic,
            "categories": things + stuff,
        },
        f"coco/annotations/instances_{split}2017.json": {
            "images": drawn.images,
            "annotations": drawn.instances,
            "categories": things,
        },
        f"refcoco/refcoco_{split}.json": drawn.referring,
        f"coco_interactive_{split}_psalm.json": drawn.interactive,
        f"cross_image_category_{split}.json": drawn.pairs_by_category,
        _last_file(root, split).name: drawn.pairs_by_object,
    }
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(root / name, json.dumps(value))


def _add_scene(
    drawn: _Split, coco: Path, split: str, scene: DrawnScene, image_id: int, rng: np.random.Generator
) -> None:
    """Write a scene's image and panoptic map, and note what each of the single-image files says about it."""
    stem = f"{image_id:012d}"
    info = _image_info(f"{stem}.jpg", scene, image_id)
    _save_jpeg(coco / f"{split}2017" / f"{stem}.jpg", scene.image)
    segment_ids = rng.choice(SEGMENT_IDS - 1, len(scene.masks) + len(scene.stuff), replace=False) + 1
    write_png(coco / f"panoptic_{split}2017" / f"{stem}.png", _id_map(scene, segment_ids))
    things = _annotations(scene, image_id)
    drawn.images.append(info)
    drawn.panoptic.append(
        {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": _segments(scene, segment_ids.tolist())}
    )
    drawn.instances.extend(things)
    prompted = [thing | _prompt_fields(mask, rng) for thing, mask in zip(things, scene.masks, strict=True)]
    drawn.interactive.append(_psalm_record(info, prompted, len(drawn.interactive)))
    for instruction, anns in _references(scene, things, image_id, rng):
        drawn.referring.append(_psalm_record(info, anns, len(drawn.referring)) | {"instruction": instruction})


def _segments(scene: DrawnScene, segment_ids: Sequence[int]) -> list[Record]:
    classes = [name.kind for name in scene.names] + list(scene.stuff)
    masks = [*scene.masks, *scene.stuff_masks]
    return [
        {"id": segment_id, "category_id": CATEGORY_IDS[name], "iscrowd": 0} | _extent(mask)
        for segment_id, name, mask in zip(segment_ids, classes, masks, strict=True)
    ]


def _id_map(scene: DrawnScene, segment_ids: Int64[np.ndarray, " segments"]) -> UInt8[np.ndarray, "height width 3"]:
    """The panoptic map of COCO: a pixel's segment is R + 256 G + 65536 B."""
    owner = np.concatenate([scene.masks, scene.stuff_masks]).argmax(0)
    return (segment_ids[owner][..., None] >> np.array([0, 8, 16]) & 0xFF).astype(np.uint8)


def _references(
    scene: DrawnScene, things: Sequence[Record], image_id: int, rng: np.random.Generator
) -> Iterator[tuple[list[Record], list[Record]]]:
    """Sentences with what they are about: one thing, or nothing."""
    looks = looks_of(scene)
    spoken = [sample_phrases(rng, phrases_for(looks, row), SENTENCES_PER_THING) for row in range(len(looks))]
    num_sentences = sum(map(len, spoken))
    num_absent = rng.binomial(num_sentences, NO_TARGET_SHARE / (1 - NO_TARGET_SHARE))
    absent = [sample_absent_phrase(rng, scene.names) for _ in range(num_absent)]
    about = [(phrases, [thing]) for phrases, thing in zip(spoken, things, strict=True) if phrases]
    about += [([phrase], []) for phrase in absent]
    sentence_id = image_id * IDS_PER_IMAGE
    for phrases, anns in about:
        yield [_sentence(str(phrase), sentence_id + place) for place, phrase in enumerate(phrases)], anns
        sentence_id += len(phrases)


def _sentence(text: str, sentence_id: int) -> Record:
    return {"raw": text, "sent": text, "tokens": text.split(), "sent_id": sentence_id}


def _add_pair(drawn: _Split, folder: Path, pair: ScenePair, image_id: int, rng: np.random.Generator) -> None:
    """Write a pair's images, the reference as first frame of a clip, and note the pair by object and by category."""
    video = f"pair{len(drawn.pairs_by_object):06d}"
    scenes = (pair.reference, pair.target)
    infos = [_image_info(f"{video}/{frame:05d}.jpg", scene, image_id + frame) for frame, scene in enumerate(scenes)]
    for info, scene in zip(infos, scenes, strict=True):
        _save_jpeg(folder / str(info["file_name"]), scene.image)
    sources, targets = (_annotations(scene, image_id + frame) for frame, scene in enumerate(scenes))
    sources = [thing | _prompt_fields(mask, rng) for thing, mask in zip(sources, pair.reference.masks, strict=True)]
    rows = list(enumerate(pair.matches, start=1))
    # DAVIS knows objects, not classes: there the category is the object's number in the clip.
    drawn.pairs_by_object.append(
        _psalm_record(infos[1], [targets[row] | _object(value) for value, (_, row) in rows], len(drawn.pairs_by_object))
        | {
            "video_name": video,
            "first_frame_image": infos[0]["file_name"],
            "first_frame_anns": [sources[row] | _object(value) for value, (row, _) in rows],
        }
    )
    drawn.pairs_by_category.append(_category_pair(infos, sources, targets))


def _object(value: int) -> Record:
    return {"category_id": float(value), "object_id": value}


def _category_pair(infos: Sequence[Record], sources: Sequence[Record], targets: Sequence[Record]) -> Record:
    """One prompted thing for each class that both images show, and all things of these classes."""
    wanted = {target["category_id"] for target in targets}
    regions = {source["category_id"]: source for source in reversed(sources) if source["category_id"] in wanted}
    described = [
        {"image": info["file_name"], "height": info["height"], "width": info["width"], "img_id": info["id"]}
        for info in infos
    ]
    return {
        "image_info": described[0],
        "image1_info": described[1],
        "annotations": list(regions.values()),
        "annotations1": [target for target in targets if target["category_id"] in regions],
    }


def _annotations(scene: DrawnScene, image_id: int) -> list[Record]:
    """COCO annotations of the things; as RLE, since polygons would not give the masks back exactly."""
    return [
        {
            "id": image_id * IDS_PER_IMAGE + row,
            "image_id": image_id,
            "category_id": CATEGORY_IDS[name.kind],
            "iscrowd": 0,
            "segmentation": encode_rle(mask),
        }
        | _extent(mask)
        for row, (name, mask) in enumerate(zip(scene.names, scene.masks, strict=True))
    ]


def _prompt_fields(mask: Mask, rng: np.random.Generator) -> Record:
    prompts = draw_prompts(mask, rng)._asdict()
    return {f"{kind}_visual_prompt_mask": encode_rle(prompt) for kind, prompt in prompts.items()}


def _extent(mask: Mask) -> Record:
    """Area and box (left, top, width, height) of a mask, in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return {"area": int(mask.sum()), "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]}


def _psalm_record(info: Record, anns: list[Record], number: int) -> Record:
    return {"image": info["file_name"], "image_info": info, "anns": anns, "new_img_id": number}


def _image_info(file_name: str, scene: DrawnScene, image_id: int) -> Record:
    height, width = scene.image.shape[:2]
    return {"id": image_id, "file_name": file_name, "height": height, "width": width}


def _category(name: str) -> Record:
    is_thing = name in THINGS
    return {
        "id": CATEGORY_IDS[name],
        "name": name,
        "supercategory": "thing" if is_thing else "surface",
        "isthing": int(is_thing),
    }


def _save_jpeg(path: Path, image: UInt8[np.ndarray, "height width 3"]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=JPEG_QUALITY)
