"""Generated answers: the same in a batch as one by one, and what a plain greedy loop over `forward` says."""

import pytest
import torch
from spatialrgpt.config import BackboneSettings
from spatialrgpt.tokenizer import PLACEHOLDERS

NEW_TOKENS = 6
CASES = {
    "regions": [((0, 0), (True,)), ((0,), (False,)), ((1, 0, 1), (True, False))],
    "no regions": [((), (True,)), ((), (False,))],
    "image-free": [((), ()), ((), ())],
    "mixed": [((0, 0), (True,)), ((), ()), ((1, 0), (False, True)), ((), (True,))],
}
VISUAL = (
    "pixel_values",
    "depth_values",
    "depth_images",
    "region_masks",
    "region_images",
    "region_geometry",
)


def prompts(toy, name: str) -> list:
    return [
        toy.sample(regions, depths=depths, seed=seed, answer=None, words="far " * (1 + 2 * seed))
        for seed, (regions, depths) in enumerate(CASES[name])
    ]


def inputs(toy, samples) -> dict:
    batch = toy.batch(samples, side="left", heads=False)
    return {key: batch[key] for key in ("input_ids", "attention_mask", *VISUAL) if key in batch}


def generate(toy, model, samples, **options: object) -> torch.Tensor:
    return model.generate(
        **inputs(toy, samples),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=toy.tokenizer.pad_token_id,
        **options,
    )


def up_to_end(toy, row: torch.Tensor) -> list[int]:
    ids = row.tolist()
    end = toy.tokenizer.eos_token_id
    return ids[: ids.index(end) + 1] if end in ids else ids


@pytest.mark.parametrize("name", CASES)
def test_a_batch_says_what_its_prompts_say_alone(toy, model, name):
    samples = prompts(toy, name)
    together = generate(toy, model, samples)
    assert together.shape[1] <= NEW_TOKENS  # the new tokens alone
    for row, sample in enumerate(samples):
        assert up_to_end(toy, together[row]) == up_to_end(toy, generate(toy, model, [sample])[0])


@pytest.mark.parametrize("name", ["regions", "image-free"])
def test_it_is_a_greedy_loop_over_forward(toy, model, name):
    # A placeholder that an untrained model happens to say can't be given back to `forward`.
    placeholders = toy.tokenizer.convert_tokens_to_ids(list(PLACEHOLDERS))
    for sample in prompts(toy, name):
        batch = inputs(toy, [sample])
        length = batch["input_ids"].shape[1]
        while batch["input_ids"].shape[1] < length + NEW_TOKENS:
            logits = model(**batch).logits[:, -1].detach()
            logits[:, placeholders] = -torch.inf
            best = logits.argmax(-1, keepdim=True)
            batch["input_ids"] = torch.cat([batch["input_ids"], best], dim=1)
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        expected = up_to_end(toy, batch["input_ids"][0, length:])
        assert up_to_end(toy, generate(toy, model, [sample], suppress_tokens=placeholders)[0]) == expected


def test_it_says_something_else_about_other_pictures(toy, model):
    first, second = (toy.sample((0, 0), seed=seed, answer=None) for seed in (0, 1))
    assert torch.equal(first.text.input_ids, second.text.input_ids)
    logits = [model(**inputs(toy, [sample])).logits for sample in (first, second)]
    assert (logits[0] - logits[1]).abs().max() > 1e-4


def test_it_stops_at_the_end_token(toy):
    model = toy.model()
    end = toy.tokenizer.eos_token_id
    with torch.no_grad():  # a model that always says the end
        model.language_model.lm_head.weight.zero_()
        model.language_model.lm_head.bias = torch.nn.Parameter(
            torch.nn.functional.one_hot(torch.tensor(end), 300) * 9.0
        )
    assert generate(toy, model, prompts(toy, "regions")).tolist() == [[end]] * 3


def test_models_with_learned_positions_do_not_see_the_padding(toy):
    text = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
    model = toy.model(text=BackboneSettings(config=text))
    samples = prompts(toy, "mixed")
    together = generate(toy, model, samples)
    for row, sample in enumerate(samples):
        assert up_to_end(toy, together[row]) == up_to_end(toy, generate(toy, model, [sample])[0])
