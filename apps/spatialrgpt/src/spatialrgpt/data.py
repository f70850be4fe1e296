"""Records of the warehouse format on disk -> samples.

A split is a JSON array (or JSON lines) beside a folder of its images and depth maps:

    train.json   train/images/000001.png   train/depths/000001_depth.png

A record has `id`, `image` (a name, several names, or none), `conversations` (turns `from` human | gpt, with one
`<mask>` per region), one region per `<mask>`, in order, and, for the typed heads, `category` and `normalized_answer`.
Regions are `rle` (COCO run lengths), `bbox` (pixels, x0 y0 x1 y1) or `regions` (any form that
`region_core.parse_region` reads); with several images `region_images` gives the image of each. Depth is optional: a
split without a `depths` folder has none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from region_core.geometry import GEOMETRY_DIM
from region_core.regions import parse_region, region_to_mask
from region_heads.labels import Label, parse_label
from region_heads.routing import route_question
from region_heads.tasks import UNKNOWN_TASK, TaskType
from region_training.images import read_depth, read_image
from region_training.records import read_records, require, resolve_under
from torch import Tensor
from torch.utils.data import Dataset

from spatialrgpt.processing import EncodedText, SpatialRGPTProcessor

Value = TypeVar("Value")
Default = TypeVar("Default")

ROLES = {"human": "user", "gpt": "assistant"}


def read_texts(file: Path) -> list[str]:
    """Every turn of every conversation of a split's file; what a bad record is missing is said when it is read."""
    texts = []
    for record in read_records(file):
        try:
            texts += [content for _, content in _turns(record, file.name)]
        except ValueError:
            continue
    return texts


@dataclass(frozen=True)
class RegionSample:
    """One record, ready to be collated.

    Attributes:
        index: Position in the dataset.
        record_id: The record's `id`.
        text: Conversation as token ids.
        images: Frames at the tower's input size.
        depths: Depth maps as three channels, for the images that have one.
        depth_images: Index of each depth map's image.
        region_masks: Soft masks on the region grid.
        region_images: Index of each region's image.
        region_geometry: Geometry of each region.
        task_type: Task of the question, -1 where unknown.
        label: Typed answer, if the record has one.
    """

    index: int
    record_id: str
    text: EncodedText
    images: UInt8[Tensor, "images 3 rows columns"]
    depths: UInt8[Tensor, "depths 3 rows columns"]
    depth_images: Int[Tensor, " depths"]
    region_masks: Float[Tensor, "regions grid_rows grid_columns"]
    region_images: Int[Tensor, " regions"]
    region_geometry: Float[Tensor, "regions values"]
    task_type: int
    label: Label | None


@dataclass(frozen=True)
class Frame:
    """One image of a record as it is on disk."""

    image: UInt8[np.ndarray, "height width 3"]
    depth: Float[np.ndarray, "depth_height depth_width"] | None


class RegionDataset(Dataset):
    """Warehouse records with `task_type` and a typed label beside the conversation.

    Args:
        root: Folder that holds `{split}.json` and the folder `{split}`.
        split: Name of the split.
        processor: Turns text, images and regions into tensors.
        max_length: Longest conversation in tokens.
        with_answers: Keep the assistant's turns; without them a sample is a prompt to answer.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        processor: SpatialRGPTProcessor,
        *,
        max_length: int = 4096,
        with_answers: bool = True,
    ) -> None:
        self.root = Path(root)
        self.split = split
        self.processor = processor
        self.max_length = max_length
        self.with_answers = with_answers
        self.file = self.root / f"{split}.json"
        self.records = read_records(self.file)
        self.has_depths = processor.enable_depth and (self.root / split / "depths").is_dir()

    def __len__(self) -> int:
        """Number of records."""
        return len(self.records)

    def where(self, index: int) -> str:
        """What to call a record in an error."""
        return f"{self.file.name}, record {index} (id {self.records[index].get('id')!r})"

    @cached_property
    def task_types(self) -> list[int]:
        """Task of every record, without opening an image; -1 also where reading the record is an error."""
        return [_or_else(UNKNOWN_TASK, self._task_type, index) for index in range(len(self))]

    @property
    def labels(self) -> list[Label | None]:
        """Typed answers of all records, without opening an image; None also where reading the record is an error."""
        return [_or_else(None, self.label, index) for index in range(len(self))]

    def question(self, index: int) -> str:
        """The first human turn, as it is in the record."""
        return self.messages(index)[0]["content"]

    def __getitem__(self, index: int) -> RegionSample:
        """Read one record.

        Raises:
            ValueError: The record or one of its files is not as described above; the message names the record.
        """
        where = self.where(index)
        frames = self.frames(index)
        masks, region_images = self.masks(index, frames)
        sample = make_sample(
            self.processor,
            self.messages(index),
            frames,
            masks,
            region_images,
            task_type=self._task_type(index),
            where=where,
            index=index,
            record_id=str(self.records[index].get("id", index)),
            label=self.label(index),
        )
        if len(sample.text.input_ids) > self.max_length:
            raise ValueError(f"{where}: {len(sample.text.input_ids)} tokens, expected at most {self.max_length}")
        return sample

    def messages(self, index: int) -> list[dict[str, str]]:
        """The conversation in chat form; without answers it ends with the first question."""
        where = self.where(index)
        messages = []
        for speaker, content in _turns(self.records[index], where):
            if speaker not in ROLES:
                raise ValueError(f"{where}, key 'from': got {speaker!r}, expected one of {', '.join(ROLES)}")
            messages.append({"role": ROLES[speaker], "content": content})
        if not messages or messages[0]["role"] != "user":
            raise ValueError(f"{where}, key 'conversations': expected a human turn first, got {len(messages)} turns")
        return messages if self.with_answers else messages[:1]

    def frames(self, index: int) -> list[Frame]:
        """Images and depth maps of a record."""
        where = f"{self.where(index)}, key 'image'"
        names = self.records[index].get("image")
        names = [] if names is None else names if isinstance(names, list) else [names]
        folder = self.root / self.split
        frames = []
        for name in names:
            if not isinstance(name, str):
                raise ValueError(f"{where}: expected a file name or a list of them, got {name!r}")
            try:
                image, depth = read_image(resolve_under(folder / "images", name, "picture")), None
                if self.has_depths:
                    depth_name = f"{Path(name).with_suffix('')}_depth.png"
                    depth = read_depth(resolve_under(folder / "depths", depth_name, "depth map"))
            except (ValueError, OSError) as error:
                raise ValueError(f"{where}: {error}") from error
            frames.append(Frame(image, depth))
        return frames

    def masks(
        self, index: int, frames: list[Frame]
    ) -> tuple[list[Bool[np.ndarray, "_ height width"] | None], Int[Tensor, " regions"]]:
        """Masks of a record's regions, grouped by image, and the image of each mention.

        Returns:
            Per image the stacked masks of its regions in order of mention (None without regions), and for every
            mention the index of its image.
        """
        where = self.where(index)
        key, regions = _regions_of(self.records[index], where)
        if not regions:
            return [None] * len(frames), torch.zeros(0, dtype=torch.long)
        if not frames:
            raise ValueError(f"{where}, key {key!r}: regions need an image, but the record has none")
        images = self._region_images(index, len(regions), len(frames))
        grouped: list[list[np.ndarray]] = [[] for _ in frames]
        for position, (region, image) in enumerate(zip(regions, images, strict=True)):
            height, width = frames[image].image.shape[:2]
            place = f"{where}, key {key!r}, region {position}"
            mask = region_to_mask(parse_region(region, where=place), height=height, width=width)
            if not mask.any():
                raise ValueError(f"{place}: the mask is empty")
            grouped[image].append(mask)
        return [np.stack(own) if own else None for own in grouped], torch.tensor(images, dtype=torch.long)

    def _region_images(self, index: int, num_regions: int, num_images: int) -> list[int]:
        given = self.records[index].get("region_images", [0] * num_regions)
        images = given if isinstance(given, list) else []
        known = all(isinstance(image, int) and 0 <= image < num_images for image in images)
        if len(images) != num_regions or not known:
            raise ValueError(
                f"{self.where(index)}, key 'region_images': expected {num_regions} indices of {num_images} images, "
                f"got {given!r}"
            )
        return images

    def category(self, index: int) -> str | None:
        """The data set's own name for the kind of question; None where the record has none."""
        record = self.records[index]
        return None if record.get("category") is None else require(record, "category", str, self.where(index))

    def label(self, index: int) -> Label | None:
        """The typed answer of a record; None where it has none or its task is unknown."""
        record, where = self.records[index], self.where(index)
        task = self._task_type(index)
        answer, freeform = record.get("normalized_answer"), record.get("freeform_answer")
        if answer is None or task == UNKNOWN_TASK:
            return None
        if not isinstance(answer, str | int | float):
            raise ValueError(f"{where}, key 'normalized_answer': expected text or a number, got {answer!r}")
        if not (freeform is None or isinstance(freeform, str)):
            raise ValueError(f"{where}, key 'freeform_answer': expected text, got {freeform!r}")
        _, regions = _regions_of(record, where)
        try:
            return parse_label(TaskType(task), answer, len(regions), answer=freeform)
        except ValueError as error:
            raise ValueError(f"{where}, key 'normalized_answer': {error}") from error

    def _task_type(self, index: int) -> int:
        record, where = self.records[index], self.where(index)
        question = next((content for _, content in _turns(record, where)), "")
        _, regions = _regions_of(record, where)
        try:
            task = route_question(question, num_regions=len(regions), category=self.category(index))
        except ValueError as error:
            raise ValueError(f"{where}, key 'category': {error}") from error
        return UNKNOWN_TASK if task is None else int(task)


def make_sample(
    processor: SpatialRGPTProcessor,
    messages: Sequence[Mapping[str, str]],
    frames: Sequence[Frame],
    masks: Sequence[Bool[np.ndarray, "_ _ _"] | None],
    region_images: Int[Tensor, " regions"],
    *,
    task_type: int,
    where: str,
    index: int = 0,
    record_id: str = "",
    label: Label | None = None,
) -> RegionSample:
    """Turn a conversation with frames and masks into tensors.

    Args:
        processor: The model's processor.
        messages: The conversation in chat form.
        frames: Its images and depth maps.
        masks: Per image the masks of its regions in order of mention; None without regions.
        region_images: The image of every mention.
        task_type: Task of the question, -1 where unknown.
        where: What to call the conversation in errors.
        index: Position in the dataset.
        record_id: The record's `id`.
        label: Typed answer, if there is one.
    """
    rows, columns = processor.region_grid
    height, width = processor.image_size
    encoded = [
        processor.encode_regions(own, frame.depth) for own, frame in zip(masks, frames, strict=True) if own is not None
    ]
    # Regions come image by image out of the masks; mention k stands at its rank among the mentions sorted by image.
    order = torch.argsort(torch.argsort(region_images, stable=True))
    depths = [frame.depth for frame in frames]
    return RegionSample(
        index=index,
        record_id=record_id,
        text=processor.encode(
            messages,
            num_images=len(frames),
            region_has_depth=[depths[image] is not None for image in region_images.tolist()],
            where=where,
        ),
        images=_stack([processor.resize_image(frame.image) for frame in frames], (3, height, width)),
        depths=_stack([processor.resize_depth(depth) for depth in depths if depth is not None], (3, height, width)),
        depth_images=torch.tensor([image for image, depth in enumerate(depths) if depth is not None], dtype=torch.long),
        region_masks=torch.cat([grid for grid, _ in encoded])[order] if encoded else torch.zeros(0, rows, columns),
        region_images=region_images,
        region_geometry=torch.cat([shape for _, shape in encoded])[order] if encoded else torch.zeros(0, GEOMETRY_DIM),
        task_type=task_type,
        label=label,
    )


def _turns(record: Mapping[str, object], where: str) -> list[tuple[str, str]]:
    """Speaker and words of every turn."""
    turns = []
    for turn in require(record, "conversations", list, where):
        if not isinstance(turn, dict):
            raise ValueError(f"{where}, key 'conversations': expected objects with 'from' and 'value', got {turn!r}")
        turns.append((require(turn, "from", str, where), require(turn, "value", str, where)))
    return turns


def _regions_of(record: Mapping[str, object], where: str) -> tuple[str, list[Mapping[str, object]]]:
    """The key that holds a record's regions, and the regions as `region_core.parse_region` reads them."""
    key = next((key for key in ("rle", "bbox") if record.get(key)), "regions")
    if not record.get(key):
        return key, []
    regions: list[Mapping[str, object]] = []
    for region in require(record, key, list, where):
        if key == "rle":
            regions.append({"rle": region})
        elif key == "bbox":
            regions.append({"box": region, "units": "pixels"})
        elif isinstance(region, dict):
            regions.append(region)
        else:
            raise ValueError(f"{where}, key 'regions': expected objects such as {{'box': [...]}}, got {region!r}")
    return key, regions


def _or_else(default: Default, read: Callable[[int], Value], index: int) -> Value | Default:
    """What is read of a record, or the default where reading it is an error."""
    try:
        return read(index)
    except ValueError:
        return default


def _stack(images: list[Tensor], shape: tuple[int, int, int]) -> Tensor:
    return torch.stack(images) if images else torch.zeros(0, *shape, dtype=torch.uint8)
