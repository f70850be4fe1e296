"""Ranks that build one token cache together; what one process does is in `test_token_cache.py`."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from region_training.ranks import Ranks
from region_training.testing import run_ranks
from sprc.model import SPRCModel
from sprc.token_build import build_token_cache
from sprc.token_cache import CacheKey, TokenCache
from sprc.train import cache_tokens, open_splits

NAMES = [f"image-{i}" for i in range(11)]
KEY = CacheKey("weights", "transform", "constants")


class Thread(Ranks):
    """A rank that is a thread of this process."""

    def __init__(self, rank, values, barrier):  # without a process group
        self.rank, self.world_size = rank, len(values)
        self._values, self._barrier = values, barrier

    def gather(self, value):
        self._values[self.rank] = value
        # A rank that never comes is an error of the test, not a test without an end.
        self._barrier.wait(timeout=10)
        found = list(self._values)
        self._barrier.wait(timeout=10)
        return found


def load_image(name):
    return torch.full((3, 2, 2), int(name.split("-")[1]), dtype=torch.uint8)


def encode(images):
    """Two tokens of three numbers, which say which image they are of."""
    return images.float().mean(dim=(2, 3))[:, None].repeat(1, 2, 1)


@pytest.fixture
def build(tmp_path):
    """Build with some ranks: what each returned or raised."""
    files = {name: tmp_path / name for name in NAMES}
    for path in files.values():
        path.write_text("")

    def build(world_size, encoders=None, keys=None, folder="cache"):
        barrier, values = threading.Barrier(world_size), [None] * world_size
        encoders, keys = encoders or [encode] * world_size, keys or [KEY] * world_size

        def one(rank):
            ranks = Thread(rank, values, barrier)
            options = {"batch_size": 2, "show_progress": False, "ranks": ranks}
            try:
                return build_token_cache(tmp_path / folder, files, load_image, encoders[rank], keys[rank], **options)
            except Exception as error:
                return error

        with ThreadPoolExecutor(world_size) as pool:
            return list(pool.map(one, range(world_size)))

    return build


class Counted:
    """Encodes, remembers which images, and breaks down after some."""

    def __init__(self, fails_after=100):
        self.seen, self.fails_after = [], fails_after

    def __call__(self, images):
        if len(self.seen) >= self.fails_after:
            raise RuntimeError("out of memory")
        self.seen += images[:, 0, 0, 0].tolist()
        return encode(images)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_the_ranks_share_the_images_and_all_open_the_whole(build, world_size):
    encoders = [Counted() for _ in range(world_size)]
    caches = build(world_size, encoders)
    assert sorted(number for counted in encoders for number in counted.seen) == list(range(11))
    # With eight ranks the last two have nothing to do: there are six batches.
    assert [len(counted.seen) for counted in encoders][:2] == {1: [11], 2: [6, 5], 3: [4, 4], 8: [2, 2]}[world_size]
    for cache in caches:
        assert isinstance(cache, TokenCache), cache
        assert list(cache) == NAMES
        for number, name in enumerate(NAMES):
            assert torch.equal(cache[name], torch.full((2, 3), number, dtype=torch.float16))


def test_what_fails_on_one_rank_ends_all_of_them(build, tmp_path):
    found = build(3, [Counted(), Counted(fails_after=2), Counted()])
    assert str(found[1]) == "out of memory"
    for rank in (0, 2):
        assert isinstance(found[rank], ValueError)
        assert "the token cache cannot be built: rank 1 stopped with RuntimeError: out of memory" in str(found[rank])
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_on_the_first_rank_ends_the_others(build, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("sprc.token_build.shutil.disk_usage", lambda folder: usage)
    first, second = build(2)
    assert "the disk has 0.0 GiB free" in str(first)
    assert "rank 0 stopped with ValueError" in str(second)


def test_a_build_goes_on_with_another_number_of_ranks(build, monkeypatch):
    monkeypatch.setattr("sprc.token_build.SAVE_EVERY", 1)
    build(2, [Counted(fails_after=4), Counted()])
    encoders = [Counted() for _ in range(3)]
    cache = build(3, encoders)[2]
    # Two rounds of two batches of two were done.
    assert sorted(number for counted in encoders for number in counted.seen) == [8, 9, 10]
    assert [cache[name][0, 0].item() for name in NAMES] == list(range(11))


def test_ranks_with_different_towers_are_refused(build):
    for found in build(2, keys=[KEY, replace(KEY, weights="others")]):
        assert "the ranks have different vision towers or transforms" in str(found)


def test_ranks_whose_tokens_differ_in_shape_are_refused(build):
    for found in build(2, [encode, lambda images: encode(images)[:, :1]]):
        assert "got tokens of the shapes [[2, 3], [1, 3]] on the ranks" in str(found)


@pytest.mark.slow
def test_a_build_may_take_longer_than_the_ranks_wait_for_each_other(cirr, tmp_path, monkeypatch):
    """Here a rank waits two seconds at most, and the build takes more than three."""
    quick = SPRCModel.image_tokens

    def slow(self, images):
        time.sleep(0.3)
        return quick(self, images)

    monkeypatch.setattr(SPRCModel, "image_tokens", slow)
    settings = replace(
        cirr.settings,
        data=replace(cirr.settings.data, token_cache=str(tmp_path / "tokens")),
        evaluation=replace(cirr.settings.evaluation, batch_size=4),
    )

    def one_rank(rank):
        splits = open_splits(settings, cirr.model.config)
        started = time.monotonic()
        cache_tokens(settings, cirr.tokenizer, splits, Ranks(timeout_s=2.0))
        return time.monotonic() - started, [len(split.tokens) for split in splits]

    for result in run_ranks(one_rank, 2, tmp_path / "ranks"):
        assert isinstance(result, tuple)
        taken_s, sizes = result
        assert taken_s > 3.0
        assert sizes == [30, 60]
