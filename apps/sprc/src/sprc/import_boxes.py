"""`sprc import-boxes SOURCE OUTPUT`: a detector's boxes, in COCO or YOLO form, as a box file."""

from pathlib import Path

from rich.console import Console
from roi_region_loss.importers import BoxSelection, import_coco, import_yolo

from sprc.verbs import ImportBoxesSettings


def import_boxes(settings: ImportBoxesSettings) -> None:
    """Write a box file by image; a folder is read as YOLO's, a file as COCO's."""
    selection = BoxSelection(settings.min_score, settings.min_area, settings.max_boxes)
    if Path(settings.source).is_dir():
        report = import_yolo(settings.source, settings.output, selection=selection)
    else:
        report = import_coco(settings.source, settings.output, images=settings.images, selection=selection)
    dropped = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items()) or "none"
    Console().print(
        f"{report.num_boxes} boxes on {report.num_images} images: {settings.output} (left out: {dropped})",
        markup=False,
        soft_wrap=True,
    )
