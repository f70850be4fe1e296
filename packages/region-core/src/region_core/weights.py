"""Reading weight files without running anything that stands in them.

Safetensors, torch files (`weights_only`), sharded Hugging Face folders, and the pickles of detectron2's model zoo. A
pickle can name any function and have it called; ours is read by an unpickler that knows the few names by which NumPy
writes arrays, replaces them by plain stand-ins of this module, and refuses everything else.
"""

import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
"""Endings of files written by `torch.save`."""
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""What a Hugging Face folder may hold, best first."""
WRAPPERS = ("model", "state_dict")
"""Keys under which training programs put the weights in a larger dictionary."""


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a weight file or folder, by name, on the CPU.

    Args:
        path: A .safetensors file, a torch file (.pt, .pth, .bin, .ckpt), a detectron2 .pkl, a sharded index (.json), or
            a folder that holds one of `WEIGHT_FILES`. Weights under a key "model" or "state_dict" are unwrapped.

    Returns:
        The tensors in the order of the file.

    Raises:
        FileNotFoundError: There is no such file, or the folder holds no weights.
        ValueError: The kind of file is unknown, the file is damaged, or it holds something that is not a tensor or was
            refused; the message names the file.
    """
    path = Path(path)
    if path.is_dir():
        path = _find_in_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weight file at {str(path)!r}")
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _load_torch(path)
    if path.suffix == ".pkl":
        return _load_pickle(path)
    if path.name.endswith(".index.json"):
        return _load_shards(path)
    known = ", ".join((".safetensors", *TORCH_SUFFIXES, ".pkl", ".index.json"))
    raise ValueError(f"{str(path)!r}: unknown kind of weight file {path.suffix!r}; known are {known} and folders")


def _find_in_folder(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"folder {str(folder)!r} holds none of {', '.join(WEIGHT_FILES)}")


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r}: damaged safetensors file ({error})") from error


def _load_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        lines = str(error).strip().splitlines() or ["no reason given"]
        # Torch puts the reason between an appeal to load it unsafely and a link to its manual.
        reason = next((line.strip() for line in lines if "nsupported" in line), lines[-1])
        raise ValueError(f"{str(path)!r}: refused, not a file of plain tensors, or damaged ({reason})") from error
    except (EOFError, OSError, RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"{str(path)!r}: damaged torch file ({error})") from error
    return _as_tensors(content, path)


def _load_shards(index: Path) -> dict[str, Tensor]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {
            str(shard): [name for name in weight_map if weight_map[name] == shard] for shard in weight_map.values()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(index)!r}: not an index of shards, no readable 'weight_map' ({error})") from error
    weights: dict[str, Tensor] = {}
    for shard, names in shards.items():
        if Path(shard).name != shard or not shard.endswith((".safetensors", *TORCH_SUFFIXES)):
            raise ValueError(f"{str(index)!r}: shard {shard!r} is not the plain name of a weight file beside the index")
        tensors = load_weights(index.parent / shard)
        absent = [name for name in names if name not in tensors]
        if absent:
            raise ValueError(f"{str(index)!r}: shard {shard!r} lacks {len(absent)} of its weights, first {absent[0]!r}")
        weights.update((name, tensors[name]) for name in names)
    return weights


def _load_pickle(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            content = _WeightUnpickler(file, encoding="latin1").load()
    except _RefusedError as error:
        raise ValueError(f"{str(path)!r}: refused, {error}") from error
    except Exception as error:  # bytes of a stranger: an unpickler fails in every way there is
        raise ValueError(f"{str(path)!r}: damaged pickle ({type(error).__name__}: {error})") from error
    return _as_tensors(content, path)


def _as_tensors(content: object, path: Path) -> dict[str, Tensor]:
    """Unwrap nested dictionaries and convert arrays; anything but tensors under names is an error."""
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ValueError(f"{str(path)!r}: expected a dictionary of tensors, got {type(content).__name__}")
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(value, _PickledArray):
            tensors[str(name)] = value.tensor
        elif isinstance(value, Tensor):
            tensors[str(name)] = value
        else:
            raise ValueError(f"{str(path)!r}: expected a tensor under {name!r}, got {type(value).__name__}")
    return tensors


class _RefusedError(Exception):
    """A pickle asked for something that weights do not need."""


class _PickledType:
    """Stands for `numpy.dtype`: numbers of 1 to 8 bytes, nothing structured and no objects."""

    def __init__(self, name: object, *_flags: object) -> None:
        if not isinstance(name, str) or name[:1] not in "biuf" or not name[1:].isdigit():
            raise _RefusedError(f"arrays of type {name!r} are not weights")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        # NumPy writes "<", ">" or, for single bytes where it does not matter, "|".
        self.dtype = self.dtype.newbyteorder(">" if state[1] == ">" else "<")


class _PickledArray:
    """Stands for `numpy.ndarray`: holds the tensor once its state has arrived."""

    tensor: Tensor

    def __setstate__(self, state: tuple[object, ...]) -> None:
        _version, shape, kind, is_fortran, data = state
        self.fill(data, kind, shape, "F" if is_fortran else "C")

    def fill(self, data: object, kind: object, shape: object, order: str) -> None:
        """Take over the numbers, checking that bytes, type and shape agree (NumPy does, on plain numbers)."""
        raw = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(kind, _PickledType) or not isinstance(raw, bytes | bytearray) or not isinstance(shape, tuple):
            raise _RefusedError("an array with a state that NumPy does not write")
        numbers = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if order == "F" else "C")
        # A copy in the machine's byte order: the buffer is read-only.
        self.tensor = torch.from_numpy(np.array(numbers, dtype=kind.dtype.newbyteorder("="), order="C"))


def _new_array(*_arguments: object) -> _PickledArray:
    """Stand for NumPy's `_reconstruct`, which makes an empty array before its state arrives."""
    return _PickledArray()


def _array_from_buffer(data: object, kind: object, shape: object, order: str) -> _PickledArray:
    """Stand for NumPy's `_frombuffer` of pickle protocol 5."""
    array = _PickledArray()
    array.fill(data, kind, shape, order)
    return array


def _number(kind: object, data: object) -> float | int | bool:
    """Stand for NumPy's `scalar`, which training programs leave beside the weights."""
    array = _PickledArray()
    array.fill(data, kind, (), "C")
    return array.tensor.item()


def _encode_latin1(text: object, encoding: object) -> bytes:
    """Stand for `_codecs.encode`, by which old pickle protocols write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _RefusedError(f"text in encoding {encoding!r} is not weights")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """Stand for `bytes()`, by which old pickle protocols write the numbers of an array without elements."""
    return b""


_STAND_INS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("__builtin__", "bytes"): _empty_bytes,
    ("builtins", "bytes"): _empty_bytes,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
    ("_codecs", "encode"): _encode_latin1,
} | {
    (f"numpy.{core}.{module}", name): stand_in
    for core in ("core", "_core")
    for module, name, stand_in in (
        ("multiarray", "_reconstruct", _new_array),
        ("multiarray", "scalar", _number),
        ("numeric", "_frombuffer", _array_from_buffer),
    )
}
"""Every name a weight pickle may mention; NumPy 2 renamed `core` to `_core`."""


class _WeightUnpickler(pickle.Unpickler):
    """An unpickler that finds nothing but the stand-ins."""

    def find_class(self, module: str, name: str) -> object:
        """Return the stand-in of a name, or refuse it."""
        if (module, name) not in _STAND_INS:
            raise _RefusedError(f"the pickle asks for {module}.{name}, which weights do not need")
        return _STAND_INS[module, name]
