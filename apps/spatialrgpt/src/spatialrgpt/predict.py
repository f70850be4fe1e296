"""`spatialrgpt predict`: one image, its regions and a question -> the answer, the head's value, a picture."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from region_core.regions import parse_region, region_to_mask
from region_heads.decoding import decode
from region_heads.labels import RegionPrediction
from region_heads.routing import explain_route
from region_heads.tasks import UNKNOWN_TASK
from region_training.curves import save_figure
from region_training.images import read_depth, read_image
from region_training.ranks import choose_device
from region_training.run_folder import RunFolder
from rich.console import Console
from transformers import AutoProcessor

from spatialrgpt.collate import RegionDataCollator
from spatialrgpt.data import Frame, make_sample
from spatialrgpt.evaluate import model_inputs
from spatialrgpt.model import SpatialRGPTForConditionalGeneration
from spatialrgpt.pictures import PICTURE_DPI, draw_regions
from spatialrgpt.processing import SpatialRGPTProcessor
from spatialrgpt.verbs import PredictSettings


@dataclass(frozen=True)
class Answer:
    """What the model says.

    Attributes:
        text: The generated sentence.
        head: The typed head's answer; None without heads, or where the question is of none of the four kinds.
        route: Why the question went to that head.
    """

    text: str
    head: RegionPrediction | None
    route: str


@torch.no_grad()
def answer_question(
    model: SpatialRGPTForConditionalGeneration,
    processor: SpatialRGPTProcessor,
    frame: Frame,
    masks: np.ndarray,
    question: str,
    *,
    max_new_tokens: int = 64,
) -> Answer:
    """Answer one question about one frame.

    Args:
        model: The model, in evaluation mode.
        processor: Its processor.
        frame: The image, and its depth map if there is one.
        masks: Boolean masks of the regions, in order of mention, `[regions, height, width]`.
        question: The question, with one `<mask>` per region.
        max_new_tokens: Longest generated answer.

    Raises:
        ValueError: The question does not mention as many regions as there are masks.
    """
    route = explain_route(question, num_regions=len(masks))
    task = UNKNOWN_TASK if route.task is None else int(route.task)
    sample = make_sample(
        processor,
        [{"role": "user", "content": question}],
        [frame],
        [masks if len(masks) else None],
        torch.zeros(len(masks), dtype=torch.long),
        task_type=task,
        where="the question",
    )
    tokenizer = processor.tokenizer
    inputs = model_inputs(RegionDataCollator(tokenizer.pad_token_id, padding_side="left")([sample]), model.device)
    output = model(
        **inputs,
        task_types=torch.tensor([task], device=model.device),
        question_positions=torch.tensor([sample.text.question_position], device=model.device),
    )
    new = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    head = None if output.regions is None else decode(output.regions)[0]
    return Answer(tokenizer.batch_decode(new, skip_special_tokens=True)[0], head, route.source)


def predict(settings: PredictSettings) -> None:
    """Open a model, answer, print, and write the picture."""
    folder = model_folder(settings.model)
    device = choose_device(settings.device)
    processor = AutoProcessor.from_pretrained(folder)
    model = SpatialRGPTForConditionalGeneration.from_pretrained(folder).to(device).eval()
    frame = Frame(read_image(settings.image), None if settings.depth is None else read_depth(settings.depth))
    height, width = frame.image.shape[:2]
    regions = [
        region_to_mask(parse_region(region, where=f"--regions, region {index}"), height=height, width=width)
        for index, region in enumerate(read_regions(settings.regions))
    ]
    for index, mask in enumerate(regions):
        if not mask.any():
            raise ValueError(f"--regions, region {index}: the mask is empty")
    masks = np.stack(regions) if regions else np.zeros((0, height, width), dtype=bool)
    answer = answer_question(model, processor, frame, masks, settings.question, max_new_tokens=settings.max_new_tokens)
    typed = (
        "no typed answer" if answer.head is None else f"{answer.head.value} (confidence {answer.head.confidence:.2f})"
    )
    title = f"{settings.question}\ntext: {answer.text}\nhead: {typed}"
    save_figure(draw_regions(frame.image, masks, title=title), Path(settings.output), dpi=PICTURE_DPI)
    console = Console()
    console.print(f"text: {answer.text}", markup=False)
    console.print(f"head: {typed}; routed by {answer.route}", markup=False)
    console.print(f"picture: {settings.output}", markup=False)


def model_folder(path: str) -> Path:
    """The model's folder: given itself, or inside a run.

    Raises:
        FileNotFoundError: Neither is there.
    """
    if (Path(path) / "config.json").is_file():
        return Path(path)
    run = RunFolder.open(path)
    if not (run.model_path / "config.json").is_file():
        raise FileNotFoundError(f"{run.path}: the run has no model yet; train it to its end first")
    return run.model_path


def read_regions(text: str) -> list[dict]:
    """Regions as JSON, given as text or as the name of a file.

    Raises:
        ValueError: It is not a JSON list of objects.
    """
    source = text if text.lstrip()[:1] in ("[", "{") else Path(text).read_text()
    try:
        regions = json.loads(source)
    except json.JSONDecodeError as error:
        raise ValueError(f"--regions: not JSON: {error}") from error
    if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
        raise ValueError("--regions: expected a JSON list such as '[{\"box\": [0.1, 0.2, 0.3, 0.5]}]'")
    return regions
