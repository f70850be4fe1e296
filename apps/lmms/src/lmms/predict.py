"""`lmms predict`: one video and a question -> the answer, and a picture of the frames that the model saw."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from region_training.curves import save_figure
from region_training.run_folder import RunFolder
from rich.console import Console
from video_autoregressive.loader import VideoClip

from lmms.answers import generate_answers
from lmms.config import DataSettings, Settings
from lmms.data import VideoDataset
from lmms.families import Family
from lmms.frame_errors import errors_of
from lmms.loading import load_model
from lmms.model import VideoLMM
from lmms.pictures import PICTURE_DPI, draw_frames
from lmms.rows import Rows
from lmms.verbs import PredictSettings

ANY_LENGTH = 1_000_000_000
"""A question is not training data: no length of its tokens is refused."""


@dataclass(frozen=True)
class Answer:
    """What the model says about a video.

    Attributes:
        text: The generated answer.
        clip: The frames that it saw.
        errors: Per frame of the clip the error of its prediction and that of copying the frame before, None where
            there is none; None without a reconstruction module, or where its teacher's weights are not known.
    """

    text: str
    clip: VideoClip
    errors: tuple[list[float | None], list[float | None]] | None


def predict(settings: PredictSettings) -> None:
    """Open a model, answer, print, and write the picture.

    Raises:
        ValueError: There is no such model or video, or the video cannot be read.
    """
    video = Path(settings.video)
    if not video.exists():
        raise ValueError(f"{settings.video!r}: no such video file or folder of frames")
    model, family = load_model(settings.model, settings.device)
    data = replace(data_settings(Path(settings.model)), backend=settings.backend)
    if settings.max_frames is not None:
        data = replace(data, max_frames=settings.max_frames, min_frames=min(data.min_frames, settings.max_frames))
    answer = answer_question(model, family, video, settings.question, data=data, max_new_tokens=settings.max_new_tokens)
    lines = [f"question: {settings.question}", f"answer: {answer.text}"]
    if answer.errors is not None:
        lines.append(_summary(*answer.errors))
    clip = answer.clip
    figure = draw_frames(
        list(clip.frames.permute(0, 2, 3, 1).numpy()),
        [f"{time:.2f} s" for time in clip.times.tolist()],
        title="\n".join(lines),
        errors=answer.errors,
    )
    save_figure(figure, Path(settings.output), dpi=PICTURE_DPI)
    console = Console(soft_wrap=True)
    for line in (*lines[1:], f"picture: {settings.output} ({len(clip.times)} of {clip.info.num_frames} frames)"):
        console.print(line, markup=False, highlight=False)


def answer_question(
    model: VideoLMM,
    family: Family,
    video: Path,
    question: str,
    *,
    data: DataSettings,
    max_new_tokens: int = 64,
) -> Answer:
    """Answer one question about one video.

    Args:
        model: In evaluation mode, on its device.
        family: Its family, with its processor.
        video: File, or folder of frames.
        question: What to ask; `<video>` in it says where the video stands, else it comes first.
        data: How frames are drawn; where files lie is of no consequence.
        max_new_tokens: Longest answer.

    Raises:
        ValueError: The video cannot be read, or has too few frames.
    """
    path = video.resolve()
    words = question if "<video>" in question else f"<video>\n{question}"
    row = {"id": path.name, "conversations": [{"from": "human", "value": words}], "video": path.name}
    dataset = VideoDataset(
        Rows([("the question", row)]),
        family,
        replace(data, root=str(path.parent), max_length=ANY_LENGTH),
        autoregressive=model.config.autoregressive,
        with_answers=False,
    )
    record, where = dataset.record(0), dataset.where(0)
    media = dataset.reader.read(record, where)
    sample = dataset.make_sample(record, media, where=where)
    (text,) = generate_answers(model, family, [sample], max_new_tokens=max_new_tokens)
    (clip,) = media.clips
    errors = None
    if model.computes_autoregressive_loss:
        predicted, copied = errors_of(model, family, sample)
        # A family may merge frames, whose error then stands below the first of them.
        sources, shown = [span.source_frame for span in sample.layout.spans], clip.indices.tolist()
        errors = _by_frame(sources, predicted, shown), _by_frame(sources, copied, shown)
    return Answer(text, clip, errors)


def data_settings(model: Path) -> DataSettings:
    """How the run of a model drew its frames; the defaults for a model folder that is in no run."""
    folder = model.parent if model.name == "model" else model
    if (folder / "config.yaml").is_file():
        return RunFolder(folder).load_settings(Settings).data
    return DataSettings()


def _by_frame(sources: Sequence[int], values: Sequence[float | None], shown: Sequence[int]) -> list[float | None]:
    """Values that belong to some frames, for the frames shown."""
    known = dict(zip(sources, values, strict=True))
    return [known.get(index) for index in shown]


def _summary(predicted: Sequence[float | None], copied: Sequence[float | None]) -> str:
    pairs = [
        (error, copy) for error, copy in zip(predicted, copied, strict=True) if error is not None and copy is not None
    ]
    if not pairs:
        return "no frame could be predicted: the video has too few"
    error, copy = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return f"error of predicting the frames: {error:.4g}; of copying the frame before: {copy:.4g}"
