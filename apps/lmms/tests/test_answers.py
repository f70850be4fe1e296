"""Generated answers: the same alone and in a batch, whatever the others show."""

import pytest
import torch
from lmms.answers import FORWARD_KEYS, PROMPT_KEYS, AnsweredRecord, generate_answers, on_device


def test_an_answer_is_right_word_for_word():
    record = AnsweredRecord(0, "a", "direction", "Where?", "left", {"model": "The left.", "question only": "up"})
    assert record.is_right("model")
    assert not record.is_right("question only")
    with pytest.raises(KeyError):
        record.is_right("nobody")


def test_answers_do_not_depend_on_the_batch(each):
    model, family = each.model(), each.family()
    prompts = [
        each.sample((4,), answer=None, seed=1),
        each.sample((), answer=None, seed=2),
        each.sample((2,), images=1, answer=None, seed=3, question="How many squares are there?"),
    ]
    together = generate_answers(model, family, prompts, max_new_tokens=5)
    alone = [generate_answers(model, family, [prompt], max_new_tokens=5)[0] for prompt in prompts]
    assert together == alone
    assert all(isinstance(text, str) and text == text.strip() for text in together)


def test_the_model_gets_its_keys_and_no_notes(toy):
    batch = toy.collator()([toy.sample((3,)), toy.sample(())])
    own = on_device(batch, FORWARD_KEYS, torch.device("cpu"))
    assert set(own) == {"input_ids", "attention_mask", "labels", "frames", "visuals"}
    assert own["frames"] is batch["frames"]
    assert set(on_device(batch, PROMPT_KEYS, torch.device("cpu"))) == {"input_ids", "attention_mask", "visuals"}
    assert toy.model()(**own).losses["main"].count > 0
