"""What a run shows in the end: results, retrieved images, contact sheet, report page, model card."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

from matplotlib.figure import Figure
from region_training.model_card import ModelCard, write_model_card
from region_training.report import Section, write_report
from region_training.run_folder import RunFolder
from rich.console import Console

from sprc.config import Settings
from sprc.contact_sheet import RetrievalCase, RetrievedImage, write_contact_sheet
from sprc.data import TripletDataset
from sprc.evaluate import Evaluation, RetrievedRecord
from sprc.model import SPRCModel
from sprc.region_match import best_region_match

RECORDS = "retrieved.jsonl"
CONTACT_SHEET = "retrieved.html"
TUPLES = ("found", "similarities", "subset", "subset_similarities")
LOADING = """from sprc import SPRCModel
from transformers import AutoTokenizer

model = SPRCModel.from_pretrained("path/to/model")
tokenizer = AutoTokenizer.from_pretrained("path/to/model")"""


def finish_run(
    run: RunFolder,
    settings: Settings,
    evaluation: Evaluation,
    dataset: TripletDataset,
    *,
    model: SPRCModel | None = None,
) -> None:
    """Write everything that a finished run holds beside its weights, and print the recalls.

    Args:
        run: The run, whose model gets its card, or the folder of one of its further evaluations.
        settings: Its settings.
        evaluation: What was found.
        dataset: The queries.
        model: With it the contact sheet shows which regions the model matches.
    """
    write_records(run, evaluation)
    text = "First the queries whose targets came last, then some at equal steps through the split."
    chosen = choose_cases(evaluation.records, settings.evaluation.num_cases)
    write_contact_sheet(
        run.path / CONTACT_SHEET,
        [make_case(record, dataset, model=model) for record in chosen],
        title=f"{run.path.name}: retrieved images",
        text=f"{text} {evaluation.note}".strip(),
        table=evaluation.table(),
    )
    if run.model_path.is_dir():
        write_model_card(run.model_path, _model_card(run, settings, evaluation, dataset))
    run.finish({"scores": evaluation.scores, "protocol": evaluation.protocol, "note": evaluation.note})
    write_page(run)
    console = Console()
    evaluation.table().show()
    if evaluation.note:
        console.print(evaluation.note, markup=False, soft_wrap=True)
    paths = {"report": run.report_path, "images": run.path / CONTACT_SHEET, "model": run.model_path}
    for what, path in paths.items():
        if path.exists():
            console.print(f"{what}: {path}", markup=False, soft_wrap=True)


def _model_card(run: RunFolder, settings: Settings, evaluation: Evaluation, dataset: TripletDataset) -> ModelCard:
    return ModelCard(
        title=f"SPRC ({run.path.name})",
        summary="Composed image retrieval: an image and a sentence about what shall be different find another image.",
        load=LOADING,
        data=f"Trained on `{settings.data.train_split}` of `{settings.data.root}` and evaluated on "
        f"`{dataset.split.name}`, in the format of {settings.data.dataset}.",
        scores=evaluation.table(),
        config=run.read_config(),
        command="sprc train --config config.yaml",
        tags=("regionwise", "composed-image-retrieval", "region-level"),
    )


def write_page(run: RunFolder) -> Path:
    """Write `report.html` from what lies in the run folder; nothing is computed by the model again."""
    evaluation = read_evaluation(run)
    figures = {"share of targets among the first k": draw_recall(evaluation.records)}
    sections = [
        Section("Held-out recall", f"{_SCORES_TEXT} {evaluation.note}".strip(), evaluation.table()),
        Section("Ranks", f"The images themselves are in {CONTACT_SHEET}, beside this page.", figures=figures),
    ]
    return write_report(run, sections)


def write_records(run: RunFolder, evaluation: Evaluation) -> None:
    """Keep what was found for every query, one JSON object per line."""
    (run.path / RECORDS).write_text("".join(json.dumps(asdict(record)) + "\n" for record in evaluation.records))


def read_evaluation(run: RunFolder) -> Evaluation:
    """The evaluation that `finish_run` kept.

    Raises:
        FileNotFoundError: The run was not evaluated yet.
    """
    path = run.path / RECORDS
    # A run that ended between the two files was not evaluated to the end.
    if not (path.is_file() and run.is_finished):
        raise FileNotFoundError(f"{path}: not there; `sprc evaluate {run.path}` makes it")
    records = [_record(line) for line in path.read_text().splitlines()]
    results = run.read_results()
    scores = cast("dict[str, dict[str, float]]", results["scores"])
    return Evaluation(scores, str(results["protocol"]), records, str(results.get("note", "")))


def _record(line: str) -> RetrievedRecord:
    values = json.loads(line)
    return RetrievedRecord(**values | {key: tuple(values[key]) for key in TUPLES})


def choose_cases(records: Sequence[RetrievedRecord], count: int) -> list[RetrievedRecord]:
    """The queries whose targets came last, then some at equal steps; none twice."""
    worst = sorted(records, key=lambda record: -record.rank)[: count // 2]
    others = [record for record in records if record not in worst]
    wanted = min(count - len(worst), len(others))
    return worst + [others[position * len(others) // wanted] for position in range(wanted)]


def make_case(record: RetrievedRecord, dataset: TripletDataset, *, model: SPRCModel | None = None) -> RetrievalCase:
    """A query with the files, boxes and, with a model, matched regions that the contact sheet shows."""
    split = dataset.split
    triplet = next(triplet for triplet in split.triplets if triplet.pair_id == record.pair_id)
    reference_boxes, target_boxes = dataset.original_boxes(triplet)

    def images(names: Sequence[str], similarities: Sequence[float]) -> tuple[RetrievedImage, ...]:
        pairs = zip(names, similarities, strict=True)
        return tuple(RetrievedImage(name, split.image_path(name), similarity) for name, similarity in pairs)

    return RetrievalCase(
        pair_id=record.pair_id,
        reference=split.image_path(triplet.reference),
        caption=dataset.evaluation_caption(triplet),
        results=images(record.found, record.similarities),
        subset=images(record.subset, record.subset_similarities),
        target_name=triplet.target,
        target=None if triplet.target is None else split.image_path(triplet.target),
        target_rank=None if triplet.target is None else record.rank,
        reference_boxes=reference_boxes,
        target_boxes=target_boxes,
        region_match=None if model is None else best_region_match(model, dataset, triplet),
        category=triplet.category,
    )


def draw_recall(records: Sequence[RetrievedRecord]) -> Figure:
    """Share of targets among the first k images, over k."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    ranks = sorted(record.rank for record in records)
    axes.step(ranks, [100 * (place + 1) / len(ranks) for place in range(len(ranks))], where="post")
    axes.set(xscale="log", xlabel="k", ylabel="recall at k (%)", ylim=(0, 100))
    axes.grid(alpha=0.3)
    return figure


_SCORES_TEXT = """Every query is held out. `text only` and `image only` search with half of the query, `captions of
others` with a sentence that belongs to another query; what they find, the data gives away. `chance` is a random
order."""
