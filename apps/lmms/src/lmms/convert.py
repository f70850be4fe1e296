"""`lmms convert`: the plain video language model out of a trained one, for programs that know only the library."""

import logging
from pathlib import Path

from region_training.loading import model_folder
from video_autoregressive.config import VideoTokenConfig

from lmms.loading import open_processor
from lmms.model import VideoLMM
from lmms.verbs import ConvertSettings

logger = logging.getLogger(__name__)


def convert(settings: ConvertSettings) -> None:
    """Write a model and its processor as the Hugging Face library opens them, without the reconstruction module.

    Raises:
        ValueError: There is no model, or the output folder holds one.
    """
    source, output = model_folder(settings.model), Path(settings.output)
    if (output / "config.json").exists():
        raise ValueError(f"output: {str(output)!r} holds a model; name a new folder")
    model = VideoLMM.from_pretrained(source)
    model.save_plain(output)
    open_processor(source).save_pretrained(output)
    if model.config.lmm.model_type == "llava_onevision" and model.config.tokens != VideoTokenConfig():
        logger.warning(
            "the model was trained with the token layout %s; the library knows only %s for videos, so its answers "
            "about videos will differ",
            model.config.tokens,
            VideoTokenConfig(),
        )
    logger.info("%s: a %s for AutoModelForImageTextToText", output, model.config.lmm.model_type)
