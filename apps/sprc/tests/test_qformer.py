"""The four passes against a few lines of plain torch that follow the published description, weights tied."""

import math

import pytest
import torch
from torch.nn import functional as F


class PlainQFormer:
    """SPRC's passes written out: one layer at a time, attention by hand; float64."""

    def __init__(self, model) -> None:
        self.weights = dict(model.named_parameters())
        self.config = model.config
        self.num_queries = model.config.num_query_tokens

    def linear(self, name, states):
        return states @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name, states, eps=1e-12):
        centred = states - states.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attend(self, name, states, context, mask):
        heads = self.config.qformer.num_attention_heads
        query, key, value = (
            self.linear(f"{name}.attention.{part}", source).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part, source in (("query", states), ("key", context), ("value", context))
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None] == 0, -torch.inf)
        seen = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        return self.norm(f"{name}.output.LayerNorm", self.linear(f"{name}.output.dense", seen) + states)

    def feed_forward(self, name, kind, states):
        inner = F.gelu(self.linear(f"{name}.intermediate{kind}.dense", states))
        return self.norm(f"{name}.output{kind}.LayerNorm", self.linear(f"{name}.output{kind}.dense", inner) + states)

    def run(self, sequence, mask, image=None):
        """With an image the first positions are queries; without one every position is text."""
        states = self.norm("composer.qformer.layernorm", sequence)
        for index in range(self.config.qformer.num_hidden_layers):
            name = f"composer.qformer.encoder.layer.{index}"
            states = self.attend(f"{name}.attention", states, states, mask)
            if image is None:
                states = self.feed_forward(name, "", states)
                continue
            queries, text = states[:, : self.num_queries], states[:, self.num_queries :]
            if index % 2 == 0:
                queries = self.attend(f"{name}.crossattention", queries, image, None)
            queries = self.feed_forward(name, "_query", queries)
            states = torch.cat([queries, self.feed_forward(name, "", text)], dim=1)
        return states

    def image(self, tokens):
        return self.norm("ln_vision", tokens, eps=self.config.ln_vision_eps)

    def words(self, input_ids):
        return self.weights["composer.embeddings.word_embeddings.weight"][input_ids]

    def positions(self, count):
        return self.weights["composer.embeddings.position_embeddings.weight"][:count]

    def unit(self, name, states):
        projected = self.linear(f"composer.{name}_projection", states)
        return projected / projected.norm(dim=-1, keepdim=True)

    def fuse(self, tokens, input_ids, mask):
        text = self.words(input_ids) + self.positions(input_ids.shape[1])
        queries = self.weights["composer.query_tokens.weight"].expand(len(text), -1, -1)
        sequence = torch.cat([queries, text], dim=1)
        return self.run(sequence, self.long_mask(mask), self.image(tokens))[:, : self.num_queries]

    def compose(self, fused, input_ids, mask):
        text = self.words(input_ids) + self.positions(input_ids.shape[1])
        states = self.run(torch.cat([fused, text], dim=1), self.long_mask(mask))
        return self.unit("text", states[:, self.num_queries])

    def target(self, tokens):
        queries = self.weights["composer.query_tokens.weight"].expand(len(tokens), -1, -1)
        return self.unit("vision", self.run(queries, None, self.image(tokens)))

    def prompted(self, input_ids, mask):
        words = self.words(input_ids)
        prompts = self.weights["composer.prompt_tokens.weight"].expand(len(words), -1, -1)
        sequence = torch.cat([words[:, :1], prompts, words[:, 1:]], dim=1)
        sequence = sequence + self.positions(sequence.shape[1])
        return self.unit("text", self.run(sequence, self.long_mask(mask))[:, 0])

    def long_mask(self, mask):
        return torch.cat([torch.ones(len(mask), self.num_queries), mask], dim=1)

    def losses(self, reference, target, input_ids, mask):
        fused = self.fuse(reference, input_ids, mask)
        targets = self.target(target)
        right = torch.arange(len(targets))
        losses = {}
        for name, query in (
            ("itc", self.compose(fused, input_ids, mask)),
            ("rtc", self.prompted(input_ids, mask)),
        ):
            similarity = torch.stack([(targets @ row).amax(dim=1) for row in query])
            losses[name] = F.cross_entropy(similarity / self.weights["temperature.value"], right)
        prompts = self.weights["composer.prompt_tokens.weight"].detach()
        losses["align"] = F.mse_loss(fused.mean(1), prompts.mean(0).expand(len(fused), -1))
        return losses


@pytest.fixture(scope="module")
def exact(toy_model):
    """The toy model in float64, with norms and biases that do something."""
    model = toy_model.model(use_region_loss=False).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 0:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data += 0.2 * noise
    return model


@pytest.fixture(scope="module")
def batch(toy_model):
    batch = toy_model.batch(4, owners=None)
    generator = torch.Generator().manual_seed(2)
    for side in ("reference", "target"):
        del batch[f"{side}_images"]
        batch[f"{side}_tokens"] = torch.randn(4, 17, 16, generator=generator, dtype=torch.float64)
    return batch


def test_the_four_passes_equal_the_plain_ones(exact, batch):
    plain = PlainQFormer(exact)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert (mask.sum(1) < mask.shape[1]).any(), "without padding the mask is not tested"
    reference, target = batch["reference_tokens"], batch["target_tokens"]
    with torch.no_grad():
        fused = plain.fuse(reference, ids, mask)
        expected = {
            "fused": fused,
            "composed": plain.compose(fused, ids, mask),
            "target": plain.target(target),
            "prompted": plain.prompted(ids, mask),
        }
        own = exact.composer.fuse(exact.ln_vision(reference), ids, mask)
        found = {
            "fused": own,
            "composed": exact.compose(reference, ids, mask),
            "target": exact.encode_targets(target),
            "prompted": exact.text_only(ids, mask),
        }
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, atol=1e-10, rtol=1e-10, msg=name)


def test_losses_and_gradients_equal_the_plain_ones(exact, batch):
    plain = PlainQFormer(exact)
    expected = plain.losses(
        batch["reference_tokens"], batch["target_tokens"], batch["input_ids"], batch["attention_mask"]
    )
    output = exact(**batch)
    for name, value in expected.items():
        assert output.losses.mean(name).item() == pytest.approx(value.item(), rel=1e-6)
    total = expected["itc"] + 0.4 * expected["rtc"] + 0.4 * expected["align"]
    parameters = {name: value for name, value in exact.named_parameters() if value.requires_grad}
    names = [name for name in parameters if not name.startswith("region_branch")]
    wanted = torch.autograd.grad(total, [parameters[name] for name in names])
    found = torch.autograd.grad(output.loss, [parameters[name] for name in names])
    for name, value, other in zip(names, found, wanted, strict=True):
        # The terms are float32.
        torch.testing.assert_close(value, other, atol=1e-7, rtol=1e-5, msg=name)


def test_prompts_take_the_text_feed_forward_where_there_is_no_image(exact, batch):
    """The trap of re-implementing from the paper: fused queries pass the words' layers in the second pass."""
    fused = exact.composer.fuse(exact.ln_vision(batch["reference_tokens"]), batch["input_ids"], batch["attention_mask"])
    query = exact.composer.read_prompted(fused.detach(), batch["input_ids"], batch["attention_mask"])
    layer = exact.composer.qformer.encoder.layer[0]
    reached = torch.autograd.grad(
        query.sum(),
        [
            layer.intermediate.dense.weight,
            layer.intermediate_query.dense.weight,
            layer.crossattention.output.dense.bias,
        ],
        allow_unused=True,
    )
    assert [gradient is not None for gradient in reached] == [True, False, False]


def test_alignment_does_not_train_the_soft_prompts(exact, batch):
    output = exact(**batch)
    (gradient,) = torch.autograd.grad(
        output.losses["align"].total, [exact.composer.prompt_tokens.weight], allow_unused=True
    )
    assert gradient is None


def test_padding_changes_nothing(model, toy_model):
    batch = toy_model.batch(owners=None)
    tokens = model.image_tokens(batch["reference_images"])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    longer = F.pad(ids, (0, 3)), F.pad(mask, (0, 3))
    with torch.no_grad():
        torch.testing.assert_close(model.compose(tokens, *longer), model.compose(tokens, ids, mask))
        torch.testing.assert_close(model.text_only(*longer), model.text_only(ids, mask))
