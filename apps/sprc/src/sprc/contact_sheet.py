"""Retrievals to look at: one HTML file with small pictures inside, readable without a network.

Every query shows its reference, what was asked for, the best images with their scores, and where its target came.
Boxes are drawn on the pictures as vectors. Text is escaped, and the page's own content policy forbids scripts and any
address but the pictures inside it.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jinja2
from PIL import Image
from region_training.images import read_image
from region_training.run_folder import write_atomically
from region_training.tables import Table
from roi_region_loss.box_formats import TOLERANCE

THUMBNAIL_SIDE = 200
JPEG_QUALITY = 80

Box = tuple[float, float, float, float]
"""xyxy in [0, 1] of the original image."""


class RetrievedImage(NamedTuple):
    """One image of a ranking.

    Attributes:
        name: As in the gallery.
        path: Its file.
        score: Its similarity to the query.
    """

    name: str
    path: Path
    score: float


class RegionMatch(NamedTuple):
    """The regions of the reference and of a retrieved image that are most alike.

    Attributes:
        reference_box: On the reference.
        name: The other image, one of the shown ones.
        box: On that image.
        similarity: The cosine of their features.
    """

    reference_box: Box
    name: str
    box: Box
    similarity: float


@dataclass(frozen=True)
class RetrievalCase:
    """One query with what was found for it.

    Attributes:
        pair_id: Names the query.
        reference: The reference image's file.
        caption: What is asked for.
        results: The best images, the best first.
        target_name: None where the target is not known.
        target: Its file; needed where it is not among the results.
        target_rank: Its rank in the whole gallery, from 1.
        subset: CIRR's set in the order of the scores.
        reference_boxes: Boxes of the triplet's regions on the reference.
        target_boxes: Likewise on the target.
        region_match: The best match of regions.
        category: FashionIQ's category, for the heading.
    """

    pair_id: str
    reference: Path
    caption: str
    results: tuple[RetrievedImage, ...]
    target_name: str | None = None
    target: Path | None = None
    target_rank: int | None = None
    subset: tuple[RetrievedImage, ...] = ()
    reference_boxes: tuple[Box, ...] = ()
    target_boxes: tuple[Box, ...] = ()
    region_match: RegionMatch | None = None
    category: str | None = None

    def __post_init__(self) -> None:
        """Check that everything the page points at is there.

        Raises:
            ValueError: A box is not in [0, 1], the target has a name but no file or rank, or the region match is on an
                image that is not shown.
        """
        where = f"query {self.pair_id!r}"
        match = () if self.region_match is None else (self.region_match.reference_box, self.region_match.box)
        for box in (*self.reference_boxes, *self.target_boxes, *match):
            x1, y1, x2, y2 = box
            if not (-TOLERANCE <= x1 < x2 <= 1 + TOLERANCE and -TOLERANCE <= y1 < y2 <= 1 + TOLERANCE):
                raise ValueError(f"{where}: got the box {box}, expected xyxy in [0, 1] with x1 < x2 and y1 < y2")
        given = [self.target_name is not None, self.target is not None, self.target_rank is not None]
        if any(given) and not all(given):
            raise ValueError(
                f"{where}: got the target {self.target_name!r}, its file {self.target} and rank {self.target_rank}, "
                "expected all three or none"
            )
        shown = [*(image.name for image in (*self.results, *self.subset)), self.target_name]
        if self.region_match is not None and self.region_match.name not in shown:
            raise ValueError(f"{where}: the region match is on {self.region_match.name!r}, which is not shown")


class _Tile(NamedTuple):
    """One picture of the page."""

    address: str
    boxes: list[tuple[str, Box]]
    label: str
    name: str
    is_target: bool


def write_contact_sheet(
    path: Path | str, cases: Sequence[RetrievalCase], *, title: str, text: str = "", table: Table | None = None
) -> Path:
    """Write the page.

    Args:
        path: The HTML file.
        cases: What is shown, in this order.
        title: The heading.
        text: A paragraph below it.
        table: Scores, below the text.

    Returns:
        The file.

    Raises:
        ValueError: A picture cannot be read.
    """
    path = Path(path)
    pictures: dict[Path, str] = {}
    # Autoescape by hand: jinja2's own choice by suffix would not know ".j2".
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sprc"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("contact_sheet.html.j2").render(
        title=title,
        text=text,
        table=table,
        columns=[] if table is None else table.numeric_columns(),
        cases=[_rendered(case, pictures) for case in cases],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path


def _rendered(case: RetrievalCase, pictures: dict[Path, str]) -> dict[str, object]:
    """What the template needs of one case; `pictures` keeps every file's thumbnail."""

    def tile(name: str, file: Path, label: str) -> _Tile:
        if file not in pictures:
            pictures[file] = _thumbnail(file)
        boxes = [("pair", box) for box in (case.target_boxes if name == case.target_name else ())]
        if case.region_match is not None and case.region_match.name == name:
            boxes.append(("match", case.region_match.box))
        return _Tile(pictures[file], boxes, label, name, name == case.target_name)

    def row(images: Sequence[RetrievedImage]) -> list[_Tile]:
        return [tile(image.name, image.path, f"{place}. {image.score:.3f}") for place, image in enumerate(images, 1)]

    reference_boxes = [("pair", box) for box in case.reference_boxes]
    if case.region_match is not None:
        reference_boxes.append(("match", case.region_match.reference_box))
    if case.reference not in pictures:
        pictures[case.reference] = _thumbnail(case.reference)
    results = row(case.results)
    missed: list[_Tile] = []
    if case.target_name is not None and case.target is not None and not any(image.is_target for image in results):
        missed.append(tile(case.target_name, case.target, f"rank {case.target_rank}"))
    return {
        "pair_id": case.pair_id,
        "category": case.category,
        "caption": case.caption,
        "target_rank": case.target_rank,
        "reference": _Tile(pictures[case.reference], reference_boxes, "reference", case.reference.stem, False),
        "results": results,
        "missed": missed,
        "subset": row(case.subset),
        "match": case.region_match,
    }


def _thumbnail(path: Path) -> str:
    image = Image.fromarray(read_image(path))
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
