"""Settings that contradict each other are refused before anything is read."""

from dataclasses import replace

import pytest
from region_training.settings import TrainingSettings
from sprc.config import DataSettings, EvaluationSettings, ModelSettings, Settings, SyntheticSettings

WITH_REGIONS = ModelSettings(use_region_loss=True)
BOXES = DataSettings(box_file="boxes.json")


def test_the_defaults_are_the_published_weights_and_no_region_loss():
    settings = Settings()
    model = settings.model
    assert (model.loss_rtc, model.loss_align, model.loss_region, model.use_region_loss) == (0.4, 0.4, 0.5, False)
    assert (model.num_query_tokens, model.image_text_hidden_size, model.max_caption_tokens) == (32, 256, 32)
    assert settings.data.transform == "targetpad"


def test_the_region_loss_needs_boxes():
    with pytest.raises(ValueError, match=r"model\.use_region_loss needs boxes: set data\.box_file \(--box-file\)"):
        Settings(model=WITH_REGIONS)
    Settings(model=WITH_REGIONS, data=BOXES)
    # Its triplets have boxes of their own.
    Settings(model=WITH_REGIONS, data=DataSettings(dataset="OACIRR"))


def test_weights_come_from_one_place():
    with pytest.raises(ValueError, match=r"give `blip2` \('a'\) or `checkpoint` \('b'\), not both"):
        ModelSettings(blip2="a", checkpoint="b")
    assert ModelSettings(checkpoint="b", vision={"dtype": "bfloat16"}).checkpoint == "b"


def test_a_region_is_read_by_queries_that_there_are():
    with pytest.raises(ValueError, match=r"model\.region_queries is 8, expected 1 to 4 \(model\.num_query_tokens\)"):
        ModelSettings(num_query_tokens=4)
    ModelSettings(num_query_tokens=4, region_queries=4)
    ModelSettings(num_query_tokens=4, region_mode="tokens")
    # Its own number of queries is known when it is read.
    ModelSettings(checkpoint="a", num_query_tokens=4)


def test_half_of_the_triplets_need_boxes_by_default():
    assert DataSettings().min_coverage == 0.5
    with pytest.raises(ValueError, match=r"data\.min_coverage is 50\.0, expected a share in \[0, 1\]"):
        DataSettings(min_coverage=50.0)


def test_there_is_no_synthetic_oacirr():
    with pytest.raises(ValueError, match=r"no synthetic OACIRR, expected data\.dataset CIRR or FashionIQ"):
        DataSettings(dataset="OACIRR", synthetic=SyntheticSettings())


def test_the_value_path_needs_images_and_a_cache_has_none():
    cached = replace(BOXES, token_cache="tokens")
    by_value = replace(WITH_REGIONS, region_mode="value")
    with pytest.raises(
        ValueError, match=r"region_mode is 'value', which needs the images .* data.token_cache is 'tokens'"
    ):
        Settings(model=by_value, data=cached)
    Settings(model=by_value, data=BOXES)
    Settings(model=WITH_REGIONS, data=cached)
    Settings(model=replace(by_value, use_region_loss=False), data=cached)


def test_the_best_weights_cannot_be_kept_where_no_rank_has_them():
    with pytest.raises(ValueError, match=r"save_best: under training\.zero_stage 3"):
        Settings(evaluation=EvaluationSettings(save_best=True), training=TrainingSettings(zero_stage=3))
    Settings(evaluation=EvaluationSettings(save_best=True), training=TrainingSettings(zero_stage=2))
