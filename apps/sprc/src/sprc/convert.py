"""`sprc convert`: published weights into an SPRC folder, and an SPRC folder into SPRC's own `.pt` layout.

Read are SPRC's `.pt` files, LAVIS' BLIP-2 `.pth` (which has no vision tower: put it and `eva_vit_g.pth` into one folder
and give the folder), and Hugging Face's BLIP-2 retrieval models. A weight file does not say how many attention heads
its model has. For the published sizes that is known; for others a file `NAME.config.json` beside `NAME.pt` says it,
which is written whenever we write a `.pt`.
"""

import logging
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from region_core.weights import load_weights
from torch import Tensor
from transformers import AutoConfig, Blip2Config

from sprc.building import blip2_config, blip2_weights, fill
from sprc.configuration import SPRCConfig
from sprc.key_map import BLIP2, LAVIS, SPRC, to_own_names, to_their_names
from sprc.model import SPRCModel
from sprc.tokenizer import load_tokenizer
from sprc.verbs import ConvertSettings

logger = logging.getLogger(__name__)

SPRC_KEY = "Blip2QformerCirAlignPrompt"
"""Name of the model's class in SPRC's own code, under which its checkpoints keep the weights."""
TORCH_ENDINGS = (".pt", ".pth")
_TOWER = "visual_encoder."
_EVA_WIDTH, _EVA_DEPTH, _EVA_HEADS = 1408, 39, 16
"""EVA-CLIP's ViT-g as BLIP-2 uses it: of its 40 blocks the last is cut off, since the one before it serves better."""
_BERT_HEAD_WIDTH = 64


def convert(settings: ConvertSettings) -> None:
    """Read weights in any known layout and write them in another.

    Raises:
        ValueError: The source is of no known kind, or a tensor is missing, left over or of another shape.
    """
    model, source, output = open_source(settings.source), Path(settings.source), Path(settings.output)
    if settings.to == "sprc":
        if output.suffix not in TORCH_ENDINGS:
            raise ValueError(f"output: got {settings.output!r}, expected a file that ends with .pt")
        output.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"epoch": 0, SPRC_KEY: to_their_names(SPRC, model.state_dict())}, output)
        model.config.to_json_file(_config_beside(output), use_diff=False)
        return
    model.save_pretrained(output)
    if any((source / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        load_tokenizer(source).save_pretrained(output)
    else:
        logger.warning(
            "%s holds no tokenizer; published weights were trained with bert-base-uncased: set model.tokenizer to it",
            source,
        )


def open_source(source: str) -> SPRCModel:
    """A model from an SPRC folder, a BLIP-2 folder or hub name, a `.pt` or `.pth`, or a folder of such files."""
    path = Path(source)
    if path.suffix in TORCH_ENDINGS:
        return _from_files([path])
    files = sorted(file for file in path.glob("*") if file.suffix in TORCH_ENDINGS)
    if files and not (path / "config.json").is_file():
        return _from_files(files)
    config = AutoConfig.from_pretrained(source)
    if isinstance(config, SPRCConfig):
        return SPRCModel.from_pretrained(path)
    if not isinstance(config, Blip2Config):
        raise ValueError(f"{source}: expected an SPRC or BLIP-2 model, got one of type {config.model_type!r}")
    model = SPRCModel(blip2_config(source))
    fill(model, to_own_names(BLIP2, blip2_weights(source), model.state_dict()))
    return model


def _from_files(files: list[Path]) -> SPRCModel:
    weights: dict[str, Tensor] = {}
    layout = LAVIS
    for file in files:
        named, found = _read(file)
        twice = sorted(set(weights) & set(found))
        if twice:
            raise ValueError(f"{file}: {len(twice)} weights are in another file too, the first is {twice[0]!r}")
        weights |= found
        layout = SPRC if named else layout
    where = ", ".join(map(str, files))
    if f"{_TOWER}cls_token" not in weights:
        raise ValueError(
            f"{where}: no vision tower; LAVIS keeps it in eva_vit_g.pth: put both into one folder and give the folder"
        )
    beside = [_config_beside(file) for file in files if _config_beside(file).is_file()]
    config = SPRCConfig.from_json_file(beside[0]) if beside else published_config(weights, where)
    model = SPRCModel(config)
    # Of one block more than the model has, that is BLIP-2's cut; of two more, another model.
    cut_block = f"{_TOWER}blocks.{config.vision.num_hidden_layers}.*"
    fill(model, to_own_names(layout, weights, model.state_dict(), ignored=[cut_block]))
    return model


def _read(file: Path) -> tuple[bool, dict[str, Tensor]]:
    """Whether a file is SPRC's own, and its weights; those of a bare vision tower get the tower's prefix."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file}: refused, or damaged; it holds more than plain tensors ({error})") from error
    if isinstance(content, Mapping) and SPRC_KEY in content:
        return True, dict(content[SPRC_KEY])
    weights = load_weights(file)
    if "cls_token" in weights:
        weights = {f"{_TOWER}{name}": tensor for name, tensor in weights.items()}
    return False, weights


def published_config(weights: Mapping[str, Tensor], where: str) -> SPRCConfig:
    """Sizes of a model in SPRC's layout, read off its weights.

    Raises:
        ValueError: The numbers of heads cannot be known: no published size.
    """
    width, patch = weights[f"{_TOWER}cls_token"].shape[-1], weights[f"{_TOWER}patch_embed.proj.weight"].shape[-1]
    words = weights["Qformer.bert.embeddings.word_embeddings.weight"]
    bert_width = words.shape[1]
    if width != _EVA_WIDTH or bert_width % _BERT_HEAD_WIDTH:
        raise ValueError(
            f"{where}: the number of attention heads is known for a tower of width {_EVA_WIDTH} and a Q-Former of a "
            f"multiple of {_BERT_HEAD_WIDTH}, got {width} and {bert_width}; put the model's config.json beside the "
            "weights, as NAME.config.json"
        )
    layers = _indices(weights, r"Qformer\.bert\.encoder\.layer\.(\d+)\.attention\.")
    crossed = _indices(weights, r"Qformer\.bert\.encoder\.layer\.(\d+)\.crossattention\.")
    return SPRCConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": weights[f"{_TOWER}blocks.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": min(len(_indices(weights, r"visual_encoder\.blocks\.(\d+)\.")), _EVA_DEPTH),
            "num_attention_heads": _EVA_HEADS,
            "patch_size": patch,
            "image_size": math.isqrt(weights[f"{_TOWER}pos_embed"].shape[1] - 1) * patch,
        },
        qformer_config={
            "vocab_size": words.shape[0],
            "hidden_size": bert_width,
            "num_hidden_layers": len(layers),
            "num_attention_heads": bert_width // _BERT_HEAD_WIDTH,
            "intermediate_size": weights["Qformer.bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
            "max_position_embeddings": weights["Qformer.bert.embeddings.position_embeddings.weight"].shape[0],
            "cross_attention_frequency": crossed[1] - crossed[0] if len(crossed) > 1 else len(layers),
        },
        num_query_tokens=weights["query_tokens"].shape[1],
        region_queries=min(SPRCConfig.region_queries, weights["query_tokens"].shape[1]),
        image_text_hidden_size=weights["vision_proj.weight"].shape[0],
    )


def _indices(weights: Mapping[str, Tensor], pattern: str) -> list[int]:
    """The numbers of the layers whose names match."""
    return sorted({int(match[1]) for name in weights if (match := re.match(pattern, name))})


def _config_beside(file: Path) -> Path:
    return file.with_suffix(".config.json")
