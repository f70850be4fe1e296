"""What the frozen vision tower says of every image, kept on disk: it is computed once instead of twice per sample.

With a frozen tower and no augmentation an image's tokens never change, and the tower is 87 % of a training step. The
tokens are kept *before* the trainable LayerNorm, in 16 bits, in one memory-mapped file: 0.69 MiB per image of BLIP-2.

A cache answers only for the weights and the transform that it was made with (`CacheKey`); pictures that change on disk
under the same name are not noticed. It is built in a folder beside its own, which is renamed when it is whole: a build
that was stopped goes on where it was, and nobody sees half a cache.
"""

import fcntl
import hashlib
import json
import logging
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from region_training.run_folder import write_atomically
from torch import Tensor, nn
from tqdm import tqdm

logger = logging.getLogger(__name__)

HEADER, TOKENS, PROGRESS, LOCK = "cache.json", "tokens.bin", "progress.json", "lock"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
NUM_PROBES = 8
"""Images that are loaded twice before a build: a random flip of a half leaves all of them alone in 1 of 256 builds."""
SAVE_EVERY = 16
"""Batches between two notes of how far a build is."""


@dataclass(frozen=True)
class CacheKey:
    """What cached tokens depend on, beside the images. `CacheKey.of` makes it, from a tower that is really frozen.

    Attributes:
        weights: `weights_hash` of the vision tower.
        transform: The key of the image transform.
        dtype: How the tokens are kept; bfloat16 has fp32's range, float16 three more bits.
    """

    weights: str
    transform: str
    dtype: Literal["float16", "bfloat16"] = "float16"

    @classmethod
    def of(cls, tower: nn.Module, transform: str, *, dtype: Literal["float16", "bfloat16"] = "float16") -> "CacheKey":
        """The key of a frozen tower.

        Raises:
            ValueError: A parameter of the tower is trained, or it is in training mode.
        """
        trained = [name for name, parameter in tower.named_parameters() if parameter.requires_grad]
        if trained:
            raise ValueError(
                f"tokens cannot be cached: {len(trained)} parameters of the vision tower are trained, the first is "
                f"{trained[0]!r}; freeze the tower or train without a cache"
            )
        if tower.training:
            raise ValueError("tokens cannot be cached: the vision tower is in training mode, expected eval()")
        return cls(weights_hash(tower), transform, dtype)


class TokenCache(Mapping[str, Tensor]):
    """The cached tokens of images, by name.

    The file is mapped on first use in every process, so that a cache can be given to data workers.

    Args:
        folder: What `build_token_cache` made.
        key: What the tokens must have been made with.

    Raises:
        FileNotFoundError: There is no cache.
        ValueError: It was made with other weights or another transform (both are named), or is damaged.
    """

    def __init__(self, folder: Path | str, key: CacheKey) -> None:
        self.folder = Path(folder)
        self.key = key
        self._header = _Header.read(self.folder)
        self._header.expect_key(self.folder, key)
        self._row_of = {name: row for row, name in enumerate(self._header.names)}
        self._rows: np.memmap | None = None
        size = (self.folder / TOKENS).stat().st_size
        if size != self._header.num_bytes or (self.folder / PROGRESS).exists():
            raise ValueError(
                f"the token cache {str(folder)!r} is not whole: {TOKENS} has {size} bytes, expected "
                f"{self._header.num_bytes} and no {PROGRESS}; delete it and build it again"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens per image, and their width."""
        return (self._header.shape[0], self._header.shape[1])

    def __len__(self) -> int:
        """How many images are cached."""
        return len(self._row_of)

    def __iter__(self) -> Iterator[str]:
        """The images' names in the order of the file."""
        return iter(self._row_of)

    def __contains__(self, name: object) -> bool:
        """Whether an image is cached."""
        return name in self._row_of

    def __getitem__(self, name: str) -> Float[Tensor, "tokens channels"]:
        """The same as `tokens`."""
        return self.tokens(name)

    def __getstate__(self) -> dict[str, object]:
        """Without the mapped file, which pickle would read as a whole."""
        return {**self.__dict__, "_rows": None}

    def tokens(self, name: str) -> Float[Tensor, "tokens channels"]:
        """One image's tokens, in the cache's dtype; a copy that may be written to.

        Raises:
            KeyError: The image is not in the cache.
        """
        if name not in self._row_of:
            raise KeyError(f"the image {name!r} is not in the cache {str(self.folder)!r} of {len(self)} images")
        if self._rows is None:
            self._rows = self._header.map(self.folder, "r")
        row = np.array(self._rows[self._row_of[name]])
        return torch.from_numpy(row).view(DTYPES[self.key.dtype])


def build_token_cache(
    folder: Path | str,
    names: Sequence[str],
    load_image: Callable[[str], UInt8[Tensor, "3 height width"]],
    encode: Callable[[UInt8[Tensor, "batch 3 height width"]], Float[Tensor, "batch tokens channels"]],
    key: CacheKey,
    *,
    batch_size: int = 32,
    num_threads: int = 2,
    show_progress: bool = True,
) -> TokenCache:
    """Encode images into a cache, or open the one that is there.

    Only one process builds; the others of a run wait for it and then open the cache.

    Args:
        folder: Where it will lie. Half-built, it lies beside, under the name with `.partial` added.
        names: The images' names, each once.
        load_image: Name -> the tower's input, all of one size. Called from threads.
        encode: Images -> tokens before any trained layer. Called without gradients.
        key: From `CacheKey.of`.
        batch_size: Images per call of `encode`.
        num_threads: Images that are loaded at once.
        show_progress: Whether to show a progress bar.

    Raises:
        ValueError: The folder holds another cache or something else, another process builds there, an image comes out
            different when it is loaded twice, sizes differ, tokens do not fit the dtype, or the disk is too full.
    """
    folder = Path(folder)
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"got {len(names)} names, {len(set(names))} different ones, expected at least one, and each once"
        )
    if folder.exists() and any(folder.iterdir()):
        cache = TokenCache(folder, key)
        absent = [name for name in names if name not in cache]
        if absent:
            raise ValueError(
                f"the cache {str(folder)!r} lacks {len(absent)} of {len(names)} images, the first is {absent[0]!r}; "
                "give these images a cache of their own, or delete that one"
            )
        return cache
    _refuse_augmentation(names[:NUM_PROBES], load_image)
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process builds a cache in {str(partial)!r}") from error
        build = _Build(partial, names, key)
        with tqdm(
            total=len(names), initial=build.done, desc="caching tokens", unit="image", disable=not show_progress
        ) as bar:
            for chosen, images in _batches(names[build.done :], load_image, batch_size, num_threads):
                with torch.no_grad():
                    build.add(chosen, encode(images))
                bar.update(len(chosen))
        build.finish(folder)
    return TokenCache(folder, key)


def weights_hash(module: nn.Module) -> str:
    """A SHA-256 over the names, dtypes, shapes and bytes of everything in a module's state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class _Build:
    """A cache that is being written, in order; it knows how far it is."""

    def __init__(self, folder: Path, names: Sequence[str], key: CacheKey) -> None:
        self.done = 0
        self._folder = folder
        self._names = list(names)
        self._key = key
        self._rows: np.memmap | None = None
        self._unsaved = 0
        progress = folder / PROGRESS
        if not progress.is_file():
            return
        header = _Header.read(folder)
        if (header.key, header.names) == (asdict(key), self._names):
            self.done = json.loads(progress.read_text(encoding="utf-8"))["done"]
            self._rows = header.map(folder, "r+")
        else:
            logger.warning("%s was begun with other images, weights or another transform: it is begun anew", folder)
            progress.unlink()

    def add(self, names: Sequence[str], tokens: Float[Tensor, "batch tokens channels"]) -> None:
        """Write the tokens of the next images."""
        rows = self._begin(tokens) if self._rows is None else self._rows
        expected = (len(names), *rows.shape[1:])
        if tuple(tokens.shape) != expected:
            raise ValueError(f"images {names[0]!r} ...: got tokens of shape {tuple(tokens.shape)}, expected {expected}")
        stored = tokens.to(DTYPES[self._key.dtype])
        good = stored.isfinite().flatten(1).all(dim=1)
        if not good.all():
            name = names[int((~good).nonzero()[0])]
            raise ValueError(
                f"image {name!r}: its tokens are not finite in {self._key.dtype}, the largest of the batch is "
                f"{tokens.abs().max().item():g}; bfloat16 holds numbers as large as float32"
            )
        rows[self.done : self.done + len(names)] = stored.cpu().contiguous().view(torch.int16).numpy()
        self.done += len(names)
        self._unsaved += 1
        if self._unsaved == SAVE_EVERY:
            self._save(rows)

    def finish(self, folder: Path) -> None:
        """Give the cache its name; all images must have been added."""
        assert self._rows is not None, "images were added"
        self._save(self._rows)
        (self._folder / PROGRESS).unlink()
        (self._folder / LOCK).unlink()
        self._folder.replace(folder)

    def _begin(self, tokens: Tensor) -> np.memmap:
        header = _Header(asdict(self._key), self._names, list(tokens.shape[1:]))
        free = shutil.disk_usage(self._folder).free
        if header.num_bytes > free:
            raise ValueError(
                f"{str(self._folder)!r}: the tokens of {len(self._names)} images need {header.num_bytes / 2**30:.1f} "
                f"GiB, the disk has {free / 2**30:.1f} GiB free"
            )
        self._rows = header.map(self._folder, "w+")
        write_atomically(self._folder / HEADER, json.dumps(asdict(header)))
        return self._rows

    def _save(self, rows: np.memmap) -> None:
        # The tokens first: what the note promises must be on the disk.
        rows.flush()
        write_atomically(self._folder / PROGRESS, json.dumps({"done": self.done}))
        self._unsaved = 0


@dataclass(frozen=True)
class _Header:
    """What `cache.json` holds."""

    key: dict[str, str]
    names: list[str]
    shape: list[int]

    @classmethod
    def read(cls, folder: Path) -> "_Header":
        path = folder / HEADER
        if not path.is_file():
            raise FileNotFoundError(f"no token cache at {str(folder)!r}: there is no {HEADER}")
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{str(path)!r}: not the header of a token cache ({error})") from error

    @property
    def num_bytes(self) -> int:
        return 2 * len(self.names) * self.shape[0] * self.shape[1]

    def map(self, folder: Path, mode: Literal["r", "r+", "w+"]) -> np.memmap:
        return np.memmap(folder / TOKENS, np.int16, mode, shape=(len(self.names), *self.shape))

    def expect_key(self, folder: Path, key: CacheKey) -> None:
        other = [
            f"{name} {self.key.get(name)!r}, expected {value!r}"
            for name, value in asdict(key).items()
            if self.key.get(name) != value
        ]
        if other:
            raise ValueError(f"the token cache {str(folder)!r} was made with {'; '.join(other)}")


def _batches(
    names: Sequence[str], load_image: Callable[[str], Tensor], batch_size: int, num_threads: int
) -> Iterator[tuple[Sequence[str], Tensor]]:
    """Batches of images in order; the next one is loaded while one is encoded."""
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[tuple[Sequence[str], list[Future[Tensor]]]] = deque()
        try:
            for start in range(0, len(names) + batch_size, batch_size):
                chosen = names[start : start + batch_size]
                if chosen:
                    waiting.append((chosen, [pool.submit(load_image, name) for name in chosen]))
                if start and waiting:
                    ready, images = waiting.popleft()
                    yield ready, _stack(ready, [image.result() for image in images])
        finally:
            pool.shutdown(cancel_futures=True)


def _stack(names: Sequence[str], images: Sequence[Tensor]) -> UInt8[Tensor, "batch 3 height width"]:
    for name, image in zip(names, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"image {name!r}: got the size {tuple(image.shape)}, expected {tuple(images[0].shape)} as {names[0]!r}"
            )
    return torch.stack(list(images))


def _refuse_augmentation(names: Sequence[str], load_image: Callable[[str], Tensor]) -> None:
    for name in names:
        if not torch.equal(load_image(name), load_image(name)):
            raise ValueError(
                f"tokens cannot be cached: image {name!r} comes out different when it is loaded twice; take the random "
                "augmentation out, or train without a cache"
            )
