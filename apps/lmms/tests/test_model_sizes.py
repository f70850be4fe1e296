"""Sizes of a model that is not built are those of the one that is."""

import pytest
import torch
from lmms.building import build_config, parts_of
from lmms.model_sizes import measure_model
from region_training.settings import ConfigError
from transformers import AutoModel, SiglipConfig


def test_every_part_is_counted_exactly(each):
    model = each.model(frozen_parts=())
    sizes = measure_model(each.config(), ["vision_tower"])
    assert [part.name for part in sizes.parts] == list(parts_of(model.config))
    for part in sizes.parts:
        prefixes = parts_of(model.config)[part.name]
        own = [weight for name, weight in model.named_parameters() if name.startswith(prefixes)]
        assert part.num_parameters == sum(weight.numel() for weight in own)
        assert part.num_trained == (0 if part.name == "vision_tower" else part.num_parameters)
    assert sizes.num_parameters == sum(weight.numel() for weight in model.parameters())
    assert sizes.largest_tensor == max(weight.numel() for weight in model.parameters())
    assert "vision_tower" not in sizes.trained_parts


def test_weights_that_are_shared_count_once(toy):
    config = toy.config(config={**toy.settings().config, "tie_word_embeddings": True})
    config.lmm.get_text_config().tie_word_embeddings = True
    apart = measure_model(toy.config(), [])
    text = config.lmm.get_text_config()
    assert apart.num_parameters - measure_model(config, []).num_parameters == text.vocab_size * text.hidden_size


@pytest.mark.parametrize(
    ("teacher", "frozen", "has_weights"),
    [("auto", True, False), ("auto", False, True), ("shared", True, False), ("snapshot", True, True)],
)
def test_a_teacher_counts_where_it_has_weights_of_its_own(toy, teacher, frozen, has_weights):
    config = toy.config(autoregressive_config=toy.autoregressive(teacher=teacher))
    sizes = measure_model(config, ["vision_tower"] if frozen else [])
    assert sizes.teacher == (sizes.parts[0].num_parameters if has_weights else 0)
    assert measure_model(toy.config(enable_autoregressive=False), []).teacher == 0


def test_an_external_teacher_is_counted_by_its_configuration(toy, tmp_path):
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = SiglipConfig(vision_config={**size, "image_size": 16, "patch_size": 8}, text_config=size)
    encoder.save_pretrained(tmp_path)
    own = toy.autoregressive(teacher="external", teacher_path=str(tmp_path))
    sizes = measure_model(build_config(toy.settings(autoregressive_config=own), toy.processor), [])
    whole = AutoModel.from_config(encoder)
    assert sizes.teacher == sum(weight.numel() for weight in whole.vision_model.parameters())


def test_nothing_is_allocated_and_no_configuration_changed(toy):
    config = toy.config()
    state = torch.get_rng_state()
    measure_model(config, [])
    assert config.teacher is None
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unknown_part_is_named(toy):
    with pytest.raises(ConfigError, match=r"frozen_parts: got \['head'\], expected names among"):
        measure_model(toy.config(), ["head"])
