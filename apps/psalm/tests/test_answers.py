"""A prediction read as its mode asks; and batches of all modes answered by a model without its targets."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from psalm.answers import answer_samples, make_answer
from psalm.config import EvaluationSettings
from psalm.predictions import Prediction, prompt_agreement

SETTINGS = EvaluationSettings(score_threshold=0.3, target_threshold=0.5, match_threshold=0.9)


def test_thresholds_are_those_of_the_mode():
    masks = torch.full((1, 2, 2), 9.0)
    prediction = Prediction(masks, torch.full((1, 1), 1.0))  # a score of 0.73
    referred = make_answer(prediction, "referring", ("the cat",), (True,), SETTINGS)
    assert referred.masks is not None
    assert referred.masks.united.all()
    crossed = make_answer(prediction, "cross_image", ("",), (True,), SETTINGS)
    assert crossed.masks is not None
    assert not crossed.masks.united.any()
    assert crossed.masks.best.all()


def test_a_region_whose_prompt_is_empty_gets_an_empty_mask():
    prediction = Prediction(torch.full((1, 2, 2), 9.0), torch.full((1, 2), 9.0))
    answer = make_answer(prediction, "region", ("", ""), (True, True), SETTINGS, has_prompt=np.array([True, False]))
    assert answer.masks is not None
    assert answer.masks.best.any((1, 2)).tolist() == [True, False]
    assert answer.masks.united.any((1, 2)).tolist() == [True, False]


def halves():
    """Logits of three masks of 4 x 4: the left half, the right half, everything."""
    masks = torch.full((3, 4, 4), -9.0)
    masks[0, :, :2] = masks[1, :, 2:] = masks[2] = 9.0
    return masks


def test_agreement_with_prompts_that_bound_a_region_is_the_iou():
    prompts = torch.zeros(2, 4, 4, dtype=torch.bool)
    prompts[0, :, :2] = True
    agreement = prompt_agreement(halves(), prompts, bound=True)
    torch.testing.assert_close(agreement, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, 0.0]]))


def test_agreement_with_a_point_does_not_depend_on_the_size_of_the_mask():
    prompts = torch.zeros(2, 4, 4, dtype=torch.bool)
    prompts[0, 1, 0] = True
    agreement = prompt_agreement(halves(), prompts, bound=False)
    torch.testing.assert_close(agreement, torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]), atol=1e-3, rtol=0)


def test_agreement_is_counted_at_the_size_of_the_prompts():
    prompts = torch.zeros(1, 8, 8, dtype=torch.bool)
    prompts[0, :, 4:] = True
    assert prompt_agreement(halves(), prompts, bound=True)[:, 0].tolist() == [0.0, 1.0, 0.5]


def test_the_mask_where_the_region_was_shown_is_the_answer():
    prediction = Prediction(halves(), torch.tensor([[0.5], [1.0], [-9.0]]))
    prompts = torch.zeros(1, 4, 4, dtype=torch.bool)
    prompts[0, :, 0] = True
    agreement = prompt_agreement(halves(), prompts, bound=False)
    plain, agreeing = (
        make_answer(prediction, "region", ("",), (True,), SETTINGS, agreement=own).masks for own in (None, agreement)
    )
    assert plain.best[0, 0].tolist() == [False, False, True, True]
    assert agreeing.best[0, 0].tolist() == [True, True, False, False]
    assert agreeing.scores[0] == torch.tensor(0.5).sigmoid() * torch.tensor(9.0).sigmoid()


@pytest.mark.parametrize(("agrees", "mode"), [(True, "region"), (False, "region"), (True, "cross_image")])
def test_only_regions_of_the_image_itself_are_chosen_by_agreement(toy, model, monkeypatch, agrees, mode):
    samples = [sample for sample in toy.samples() if sample.mode == mode]
    asked = []
    monkeypatch.setattr(
        "psalm.answers.prompt_agreement",
        lambda *args, bound: asked.append(bound) or prompt_agreement(*args, bound=bound),
    )
    list(answer_samples(model, toy.processor(), samples, replace(SETTINGS, prompt_agreement=agrees)))
    assert bool(asked) == (agrees and mode == "region")


def test_a_mixed_batch_is_answered_as_its_samples_one_by_one(toy, model):
    """Upstream evaluates in batches of one, and needs the targets for regions."""
    samples = toy.samples()
    processor = toy.processor()
    together = list(answer_samples(model, processor, samples, SETTINGS))
    for sample, answer in zip(samples, together, strict=True):
        (alone,) = answer_samples(model, processor, [sample], SETTINGS)
        if answer.semantic is not None:
            assert (answer.semantic == alone.semantic).mean() > 0.99
            assert answer.semantic.shape == sample.original_size
        if answer.masks is not None:
            assert (answer.masks.best == alone.masks.best).mean() > 0.99
            np.testing.assert_allclose(answer.masks.scores, alone.masks.scores, atol=1e-4)
        if answer.instances is not None:
            scores = [[item.score for item in said.instances] for said in (answer, alone)]
            np.testing.assert_allclose(*scores, atol=1e-4)
    by_mode = dict(zip((sample.mode for sample in samples), together, strict=True))
    assert by_mode["panoptic"].panoptic is not None
    assert by_mode["panoptic"].names == toy.names
    assert by_mode["instance"].semantic is None
    assert by_mode["region"].masks.best.shape[0] == 2
