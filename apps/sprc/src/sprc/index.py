"""The gallery of a split, searched exactly: a flat matrix product per block, the maximum over vectors, the top k.

Every image has as many vectors as there are query tokens, and the similarity of a query and an image is the largest of
its products with them (BLIP-2's image-text score). The product is (block, D) by (D, images * Q), so that no copy of the
gallery is made per query. Scores are computed in fp32 whatever the features are stored in. Equal scores are ordered by
position in the gallery; scores of the last bit may differ between block sizes and devices, as matrix products do.

A saved index knows the weights and the transform that it was made with, and is refused with others.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sprc.losses import best_similarity
from sprc.ranking import ABSENT, best_first, check_finite, count_ranks, mask_of

BLOCK_BYTES = 256 * 2**20
MAX_QUERIES_PER_BLOCK = 256
STORED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class IndexKey:
    """What the features of an index depend on, beside the images.

    Attributes:
        weights: `weights_hash` of the model.
        transform: The key of the image transform.
        constants: What else decides the features, as `SPRCConfig.image_constants` writes it: the normalisation of
            pixels, the epsilons of the norms, the heads.
        gallery: The name of the gallery, e.g. `"CIRR val"` or `"FashionIQ dress val (split)"`.
    """

    weights: str
    transform: str
    constants: str
    gallery: str


class SearchResult(NamedTuple):
    """The best images of each query, the best first.

    Attributes:
        positions: Positions in the gallery; `ABSENT` (-1) where fewer than k images are left.
        scores: Their similarities in fp32; -inf where absent.
    """

    positions: Int64[Tensor, "queries k"]
    scores: Float[Tensor, "queries k"]


class GalleryIndex:
    """All images of a gallery with their features.

    Args:
        names: The images' names; their order decides between equal scores.
        features: L2-normalised vectors in fp32, fp16 or bf16, on any device.
        key: What the features were made with; needed to save the index.
        block_bytes: Largest size of one block of scores.

    Raises:
        ValueError: Names and features disagree, a name stands twice, or there is no image.
    """

    def __init__(
        self,
        names: Sequence[str],
        features: Float[Tensor, "images query_tokens dim"],
        *,
        key: IndexKey | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        if not names or len(names) != len(features):
            raise ValueError(f"got {len(names)} names and features of {len(features)} images, expected one each")
        if features.dtype not in STORED_DTYPES:
            raise ValueError(f"got features in {features.dtype}, expected one of {STORED_DTYPES}")
        self.names = list(names)
        self.features = features
        self.key = key
        self.block_bytes = block_bytes
        self._position_of = {name: position for position, name in enumerate(names)}
        if len(self._position_of) != len(names):
            twice = next(name for position, name in enumerate(names) if self._position_of[name] != position)
            raise ValueError(f"the image {twice!r} stands twice in the gallery, expected every name once")

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        """Whether the gallery holds an image."""
        return name in self._position_of

    def to(self, device: torch.device | str) -> "GalleryIndex":
        """The index on a device."""
        return GalleryIndex(self.names, self.features.to(device), key=self.key, block_bytes=self.block_bytes)

    def select(self, names: Sequence[str], *, gallery: str | None = None) -> "GalleryIndex":
        """The index of a part of the gallery, in the order of `names`.

        Args:
            names: Images of this gallery.
            gallery: The part's name in its key.
        """
        key = self.key if self.key is None or gallery is None else IndexKey(**{**asdict(self.key), "gallery": gallery})
        rows = self.features[self.positions(names)]
        return GalleryIndex(names, rows, key=key, block_bytes=self.block_bytes)

    def positions(self, names: Sequence[str]) -> Int64[Tensor, " names"]:
        """The positions of images, on the features' device.

        Raises:
            ValueError: An image is not in the gallery.
        """
        return torch.tensor(self._look_up(names), dtype=torch.int64, device=self.features.device)

    def position_table(self, rows: Sequence[Sequence[str]]) -> Int64[Tensor, "queries longest"]:
        """The positions of several images per query; rows are filled up with `ABSENT`.

        Raises:
            ValueError: An image is not in the gallery.
        """
        longest = max((len(row) for row in rows), default=0)
        table = [self._look_up(row) + [ABSENT] * (longest - len(row)) for row in rows]
        return torch.tensor(table, dtype=torch.int64, device=self.features.device).view(len(rows), longest)

    def search(
        self,
        queries: Float[Tensor, "queries dim"],
        k: int,
        *,
        exclude: Int64[Tensor, "rows excluded"] | None = None,
        candidates: Int64[Tensor, "rows candidates"] | None = None,
    ) -> SearchResult:
        """The k most similar images of each query.

        Args:
            queries: L2-normalised vectors.
            k: How many images; what is not there is `ABSENT`.
            exclude: Positions that are left out, one row per query, filled up with `ABSENT`: CIRR's references.
            candidates: Only these positions, likewise: CIRR's subsets. All images by default.

        Raises:
            ValueError: Widths differ, a position is not in the gallery, or a similarity is not finite.
        """
        exclude = self._checked(exclude, "exclude", len(queries))
        among = None if candidates is None else self._checked(candidates, "candidates", len(queries))
        found: list[tuple[Tensor, Tensor]] = []
        for rows, scores in self._score_blocks(queries):
            allowed = ~mask_of(exclude[rows], len(self))
            if among is not None:
                allowed &= mask_of(among[rows], len(self))
            found.append(best_first(scores, k, allowed=allowed))
        if not found:
            nothing = queries.new_empty(0, k, dtype=torch.float32)
            return SearchResult(nothing.long(), nothing)
        positions, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        return SearchResult(positions, scores)

    def ranks(
        self,
        queries: Float[Tensor, "queries dim"],
        targets: Int64[Tensor, " queries"],
        exclude: Int64[Tensor, "rows excluded"] | None = None,
        *,
        candidates: Int64[Tensor, "rows candidates"] | None = None,
    ) -> Int64[Tensor, " queries"]:
        """The rank of each query's target, from 1.

        Args:
            queries: L2-normalised vectors.
            targets: The positions of the targets.
            exclude: As in `search`.
            candidates: As in `search`; with it only the candidates are scored.

        Raises:
            ValueError: As `search`, or a target is excluded, is no candidate, or a candidate stands twice in a row.
        """
        targets = self._checked(targets[:, None], "targets", len(queries), lowest=0)[:, 0]
        exclude = self._checked(exclude, "exclude", len(queries))
        _check_rows(~(exclude == targets[:, None]).any(dim=1), "the target is excluded")
        if candidates is not None:
            return self._ranks_among(queries, targets, exclude, self._checked(candidates, "candidates", len(queries)))
        parts = [
            count_ranks(scores, targets[rows], allowed=~mask_of(exclude[rows], len(self)))
            for rows, scores in self._score_blocks(queries)
        ]
        return torch.cat(parts) if parts else targets

    def save(self, path: Path | str) -> None:
        """Write names, key and features into one safetensors file, which appears whole.

        Raises:
            ValueError: The index has no key.
        """
        if self.key is None:
            raise ValueError(f"{str(path)!r}: an index without a key cannot be saved: nobody could tell its weights")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = {"key": json.dumps(asdict(self.key)), "names": json.dumps(self.names)}
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            staged = Path(folder) / path.name
            save_file({"features": self.features.contiguous().cpu()}, staged, metadata=header)
            staged.replace(path)

    @classmethod
    def load(cls, path: Path | str, *, key: IndexKey, block_bytes: int = BLOCK_BYTES) -> "GalleryIndex":
        """Read an index that was saved with the same key.

        Args:
            path: The file.
            key: What its features must have been made with.
            block_bytes: As in the constructor.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is no index, or was made with other weights, another transform or gallery.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no index at {str(path)!r}")
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                found = IndexKey(**json.loads(header["key"]))
                names = json.loads(header["names"])
                features = file.get_tensor("features")
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{str(path)!r}: not an index of a gallery ({error})") from error
        other = [
            f"{name} {value!r}, expected {asdict(key)[name]!r}"
            for name, value in asdict(found).items()
            if value != asdict(key)[name]
        ]
        if other:
            raise ValueError(f"{str(path)!r}: the index was made with {'; '.join(other)}")
        return cls(names, features, key=found, block_bytes=block_bytes)

    def _look_up(self, names: Sequence[str]) -> list[int]:
        unknown = [name for name in names if name not in self._position_of]
        if unknown:
            raise ValueError(
                f"{len(unknown)} images are not in the gallery of {len(self)}, the first is {unknown[0]!r}; the "
                f"gallery begins with {self.names[0]!r}"
            )
        return [self._position_of[name] for name in names]

    def _score_blocks(
        self, queries: Float[Tensor, "queries dim"]
    ) -> Iterator[tuple[slice, Float[Tensor, "block images"]]]:
        """Rows of queries with their similarities to every image."""
        num_images, num_vectors, dim = self.features.shape
        size = max(1, min(MAX_QUERIES_PER_BLOCK, self.block_bytes // (4 * num_images)))
        # A block of images costs its products and its vectors in fp32.
        per_image = 4 * num_vectors * (size + dim)
        images_at_once = max(1, self.block_bytes // per_image)
        for start in range(0, len(queries), size):
            rows = slice(start, start + size)
            block = self._block(queries, rows)
            scores = block.new_empty(len(block), num_images)
            for first in range(0, num_images, images_at_once):
                columns = slice(first, first + images_at_once)
                scores[:, columns] = best_similarity(block, self.features[columns].float())
            check_finite(scores, first_query=start)
            yield rows, scores

    def _block(self, queries: Tensor, rows: slice) -> Float[Tensor, "block dim"]:
        if queries.shape[1] != self.features.shape[2]:
            raise ValueError(f"got queries {queries.shape[1]} wide, expected {self.features.shape[2]} as the gallery's")
        return queries[rows].to(self.features.device, torch.float32)

    def _ranks_among(
        self, queries: Tensor, targets: Tensor, exclude: Tensor, candidates: Tensor
    ) -> Int64[Tensor, " queries"]:
        allowed = (candidates != ABSENT) & ~(candidates[:, :, None] == exclude[:, None, :]).any(dim=2)
        found = (candidates == targets[:, None]) & allowed
        _check_rows(found.any(dim=1), "the target is no candidate")
        ordered = candidates.sort(dim=1).values
        twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != ABSENT)
        _check_rows(~twice.any(dim=1), "a candidate stands twice")
        num_vectors, dim = self.features.shape[1:]
        size = max(1, self.block_bytes // max(1, 4 * candidates.shape[1] * num_vectors * dim))
        ranks = []
        for start in range(0, len(queries), size):
            rows = slice(start, start + size)
            vectors = self.features[candidates[rows].clamp(min=0)].float()
            block = self._block(queries, rows)
            # What is absent scores as the first image does, and takes no part.
            scores = torch.einsum("md,mcqd->mcq", block, vectors).amax(dim=2)
            columns = found[rows].int().argmax(dim=1)
            ranks.append(count_ranks(scores, columns, positions=candidates[rows], allowed=allowed[rows]))
        return torch.cat(ranks) if ranks else targets

    def _checked(self, table: Tensor | None, name: str, num_queries: int, *, lowest: int = ABSENT) -> Tensor:
        """A table of positions on the features' device; without columns where there is none."""
        if table is None:
            return torch.empty(num_queries, 0, dtype=torch.int64, device=self.features.device)
        if len(table) != num_queries:
            raise ValueError(f"{name}: got {len(table)} rows, expected {num_queries}, one per query")
        bad = (table < lowest) | (table >= len(self))
        if bad.any():
            query = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"{name}: got the position {table[bad][0].item()} for query {query}, expected {lowest} to "
                f"{len(self) - 1}: the gallery has {len(self)} images"
            )
        return table.to(self.features.device)


def _check_rows(good: Tensor, complaint: str) -> None:
    if not good.all():
        raise ValueError(f"query {int((~good).nonzero()[0, 0])}: {complaint}; {int((~good).sum())} such queries")
