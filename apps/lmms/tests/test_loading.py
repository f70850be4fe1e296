"""Opening a trained model."""

import pytest
from lmms.loading import load_model


def test_a_folder_is_opened_with_its_family(each, tmp_path):
    with pytest.raises(ValueError, match=r"no model.safetensors there"):
        load_model(tmp_path)
    each.model().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"no processor_config.json there"):
        load_model(tmp_path, "cpu")
    each.processor.save_pretrained(tmp_path / "model")
    model, family = load_model(tmp_path, "cpu")
    assert not model.training
    assert family.model_type == each.model_type
    assert family.video_token_id == model.config.lmm.video_token_id
    assert family.video_tokens == model.config.tokens
