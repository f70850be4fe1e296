"""The token layout of videos against LLaVA-OneVision and LLaVA-NeXT-Video in transformers."""

import pytest
import torch
from transformers import LlavaNextVideoConfig, LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig
from transformers.models.llava_next_video.modeling_llava_next_video import LlavaNextVideoPooler
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from video_autoregressive.config import VideoTokenConfig
from video_autoregressive.pooling import spatial_pool
from video_autoregressive.token_layout import VideoTokenLayout

IMAGE, VIDEO, FRAMES = 90, 91, 3


@pytest.fixture(params=[5, 6], ids=["odd grid", "even grid"])
def onevision(request):
    """A tiny LLaVA-OneVision whose frames have that many patches on a side."""
    torch.manual_seed(0)
    side = request.param
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=side * 4,
            patch_size=4,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=100,
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=[[side * 4, side * 4]],
    )
    return LlavaOnevisionModel(config).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_token_is_the_layout_of_llava_onevision_to_the_bit(onevision, dtype):
    model = onevision.to(dtype)
    side = model.config.vision_config.image_size // 4
    pixels = torch.rand(2, FRAMES, 3, side * 4, side * 4).to(dtype)
    tokens = VideoTokenLayout(VideoTokenConfig())
    with torch.no_grad():
        theirs = model.get_video_features(pixels, vision_feature_layer=-1, vision_feature_select_strategy="full")
        states = model.vision_tower(pixels.flatten(0, 1), output_hidden_states=True).hidden_states[-1]
        features = model.multi_modal_projector(states).unflatten(0, (2, FRAMES))
        ours = torch.stack([tokens.arrange(clip, (side, side), model.image_newline) for clip in features])
    assert torch.equal(ours, theirs.pooler_output)
    assert ours.shape[1] == tokens.num_tokens(FRAMES, (side, side))


def test_the_model_reads_the_patches_where_the_layout_says(onevision):
    """A frame changed in the video changes the embeddings at its own span and nowhere else."""
    side = onevision.config.vision_config.image_size // 4
    tokens = VideoTokenLayout(VideoTokenConfig())
    count = tokens.num_tokens(FRAMES, (side, side))
    ids = torch.tensor([[1, 2, *[VIDEO] * count, 3, 4]])
    layout = tokens.layout([0.0, 1.0, 2.0], (side, side), start=2)
    pixels = torch.rand(1, FRAMES, 3, side * 4, side * 4)
    changed = pixels.clone()
    changed[:, 1] = torch.rand(3, side * 4, side * 4)
    embeddings = []

    def keep(_module, _positional, named):
        embeddings.append(named["inputs_embeds"])

    onevision.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        for frames in (pixels, changed):
            onevision(input_ids=ids, pixel_values_videos=frames)
    moved = (embeddings[0] != embeddings[1]).any(-1)[0].nonzero().flatten()
    assert torch.equal(moved, layout.spans[1].patch_indices())


@pytest.mark.parametrize("mode", ["average", "max"])
def test_average_and_max_are_those_of_llava_next_video(mode):
    config = LlavaNextVideoConfig(
        vision_config=SiglipVisionConfig(hidden_size=16, image_size=24, patch_size=4), spatial_pool_mode=mode
    )
    features = torch.randn(FRAMES, 36, 16)
    assert torch.equal(
        spatial_pool(features, (6, 6), config.spatial_pool_stride, mode), LlavaNextVideoPooler(config)(features)
    )
