"""Building a token cache: every rank encodes a share of the images, and a build that was stopped goes on.

A build goes in rounds of one batch per rank, so the rows that are done are always the first ones, whatever the number
of ranks. In every round the ranks tell each other how it goes: nobody waits longer than one batch takes, and what fails
on one rank ends all of them. The folder is built beside its own place and renamed when it is whole, so nobody sees half
a cache. All ranks must see the same folder.
"""

import fcntl
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int16, UInt8
from region_training.ranks import Ranks
from region_training.run_folder import write_atomically
from torch import Tensor
from tqdm import tqdm

from sprc.token_cache import DTYPES, HEADER, PROGRESS, TOKENS, CacheHeader, CacheKey, TokenCache, file_stamps

logger = logging.getLogger(__name__)

LOCK = "lock"
NUM_PROBES = 8
"""Images that are loaded twice before a build: a random flip of a half leaves all of them alone in 1 of 256 builds."""
SAVE_EVERY = 16
"""Rounds between two notes of how far a build is."""

Value = TypeVar("Value")
LoadImage = Callable[[str], UInt8[Tensor, "3 height width"]]
Encode = Callable[[UInt8[Tensor, "batch 3 height width"]], Float[Tensor, "batch tokens channels"]]


def build_token_cache(
    folder: Path | str,
    files: Mapping[str, Path],
    load_image: LoadImage,
    encode: Encode,
    key: CacheKey,
    *,
    batch_size: int = 32,
    num_threads: int = 2,
    show_progress: bool = True,
    ranks: Ranks | None = None,
) -> TokenCache:
    """Encode images into a cache, or open the one that is there.

    Args:
        folder: Where it will lie. Half-built, it lies beside, under the name with `.partial` added.
        files: The images, name -> file; the files' sizes and times are kept, and are compared whenever it is opened.
        load_image: Name -> the tower's input, all of one size. Called from threads.
        encode: Images -> tokens before any trained layer. Called without gradients.
        key: From `CacheKey.of`.
        batch_size: Images per call of `encode`.
        num_threads: Images that are loaded at once, on each rank.
        show_progress: Whether to show a progress bar.
        ranks: The processes that share the work. Each must call this, with the same images.

    Raises:
        ValueError: The folder holds another cache or something else, another process builds there, an image comes out
            different when it is loaded twice, sizes differ, tokens do not fit the dtype, the disk is too full, or
            another rank failed.
    """
    folder, together = Path(folder), _Together(ranks)
    if not files:
        raise ValueError("got 0 images, expected at least one")

    def look() -> bool:
        if folder.exists() and any(folder.iterdir()):
            return True
        _refuse_augmentation(list(files)[:NUM_PROBES], load_image)
        return False

    if not any(together.gather(together.do(look))):
        keys = together.gather(key)
        if any(other != key for other in keys):
            raise ValueError(f"the ranks have different vision towers or transforms, expected one: {keys}")
        with ExitStack() as stack:
            stamps = together.do(lambda: file_stamps(files))
            build = _Build(folder, stamps, key, together, stack)
            shares = build.shares(batch_size)
            loaded = _batches([names for names in shares if names], load_image, num_threads)
            stack.callback(loaded.close)
            hidden = not (show_progress and together.is_first)
            with tqdm(total=len(files), initial=build.done, desc="caching tokens", unit="image", disable=hidden) as bar:
                for names in shares:
                    before = build.done
                    build.add_round(names, batch_size, partial(_encode_next, loaded, encode) if names else None)
                    bar.update(build.done - before)
            build.finish()
    return together.do(lambda: TokenCache(folder, key, files))


class _Together:
    """The ranks of a build: what fails on one fails on all, so that none is left waiting."""

    def __init__(self, ranks: Ranks | None) -> None:
        self._ranks = ranks
        self.rank, self.world_size = (0, 1) if ranks is None else (ranks.rank, ranks.world_size)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Value) -> list[Value]:
        return [value] if self._ranks is None else self._ranks.gather(value)

    def do(self, work: Callable[[], Value]) -> Value:
        """This rank's result, once every rank has one.

        Raises:
            ValueError: Another rank failed; this rank's own error is raised as it is.
        """
        try:
            value = work()
        except Exception as error:
            self.gather(f"{type(error).__name__}: {error}")
            raise
        for rank, problem in enumerate(self.gather("")):
            if problem:
                raise ValueError(f"the token cache cannot be built: rank {rank} stopped with {problem}")
        return value

    def do_first(self, work: Callable[[], Value]) -> Value | None:
        """Let the first rank do something that the others wait for; its result, None on the others."""
        return self.do(lambda: work() if self.is_first else None)


class _Build:
    """A cache that is being written, in order; it knows how far it is."""

    def __init__(
        self, folder: Path, stamps: dict[str, str], key: CacheKey, together: _Together, stack: ExitStack
    ) -> None:
        self._folder = folder
        self._partial = folder.with_name(f"{folder.name}.partial")
        self._stamps = stamps
        self._names = list(stamps)
        self._key = key
        self._together = together
        self._stack = stack
        self._header: CacheHeader | None = None
        self._file: BinaryIO | None = None
        self._unsaved = 0
        together.do_first(lambda: self._lock(stack))
        self.done = together.gather(together.do_first(self._rows_of_before) or 0)[0]
        if self.done:
            self._header = together.do(lambda: CacheHeader.read(self._partial))
            self._file = together.do(self._open)

    def shares(self, batch_size: int) -> list[list[str]]:
        """This rank's images of every round that is left; a share of the last round may be empty."""
        rank, world_size = self._together.rank, self._together.world_size
        rounds = range(self.done, len(self._names), batch_size * world_size)
        starts = [start + rank * batch_size for start in rounds]
        return [self._names[start : start + batch_size] for start in starts]

    def add_round(
        self, names: Sequence[str], batch_size: int, encode: Callable[[], Float[Tensor, "batch tokens channels"]] | None
    ) -> None:
        """Encode and write the next images, some on each rank."""
        rows = self._together.do(lambda: None if encode is None else self._rows(names, encode()))
        if self._file is None:
            self._begin(rows)
        first = self.done + self._together.rank * batch_size
        self._together.do(lambda: None if rows is None else self._write(first, rows))
        self.done = min(self.done + batch_size * self._together.world_size, len(self._names))
        self._unsaved += 1
        if self._unsaved == SAVE_EVERY:
            self._save()

    def finish(self) -> None:
        """Give the cache its name; all images must have been added."""
        self._save()

        def rename() -> None:
            (self._partial / PROGRESS).unlink()
            (self._partial / LOCK).unlink()
            self._partial.replace(self._folder)

        self._together.do_first(rename)

    def _lock(self, stack: ExitStack) -> None:
        self._partial.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context((self._partial / LOCK).open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process builds a cache in {str(self._partial)!r}") from error

    def _rows_of_before(self) -> int:
        """How many rows an earlier build of the same cache has left."""
        progress = self._partial / PROGRESS
        if not progress.is_file():
            return 0
        header = CacheHeader.read(self._partial)
        if (header.key, list(header.stamps.items())) == (asdict(self._key), list(self._stamps.items())):
            return json.loads(progress.read_text(encoding="utf-8"))["done"]
        logger.warning("%s was begun with other images, weights or another transform: it is begun anew", self._partial)
        progress.unlink()
        return 0

    def _rows(
        self, names: Sequence[str], tokens: Float[Tensor, "batch tokens channels"]
    ) -> Int16[np.ndarray, "batch tokens channels"]:
        """Tokens as they are kept, checked."""
        shape = tokens.shape[1:] if self._header is None else self._header.shape
        expected = (len(names), *shape)
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
        return stored.cpu().contiguous().view(torch.int16).numpy()

    def _begin(self, rows: Int16[np.ndarray, "batch tokens channels"] | None) -> None:
        """Make the file, as large as it will be."""
        shapes = self._together.gather(None if rows is None else list(rows.shape[1:]))
        given = [shape for shape in shapes if shape is not None]
        if any(shape != given[0] for shape in given):
            raise ValueError(f"got tokens of the shapes {given} on the ranks, expected one shape")
        header = self._header = CacheHeader(asdict(self._key), self._stamps, given[0])

        def make() -> None:
            free = shutil.disk_usage(self._partial).free
            if header.num_bytes > free:
                raise ValueError(
                    f"{str(self._partial)!r}: the tokens of {len(self._names)} images need "
                    f"{header.num_bytes / 2**30:.1f} GiB, the disk has {free / 2**30:.1f} GiB free"
                )
            with (self._partial / TOKENS).open("wb") as file:
                file.truncate(header.num_bytes)
            write_atomically(self._partial / HEADER, json.dumps(asdict(header)))

        self._together.do_first(make)
        self._file = self._together.do(self._open)

    def _open(self) -> BinaryIO:
        return self._stack.enter_context((self._partial / TOKENS).open("r+b"))

    def _write(self, first: int, rows: Int16[np.ndarray, "batch tokens channels"]) -> None:
        # Not through a mapping: two machines that change one page of a shared file would undo each other's work.
        assert self._file is not None, "the file is opened in the first round"
        self._file.seek(first * rows[0].nbytes)
        self._file.write(rows.tobytes())

    def _save(self) -> None:
        # The tokens of all ranks first: what the note promises must be on the disk.
        self._together.do(self._flush)
        note = json.dumps({"done": self.done})
        self._together.do_first(lambda: write_atomically(self._partial / PROGRESS, note))
        self._unsaved = 0

    def _flush(self) -> None:
        assert self._file is not None, "the file is opened in the first round"
        self._file.flush()
        os.fsync(self._file.fileno())


@torch.no_grad()
def _encode_next(loaded: Iterator[Tensor], encode: Encode) -> Float[Tensor, "batch tokens channels"]:
    return encode(next(loaded))


def _batches(
    batches: Sequence[Sequence[str]], load_image: LoadImage, num_threads: int
) -> Generator[Tensor, None, None]:
    """The images of each batch of names; the next one is loaded while one is encoded."""
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[tuple[Sequence[str], list[Future[Tensor]]]] = deque()
        try:
            for names in (*batches, ()):
                if names:
                    waiting.append((names, [pool.submit(load_image, name) for name in names]))
                if waiting and (len(waiting) > 1 or not names):
                    ready, images = waiting.popleft()
                    yield _stack(ready, [image.result() for image in images])
        finally:
            pool.shutdown(cancel_futures=True)


def _stack(names: Sequence[str], images: Sequence[Tensor]) -> UInt8[Tensor, "batch 3 height width"]:
    for name, image in zip(names, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"image {name!r}: got the size {tuple(image.shape)}, expected {tuple(images[0].shape)} as {names[0]!r}"
            )
    return torch.stack(list(images))


def _refuse_augmentation(names: Sequence[str], load_image: LoadImage) -> None:
    for name in names:
        if not torch.equal(load_image(name), load_image(name)):
            raise ValueError(
                f"tokens cannot be cached: image {name!r} comes out different when it is loaded twice; take the random "
                "augmentation out, or train without a cache"
            )
