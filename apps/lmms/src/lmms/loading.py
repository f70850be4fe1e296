"""A trained model with its family, from a run folder or a model folder."""

from pathlib import Path
from typing import Literal, cast

from region_training.loading import model_folder
from region_training.ranks import choose_device
from transformers import AutoProcessor, ProcessorMixin
from video_autoregressive.teacher import Teacher

from lmms.families import Family, family_of
from lmms.model import VideoLMM


def load_model(
    folder: Path | str, device: Literal["auto", "cpu", "cuda"] = "auto", *, teacher: Teacher | None = None
) -> tuple[VideoLMM, Family]:
    """Open a model for inference.

    Args:
        folder: A run folder or a model folder.
        device: Where the model runs; `auto` is CUDA where there is one.
        teacher: Gives the targets of a model whose own tower was trained; see `VideoLMM.from_pretrained`.

    Raises:
        ValueError: The folder holds no model.
    """
    path = model_folder(folder)
    model = VideoLMM.from_pretrained(path, teacher=teacher).to(choose_device(device))
    return model, family_of(open_processor(path), model.config.tokens)


def open_processor(folder: Path | str) -> ProcessorMixin:
    """The processor that was saved in a folder.

    Raises:
        ValueError: The folder holds none.
    """
    if not (Path(folder) / "processor_config.json").is_file():
        raise ValueError(f"{str(folder)!r}: no processor_config.json there, which a model is saved with")
    return cast("ProcessorMixin", AutoProcessor.from_pretrained(folder))
