"""Exact match of short answers, with scores worked out by hand."""

import pytest
import torch
from lmms.scoring import LossSums, accuracies, headline_of, is_right, plain_words
from region_core.losses import LossTerms


@pytest.mark.parametrize("said", ["left", "Left", " left.", "the left", "LEFT!\n", "left_"])
def test_case_punctuation_and_articles_do_not_count(said):
    assert is_right(said, "left")


@pytest.mark.parametrize("said", ["right", "", "left left", "left side", "lef", "not left"])
def test_other_words_are_wrong(said):
    assert not is_right(said, "left")


def test_an_answer_of_an_article_alone_is_kept():
    assert plain_words("A.") == "a"
    assert not is_right("A", "B")
    assert not is_right("a", "the")


def test_several_words_are_compared_in_order():
    assert is_right("A red, big circle", "red big circle")
    assert not is_right("big red circle", "red big circle")


def test_scores_by_hand():
    answers = [("direction", True), ("direction", False), ("order", True), ("speed", False), ("speed", True)]
    answers += [("speed", False), ("speed", False), ("count", True)]
    scores = accuracies(answers)
    assert scores["direction/accuracy"] == 50.0
    assert scores["order/accuracy"] == 100.0
    assert scores["speed/accuracy"] == 25.0
    assert scores["count/accuracy"] == 100.0
    # Kinds count alike, however many questions they have.
    assert scores["temporal"] == pytest.approx((50 + 100 + 25) / 3)
    assert scores["score"] == pytest.approx((50 + 100 + 25 + 100) / 4)
    assert headline_of(scores) == scores["temporal"]


def test_records_without_a_kind_have_one_score_and_no_temporal_one():
    scores = accuracies([(None, True), (None, True), (None, False)])
    assert scores == {"questions/accuracy": pytest.approx(200 / 3), "score": pytest.approx(200 / 3)}
    assert headline_of(scores) == scores["score"]


def test_the_temporal_score_is_the_mean_of_the_temporal_kinds_that_there_are():
    assert accuracies([("order", True), ("speed", False), ("text", False)])["temporal"] == 50.0


def test_nothing_answered_is_no_score():
    assert accuracies([]) == {}
    assert headline_of({}) == 0.0


def terms(**values):
    """Terms from (total, count, weight)."""
    found = LossTerms()
    for name, (total, count, weight) in values.items():
        found.add(name.replace("__", "/"), torch.tensor(float(total)), count, weight)
    return found


def test_losses_by_hand_over_two_batches():
    sums = LossSums()
    sums.add(terms(main=(6, 3, 1.0), autoregressive=(2, 4, 0.5), autoregressive_copy=(8, 4, 0.0)))
    other = LossSums()
    other.add(terms(main=(4, 2, 1.0), autoregressive=(1, 2, 0.5), autoregressive_copy=(4, 2, 0.0)))
    sums.merge(other)
    # 10 / 5, 3 / 6 and 12 / 6 per item; a mean of the batches' means would say the same of neither.
    assert sums.compute() == {
        "main_loss": 2.0,
        "autoregressive_loss": 0.25,
        "total_loss": 2.25,
        "autoregressive_loss_raw": 0.5,
        "ar_copy_loss": 2.0,
        "ar_skill": 0.75,
    }


def test_skill_against_another_copy_loss():
    sums = LossSums()
    sums.add(terms(autoregressive=(6, 2, 0.5), autoregressive_copy=(8, 2, 0.0)))
    assert sums.compute()["ar_skill"] == 0.25
    against_less = sums.compute(copy_loss=2.0)
    assert (against_less["ar_skill"], against_less["ar_copy_loss"]) == (-0.5, 4.0)


def test_losses_of_two_scales():
    sums = LossSums()
    sums.add(
        terms(
            autoregressive__stride1=(8, 4, 0.05),
            autoregressive__stride2=(1, 1, 0.05),
            autoregressive_copy=(16, 4, 0.0),
        )
    )
    losses = sums.compute()
    assert losses["autoregressive_loss"] == pytest.approx(0.05 * 2 + 0.05 * 1)
    assert losses["total_loss"] == losses["autoregressive_loss"]
    assert losses["autoregressive_loss_raw"] == pytest.approx(1.5)
    assert losses["ar_skill"] == pytest.approx(1 - 2 / 4)
    assert "main_loss" not in losses


def test_terms_without_items_say_nothing():
    sums = LossSums()
    sums.add(terms(main=(6, 3, 2.0), autoregressive=(0, 0, 0.5), autoregressive_copy=(0, 0, 0.0)))
    assert sums.compute() == {"main_loss": 4.0, "total_loss": 4.0}
    assert LossSums().compute() == {}


def test_where_copying_makes_no_error_there_is_no_skill():
    sums = LossSums()
    sums.add(terms(autoregressive=(3, 3, 0.1), autoregressive_copy=(0, 3, 0.0)))
    assert sums.compute()["ar_copy_loss"] == 0.0
    assert "ar_skill" not in sums.compute()
