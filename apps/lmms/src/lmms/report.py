"""What a run shows in the end: results, answers, pictures, report page, model card."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

from region_training.curves import save_figure
from region_training.model_card import ModelCard, write_model_card
from region_training.report import Section, write_report
from region_training.run_folder import RunFolder, write_atomically
from rich.console import Console
from torch import nn
from video_autoregressive.layout import FrameLayout

from lmms.answers import AnsweredRecord
from lmms.config import Settings
from lmms.controls import reading_with
from lmms.data import VideoDataset
from lmms.evaluate import MODEL, Evaluation
from lmms.figures import draw_frame_errors, draw_losses, draw_mask
from lmms.frame_errors import FrameErrors, mean_errors
from lmms.model import VideoLMM
from lmms.pictures import PICTURE_DPI, draw_frames
from lmms.preflight_table import PREFLIGHT, read_table
from lmms.scoring import NO_KIND

ANSWERS = "answers.jsonl"
MASK = "mask.png"
NUM_CLIPS = 32
"""Held-out clips that the errors by frame are averaged over."""
LOADING = """from lmms.loading import load_model

model, family = load_model("path/to/model")

# The folder itself is a video language model of the Hugging Face library:
from transformers import AutoModelForImageTextToText

plain = AutoModelForImageTextToText.from_pretrained("path/to/model")"""

logger = logging.getLogger(__name__)


def finish_run(
    run: RunFolder, settings: Settings, evaluation: Evaluation, held_out: VideoDataset, model: VideoLMM
) -> None:
    """Write everything that a finished run holds beside its weights, and print the scores."""
    write_answers(run, evaluation)
    for old in run.samples():
        old.unlink()
    draw_cases(run, settings.evaluation.num_pictures, evaluation, held_out)
    if settings.model.enable_autoregressive:
        describe_prediction(run, settings, held_out, model)
    table = evaluation.table()
    if run.model_path.is_dir():
        _write_card(run, settings, evaluation)
    run.finish({"scores": evaluation.scores})
    write_page(run)
    console = Console(soft_wrap=True)
    table.show()
    console.print(f"report: {run.report_path}", markup=False, highlight=False)
    if run.model_path.is_dir():
        console.print(f"model:  {run.model_path}", markup=False, highlight=False)


def write_page(run: RunFolder) -> Path:
    """Write `report.html` from what lies in the run folder; nothing is computed by the model again.

    Raises:
        FileNotFoundError: The run was not evaluated yet.
    """
    evaluation = read_evaluation(run)
    sections = [Section("Held-out scores", _SCORES_TEXT, evaluation.table())]
    losses = draw_losses(run.read_metrics())
    if losses is not None:
        sections.append(Section("Words and frames", _LOSSES_TEXT, figures={"losses": losses}))
    errors = FrameErrors.read(run.path)
    if errors is not None and errors.positions:
        text = f"Over up to {max(errors.counts)} held-out clips. {_ERRORS_TEXT}"
        sections.append(Section("Errors by frame", text, figures={"errors by frame": draw_frame_errors(errors)}))
    if (run.samples_path / MASK).is_file():
        sections.append(Section("Mask of the predictor", _MASK_TEXT, images={"mask": run.samples_path / MASK}))
    for name, (title, text) in _CASES.items():
        images = {_caption(path): path for path in run.samples() if path.stem.startswith(f"{name}-")}
        if images:
            sections.append(Section(title, text, images=images))
    if (run.path / PREFLIGHT).is_file():
        sections.append(Section("Memory estimate", _MEMORY_TEXT, read_table(run.path / PREFLIGHT), collapsed=True))
    return write_report(run, sections)


def write_answers(run: RunFolder, evaluation: Evaluation) -> None:
    """Keep every answer, one JSON object per line."""
    lines = (json.dumps(asdict(record), ensure_ascii=False) for record in evaluation.records)
    write_atomically(run.path / ANSWERS, "".join(f"{line}\n" for line in lines))


def read_evaluation(run: RunFolder) -> Evaluation:
    """The evaluation that `finish_run` kept.

    Raises:
        FileNotFoundError: The run was not evaluated yet.
    """
    path = run.path / ANSWERS
    if not path.is_file() or not run.is_finished:
        raise FileNotFoundError(f"{path}: not there; `lmms evaluate {run.path}` makes it")
    records = [AnsweredRecord(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return Evaluation(cast("dict[str, dict[str, float]]", run.read_results()["scores"]), records)


def draw_cases(run: RunFolder, count: int, evaluation: Evaluation, dataset: VideoDataset) -> None:
    """Draw some right and some wrong answers of every kind into the run's samples; only those with something to see.

    Args:
        run: The run.
        count: Cases of each.
        evaluation: The answers.
        dataset: What was asked about.
    """
    kinds = dict.fromkeys(record.kind for record in evaluation.records)
    for kind in kinds:
        records = [record for record in evaluation.records if record.kind == kind]
        for name, wanted in (("wrong", False), ("right", True)):
            chosen = _spread([record for record in records if record.is_right(MODEL) == wanted], count)
            for place, record in enumerate(chosen):
                _draw_case(record, dataset, run.samples_path / f"{name}-{_file_name(kind)}-{place}.png")


def describe_prediction(run: RunFolder, settings: Settings, held_out: VideoDataset, model: VideoLMM) -> None:
    """Draw the predictor's mask, and measure its errors by frame where the model is whole and has its teacher."""
    with_videos = [index for index in range(len(held_out)) if held_out.record(index).videos]
    if not with_videos:
        return
    prompts = reading_with(held_out, held_out.reader, with_answers=False)
    chosen = _spread(with_videos, NUM_CLIPS)
    layout = prompts[chosen[0]].layout
    patches = max(height * width for height, width in (span.grid for span in layout.spans))
    draw_mask(settings.model.autoregressive_config, _num_frames(layout), patches, run.samples_path / MASK)
    if not model.computes_autoregressive_loss:
        logger.info("no errors by frame: the model's teacher is not known")
    elif any(_is_partitioned(parameter) for parameter in model.parameters()):
        logger.info(
            "no errors by frame: ZeRO-3 holds the weights in pieces; `lmms evaluate %s` measures them", run.path
        )
    else:
        model.eval()
        mean_errors(model, held_out.family, (prompts[index] for index in chosen)).write(run.path)


def _draw_case(record: AnsweredRecord, dataset: VideoDataset, path: Path) -> None:
    asked = dataset.record(record.index).prompt()
    media = dataset.reader.read(asked, dataset.where(record.index))
    frames, captions = [], []
    for number, clip in enumerate(media.clips):
        name = f"video {number + 1}, " if len(media.clips) > 1 else ""
        frames += list(clip.frames.permute(0, 2, 3, 1).numpy())
        captions += [f"{name}{time:.2f} s" for time in clip.times.tolist()]
    frames += list(media.images)
    captions += [f"picture {number + 1}" for number in range(len(media.images))]
    if not frames:
        return
    others = [f"{who}: {said}" for who, said in record.said.items() if who != MODEL]
    lines = [f"question: {record.question}", f"true: {record.truth}", f"model: {record.said[MODEL]}", *others]
    save_figure(draw_frames(frames, captions, title="\n".join(lines)), path, dpi=PICTURE_DPI)


def _write_card(run: RunFolder, settings: Settings, evaluation: Evaluation) -> None:
    data = settings.data
    card = ModelCard(
        title=f"Video language model ({run.path.name})",
        summary="Answers questions about videos; trained to predict the frames that come beside the words."
        if settings.model.enable_autoregressive
        else "Answers questions about videos.",
        load=LOADING,
        data=f"Trained on {_listed(data.train_files)} and evaluated on {_listed(data.eval_files)} of `{data.root}`.",
        scores=evaluation.table(),
        config=run.read_config(),
        command="lmms train --config config.yaml",
        tags=("regionwise", "video-language-model", "next-frame-prediction"),
        base_models=_base_models(settings),
        pipeline_tag="video-text-to-text",
    )
    write_model_card(run.model_path, card)


def _base_models(settings: Settings) -> tuple[str, ...]:
    """The pretrained model, where it has a name and is no folder of this machine."""
    source = settings.model.pretrained
    return () if source is None or Path(source).exists() else (source,)


def _listed(files: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in files)


def _spread(items: Sequence, count: int) -> list:
    """At most `count` items, at equal steps."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def _file_name(kind: str | None) -> str:
    """The kind, which is data, as a part of a file name."""
    return "".join(letter if letter.isalnum() else "_" for letter in (kind or NO_KIND))[:40]


def _caption(path: Path) -> str:
    return path.stem.split("-", 1)[1].replace("-", " ")


def _num_frames(layout: FrameLayout) -> int:
    return sum(span.video == layout.spans[0].video for span in layout.spans)


def _is_partitioned(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id")


_SCORES_TEXT = """Every record is held out; answers are compared word for word. `shuffled frames` is the model with the
frames in another order, `another video` with another record's video of the same kind of question: what is left of the
score there does not come from the order of time, or not from the video. `question only` answers with the most frequent
training answer to the same words.

`ar_skill` is 1 - error / error of copying the frame before: 0 is as good as copying, 1 is perfect. That of shuffled
frames is taken against copying the same frames in their right order: below 0, the order was needed."""
_LOSSES_TEXT = """`main_loss` and `autoregressive_loss` are weighted and add up to the total loss.
`autoregressive_loss_raw` is the error before its weight, `ar_copy_loss` what copying the frame before costs; only what
lies below it was predicted. Lines are running means."""
_ERRORS_TEXT = """A frame is predicted from the hidden states at the frames before it; copying says that it looks like
the newest of them."""
_MASK_TEXT = """Black where a patch's prediction may look; red lines lie between frames."""
_MEMORY_TEXT = """Gigabytes per rank as they were estimated before training, for each ZeRO stage."""
_CASES: Mapping[str, tuple[str, str]] = {
    "wrong": ("Wrong answers", "Taken at equal steps from the wrong answers to every kind of question."),
    "right": ("Right answers", "Taken at equal steps from the right answers to every kind of question."),
}
