import collections
import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from region_core import load_weights
from safetensors.torch import save_file

TENSORS = {"a.weight": torch.randn(3, 2), "a.bias": torch.arange(3), "b": torch.tensor(2.5, dtype=torch.float64)}


def assert_same(found, expected=TENSORS):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


class Malicious:
    """Unpickled the usual way, this creates a canary file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


# What can be read


def test_safetensors(tmp_path):
    save_file(TENSORS, tmp_path / "w.safetensors")
    assert_same(load_weights(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_torch_files(tmp_path, suffix, wrapper):
    content = TENSORS if wrapper is None else {wrapper: collections.OrderedDict(TENSORS), "epoch": 3}
    torch.save(content, tmp_path / f"w{suffix}")
    assert_same(load_weights(str(tmp_path / f"w{suffix}")))


@pytest.mark.parametrize("protocol", range(6))
def test_detectron2_pickles_of_every_protocol(tmp_path, protocol):
    arrays = {name: tensor.numpy() for name, tensor in TENSORS.items()}
    arrays["fortran"] = np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3))
    arrays["big_endian"] = np.arange(3, dtype=">f4")
    arrays["flags"] = np.array([True, False])
    arrays["none"] = np.zeros((0, 4), dtype=np.float32)
    content = {"model": arrays, "__author__": "someone", "lr": np.float64(0.1), "matching_heuristics": True}
    with (tmp_path / "w.pkl").open("wb") as file:
        pickle.dump(content, file, protocol=protocol)
    expected = {name: torch.from_numpy(array.astype(array.dtype.newbyteorder("="))) for name, array in arrays.items()}
    found = load_weights(tmp_path / "w.pkl")
    assert_same(found, expected)
    found["a.weight"].add_(1)


def test_pickles_of_old_python_and_numpy(tmp_path):
    """Strings of bytes and `numpy.core`, as the oldest files of the model zoo have them."""
    array = np.array([1.0, 2.0], dtype=np.float32)
    text = pickle.dumps({"w": array}, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "w.pkl").write_bytes(text)
    assert torch.equal(load_weights(tmp_path / "w.pkl")["w"], torch.tensor([1.0, 2.0]))


def write_shards(folder):
    first = {"a.weight": TENSORS["a.weight"]}
    second = {name: TENSORS[name] for name in ("a.bias", "b")}
    save_file(first, folder / "model-1.safetensors")
    save_file(second, folder / "model-2.safetensors")
    weight_map = dict.fromkeys(first, "model-1.safetensors") | dict.fromkeys(second, "model-2.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_sharded_folders(tmp_path):
    write_shards(tmp_path)
    assert_same(load_weights(tmp_path))
    assert_same(load_weights(tmp_path / "model.safetensors.index.json"))


def test_plain_folders_prefer_safetensors(tmp_path):
    torch.save({"old": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert list(load_weights(tmp_path)) == ["old"]
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert_same(load_weights(tmp_path))


# What is refused, by name


def test_absent_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weight file at '.*missing.pt'"):
        load_weights(tmp_path / "missing.pt")
    with pytest.raises(FileNotFoundError, match=r"holds none of model.safetensors.index.json, model.safetensors"):
        load_weights(tmp_path)


@pytest.mark.parametrize("name", ["w.h5", "w.json", "w"])
def test_unknown_kinds(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"{name}': unknown kind of weight file .*known are .safetensors, .pt"):
        load_weights(tmp_path / name)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pkl"])
@pytest.mark.parametrize("damage", ["half", "empty", "garbage"])
def test_damaged_files_are_errors_that_name_the_file(tmp_path, suffix, damage):
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(TENSORS, path)
    elif suffix == ".pt":
        torch.save(TENSORS, path)
    else:
        path.write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in TENSORS.items()}))
    content = path.read_bytes()
    path.write_bytes({"half": content[: len(content) // 2], "empty": b"", "garbage": b"\x93garbage" * 40}[damage])
    with pytest.raises(ValueError, match=rf"w\{suffix}': .*damaged"):
        load_weights(path)


@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
@pytest.mark.parametrize("wrapper", [None, "model"])
def test_malicious_pickles_run_nothing(tmp_path, suffix, wrapper):
    canary, path = tmp_path / "canary", tmp_path / f"w{suffix}"
    content = {"w": Malicious(canary)} if wrapper is None else {wrapper: {"w": Malicious(canary)}}
    if suffix == ".pt":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"w\{suffix}': refused.*mkdir"):
        load_weights(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "target",
    [
        (b"posix", b"system"),
        (b"builtins", b"eval"),
        (b"builtins", b"getattr"),
        (b"os", b"system"),
        (b"numpy", b"load"),
        (b"numpy._core.multiarray", b"_reconstruct.__globals__"),
        (b"torch.storage", b"_load_from_bytes"),
        (b"collections", b"namedtuple"),
    ],
)
def test_only_the_known_names_are_found(tmp_path, target):
    module, name = target
    (tmp_path / "w.pkl").write_bytes(b"c" + module + b"\n" + name + b"\n.")
    with pytest.raises(ValueError, match="refused, the pickle asks for"):
        load_weights(tmp_path / "w.pkl")


@pytest.mark.parametrize("array", [np.array([{}, None]), np.array(["text"]), np.zeros(2, dtype="i4,f4")])
def test_arrays_that_are_not_numbers_are_refused(tmp_path, array):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"w": array}))
    with pytest.raises(ValueError, match=r"refused, arrays of type '.*' are not weights"):
        load_weights(tmp_path / "w.pkl")


def test_bytes_of_any_length_are_refused(tmp_path):
    """`bytes(10 ** 12)` would fill the memory."""
    (tmp_path / "w.pkl").write_bytes(b"cbuiltins\nbytes\n(I1000000000000\ntR.")
    with pytest.raises(ValueError, match="damaged"):
        load_weights(tmp_path / "w.pkl")


def test_codecs_other_than_latin1_are_refused(tmp_path):
    (tmp_path / "w.pkl").write_bytes(b"c_codecs\nencode\n(V" + b"a\nVutf-16\ntR.")
    with pytest.raises(ValueError, match="encoding 'utf-16'"):
        load_weights(tmp_path / "w.pkl")


@pytest.mark.parametrize(
    "state",
    [
        b"(I1\n(I3\nt" + b"cnumpy\ndtype\n(Vf4\ntR" + b"I00\n" + b"Vabcd\nt",  # 3 numbers announced, 4 bytes given
        b"(I1\n(I1\nt" + b"Vf4\n" + b"I00\n" + b"Vabcd\nt",  # the type is text
    ],
)
def test_arrays_whose_parts_disagree_are_refused(tmp_path, state):
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
    (tmp_path / "w.pkl").write_bytes(head + state + b"b.")
    with pytest.raises(ValueError, match=r"refused|damaged"):
        load_weights(tmp_path / "w.pkl")


@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
@pytest.mark.parametrize(
    ("content", "message"),
    [([1, 2], "expected a dictionary of tensors, got list"), ({"w": "text"}, "expected a tensor under 'w', got str")],
)
def test_files_of_something_else(tmp_path, suffix, content, message):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_weights(path)


@pytest.mark.parametrize("shard", ["../model-1.safetensors", "/etc/passwd", "model.txt", "sub/model-1.safetensors"])
def test_shards_must_lie_beside_the_index(tmp_path, shard):
    weight_map = write_shards(tmp_path) | {"a.weight": shard}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="is not the plain name of a weight file beside the index"):
        load_weights(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_unreadable_indexes(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match="not an index of shards"):
        load_weights(tmp_path)


def test_shards_that_lack_their_weights(tmp_path):
    weight_map = write_shards(tmp_path) | {"more": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=r"'model-2.safetensors' lacks 1 of its weights, first 'more'"):
        load_weights(tmp_path)


def test_shards_that_are_absent(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-1.safetensors"):
        load_weights(tmp_path)


def test_random_damage_never_escapes_as_another_error(tmp_path):
    """Flipped bytes give weights or a ValueError, nothing else."""
    stream = io.BytesIO()
    pickle.dump({"model": {"w": np.arange(6.0), "v": np.arange(3)}}, stream)
    content = stream.getvalue()
    random = np.random.default_rng(0)
    outcomes = {"weights": 0, "error": 0}
    for _ in range(300):
        damaged = bytearray(content)
        for place in random.integers(0, len(damaged), 2):
            damaged[place] = random.integers(0, 256)
        (tmp_path / "w.pkl").write_bytes(damaged)
        try:
            load_weights(tmp_path / "w.pkl")
            outcomes["weights"] += 1
        except ValueError:
            outcomes["error"] += 1
    assert min(outcomes.values()) > 0
