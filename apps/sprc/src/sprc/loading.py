"""A trained model with its tokenizer, from a run folder or a model folder."""

from pathlib import Path
from typing import Literal, cast

from region_training.loading import model_folder
from region_training.ranks import choose_device
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sprc.model import SPRCModel


def load_model(
    folder: Path | str, device: Literal["auto", "cpu", "cuda"] = "auto"
) -> tuple[SPRCModel, PreTrainedTokenizerBase]:
    """Open a model for inference.

    Raises:
        ValueError: The folder holds no model.
    """
    path = model_folder(folder)
    model = SPRCModel.from_pretrained(path).eval().to(choose_device(device))
    return model, open_tokenizer(path)


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved in a folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Annotated as possibly None, which it never is.
    return cast("PreTrainedTokenizerBase", tokenizer)
