"""`VideoLMMConfig`: complete after construction, strict, and the same after saving."""

import pytest
from lmms.configuration import VideoLMMConfig, read_own
from video_autoregressive.config import VideoTokenConfig


def test_it_comes_back_as_it_was(each, tmp_path):
    config = each.config(main_loss_weight=0.5)
    config.save_pretrained(tmp_path)
    again = VideoLMMConfig.from_pretrained(tmp_path)
    assert again.lmm.model_type == each.model_type
    assert again.autoregressive == config.autoregressive
    assert again.hidden_size == config.hidden_size == 32
    assert again.main_loss_weight == 0.5


def test_missing_keys_are_filled_and_unknown_ones_refused():
    config = VideoLMMConfig(video_tokens={"newline": "frame"}, autoregressive_config={"num_hist": 2})
    assert config.tokens == VideoTokenConfig(newline="frame")
    assert config.autoregressive.num_hist == 2
    assert config.autoregressive_config["embedding_dim"] == 1152
    assert VideoLMMConfig().autoregressive is None
    with pytest.raises(ValueError, match=r"unknown key 'num_his'.*did you mean 'num_hist'"):
        VideoLMMConfig(autoregressive_config={"num_his": 2})
    with pytest.raises(TypeError, match="newlines"):
        VideoLMMConfig(video_tokens={"newlines": "frame"})


def test_our_half_lies_beside_the_librarys(each, tmp_path):
    config = each.config()
    config.teacher = {"kind": "shared", "source": None, "fingerprint": "x"}
    config.save_own(tmp_path)
    again = VideoLMMConfig(lmm_config=config.lmm, **read_own(tmp_path))
    assert again.to_dict() == config.to_dict()
    assert read_own(tmp_path / "elsewhere") == {}
