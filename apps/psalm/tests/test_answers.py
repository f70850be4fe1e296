"""A prediction read as its mode asks; and batches of all modes answered by a model without its targets."""

import numpy as np
import torch
from psalm.answers import answer_samples, make_answer
from psalm.config import EvaluationSettings
from psalm.predictions import Prediction

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
