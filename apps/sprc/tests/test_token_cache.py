import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sprc.token_build import build_token_cache
from sprc.token_cache import CacheKey, TokenCache, weights_hash
from torch import nn
from torch.utils.data import DataLoader, Dataset

NAMES = [f"image-{i}" for i in range(11)]
CONSTANTS = "mean=0 std=1"


@pytest.fixture(autouse=True)
def _pictures(tmp_path_factory, monkeypatch):
    """The files behind the names, in the current folder; what they hold is `load_image`'s business."""
    monkeypatch.chdir(tmp_path_factory.mktemp("pictures"))
    for name in NAMES:
        Path(name).write_text(name)


def files_of(names):
    return {name: Path(name) for name in names}


class Tower(nn.Module):
    """Four tokens of three numbers, from the means of the quarters of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, images):
        quarters = images.float().unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2))
        return self.linear(quarters.flatten(2).mT / 255)


def frozen_tower(seed=0):
    torch.manual_seed(seed)
    return Tower().eval().requires_grad_(False)


def load_image(name):
    generator = torch.Generator().manual_seed(int(name.split("-")[1]))
    return torch.randint(256, (3, 4, 4), dtype=torch.uint8, generator=generator)


class Counted:
    """Encodes, counts the images, and breaks down after some."""

    def __init__(self, tower, fails_after=None):
        self.tower, self.fails_after, self.count = tower, fails_after, 0

    def __call__(self, images):
        if self.fails_after is not None and self.count >= self.fails_after:
            raise RuntimeError("out of memory")
        self.count += len(images)
        return self.tower(images)


def key_of(tower, **options):
    return CacheKey.of(tower, "targetpad-4", CONSTANTS, **options)


def build(folder, tower=None, **options):
    tower = frozen_tower() if tower is None else tower
    options = {"names": NAMES, "load_image": load_image, "encode": tower, "key": None, "batch_size": 4} | options
    key = options.pop("key") or key_of(tower)
    return build_token_cache(folder, files_of(options.pop("names")), key=key, show_progress=False, **options)


def opened(folder, key):
    return TokenCache(folder, key, files_of(NAMES))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cache_gives_the_towers_tokens(tmp_path, dtype):
    tower = frozen_tower()
    cache = build(tmp_path / "cache", tower, key=key_of(tower, dtype=dtype))
    assert len(cache) == 11
    assert cache.shape == (4, 3)
    assert list(cache) == NAMES
    for name in NAMES:
        expected = tower(load_image(name)[None])[0].to(getattr(torch, dtype))
        assert torch.equal(cache.tokens(name), expected)
        assert torch.equal(cache[name], expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["cache.json", "tokens.bin"]


def test_tokens_are_a_copy(tmp_path):
    cache = build(tmp_path / "cache")
    cache.tokens("image-3").zero_()
    assert cache.tokens("image-3").abs().sum() > 0


def test_an_image_that_is_not_cached_is_named(tmp_path):
    cache = build(tmp_path / "cache")
    assert "image-4" in cache
    assert "dog" not in cache
    with pytest.raises(KeyError, match=r"'dog' is not in the cache .* of 11 images"):
        cache.tokens("dog")


def test_gradients_stay_out_of_the_cache(tmp_path):
    tower = frozen_tower()
    scale = nn.Parameter(torch.ones(()))
    cache = build(tmp_path / "cache", tower, encode=lambda images: scale * tower(images))
    assert not cache.tokens("image-0").requires_grad


class Tokens(Dataset):
    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return len(self.cache)

    def __getitem__(self, index):
        return self.cache.tokens(NAMES[index])


def test_a_cache_travels_to_workers_without_its_content(tmp_path):
    cache = build(tmp_path / "cache")
    before = cache.tokens("image-5")
    # Opened already: the mapped file must not be pickled.
    pickled = pickle.dumps(cache)
    assert b"memmap" not in pickled
    assert torch.equal(pickle.loads(pickled).tokens("image-5"), before)  # noqa: S301 - written two lines above
    loader = DataLoader(Tokens(cache), batch_size=11, num_workers=1, multiprocessing_context="fork")
    (batch,) = loader
    assert torch.equal(batch, torch.stack([cache.tokens(name) for name in NAMES]))


def test_a_second_build_opens_the_first(tmp_path):
    tower = frozen_tower()
    build(tmp_path / "cache", tower)
    counted = Counted(tower)
    assert list(build(tmp_path / "cache", tower, encode=counted, names=NAMES[3:5])) == NAMES
    assert counted.count == 0
    Path("image-99").write_text("new")
    with pytest.raises(ValueError, match=r"lacks 1 of 2 images, the first is 'image-99'"):
        build(tmp_path / "cache", tower, names=["image-1", "image-99"])


def test_a_build_that_was_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("sprc.token_build.SAVE_EVERY", 1)
    tower = frozen_tower()
    with pytest.raises(RuntimeError, match="out of memory"):
        build(tmp_path / "cache", tower, encode=Counted(tower, fails_after=8))
    assert not (tmp_path / "cache").exists()
    with pytest.raises(FileNotFoundError, match="no token cache at"):
        opened(tmp_path / "cache", key_of(tower))
    # Nor may the half be taken for a whole.
    with pytest.raises(ValueError, match="is not whole"):
        opened(tmp_path / "cache.partial", key_of(tower))
    counted = Counted(tower)
    resumed = build(tmp_path / "cache", tower, encode=counted)
    assert counted.count == 3
    whole = build(tmp_path / "other", tower)
    assert all(torch.equal(resumed[name], whole[name]) for name in NAMES)


def test_a_half_of_another_tower_is_begun_anew(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("sprc.token_build.SAVE_EVERY", 1)
    with pytest.raises(RuntimeError, match="out of memory"):
        build(tmp_path / "cache", encode=Counted(frozen_tower(), fails_after=8))
    other = frozen_tower(1)
    counted = Counted(other)
    cache = build(tmp_path / "cache", other, encode=counted)
    assert counted.count == 11
    assert "it is begun anew" in caplog.text
    assert torch.equal(cache["image-0"], other(load_image("image-0")[None])[0].half())


def test_other_weights_and_transforms_are_named(tmp_path):
    tower, other = frozen_tower(), frozen_tower(1)
    build(tmp_path / "cache", tower)
    with pytest.raises(ValueError, match="was made with") as refused:
        opened(tmp_path / "cache", CacheKey.of(other, "squarepad-4", CONSTANTS))
    assert f"weights {weights_hash(tower)!r}, expected {weights_hash(other)!r}" in str(refused.value)
    assert "transform 'targetpad-4', expected 'squarepad-4'" in str(refused.value)
    with pytest.raises(ValueError, match="dtype 'float16', expected 'bfloat16'"):
        build(tmp_path / "cache", tower, key=key_of(tower, dtype="bfloat16"))


def test_other_constants_are_another_cache(tmp_path):
    """The epsilon of a norm and the normalisation of pixels are no weights, and decide the tokens as well."""
    cache = build(tmp_path / "cache")
    with pytest.raises(ValueError, match="was made with constants 'mean=0 std=1', expected 'mean=1 std=1'"):
        opened(cache.folder, replace(cache.key, constants="mean=1 std=1"))


def test_a_tower_that_is_trained_has_no_key():
    tower = frozen_tower()
    tower.linear.bias.requires_grad_(True)
    with pytest.raises(ValueError, match=r"1 parameters of the vision tower are trained, the first is 'linear\.bias'"):
        key_of(tower)
    with pytest.raises(ValueError, match="in training mode"):
        key_of(frozen_tower().train())


def test_random_augmentation_is_refused(tmp_path):
    def flipped(name):
        image = load_image(name)
        return image.flip(2) if torch.rand(()) < 0.5 else image

    torch.manual_seed(0)
    with pytest.raises(ValueError, match="comes out different when it is loaded twice"):
        build(tmp_path / "cache", load_image=flipped)
    assert not list(tmp_path.iterdir())


def test_tokens_that_do_not_fit_are_refused(tmp_path):
    tower = frozen_tower()

    def large(images):
        tokens = tower(images)
        tokens[1] = 1e5
        return tokens

    with pytest.raises(ValueError, match=r"'image-1'.* not finite in float16, the largest of the batch is 100000"):
        build(tmp_path / "half", encode=large)
    cache = build(tmp_path / "wide", encode=large, key=key_of(tower, dtype="bfloat16"))
    assert cache["image-1"].float().min() > 9e4


def test_sizes_must_agree(tmp_path):
    def ragged(name):
        return load_image(name)[:, :2] if name == "image-6" else load_image(name)

    with pytest.raises(ValueError, match=r"image 'image-6': got the size \(3, 2, 4\), expected \(3, 4, 4\)"):
        build(tmp_path / "cache", load_image=ragged)

    class Changing(Counted):
        def __call__(self, images):
            tokens = super().__call__(images)
            return tokens if self.count <= 4 else tokens[:, :2]

    with pytest.raises(ValueError, match=r"images 'image-4' .*: got tokens of shape \(4, 2, 3\), expected \(4, 4, 3\)"):
        build(tmp_path / "cache", encode=Changing(frozen_tower()))


def test_an_image_that_cannot_be_read_stops_the_build(tmp_path):
    def broken(name):
        if name == "image-9":
            raise ValueError("image-9.png: truncated")
        return load_image(name)

    with pytest.raises(ValueError, match="truncated"):
        build(tmp_path / "cache", load_image=broken)


def test_there_must_be_images(tmp_path):
    with pytest.raises(ValueError, match="got 0 images"):
        build(tmp_path / "cache", names=[])


@pytest.mark.parametrize("change", ["content", "time"])
def test_another_picture_under_a_known_name_is_seen(tmp_path, change):
    cache = build(tmp_path / "cache")
    if change == "content":
        before = Path("image-7").stat()
        Path("image-7").write_text("another picture")
        # As old as the first one, as a restored backup is.
        os.utime("image-7", ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime("image-7", ns=(1, 1))
    message = r"made of other files: 1 of 11 images have changed, the first is 'image-7' .*; delete the cache"
    with pytest.raises(ValueError, match=message):
        opened(cache.folder, cache.key)
    with pytest.raises(ValueError, match=message):
        build(cache.folder)
    # Only what is wanted counts.
    assert len(build(cache.folder, names=NAMES[:7])) == 11


def test_a_missing_file_is_named(tmp_path):
    cache = build(tmp_path / "cache")
    Path("image-2").unlink()
    with pytest.raises(FileNotFoundError, match="image-2"):
        opened(cache.folder, cache.key)


def test_a_half_of_other_files_is_begun_anew(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("sprc.token_build.SAVE_EVERY", 1)
    tower = frozen_tower()
    with pytest.raises(RuntimeError, match="out of memory"):
        build(tmp_path / "cache", tower, encode=Counted(tower, fails_after=8))
    os.utime("image-0", ns=(1, 1))
    counted = Counted(tower)
    build(tmp_path / "cache", tower, encode=counted)
    assert counted.count == 11
    assert "it is begun anew" in caplog.text


def test_a_full_disk_is_seen_before(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("sprc.token_build.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match=r"the tokens of 11 images need 0\.0 GiB, the disk has 0\.0 GiB free"):
        build(tmp_path / "cache")


def test_two_builds_at_once_are_refused(tmp_path):
    tower = frozen_tower()

    def meanwhile(images):
        build(tmp_path / "cache", tower)
        return tower(images)

    with pytest.raises(ValueError, match="another process builds a cache in"):
        build(tmp_path / "cache", tower, encode=meanwhile)


def test_damaged_caches(tmp_path):
    cache, key = build(tmp_path / "cache"), key_of(frozen_tower())
    tokens, header = cache.folder / "tokens.bin", cache.folder / "cache.json"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(ValueError, match="has 262 bytes, expected 264"):
        opened(cache.folder, key)
    header.write_text(json.dumps({"names": NAMES}))
    with pytest.raises(ValueError, match="not the header of a token cache"):
        opened(cache.folder, key)
    header.write_text("{")
    with pytest.raises(ValueError, match="not the header of a token cache"):
        opened(cache.folder, key)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("...")
    with pytest.raises(FileNotFoundError, match="no token cache at"):
        build(tmp_path / "mine")


def test_the_hash_sees_values_names_and_dtypes():
    tower = frozen_tower()
    same = weights_hash(tower)
    assert same == weights_hash(frozen_tower())
    assert len(same) == 64
    assert weights_hash(frozen_tower().half()) != same
    tower.linear.bias[0] += 1e-6
    assert weights_hash(tower) != same
    renamed = nn.ModuleDict({"other": frozen_tower().linear})
    assert weights_hash(renamed) != same
    scalar = nn.BatchNorm1d(2)
    assert weights_hash(scalar.bfloat16()) == weights_hash(nn.BatchNorm1d(2).bfloat16())


def test_the_file_holds_two_bytes_per_number(tmp_path):
    cache = build(tmp_path / "cache")
    stored = np.fromfile(cache.folder / "tokens.bin", np.float16).reshape(11, 4, 3)
    assert np.array_equal(stored[7], cache["image-7"].numpy())
