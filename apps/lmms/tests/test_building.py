"""Processors, configurations and models from settings."""

import pytest
import torch
from lmms.building import build_config, build_model, build_processor, parts_of, wrap_model
from lmms.config import ModelSettings
from lmms.families import family_of
from lmms.model import VideoLMM
from lmms.teachers import check_teacher
from region_training.parts import ModelParts
from region_training.settings import ConfigError, TrainingSettings
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, SiglipImageProcessor
from video_autoregressive.config import AutoregressiveConfig, VideoTokenConfig


def test_every_parameter_is_in_one_part(each):
    for changes in ({}, {"enable_autoregressive": False}):
        model = each.model(frozen_parts=(), **changes)
        rows = ModelParts(model, prefixes=parts_of(model.config), settings=TrainingSettings()).rows()
        assert [row.name for row in rows][:3] == ["vision_tower", "projector", "language_model"]
        assert ("autoregressive" in [row.name for row in rows]) == (not changes)
        assert sum(row.num_parameters for row in rows) == sum(entry.numel() for entry in model.parameters())


def test_an_unknown_family_is_named_with_the_known_ones(toy):
    with pytest.raises(
        ValueError, match="got 'llava_next_video', expected one of llava_onevision, qwen2_5_vl, qwen3_vl"
    ):
        toy.config(config={"model_type": "llava_next_video"})
    with pytest.raises(ValueError, match=r"model.config.model_type: got 'gemma'"):
        build_processor(toy.settings(config={"model_type": "gemma"}), [])


def test_a_width_that_is_not_the_towers_is_an_error_that_names_both(each):
    with pytest.raises(ConfigError, match="embedding_dim: got 1152, expected 16: the width of the features of the vis"):
        each.config(autoregressive_config=AutoregressiveConfig())


def test_misspelt_keys_are_refused(toy):
    with pytest.raises(ConfigError, match=r"model.config: unknown keys visionconfig"):
        toy.config(config={"model_type": "llava_onevision", "visionconfig": {}})


def test_ids_and_sizes_come_from_the_tokenizer(each):
    config, ids = each.config().lmm, each.tokenizer.get_vocab()
    family = each.family()
    assert config.image_token_id == family.image_token_id == ids[family.placeholders[0]]
    assert config.video_token_id == family.video_token_id == ids[family.placeholders[1]]
    assert config.get_text_config().vocab_size == len(each.tokenizer)
    assert config.eos_token_id == each.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("asked", "frozen", "kind"),
    [("auto", True, "shared"), ("auto", False, "snapshot"), ("snapshot", True, "snapshot"), ("shared", True, "shared")],
)
def test_the_teacher_follows_from_what_is_frozen(toy, asked, frozen, kind):
    model = build_model(
        toy.settings(autoregressive_config=toy.autoregressive(teacher=asked)),
        toy.processor,
        frozen_parts=["vision_tower"] if frozen else [],
    )
    assert model.autoregressive_module.teacher.kind == model.config.teacher["kind"] == kind
    assert model.config.teacher["source"] is None


def test_a_shared_teacher_needs_a_frozen_tower(toy):
    settings = toy.settings(autoregressive_config=toy.autoregressive(teacher="shared"))
    with pytest.raises(ConfigError, match=r"teacher: got 'shared' with a tower that is trained.*frozen_parts"):
        build_model(settings, toy.processor)


def test_a_teacher_may_show_another_layer(toy):
    batch = toy.batch([toy.sample((2,))])
    changes = {"autoregressive_config": toy.autoregressive(teacher_layer=1)}
    first, last = toy.model(**changes).encode_frames(batch["visuals"]), toy.model().encode_frames(batch["visuals"])
    snapshot = toy.model(frozen_parts=(), **changes).encode_frames(batch["visuals"])
    torch.testing.assert_close(first.rows, snapshot.rows)
    assert not torch.equal(first.rows, last.rows)


def test_the_fingerprint_is_that_of_the_weights(toy):
    one, same, other = (toy.model(seed=seed, frozen_parts=()).config for seed in (0, 0, 1))
    assert one.teacher["fingerprint"] == same.teacher["fingerprint"] != other.teacher["fingerprint"]
    check_teacher(one, same.teacher)
    check_teacher(one, None)
    with pytest.raises(ValueError, match="its source has changed"):
        check_teacher(one, other.teacher)


def test_an_external_teacher_has_its_own_size_and_normalisation(each, tmp_path):
    vision = {"image_size": 24, "patch_size": 6, "hidden_size": 20, "intermediate_size": 24, "num_hidden_layers": 1}
    from transformers import SiglipVisionConfig

    torch.manual_seed(0)
    encoder = AutoModel.from_config(SiglipVisionConfig(**vision, num_attention_heads=2, vision_use_head=False))
    encoder.save_pretrained(tmp_path)
    SiglipImageProcessor(size={"height": 24, "width": 24}).save_pretrained(tmp_path)
    settings = each.autoregressive(teacher="external", teacher_path=str(tmp_path), embedding_dim=20)
    model = each.model(autoregressive_config=settings)
    batch = each.batch(each.mixed())
    targets = model.encode_frames(batch["visuals"])
    assert targets.dim == 20
    assert set(targets.grids) == {(4, 4)}
    assert targets.num_frames == batch["frames"].num_frames
    assert model.train()(**batch).autoregressive.num_targets > 0
    with pytest.raises(ConfigError, match="embedding_dim: got 16, expected 20: the width of the features of the exter"):
        each.config(autoregressive_config=each.autoregressive(teacher="external", teacher_path=str(tmp_path)))
    weights = load_file(tmp_path / "model.safetensors")
    del weights["embeddings.patch_embedding.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"files: embeddings\.patch_embedding\.bias"):
        each.model(autoregressive_config=settings)


def test_a_teacher_may_remember_what_it_said(toy, tmp_path):
    settings = toy.autoregressive(teacher="cache", teacher_path=str(tmp_path))
    model, batch = toy.model(autoregressive_config=settings, frozen_parts=()), toy.batch([toy.sample((3,))])
    first = model.encode_frames(batch["visuals"])
    assert len(list(tmp_path.rglob("*.pt"))) == 3
    assert torch.equal(model.encode_frames(batch["visuals"]).rows, first.rows)
    torch.testing.assert_close(first.rows, toy.model().encode_frames(batch["visuals"]).rows)
    # Another layer of the same weights is another teacher: nothing of the first is found again.
    shallow = toy.autoregressive(teacher="cache", teacher_path=str(tmp_path), teacher_layer=1)
    other = toy.model(autoregressive_config=shallow, frozen_parts=()).encode_frames(batch["visuals"])
    assert len(list(tmp_path.rglob("*.pt"))) == 6
    assert not torch.equal(other.rows, first.rows)


def test_a_pretrained_model_brings_its_processor(toy, tmp_path):
    toy.model(enable_autoregressive=False).save_plain(tmp_path)
    toy.processor.save_pretrained(tmp_path)
    settings = ModelSettings(pretrained=str(tmp_path))
    processor = build_processor(settings, [])
    assert processor.tokenizer.get_vocab() == toy.tokenizer.get_vocab()
    assert build_config(settings, processor).lmm.to_dict() == AutoProcessorless(tmp_path)
    with pytest.raises(ConfigError, match=r"model.tokenizer: a pretrained model brings its own"):
        build_processor(ModelSettings(pretrained=str(tmp_path), tokenizer="other"), [])
    # The guide's files name the model twice.
    build_processor(ModelSettings(pretrained=str(tmp_path), tokenizer=str(tmp_path)), [])


def test_a_model_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.pretrained: got nothing, and no model.config either"):
        build_processor(ModelSettings(), [])


def AutoProcessorless(path):  # noqa: N802
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path).to_dict()


def test_images_and_videos_must_be_normalised_alike(toy, tmp_path):
    toy.processor.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    processor.video_processor.image_mean = [0.1, 0.2, 0.3]
    with pytest.raises(ConfigError, match="expected the same for both"):
        build_config(toy.settings(), processor)


def test_the_first_weights_are_the_same_with_and_without_the_module(each):
    plain, whole = each.model(enable_autoregressive=False).lmm.state_dict(), each.model().lmm.state_dict()
    assert plain.keys() == whole.keys()
    for name, value in plain.items():
        assert torch.equal(whole[name], value), name


def test_a_layout_is_the_models(toy):
    tokens = VideoTokenConfig(newline="frame", pool_mode="max")
    assert toy.config(video_tokens=tokens).tokens == tokens


def saved(toy, folder, **options):
    """A folder as a run exports it."""
    model = toy.model(**options)
    model.save_pretrained(folder)
    toy.processor.save_pretrained(folder)
    return model


def test_frames_of_a_pretrained_qwen_have_the_size_that_is_asked_for(each, tmp_path):
    saved(each, tmp_path, enable_autoregressive=False)
    settings = ModelSettings(pretrained=str(tmp_path), image_size=48)
    if each.model_type == "llava_onevision":
        with pytest.raises(ConfigError, match=r"model.image_size: got 48, but this model has one size"):
            build_processor(settings, [])
        return
    small, large = each.family(), family_of(build_processor(settings, []))
    tokens = [family.prepare_video(each.clip(4, height=200, width=200)).num_tokens for family in (small, large)]
    assert tokens[1] == 4 * tokens[0]
    images = [family.prepare_images([each.image(height=200, width=200)]).texts[0] for family in (small, large)]
    assert len(images[1]) == 4 * len(images[0])


def test_a_model_opens_without_its_external_teacher(toy, tmp_path):
    from transformers import SiglipVisionConfig

    vision = {"hidden_size": 20, "intermediate_size": 24, "num_hidden_layers": 1, "image_size": 24, "patch_size": 6}
    encoder = AutoModel.from_config(SiglipVisionConfig(**vision, num_attention_heads=2, vision_use_head=False))
    encoder.save_pretrained(tmp_path / "teacher")
    SiglipImageProcessor(size={"height": 24, "width": 24}).save_pretrained(tmp_path / "teacher")
    settings = toy.autoregressive(teacher="external", teacher_path=str(tmp_path / "teacher"), embedding_dim=20)
    saved(toy, tmp_path / "model", autoregressive_config=settings)
    opened = VideoLMM.from_pretrained(tmp_path / "model")
    assert not opened.computes_autoregressive_loss
    assert opened(**toy.batch(toy.mixed())).losses.means().keys() == {"main"}


def test_the_learned_faster_token_goes_on_beside_a_module_of_other_settings(toy, tmp_path):
    layout = VideoTokenConfig(newline="no_token", faster_stride=2)
    model = saved(toy, tmp_path, video_tokens=layout)
    module = toy.autoregressive(loss_weight=0.7)
    settings = ModelSettings(
        pretrained=str(tmp_path), video_tokens=layout, enable_autoregressive=True, autoregressive_config=module
    )
    again = build_model(settings, toy.processor, frozen_parts=("vision_tower",))
    assert torch.equal(again.lmm.model.faster_token, model.lmm.model.faster_token)


def test_the_stream_decides_the_tokens_whether_or_not_the_loss_is_on():
    module = AutoregressiveConfig(add_faster_video=True, faster_token_stride=4)
    on, off = (ModelSettings(enable_autoregressive=is_on, autoregressive_config=module) for is_on in (True, False))
    assert on.token_layout == off.token_layout == VideoTokenConfig(newline="grid", faster_stride=4)


def test_a_loaded_model_is_wrapped(each, tmp_path):
    """It is what settings that name its folder make: the same weights, the same teacher, the same loss."""
    saved(each, tmp_path, enable_autoregressive=False)
    lmm = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    settings = ModelSettings(
        pretrained=str(tmp_path), enable_autoregressive=True, autoregressive_config=each.autoregressive()
    )
    for frozen in (["vision_tower"], []):
        built = build_model(settings, each.processor, frozen_parts=frozen)
        model = wrap_model(lmm, each.processor, each.autoregressive(), frozen_parts=frozen)
        assert model.config.teacher == built.config.teacher
        assert model.config.to_dict() == built.config.to_dict()
        model.autoregressive_module.load_state_dict(built.autoregressive_module.state_dict())
        batch = each.batch([each.sample((3,))])
        torch.testing.assert_close(model.eval()(**batch).losses.means(), built.eval()(**batch).losses.means())
        asked = {name: weight.requires_grad for name, weight in model.named_parameters()}
        assert asked == {name: weight.requires_grad for name, weight in built.named_parameters()}


def test_a_wrapped_model_has_one_type(toy):
    lmm = toy.model(enable_autoregressive=False).lmm.to(torch.bfloat16)
    model = wrap_model(lmm, toy.processor, toy.autoregressive())
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert wrap_model(lmm, toy.processor, None).autoregressive_module is None


def test_a_model_that_cannot_be_wrapped_is_refused(toy):
    lmm = toy.model(enable_autoregressive=False).lmm
    with pytest.raises(ConfigError, match="embedding_dim: got 1152, expected 16"):
        wrap_model(lmm, toy.processor, AutoregressiveConfig())
    with pytest.raises(ConfigError, match=r"frozen_parts: got \['head'\]"):
        wrap_model(lmm, toy.processor, toy.autoregressive(), frozen_parts=["head"])
    with pytest.raises(ValueError, match=r"VideoLMM: model_type: got 'regionwise_video_lmm', expected one of llava"):
        wrap_model(toy.model(), toy.processor, toy.autoregressive())
