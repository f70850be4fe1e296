"""The untrained model: always the same weights, and scores that are kept under what they depend on."""

import json

import torch
from psalm.config import EvaluationSettings, SyntheticSettings
from psalm.data import open_dataset
from psalm.synthetic import paths_of, write_world
from psalm.untrained import fingerprint, fresh_model, keep, read_kept


def test_it_is_another_model_always_the_same_and_leaves_the_random_state_alone(toy):
    trained = toy.model(seed=5)
    before = torch.random.get_rng_state()
    fresh, again = fresh_model(trained), fresh_model(trained)
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [dict(one.named_parameters()) for one in (trained, fresh, again)]
    assert all(torch.equal(weights[1][name], weights[2][name]) for name in weights[1])
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert not fresh.training
    assert fresh.config is not trained.config


def test_scores_are_kept_under_their_key_alone(tmp_path):
    path = tmp_path / "untrained.json"
    assert read_kept(path, "a", None) is None
    keep(path, "a", {"score": 1.5}, None)
    assert read_kept(path, "a", None) == {"score": 1.5}
    assert read_kept(path, "b", None) is None
    assert json.loads(path.read_text()) == {"key": "a", "scores": {"score": 1.5}}


def test_the_key_knows_the_records_and_the_data_settings(toy, model, tmp_path):
    write_world(tmp_path, SyntheticSettings(train_scenes=2, eval_scenes=2, image_size=64))
    paths, file = paths_of(tmp_path), tmp_path / "refcoco" / "refcoco_val.json"

    def key(split: str = "val", **changes: object) -> str:
        dataset = open_dataset(
            toy.data_settings(**{**paths, "modes": ["referring", "region"], **changes}), split, training=False
        )
        return fingerprint(model, dataset, EvaluationSettings(), None)

    changed = [
        key(),
        key("train"),  # as long and with the same classes
        key(point_radius=3),
        key(scribble_radius=1),
        key(image_size=32),
        key(region_mask_type="box"),
        key(ref_mode="joined"),
    ]
    assert len(set(changed)) == len(changed)
    assert key() == changed[0]
    records = json.loads(file.read_text())
    file.write_text(json.dumps(records[::-1]))
    assert key() != changed[0]
