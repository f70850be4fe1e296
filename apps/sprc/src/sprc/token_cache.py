"""What the frozen vision tower says of every image, kept on disk: it is computed once instead of twice per sample.

With a frozen tower and no augmentation an image's tokens never change, and the tower is 87 % of a training step. The
tokens are kept *before* the trainable LayerNorm, in 16 bits, in one memory-mapped file: 0.69 MiB per image of BLIP-2.
`token_build.py` makes the file.

A cache answers only for the weights, the transform and the constants that it was made with (`CacheKey`), and only for
the image files that it was made of: their sizes and times of change are kept beside their names.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

HEADER, TOKENS, PROGRESS = "cache.json", "tokens.bin", "progress.json"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class CacheKey:
    """What cached tokens depend on, beside the images. `CacheKey.of` makes it, from a tower that is really frozen.

    Attributes:
        weights: `weights_hash` of the vision tower.
        transform: The key of the image transform.
        constants: What else decides the tokens, as `SPRCConfig.tower_constants` writes it: the normalisation of pixels,
            the epsilon of the tower's norms, its heads.
        dtype: How the tokens are kept; bfloat16 has fp32's range, float16 three more bits.
    """

    weights: str
    transform: str
    constants: str
    dtype: Literal["float16", "bfloat16"] = "float16"

    @classmethod
    def of(
        cls, tower: nn.Module, transform: str, constants: str, *, dtype: Literal["float16", "bfloat16"] = "float16"
    ) -> "CacheKey":
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
        return cls(weights_hash(tower), transform, constants, dtype)


class TokenCache(Mapping[str, Tensor]):
    """The cached tokens of images, by name.

    The file is mapped on first use in every process, so that a cache can be given to data workers.

    Args:
        folder: What `build_token_cache` made.
        key: What the tokens must have been made with.
        files: The images that are wanted, name -> file; they must be those that the tokens were made of.

    Raises:
        FileNotFoundError: There is no cache, or an image file is missing.
        ValueError: It was made with other weights, another transform or other constants (each is named), lacks an
            image, is older than an image's file, or is damaged.
    """

    def __init__(self, folder: Path | str, key: CacheKey, files: Mapping[str, Path]) -> None:
        self.folder = Path(folder)
        self.key = key
        self._header = CacheHeader.read(self.folder)
        self._header.expect_key(self.folder, key)
        self._header.expect_files(self.folder, file_stamps(files))
        self._row_of = {name: row for row, name in enumerate(self._header.stamps)}
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
            self._rows = self._header.map(self.folder)
        row = np.array(self._rows[self._row_of[name]])
        return torch.from_numpy(row).view(DTYPES[self.key.dtype])


def file_stamps(files: Mapping[str, Path]) -> dict[str, str]:
    """Size in bytes and time of change in ns of image files: another picture under a known name has another stamp."""
    status = {name: path.stat() for name, path in files.items()}
    return {name: f"{found.st_size}:{found.st_mtime_ns}" for name, found in status.items()}


def weights_hash(module: nn.Module) -> str:
    """A SHA-256 over the names, dtypes, shapes and bytes of everything in a module's state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class CacheHeader:
    """What `cache.json` holds.

    Attributes:
        key: The `CacheKey`, as a dict.
        stamps: The images' names in the order of the rows, each with the stamp of its file.
        shape: Tokens per image, and their width.
    """

    key: dict[str, str]
    stamps: dict[str, str]
    shape: list[int]

    @classmethod
    def read(cls, folder: Path) -> "CacheHeader":
        """Read a folder's header.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is something else.
        """
        path = folder / HEADER
        if not path.is_file():
            raise FileNotFoundError(f"no token cache at {str(folder)!r}: there is no {HEADER}")
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{str(path)!r}: not the header of a token cache ({error})") from error

    @property
    def num_bytes(self) -> int:
        """Size of the tokens' file."""
        return 2 * len(self.stamps) * self.shape[0] * self.shape[1]

    def map(self, folder: Path) -> np.memmap:
        """The tokens' file as an array of 16-bit words, one row per image."""
        return np.memmap(folder / TOKENS, np.int16, "r", shape=(len(self.stamps), *self.shape))

    def expect_key(self, folder: Path, key: CacheKey) -> None:
        """Refuse tokens that were made with something else."""
        other = [
            f"{name} {self.key.get(name)!r}, expected {value!r}"
            for name, value in asdict(key).items()
            if self.key.get(name) != value
        ]
        if other:
            raise ValueError(f"the token cache {str(folder)!r} was made with {'; '.join(other)}")

    def expect_files(self, folder: Path, stamps: Mapping[str, str]) -> None:
        """Refuse images that have no tokens, or tokens of another picture."""
        absent = [name for name in stamps if name not in self.stamps]
        if absent:
            raise ValueError(
                f"the token cache {str(folder)!r} lacks {len(absent)} of {len(stamps)} images, the first is "
                f"{absent[0]!r}; give these images a cache of their own, or delete that one"
            )
        changed = [name for name, stamp in stamps.items() if self.stamps[name] != stamp]
        if changed:
            name = changed[0]
            raise ValueError(
                f"the token cache {str(folder)!r} was made of other files: {len(changed)} of {len(stamps)} images have "
                f"changed, the first is {name!r} (bytes and time in ns were {self.stamps[name]}, are {stamps[name]}); "
                "delete the cache to build it again, or, if they were only copied, give them their times back (cp -p)"
            )
