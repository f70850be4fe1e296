"""`psalm convert`: published weights into folders that this project opens, once, so that training unpickles nothing.

A detectron2 Mask2Former becomes a folder for `model.mask2former`, a published PSALM a PSALM folder, and a Phi with
fused attention, whose queries, keys and values newer transformers cannot find, a folder for `model.language_model`.
"""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from transformers import AutoTokenizer, PhiConfig, PreTrainedTokenizerBase

from psalm.processing import SYSTEM_TEXT, PSALMProcessor
from psalm.published import PICKLES, PUBLISHED_TYPE, open_fused_phi, open_mask2former, open_published_psalm
from psalm.published_sizes import size_name, swin_of
from psalm.tokenizer import SEG_TOKEN, load_tokenizer
from psalm.verbs import ConvertSettings

logger = logging.getLogger(__name__)


def convert(settings: ConvertSettings) -> None:
    """Read published weights and write them as a folder; what became of every tensor is logged.

    Raises:
        ValueError: The source is of no known kind, or a tensor is missing, unknown, refused or of another shape.
    """
    source, output = Path(settings.source), Path(settings.output)
    if source.is_file() and source.suffix in PICKLES:
        _convert_mask2former(settings, output)
        return
    if not (source / "config.json").is_file():
        raise ValueError(f"{settings.source!r}: expected a .pkl, or a folder with a config.json and weights")
    kind = json.loads((source / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind == PUBLISHED_TYPE:
        _convert_psalm(settings, output)
    elif kind == "phi":
        open_fused_phi(source).save_pretrained(output)
        _tokenizer(source).save_pretrained(output)
    else:
        raise ValueError(
            f"{settings.source!r}: expected a published PSALM (model_type {PUBLISHED_TYPE!r}) or a Phi, got {kind!r}"
        )


def _convert_mask2former(settings: ConvertSettings, output: Path) -> None:
    model = open_mask2former(settings.source)
    swin = swin_of(model.config)
    size = size_name(swin)
    if settings.swin_type is not None and size != settings.swin_type:
        raise ValueError(
            f"{settings.source!r}: expected a Swin of type {settings.swin_type!r} (swin_type), got one with embed_dim "
            f"{swin.embed_dim}, depths {swin.depths} and num_heads {swin.num_heads}, which is {size or 'no known size'}"
        )
    model.save_pretrained(output)


def _convert_psalm(settings: ConvertSettings, output: Path) -> None:
    source = Path(settings.source)
    published = _tokenizer(source)
    if SEG_TOKEN not in published.get_vocab():
        raise ValueError(
            f"{settings.source!r}: its tokenizer does not know {SEG_TOKEN}, which PSALM was trained with; put the "
            "tokenizer's files of the published model beside its weights"
        )
    with TemporaryDirectory() as folder:
        published.save_pretrained(folder)
        tokenizer = load_tokenizer(folder)
    model = open_published_psalm(source, tokenizer, image_size=settings.image_size)
    processor = PSALMProcessor.for_model(
        model.config,
        tokenizer,
        max_length=model.config.language.max_position_embeddings,
        system_text=settings.system_text or SYSTEM_TEXT,
    )
    model.save_pretrained(output)
    processor.save_pretrained(output)


def _tokenizer(source: Path) -> PreTrainedTokenizerBase:
    # The configuration is given, since the one in the folder is of a kind that transformers does not know. The function
    # is annotated as possibly returning None, which it never does.
    return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(source, config=PhiConfig()))
