"""`psalm predict MODEL IMAGE`: class names, a sentence, or regions -> masks as a picture and as COCO JSON."""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from region_core.regions import Region, parse_region, region_to_mask
from region_core.rle import decode_rle
from region_training.curves import save_figure
from region_training.images import read_image
from region_training.loading import model_folder
from rich.console import Console

from psalm.answers import answer_samples
from psalm.config import EvaluationSettings
from psalm.loading import load_model, open_processor
from psalm.metrics.average_precision import rle_area
from psalm.model import PSALMModel
from psalm.modes import BACKGROUND, KIND_OF_MODE, Mode
from psalm.overlays import PICTURE_DPI
from psalm.pictures import draw_record
from psalm.processing import PSALMProcessor
from psalm.prompts import PEN_RADIUS, Pens, bound_regions, with_pen
from psalm.records import FoundMask, found_masks
from psalm.samples import Scene, no_masks
from psalm.transforms import SegmentationTransform
from psalm.verbs import PredictSettings

REGION_FLAGS = ("box", "point", "scribble", "mask")


def predict(settings: PredictSettings) -> None:
    """Segment an image, write the picture and the JSON, and list what was found.

    Raises:
        ValueError: The flags contradict each other, or a region, class name or image is no such thing.
    """
    folder = model_folder(settings.model)
    # A mistake in the question is said before the weights are read.
    scene = make_scene(settings, open_processor(folder).pens)
    model, processor = load_model(folder, settings.device)
    thresholds = EvaluationSettings(
        score_threshold=settings.score_threshold,
        overlap_threshold=settings.overlap_threshold,
        target_threshold=settings.target_threshold,
        match_threshold=settings.match_threshold,
        prompt_agreement=settings.prompt_agreement,
    )
    masks = segment(model, processor, scene, thresholds)
    figure = draw_record(scene, masks, measure=None, with_target=False)
    picture = Path(settings.output)
    save_figure(figure, picture, dpi=2 * PICTURE_DPI)
    coco = picture.with_suffix(".json") if settings.json is None else Path(settings.json)
    coco.write_text(json.dumps(coco_of(scene, masks, file_name=Path(settings.image).name)))
    console = Console()
    for found in masks:
        score = "" if found.score is None else f"  score {found.score:.2f}"
        share = 100 * rle_area(found.rle) / (scene.image.shape[0] * scene.image.shape[1])
        line = f"{found.role}  {found.label}{score}  {share:.1f} % of the image"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not masks:
        console.print("nothing found")
    console.print(f"picture: {picture}\nmasks:   {coco}", markup=False, highlight=False, soft_wrap=True)


def segment(
    model: PSALMModel, processor: PSALMProcessor, scene: Scene, settings: EvaluationSettings
) -> list[FoundMask]:
    """The masks of one scene.

    Args:
        model: The model, in evaluation mode.
        processor: The model's processor.
        scene: What is asked; it needs no targets.
        settings: Thresholds.

    Raises:
        ValueError: A region is too small to be seen at the model's input size.
    """
    sample = SegmentationTransform(processor.image_size)(scene, None)
    if sample.prompts is not None:
        vanished = np.flatnonzero(~sample.prompts.flatten(1).any(1).numpy()).tolist()
        if vanished:
            raise ValueError(
                f"{scene.record_id}: regions {vanished} vanish at the model's input of {processor.image_size} pixels; "
                "give larger ones"
            )
    (answer,) = answer_samples(model, processor, [sample], settings)
    return found_masks(scene.mode, answer)


def make_scene(settings: PredictSettings, pens: Pens = PEN_RADIUS) -> Scene:
    """What is asked, read from the flags; points and scribbles are as thick as those of the training.

    Raises:
        ValueError: Not exactly one kind of question is asked, or one of its parts is missing or superfluous.
    """
    regions = [flag for flag in REGION_FLAGS if vars(settings)[flag] is not None]
    asked = [flag for flag in ("classes", "sentence") if vars(settings)[flag] is not None] + regions[:1]
    if len(asked) != 1:
        given = [*asked[: len(asked) - bool(regions)], *regions]
        raise ValueError(
            "expected one question: --classes, --sentence, or regions (--box, --point, --scribble, --mask); got "
            + (", ".join(f"--{flag}" for flag in given) or "none")
        )
    if settings.reference is not None and not regions:
        raise ValueError(f"--reference shows regions; expected --box, --point, --scribble or --mask, got --{asked[0]}")
    if settings.things is not None and settings.classes is None:
        raise ValueError(f"--things says which of --classes are countable, got it with --{asked[0]}")
    image = read_image(settings.image)
    if regions:
        reference = None if settings.reference is None else read_image(settings.reference)
        prompts = read_prompts(settings, *(image if reference is None else reference).shape[:2], pens)
        conditions = ("",) * len(prompts)
        mode: Mode = "region" if reference is None else "cross_image"
        bound = bound_regions(regions)
        return _scene(
            settings.image, mode, image, conditions, prompts=prompts, prompts_bound=bound, reference=reference
        )
    if settings.sentence is not None:
        return _scene(settings.image, "referring", image, (settings.sentence,))
    conditions = tuple(_words(str(settings.classes)))
    twice = sorted({name for name in conditions if conditions.count(name) > 1})
    if twice or BACKGROUND in conditions:
        raise ValueError(
            f"--classes: expected different names without {BACKGROUND!r}, which is always added, got "
            + (f"{', '.join(twice)} more than once" if twice else repr(BACKGROUND))
        )
    things = conditions if settings.things is None else tuple(_words(settings.things))
    unknown = [name for name in things if name not in conditions]
    if not conditions or unknown:
        raise ValueError(f"--things {unknown} are not among --classes {list(conditions)}; both are names with commas")
    is_thing = tuple(name in things for name in conditions)
    return _scene(settings.image, settings.mode, image, conditions, is_thing=is_thing)


def read_prompts(
    settings: PredictSettings, height: int, width: int, pens: Pens = PEN_RADIUS
) -> Bool[np.ndarray, "regions {height} {width}"]:
    """The regions of all flags as masks, in the order box, point, scribble, mask.

    Raises:
        ValueError: A region is not numbers, leaves the image, is empty, or a mask has another size.
    """
    prompts = []
    for flag in REGION_FLAGS:
        value = vars(settings)[flag]
        for number, text in enumerate([] if value is None else str(value).split(";")):
            where = f"--{flag}, region {number}"
            if flag == "mask":
                region = Region(mask=read_image(text.strip()).max(-1) > 127, where=where)
            else:
                record = {flag: _numbers(text, where), "units": settings.units}
                region = parse_region(with_pen(record, pens, height=height, width=width), where=where)
            mask = region_to_mask(region, height=height, width=width)
            if not mask.any():
                raise ValueError(f"{where}: {text.strip()!r} covers no pixel of the {width} x {height} image")
            prompts.append(mask)
    return np.stack(prompts)


def coco_of(scene: Scene, masks: list[FoundMask], *, file_name: str) -> dict[str, object]:
    """The found masks as a COCO file of one image; `score` and `role` are added to COCO's keys."""
    height, width = scene.image.shape[:2]
    is_class = KIND_OF_MODE[scene.mode] == "class_name"
    names = list(scene.conditions) if is_class else list(dict.fromkeys(found.label for found in masks))
    is_thing = scene.is_thing if is_class else (True,) * len(names)
    annotations = []
    for number, found in enumerate(masks, 1):
        mask = decode_rle(found.rle, height=height, width=width)
        annotations.append(
            {
                "id": number,
                "image_id": 1,
                "category_id": names.index(found.label) + 1,
                "segmentation": found.rle,
                "area": int(mask.sum()),
                "bbox": _bbox(mask),
                "iscrowd": 0,
                "score": found.score,
                "role": found.role,
            }
        )
    return {
        "images": [{"id": 1, "file_name": file_name, "height": height, "width": width}],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "isthing": int(thing)}
            for number, (name, thing) in enumerate(zip(names, is_thing, strict=True), 1)
        ],
    }


def _scene(
    record_id: str,
    mode: Mode,
    image: np.ndarray,
    conditions: tuple[str, ...],
    *,
    is_thing: tuple[bool, ...] | None = None,
    prompts: np.ndarray | None = None,
    prompts_bound: bool = False,
    reference: np.ndarray | None = None,
) -> Scene:
    """A scene whose targets nobody knows."""
    return Scene(
        record_id=record_id,
        mode=mode,
        image=image,
        masks=no_masks(*image.shape[:2]),
        conditions=conditions,
        target_conditions=np.zeros((0, len(conditions)), dtype=bool),
        is_thing=(True,) * len(conditions) if is_thing is None else is_thing,
        prompts=prompts,
        prompts_bound=prompts_bound,
        reference_image=reference,
    )


def _words(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str, where: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{where}: expected numbers with commas between them, got {text!r}") from error


def _bbox(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """COCO's box: left, top, width, height in pixels; zeros for an empty mask."""
    if not mask.any():
        return [0, 0, 0, 0]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(value) for value in (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)]
