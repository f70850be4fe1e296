"""Opening a model for inference: from a model folder, from a run folder, and what is no model."""

import pytest
import torch
from psalm.loading import load_model, open_processor
from region_training.loading import model_folder


@pytest.fixture(scope="module")
def run_folder(toy, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model.save_pretrained(folder / "model")
    toy.processor().save_pretrained(folder / "model")
    return folder


def test_a_run_folder_and_its_model_folder_open_alike(toy, model, run_folder):
    batch = toy.batch(with_targets=False)
    for folder in (run_folder, str(run_folder / "model")):
        opened, processor = load_model(folder, "cpu")
        assert not opened.training
        assert processor.num_queries == 6
        with torch.no_grad():
            assert torch.equal(opened(**batch).mask_logits, model(**batch).mask_logits)


def test_what_is_no_model_is_refused(tmp_path, run_folder):
    with pytest.raises(ValueError, match=r"no model\.safetensors there or in its folder `model`"):
        model_folder(tmp_path)
    with pytest.raises(ValueError, match=r"no processor_config\.json"):
        open_processor(tmp_path)
    assert model_folder(run_folder) == run_folder / "model"
