"""First weights: pictures and places are seen, whatever the width."""

import pytest
import torch
from lmms.new_weights import EMBEDDING_SPREAD, PLACE_SPREAD, place_waves, settle_new_weights
from torch import Tensor
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

CONFIG = {
    "vision_config": {
        "model_type": "siglip_vision_model",
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vision_use_head": False,
    },
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 300,
    },
    "image_grid_pinpoints": [[64, 64]],
}


def new_model(*, settled: bool) -> LlavaOnevisionForConditionalGeneration:
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(**CONFIG))
    if settled:
        settle_new_weights(model.model.vision_tower, model.model.multi_modal_projector, model)
    return model.eval()


@torch.no_grad()
def tokens_of(model: LlavaOnevisionForConditionalGeneration, pixels: Tensor) -> Tensor:
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    return model.model.multi_modal_projector(states)


def test_pictures_arrive_as_loud_as_words() -> None:
    pixels = torch.rand(4, 3, 64, 64) * 2 - 1
    words = new_model(settled=True).get_input_embeddings().weight.detach().std()
    assert words == pytest.approx(EMBEDDING_SPREAD, rel=0.05)
    assert 0.5 < tokens_of(new_model(settled=True), pixels).std() / words < 10
    assert tokens_of(new_model(settled=False), pixels).std() < 0.2 * tokens_of(new_model(settled=True), pixels).std()


@pytest.mark.parametrize(("settled", "lowest", "highest"), [(True, 0.9, 1.0), (False, -1.0, 0.6)])
def test_the_towers_last_state_is_what_its_patches_show(settled: bool, lowest: float, highest: float) -> None:
    pixels = torch.rand(4, 3, 64, 64) * 0.2 - 0.5
    with torch.no_grad():
        states = new_model(settled=settled).model.vision_tower(pixels, output_hidden_states=True).hidden_states
    similarity = torch.nn.functional.cosine_similarity(states[0], states[-1], dim=-1).mean()
    assert lowest < similarity < highest


def test_all_places_differ_and_have_the_spread() -> None:
    torch.manual_seed(0)
    waves = place_waves(64, 96)
    assert waves.std() == pytest.approx(PLACE_SPREAD, rel=0.2)
    similarity = torch.nn.functional.cosine_similarity(waves[:, None], waves[None], dim=-1)
    assert similarity.fill_diagonal_(-1).max() < 0.95


def test_patches_that_make_no_square_are_refused() -> None:
    with pytest.raises(ValueError, match="got 12 places"):
        place_waves(12, 8)
