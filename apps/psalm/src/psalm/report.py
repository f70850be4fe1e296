"""What a run shows in the end: scores, result files, pictures, report page, model card."""

from dataclasses import asdict
from pathlib import Path
from typing import cast

from region_training.curves import save_figure
from region_training.model_card import ModelCard, write_model_card
from region_training.report import Section, write_report
from region_training.run_folder import RunFolder
from region_training.tables import Table
from rich.console import Console

from psalm.config import Settings
from psalm.data import SegmentationDataset, describe_shared
from psalm.evaluate import Evaluation, Group, name_groups
from psalm.overlays import PICTURE_DPI
from psalm.pictures import choose_records, draw_record
from psalm.result_files import write_results

PREDICTIONS = "predictions"
LOADING = """from psalm import PSALMModel, PSALMProcessor

model = PSALMModel.from_pretrained("path/to/model")
processor = PSALMProcessor.from_pretrained("path/to/model")"""


def finish_run(
    run: RunFolder, settings: Settings, evaluation: Evaluation, dataset: SegmentationDataset, *, has_model: bool = True
) -> None:
    """Write everything that a finished run holds beside its weights, and print the scores.

    Args:
        run: The run, or the folder of one of its further evaluations.
        settings: Its settings.
        evaluation: What was found.
        dataset: The split's records.
        has_model: Whether the folder holds the model, whose card is then written.
    """
    spaces = {name: dataset.sources[place].label_space for name, place in name_groups(dataset).items()}
    write_results(run.path / PREDICTIONS, evaluation.records, spaces)
    draw_pictures(run, settings.evaluation.num_pictures, evaluation, dataset)
    if has_model:
        write_model_card(run.model_path, _model_card(run, settings, evaluation))
    run.finish(
        {
            "split": evaluation.split,
            "scores": evaluation.scores,
            "groups": {name: asdict(group) for name, group in evaluation.groups.items()},
            "ref_mode": settings.data.ref_mode,
            "note": describe_shared(settings.data),
        }
    )
    write_page(run)
    console = Console()
    evaluation.table().show()
    paths = {"report": run.report_path, "predictions": run.path / PREDICTIONS}
    if has_model:
        paths["model"] = run.model_path
    for what, path in paths.items():
        console.print(f"{what}: {path}", markup=False, soft_wrap=True)


def _model_card(run: RunFolder, settings: Settings, evaluation: Evaluation) -> ModelCard:
    sources = ", ".join(f"`{name}` ({group.num_records})" for name, group in evaluation.groups.items())
    note = describe_shared(settings.data)
    records = f"held-out records: {sources}." if note is None else f"records: {sources}. {note}"
    return ModelCard(
        title=f"PSALM ({run.path.name})",
        summary="Segments an image by class names, a sentence, prompted regions, or regions of another image.",
        load=LOADING,
        data=f"Trained on the split `{settings.data.train_split}`; evaluated on {records}",
        scores=evaluation.table(),
        config=run.read_config(),
        command="psalm train --config config.yaml",
        tags=("regionwise", "image-segmentation", "region-level"),
        pipeline_tag="image-segmentation",
    )


def write_page(run: RunFolder) -> Path:
    """Write `report.html` from what lies in the run folder; nothing is computed by the model again."""
    evaluation = read_evaluation(run)
    results = run.read_results()
    note = results.get("note") or "Every record is held out."
    text = f"{note} {_SCORES_TEXT}{_REF_MODES[str(results.get('ref_mode'))]}"
    sections = [
        Section("Scores" if results.get("note") else "Held-out scores", text, evaluation.table()),
        Section("What was compared", table=_groups_table(evaluation)),
    ]
    for name, group in evaluation.groups.items():
        stem = _stem(name)
        images = {path.stem.replace("-", " "): path for path in run.samples() if path.stem.rpartition("-")[0] == stem}
        if images:
            text = f"{group.num_records} records; first the worst ones, then some at equal steps."
            sections.append(Section(f"Pictures: {name.replace('_', ' ')}", text, images=images))
    return write_report(run, sections)


def read_evaluation(run: RunFolder) -> Evaluation:
    """The scores that `finish_run` kept, without the single records.

    Raises:
        FileNotFoundError: The run was not evaluated yet.
    """
    if not run.is_finished:
        raise FileNotFoundError(f"{run.results_path}: not there; `psalm evaluate {run.path}` makes it")
    results = run.read_results()
    scores = cast("dict[str, dict[str, float]]", results["scores"])
    groups = cast("dict[str, dict]", results["groups"])
    return Evaluation(scores, {name: Group(**values) for name, values in groups.items()}, str(results["split"]))


def draw_pictures(run: RunFolder, count: int, evaluation: Evaluation, dataset: SegmentationDataset) -> None:
    """Draw some records of every group into the run's samples."""
    for old in run.samples():
        old.unlink()
    places = name_groups(dataset)
    for name in evaluation.groups:
        chosen = choose_records([record for record in evaluation.records if record.group == name], count)
        for number, record in enumerate(chosen):
            scene = dataset.sources[places[name]].load(record.index, None)
            figure = draw_record(scene, record.masks, measure=record.measure)
            save_figure(figure, run.samples_path / f"{_stem(name)}-{number:02d}.png", dpi=PICTURE_DPI)


def _groups_table(evaluation: Evaluation) -> Table:
    rows = [(name, group.num_records, group.measure, group.trivial) for name, group in evaluation.groups.items()]
    return Table("", ("data", "records", "main measure", "best trivial answer"), tuple(rows))


def _stem(group: str) -> str:
    return group.replace("/", "-")


_SCORES_TEXT = """All numbers are percent, measured at the size of the images on disk.
`untrained` is the same model before training. `trivial` is the best answer without a model, its constants fitted on the
evaluated records themselves: what it scores, the data gives away.

Sentences, regions and image pairs: cIoU and gIoU are of the best mask, where there is a target; with `union_` they are
of all masks above the threshold, where N_acc says how often "no target" was recognised, and T_acc how often a target
was not denied. The main measure of sentences and pairs is gIoU, and union_gIoU in data where some condition has no
target or several. """
_REF_MODES = {
    "per_sentence": "Referring: one sentence per record.",
    "joined": "Referring: all sentences of an object joined in one record, as published PSALM was evaluated.",
}
