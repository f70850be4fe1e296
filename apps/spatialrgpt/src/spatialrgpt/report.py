"""What a run shows in the end: results, answers, pictures, report page, model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from region_heads.labels import SIDES, Label, RegionPrediction
from region_heads.metrics import RegionMetrics
from region_heads.pictures import draw_all
from region_heads.tasks import TaskType
from region_training.curves import save_figure
from region_training.model_card import ModelCard, write_model_card
from region_training.report import Section, write_report
from region_training.run_folder import RunFolder
from rich.console import Console

from spatialrgpt.config import Settings
from spatialrgpt.data import RegionDataset
from spatialrgpt.evaluate import AnsweredRecord, Evaluation
from spatialrgpt.pictures import PICTURE_DPI, draw_regions, number_mentions

ANSWERS = "answers.jsonl"
LOADING = """from spatialrgpt import SpatialRGPTForConditionalGeneration, SpatialRGPTProcessor

model = SpatialRGPTForConditionalGeneration.from_pretrained("path/to/model")
processor = SpatialRGPTProcessor.from_pretrained("path/to/model")"""


def finish_run(run: RunFolder, settings: Settings, evaluation: Evaluation, dataset: RegionDataset) -> None:
    """Write everything that a finished run holds beside its weights, and print the scores.

    Args:
        run: The run, whose model gets its card, or the folder of one of its further evaluations.
        settings: Its settings.
        evaluation: What was found.
        dataset: The questions.
    """
    write_answers(run, evaluation)
    draw_cases(run, settings.evaluation.num_pictures, evaluation, dataset)
    results: dict[str, object] = {"scores": evaluation.scores}
    agreement = evaluation.agreement()
    if agreement is not None:
        results["text_agrees_with_heads"] = agreement
    table = evaluation.table()
    if run.model_path.is_dir():
        write_model_card(run.model_path, _model_card(run, settings, evaluation, dataset))
    run.finish(results)
    write_page(run)
    console = Console()
    table.show()
    paths = {"report": run.report_path, "model": run.model_path}
    for what, path in paths.items():
        if path.exists():
            console.print(f"{what}: {path}", markup=False, soft_wrap=True)


def _model_card(run: RunFolder, settings: Settings, evaluation: Evaluation, dataset: RegionDataset) -> ModelCard:
    return ModelCard(
        title=f"SpatialRGPT ({run.path.name})",
        summary="Answers questions about regions of an image: distances in metres, sides, choices and counts.",
        load=LOADING,
        data=f"Trained on `{settings.data.train_split}` of `{settings.data.root}` and evaluated on "
        f"`{dataset.split}` of `{dataset.root}`, both in the warehouse format.",
        scores=evaluation.table(),
        config=run.read_config(),
        command="spatialrgpt train --config config.yaml",
        tags=("regionwise", "spatial-reasoning", "region-level"),
    )


def write_page(run: RunFolder) -> Path:
    """Write `report.html` from what lies in the run folder; nothing is computed by the model again."""
    evaluation = read_evaluation(run)
    sections = [Section("Held-out scores", _SCORES_TEXT, evaluation.table())]
    for name, metrics in (("typed heads", evaluation.heads), ("generated text", evaluation.text)):
        if metrics is not None:
            figures = {key.replace("_", " "): figure for key, figure in draw_all(metrics).items()}
            sections.append(Section(f"Answers of the {name}", _regions_text(metrics), figures=figures))
    for kind, text in _CASES.items():
        images = {
            path.stem.split("-", 1)[1].replace("-", " "): path for path in run.samples() if path.stem.startswith(kind)
        }
        if images:
            sections.append(Section(text[0], text[1], images=images))
    return write_report(run, sections)


def write_answers(run: RunFolder, evaluation: Evaluation) -> None:
    """Keep every answer, one JSON object per line."""
    lines = (
        {
            "index": item.index,
            "task": item.label.task.label,
            "truth": item.label.value,
            "num_regions": item.num_regions,
            "head": None if item.head is None else [item.head.value, item.head.confidence],
            "text": item.text,
            "parsed": None if item.parsed is None else item.parsed.value,
        }
        for item in evaluation.records
    )
    (run.path / ANSWERS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_evaluation(run: RunFolder) -> Evaluation:
    """The evaluation that `write_answers` kept, with the baselines' scores from the run's results.

    Raises:
        FileNotFoundError: The run was not evaluated yet.
    """
    path = run.path / ANSWERS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; `spatialrgpt evaluate {run.path}` makes it")
    records = [_answered(json.loads(line)) for line in path.read_text().splitlines()]
    scores = cast("dict[str, dict[str, float]]", run.read_results().get("scores", {}))
    own = ("heads", "text")
    return Evaluation(records, {name: values for name, values in scores.items() if name not in own})


def _answered(line: Mapping) -> AnsweredRecord:
    task = TaskType[line["task"].upper()]
    head = None if line["head"] is None else RegionPrediction(task, *line["head"])
    parsed = None if line["parsed"] is None else RegionPrediction(task, line["parsed"], 1.0)
    return AnsweredRecord(line["index"], Label(task, line["truth"]), line["num_regions"], head, line["text"], parsed)


def draw_cases(run: RunFolder, count: int, evaluation: Evaluation, dataset: RegionDataset) -> None:
    """Draw the worst answers and some ordinary ones of every task into the run's samples."""
    for old in run.samples():
        old.unlink()
    for task in TaskType:
        records = [item for item in evaluation.records if item.label.task is task and _spoken(item) is not None]
        worst = sorted(records, key=lambda item: -_badness(item))[:count]
        ordinary = records[:: max(1, len(records) // count)][:count] if count else []
        for kind, chosen in (("worst", worst), ("sample", ordinary)):
            for position, item in enumerate(chosen):
                _draw_case(item, dataset, run.samples_path / f"{kind}-{task.label}-{position}.png")


def _draw_case(item: AnsweredRecord, dataset: RegionDataset, path: Path) -> None:
    frames = dataset.frames(item.index)
    masks, _ = dataset.masks(item.index, frames)
    if not frames or masks[0] is None:
        return
    lines = [number_mentions(dataset.question(item.index)), f"true: {_shown(item.label.task, item.label.value)}"]
    label = dataset.label(item.index)
    highlighted = [] if label is None or label.involved is None else sorted(label.involved)
    if item.head is not None:
        lines.append(f"head: {_shown(item.label.task, item.head.value)}  (confidence {item.head.confidence:.2f})")
    if item.text is not None:
        lines.append(f"text: {item.text}")
    if item.label.task is TaskType.MULTIPLE_CHOICE:
        highlighted = [int(item.label.value)]
    figure = draw_regions(frames[0].image, masks[0], title="\n".join(lines), highlighted=highlighted)
    save_figure(figure, path, dpi=PICTURE_DPI)


def _spoken(item: AnsweredRecord) -> RegionPrediction | None:
    return item.head if item.head is not None else item.parsed


def _badness(item: AnsweredRecord) -> float:
    """How wrong an answer is: relative error of a distance, else confidence in the wrong answer."""
    answer = _spoken(item)
    if answer is None:
        return 0.0
    if item.label.task is TaskType.DISTANCE:
        return abs(float(answer.value) - item.label.value) / max(float(item.label.value), 0.1)
    truth = SIDES[int(item.label.value)] if item.label.task is TaskType.LEFT_RIGHT else item.label.value
    return answer.confidence if answer.value != truth else -answer.confidence


def _shown(task: TaskType, value: float | int | str) -> str:
    if task is TaskType.DISTANCE:
        return f"{float(value):.2f} m"
    if task is TaskType.LEFT_RIGHT and not isinstance(value, str):
        return SIDES[int(value)]
    return f"region {value}" if task is TaskType.MULTIPLE_CHOICE else str(value)


def _regions_text(metrics: RegionMetrics) -> str:
    scores = metrics.compute()
    unanswered = sum(int(value) for key, value in scores.items() if key.endswith("/unanswered"))
    return f"{len(metrics.answers)} questions, {unanswered} without an answer."


_SCORES_TEXT = """Every question is held out. `question only` answers by the words of the question alone, fitted on the
training questions; `majority / mean` gives one constant per task. `text` is the generated sentence, parsed."""
_CASES = {
    "worst": ("Worst answers", "The largest relative errors, and the wrong answers given with most confidence."),
    "sample": ("Sample answers", "Questions taken at equal steps through the split."),
}
