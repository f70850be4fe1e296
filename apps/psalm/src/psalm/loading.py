"""A trained model with its processor, from a run folder or a model folder."""

from pathlib import Path
from typing import Literal, cast

from region_training.loading import model_folder
from region_training.ranks import choose_device
from transformers import AutoProcessor

from psalm.model import PSALMModel
from psalm.processing import PSALMProcessor


def load_model(
    folder: Path | str, device: Literal["auto", "cpu", "cuda"] = "auto"
) -> tuple[PSALMModel, PSALMProcessor]:
    """Open a model for inference.

    Raises:
        ValueError: The folder holds no model.
    """
    path = model_folder(folder)
    model = PSALMModel.from_pretrained(path).eval().to(choose_device(device))
    return model, open_processor(path)


def open_processor(folder: Path | str) -> PSALMProcessor:
    """The processor that was saved in a folder.

    Raises:
        ValueError: The folder holds none.
    """
    if not (Path(folder) / "processor_config.json").is_file():
        raise ValueError(f"{str(folder)!r}: no processor_config.json there, which a model is saved with")
    return cast("PSALMProcessor", AutoProcessor.from_pretrained(folder))
