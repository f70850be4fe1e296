"""Images and questions as vectors: the gallery's features, and what the model composes of reference and caption."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int, Num
from region_training.ranks import Ranks
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from sprc.model import SPRCModel

ReadImage = Callable[[str], Tensor]
"""An image by its name, as the model reads it: uint8 (3, height, width), or cached tokens (tokens, channels)."""


class NamedImages(Dataset):
    """Images by name, for a loader's workers.

    Args:
        names: Names of the images.
        read: Reads one.
    """

    def __init__(self, names: Sequence[str], read: ReadImage) -> None:
        self.names = names
        self.read = read

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def __getitem__(self, index: int) -> Num[Tensor, "..."]:
        """Read one image."""
        return self.read(self.names[index])


def tokens_of(model: SPRCModel, images: Num[Tensor, "batch ..."]) -> Float[Tensor, "batch tokens channels"]:
    """The tower's tokens of images, or of what is tokens already, on the model's device."""
    images = images.to(model.device)
    return images.float() if images.ndim == 3 else model.image_tokens(images)


@torch.no_grad()
def encode_gallery(
    model: SPRCModel,
    names: Sequence[str],
    read: ReadImage,
    *,
    batch_size: int,
    ranks: Ranks | None = None,
) -> Float[Tensor, "images query_tokens dim"]:
    """Features of images, L2 normalised, in the order of `names`, on the CPU.

    Args:
        model: The model, in evaluation mode.
        names: Images of the gallery.
        read: Reads one.
        batch_size: Images per batch.
        ranks: Processes that share the work; each returns everything.
    """
    parts = []
    for images in _batches(names, read, batch_size, ranks, "encoding images"):
        parts.append(model.encode_targets(tokens_of(model, images)).float().cpu())
    return _join(parts, len(names), ranks)


@torch.no_grad()
def compose_queries(
    model: SPRCModel,
    tokenizer: PreTrainedTokenizerBase,
    references: Sequence[str],
    captions: Mapping[str, Sequence[str]],
    read: ReadImage,
    *,
    batch_size: int,
    ablations: bool = False,
    ranks: Ranks | None = None,
) -> dict[str, Float[Tensor, "queries dim"]]:
    """What the model looks for, L2 normalised, on the CPU.

    Args:
        model: The model, in evaluation mode.
        tokenizer: The model's tokenizer.
        references: Reference image of each query.
        captions: Who asks -> the caption of each query; every one is composed with the references.
        read: Reads an image.
        batch_size: Queries per batch.
        ablations: Also give `text only` and `image only`, for the first of `captions`.
        ranks: Processes that share the work; each returns everything.
    """
    words = {who: _tokenize(model, tokenizer, own) for who, own in captions.items()}
    first = next(iter(words))
    found: dict[str, list[Tensor]] = {}
    positions = _share(len(references), ranks)
    for start, images in zip(
        range(0, len(positions), batch_size),
        _batches(references, read, batch_size, ranks, "composing queries"),
        strict=True,
    ):
        rows = positions[start : start + batch_size]
        tokens = tokens_of(model, images)
        for who, (ids, mask) in words.items():
            composed = model.compose(tokens, ids[rows].to(model.device), mask[rows].to(model.device))
            found.setdefault(who, []).append(composed.float().cpu())
        if ablations:
            ids, mask = (part[rows].to(model.device) for part in words[first])
            found.setdefault("text only", []).append(model.text_only(ids, mask).float().cpu())
            found.setdefault("image only", []).append(model.image_only(tokens).float().cpu())
    return {who: _join(parts, len(references), ranks) for who, parts in found.items()}


def _tokenize(
    model: SPRCModel, tokenizer: PreTrainedTokenizerBase, captions: Sequence[str]
) -> tuple[Int[Tensor, "queries words"], Int[Tensor, "queries words"]]:
    """Captions as ids and mask, as long as in training."""
    length = model.config.max_caption_tokens
    text = tokenizer(list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return text["input_ids"], text["attention_mask"]


def _share(count: int, ranks: Ranks | None) -> list[int]:
    """Positions that this rank works on; the end is repeated, so that every rank runs the model equally often."""
    rank, world_size = (0, 1) if ranks is None else (ranks.rank, ranks.world_size)
    return [position % count for position in range(rank, -(-count // world_size) * world_size, world_size)]


def _batches(
    names: Sequence[str], read: ReadImage, batch_size: int, ranks: Ranks | None, title: str
) -> Iterator[Num[Tensor, "batch ..."]]:
    own = [names[position] for position in _share(len(names), ranks)]
    loader = DataLoader(NamedImages(own, read), batch_size=batch_size)
    return iter(tqdm(loader, desc=title, leave=False, disable=ranks is not None and not ranks.is_first))


def _join(parts: Sequence[Float[Tensor, "..."]], count: int, ranks: Ranks | None) -> Float[Tensor, "..."]:
    own = torch.cat(list(parts))
    if ranks is None or ranks.world_size == 1:
        return own
    gathered = ranks.gather(own)
    joined = own.new_empty((count, *own.shape[1:]))
    for rank, rows in enumerate(gathered):
        mine: Int[Tensor, " rows"] = torch.arange(rank, rank + len(rows) * ranks.world_size, ranks.world_size) % count
        joined[mine] = rows
    return joined
