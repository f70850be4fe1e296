"""The best weights of a run are kept, once, beside its last ones."""

import json

import pytest
import torch
from sprc.best import BestModel
from sprc.loading import load_model


@pytest.fixture
def tried(cirr, tmp_path):
    """Offer models whose prompts are all one number."""
    best = BestModel(tmp_path / "best")

    def offer(value: float, score: float, step: int) -> bool:
        changed = type(cirr.model)(cirr.model.config).eval()
        torch.nn.init.constant_(changed.composer.prompt_tokens.weight, value)
        return best.offer(changed, cirr.tokenizer, score, step)

    return best, offer


def _kept(best):
    model, tokenizer = load_model(best.folder, "cpu")
    assert len(tokenizer) == model.config.qformer.vocab_size
    return model.composer.prompt_tokens.weight.unique().tolist()


def test_the_best_one_is_kept_and_replaced_by_a_better_one(tried):
    best, offer = tried
    assert offer(1.0, 20.0, 10)
    assert not offer(2.0, 19.9, 20)
    assert _kept(best) == [1.0]
    # As good is not better: the earlier one has trained less.
    assert not offer(2.0, 20.0, 30)
    assert offer(3.0, 20.5, 40)
    assert _kept(best) == [3.0]
    assert json.loads((best.folder / "best.json").read_text()) == {"step": 40, "score": 20.5}
    assert [path.name for path in best.folder.parent.iterdir()] == ["best"]


def test_a_resumed_run_remembers_the_score_of_before(tried):
    best, offer = tried
    assert offer(1.0, 20.0, 10)
    again = BestModel(best.folder)
    again_score = json.loads((again.folder / "best.json").read_text())["score"]
    assert again_score == 20.0
    assert not offer(2.0, 10.0, 20)


def test_what_a_killed_save_left_is_no_hindrance(tried):
    best, offer = tried
    staged = best.folder.with_name("best.staged")
    staged.mkdir()
    (staged / "leftover").write_text("")
    assert offer(1.0, 1.0, 1)
    assert not (best.folder / "leftover").exists()


def test_a_training_that_begins_anew_forgets(tried):
    best, offer = tried
    assert offer(1.0, 20.0, 10)
    best.forget()
    best.forget()
    assert offer(2.0, 5.0, 10)
    assert _kept(best) == [2.0]
