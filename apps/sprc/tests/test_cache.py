"""`sprc cache`: the tower's tokens stand for the images, and only for those of this tower and transform."""

import copy
import os
import shutil
from dataclasses import replace

import pytest
import torch
from sprc.building import build_model, with_tower_dtype
from sprc.cli import main
from sprc.collate import TripletCollator
from sprc.evaluate import MODEL, evaluate
from sprc.loading import load_model
from sprc.opening import open_dataset, use_cached_tokens
from sprc.token_cache import CacheKey


@pytest.fixture(scope="module")
def tokens(cirr, tmp_path_factory):
    """The cache of both splits, as the command makes it."""
    folder = tmp_path_factory.mktemp("cache")
    run = cirr.begin_run(folder / "run")
    for split in ("train", "val"):
        words = ["--split", split, "--batch_size", "16", "--device", "cpu"]
        assert main(["cache", str(run.path), str(folder / "tokens"), *words]) == 0
    return folder / "tokens"


def _open(cirr, tokens, split="val", *, model=None, **data):
    dataset = open_dataset(replace(cirr.settings.data, **data), cirr.model.config, split, training=split == "train")
    use_cached_tokens(dataset, tokens, model or cirr.model, batch_size=8, show=False)
    return dataset


def test_tokens_are_those_of_the_live_tower(cirr, tokens):
    cached, live = _open(cirr, tokens), cirr.open()
    for name in cached.split.gallery:
        expected = cirr.model.image_tokens(live.read_input(name)[None])[0]
        found = cached.read_input(name)
        assert found.dtype == torch.float16
        torch.testing.assert_close(found.float(), expected, atol=5e-3, rtol=2e-3)


def test_an_evaluation_with_the_cache_is_the_live_one(cirr, tokens):
    settings = cirr.settings.evaluation
    cached = evaluate(cirr.model, cirr.tokenizer, _open(cirr, tokens), settings)
    live = evaluate(cirr.model, cirr.tokenizer, cirr.open(), settings)
    for who, scores in live.scores.items():
        # Sixteen bits may swap neighbours.
        assert cached.scores[who] == pytest.approx(scores, abs=7), who
    for mine, other in zip(cached.records, live.records, strict=True):
        assert mine.similarities == pytest.approx(other.similarities, abs=2e-3)
    assert set(cached.scores[MODEL]) == set(live.scores[MODEL])


def test_losses_with_the_cache_are_the_live_ones(cirr, tokens):
    collate = TripletCollator(cirr.tokenizer, max_length=12, use_region_loss=False)

    def losses(dataset):
        batch = collate([dataset[row] for row in range(6)])
        return cirr.model(**batch).losses

    cached, live = losses(_open(cirr, tokens, "train")), losses(cirr.open("train", training=True))
    for name in ("itc", "rtc", "align"):
        torch.testing.assert_close(cached[name].total, live[name].total, atol=5e-2, rtol=5e-3)


def test_images_are_not_opened_any_more(cirr, tokens, monkeypatch):
    dataset = _open(cirr, tokens, "train")
    monkeypatch.setattr("sprc.transforms.read_image", None)
    assert dataset[0].reference_image.shape == (17, 16)


def test_the_training_split_holds_the_images_of_its_triplets(cirr, tokens):
    assert set(_open(cirr, tokens, "train").tokens) == {
        name for triplet in cirr.open("train").split.triplets for name in (triplet.reference, triplet.target)
    }


def test_another_transform_is_refused(cirr, tokens):
    with pytest.raises(ValueError, match=r"was made with transform 'TargetPad.*expected 'SquarePad"):
        _open(cirr, tokens, transform="squarepad")


def test_another_tower_is_refused(cirr, toy_model, tokens):
    with pytest.raises(ValueError, match="was made with weights"):
        _open(cirr, tokens, model=toy_model.model(seed=5))


def test_trained_parts_of_the_model_may_differ(cirr, tokens):
    changed = type(cirr.model)(cirr.model.config).eval()
    changed.vision_tower.load_state_dict(cirr.model.vision_tower.state_dict())
    assert len(_open(cirr, tokens, model=changed).tokens) == 60


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_tower_has_one_key_before_training_and_after_it(cirr, tmp_path, precision):
    """In bf16 the engine casts the model; a key of another type would refuse the run's own cache afterwards."""

    def key_of(model):
        return CacheKey.of(model.vision_tower, "transform", model.config.tower_constants)

    model = build_model(with_tower_dtype(cirr.settings.model, precision), cirr.tokenizer).eval()
    before = key_of(model)
    assert model.vision_tower.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    # As DeepSpeed does; what is trained is saved in bf16 too.
    trained = model.bfloat16() if precision == "bf16" else model
    assert key_of(trained) == before
    trained.save_pretrained(tmp_path)
    cirr.tokenizer.save_pretrained(tmp_path)
    opened, _ = load_model(tmp_path, "cpu")
    assert opened.ln_vision.weight.dtype == torch.float32
    assert key_of(opened) == before


def test_other_normalisation_or_epsilon_is_another_cache(cirr, tokens):
    for change in ({"image_mean": [0.5, 0.5, 0.5]}, {"image_std": [0.5, 0.5, 0.5]}):
        model = copy.deepcopy(cirr.model)
        model.config.update(change)
        with pytest.raises(ValueError, match=r"was made with constants 'mean=\[0\.48.*expected 'mean=\["):
            _open(cirr, tokens, model=model)
    model = copy.deepcopy(cirr.model)
    model.config.vision.layer_norm_eps = 1e-3
    with pytest.raises(ValueError, match=r"tower\(eps=1e-06 .*expected .*tower\(eps=0\.001 "):
        _open(cirr, tokens, model=model)
    # The norm behind the tower is not in the cache.
    model = copy.deepcopy(cirr.model)
    model.config.ln_vision_eps = 1e-3
    assert len(_open(cirr, tokens, model=model).tokens) == 60


def test_a_replaced_image_is_seen(cirr, tokens, tmp_path):
    root = tmp_path / "world"
    shutil.copytree(cirr.root, root)
    assert len(_open(cirr, tokens, root=str(root)).tokens) == 60
    name = cirr.open().split.gallery[3]
    os.utime(open_dataset(replace(cirr.settings.data, root=str(root)), cirr.model.config, "val").split.image_path(name))
    with pytest.raises(ValueError, match=f"1 of 60 images have changed, the first is '{name}'"):
        _open(cirr, tokens, root=str(root))
