"""Published layouts: SPRC's `.pt`, LAVIS' `.pth`, transformers' BLIP-2, in and out, and what is refused."""

import pytest
import torch
from sprc.convert import SPRC_KEY, convert, open_source, published_config
from sprc.key_map import BLIP2, LAVIS, SPRC, to_own_names, to_their_names
from sprc.model import SPRCModel
from sprc.tokenizer import train_tokenizer
from sprc.verbs import ConvertSettings
from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2VisionConfig

# Written down from SPRC's own code, not made by the map that is tested.
PUBLISHED_NAMES = {
    "visual_encoder.cls_token": (1, 1, 16),
    "visual_encoder.pos_embed": (1, 17, 16),
    "visual_encoder.patch_embed.proj.weight": (16, 3, 4, 4),
    "visual_encoder.blocks.1.norm2.bias": (16,),
    "visual_encoder.blocks.1.attn.q_bias": (16,),
    "visual_encoder.blocks.1.attn.v_bias": (16,),
    "visual_encoder.blocks.1.attn.qkv.weight": (48, 16),
    "visual_encoder.blocks.1.attn.proj.weight": (16, 16),
    "visual_encoder.blocks.1.mlp.fc2.weight": (16, 24),
    "ln_vision.weight": (16,),
    "Qformer.bert.embeddings.word_embeddings.weight": (20, 16),
    "Qformer.bert.embeddings.position_embeddings.weight": (16, 16),
    "Qformer.bert.embeddings.LayerNorm.bias": (16,),
    "Qformer.bert.encoder.layer.2.attention.self.query.weight": (16, 16),
    "Qformer.bert.encoder.layer.2.attention.output.LayerNorm.weight": (16,),
    "Qformer.bert.encoder.layer.2.crossattention.self.key.weight": (16, 16),
    "Qformer.bert.encoder.layer.2.crossattention.output.dense.weight": (16, 16),
    "Qformer.bert.encoder.layer.3.intermediate_query.dense.weight": (24, 16),
    "Qformer.bert.encoder.layer.3.output.dense.weight": (16, 24),
    "query_tokens": (1, 3, 16),
    "prompt_tokens": (1, 3, 16),
    "vision_proj.weight": (8, 16),
    "text_proj.bias": (8,),
    "temp": (),
}


@pytest.fixture(scope="module")
def trained(toy_model) -> SPRCModel:
    """A model in which every number differs from a new one's; the tower's keys have no bias, as published."""
    model = toy_model.model(seed=3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value += 0.1 * torch.randn(value.shape)
            if name.endswith("qkv.bias"):
                value[16:32] = 0
    return model


@pytest.fixture
def weights(trained) -> dict[str, torch.Tensor]:
    return to_their_names(SPRC, trained.state_dict())


@pytest.fixture
def write(trained, tmp_path):
    """Write a checkpoint with the configuration beside it, and say where."""

    def save(content, name: str = "model.pt", *, with_config: bool = True) -> str:
        torch.save(content, tmp_path / name)
        if with_config:
            trained.config.to_json_file((tmp_path / name).with_suffix(".config.json"), use_diff=False)
        return str(tmp_path / name)

    return save


def same_weights(found: SPRCModel, expected: SPRCModel, *, but: tuple[str, ...] = ("region_branch",)) -> bool:
    others = found.state_dict()
    return all(
        torch.equal(value, others[name]) for name, value in expected.state_dict().items() if not name.startswith(but)
    )


def test_names_and_shapes_are_the_published_ones(weights):
    assert {name: tuple(weights[name].shape) for name in PUBLISHED_NAMES} == PUBLISHED_NAMES
    kinds = {name.split(".")[0] for name in weights}
    assert kinds == {name.split(".")[0] for name in PUBLISHED_NAMES}
    assert not any("qkv.bias" in name for name in weights)


def test_every_weight_comes_back(trained, weights):
    own = to_own_names(SPRC, weights, trained.state_dict())
    expected = {name: value for name, value in trained.state_dict().items() if not name.startswith("region_branch")}
    assert set(own) == set(expected)
    assert all(torch.equal(own[name], value) for name, value in expected.items())


def test_to_the_published_file_and_back(trained, tmp_path, toy_model):
    folder, file, back = (str(tmp_path / name) for name in ("ours", "sprc.pt", "back"))
    trained.save_pretrained(folder)
    convert(ConvertSettings(source=folder, output=file, to="sprc"))
    content = torch.load(file, weights_only=True)
    assert set(content) == {"epoch", SPRC_KEY}
    convert(ConvertSettings(source=file, output=back))
    found = SPRCModel.from_pretrained(back).eval()
    assert same_weights(found, trained)
    batch = toy_model.batch(owners=None)
    with torch.no_grad():
        assert torch.equal(found(**batch).query_features, trained(**batch).query_features)


def test_a_published_file_may_hold_what_we_do_not_use(trained, weights, write):
    weights |= {
        "Qformer.cls.predictions.bias": torch.zeros(20),
        "Qformer.bert.embeddings.position_ids": torch.arange(16)[None],
        "itm_head.weight": torch.zeros(2, 16),
        "visual_encoder.norm.weight": torch.ones(16),
    }
    assert same_weights(open_source(write({"epoch": 7, SPRC_KEY: weights})), trained)


def test_half_precision_towers_are_read_exactly(trained, weights, write):
    halves = {name: value.half() if name.startswith("visual_encoder") else value for name, value in weights.items()}
    found = open_source(write({"epoch": 7, SPRC_KEY: halves}))
    own = found.vision_tower.embeddings.position_embedding
    assert own.dtype == torch.float32
    assert torch.equal(own, trained.vision_tower.embeddings.position_embedding.half().float())


def test_the_towers_last_block_is_cut_off(trained, weights, write):
    block = {name.replace("blocks.1.", "blocks.2."): value for name, value in weights.items() if "blocks.1." in name}
    assert same_weights(open_source(write({"epoch": 7, SPRC_KEY: weights | block})), trained)
    further = {name.replace("blocks.2.", "blocks.3."): value for name, value in block.items()}
    with pytest.raises(ValueError, match=r"12 unknown .*blocks\.3\."):
        open_source(write({"epoch": 7, SPRC_KEY: weights | block | further}))


def test_lavis_files_need_no_prompts(trained, weights, write):
    del weights["prompt_tokens"]
    found = open_source(write({"model": weights}, "blip2.pth"))
    assert same_weights(found, trained, but=("region_branch", "composer.prompt_tokens"))
    assert not torch.equal(found.composer.prompt_tokens.weight, trained.composer.prompt_tokens.weight)
    with pytest.raises(ValueError, match=r"SPRC weights .*1 missing \(prompt_tokens\)"):
        open_source(write({"epoch": 7, SPRC_KEY: weights}, "sprc.pt"))


def test_lavis_keeps_the_tower_in_a_file_of_its_own(trained, weights, tmp_path, write):
    prefix = "visual_encoder."
    tower = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    rest = {name: value for name, value in weights.items() if not name.startswith(prefix)}
    write({"model": rest}, "blip2.pth")
    with pytest.raises(ValueError, match=r"no vision tower; LAVIS keeps it in eva_vit_g.pth"):
        open_source(str(tmp_path / "blip2.pth"))
    write(tower, "eva_vit_g.pth", with_config=False)
    assert same_weights(open_source(str(tmp_path)), trained)


@pytest.mark.parametrize("name", ["temp", "ln_vision.bias", "visual_encoder.blocks.0.attn.q_bias"])
def test_a_missing_weight_is_named(weights, write, name):
    del weights[name]
    listed = name.replace("q_bias", "qkv.bias")
    with pytest.raises(ValueError, match=rf"1 missing \({listed}\)"):
        open_source(write({"epoch": 7, SPRC_KEY: weights}))


def test_an_unknown_weight_is_named(weights, write):
    with pytest.raises(ValueError, match=r"0 missing \(none\), 1 unknown \(adapter\.weight\)"):
        open_source(write({"epoch": 7, SPRC_KEY: weights | {"adapter.weight": torch.zeros(1)}}))


def test_a_weight_of_another_shape_is_named(weights, write):
    with pytest.raises(ValueError, match=r"ln_vision.weight +module \[16\], weights \[5\]"):
        open_source(write({"epoch": 7, SPRC_KEY: weights | {"ln_vision.weight": torch.zeros(5)}}))


def test_files_with_code_are_refused(write):
    with pytest.raises(ValueError, match="more than plain tensors"):
        open_source(write({"epoch": 7, SPRC_KEY: {"temp": print}}))


def test_heads_of_other_sizes_must_be_told(weights, write):
    with pytest.raises(ValueError, match=r"heads is known for a tower of width 1408 .* got 16 and 16"):
        open_source(write({"epoch": 7, SPRC_KEY: weights}, with_config=False))


def test_published_sizes_are_read_off_the_weights():
    empty = {
        "visual_encoder.cls_token": (1, 1, 1408),
        "visual_encoder.pos_embed": (1, 257, 1408),
        "visual_encoder.patch_embed.proj.weight": (1408, 3, 14, 14),
        "visual_encoder.blocks.0.mlp.fc1.weight": (6144, 1408),
        "Qformer.bert.embeddings.word_embeddings.weight": (30523, 768),
        "Qformer.bert.embeddings.position_embeddings.weight": (512, 768),
        "Qformer.bert.encoder.layer.0.intermediate.dense.weight": (3072, 768),
        "query_tokens": (1, 32, 768),
        "vision_proj.weight": (256, 768),
    }
    names = {f"visual_encoder.blocks.{block}.norm1.weight": (1408,) for block in range(40)}
    names |= {f"Qformer.bert.encoder.layer.{layer}.attention.self.key.bias": (768,) for layer in range(12)}
    names |= {f"Qformer.bert.encoder.layer.{layer}.crossattention.self.key.bias": (768,) for layer in range(0, 12, 2)}
    config = published_config({name: torch.empty(shape, device="meta") for name, shape in (empty | names).items()}, "x")
    wanted, qformer = Blip2VisionConfig(), Blip2QFormerConfig()
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size"):
        assert vars(config.vision)[name] == vars(wanted)[name]
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert vars(config.qformer)[name] == vars(qformer)[name]
    assert (config.qformer.vocab_size, config.qformer.cross_attention_frequency) == (30523, 2)
    assert (config.num_query_tokens, config.region_queries, config.image_text_hidden_size) == (32, 8, 256)


def test_a_bias_of_the_keys_has_no_place_in_the_published_layout(trained):
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    state["vision_tower.encoder.layers.0.self_attn.qkv.bias"] += 1
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv\.bias: the bias of the keys is not zero"):
        to_their_names(SPRC, state)


def test_output_of_the_published_layout_is_a_file(trained, tmp_path):
    trained.save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"expected a file that ends with .pt"):
        convert(ConvertSettings(source=str(tmp_path / "ours"), output=str(tmp_path / "folder"), to="sprc"))


@pytest.fixture(scope="module")
def blip2(toy_model, tmp_path_factory):
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**toy_model.vision, initializer_range=0.1),
        qformer_config=Blip2QFormerConfig(
            **{**toy_model.qformer, "max_position_embeddings": 40, "use_qformer_text_input": True}
        ),
        num_query_tokens=3,
        image_text_hidden_size=8,
    )
    model = Blip2ForImageTextRetrieval(config)
    torch.nn.init.normal_(model.query_tokens)
    folder = tmp_path_factory.mktemp("blip2")
    model.save_pretrained(folder)
    return model, folder


def test_transformers_blip2_becomes_ours(blip2, tmp_path):
    source, folder = blip2
    train_tokenizer(["make it red"], 20).save_pretrained(folder)
    convert(ConvertSettings(source=str(folder), output=str(tmp_path)))
    found = SPRCModel.from_pretrained(tmp_path)
    assert (found.config.num_query_tokens, found.config.region_queries) == (3, 3)
    back = to_their_names(BLIP2, found.state_dict())
    expected = {name: value for name, value in source.state_dict().items() if not name.startswith("itm_head")}
    assert set(back) == set(expected)
    assert all(torch.equal(back[name], value) for name, value in expected.items())
    assert (tmp_path / "tokenizer.json").is_file()


def test_a_source_without_a_tokenizer_says_so(trained, weights, write, tmp_path, caplog):
    convert(ConvertSettings(source=write({"epoch": 7, SPRC_KEY: weights}), output=str(tmp_path / "out")))
    assert "holds no tokenizer; published weights were trained with bert-base-uncased" in caplog.text


def test_another_model_is_refused(tmp_path):
    Blip2VisionConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected an SPRC or BLIP-2 model, got one of type 'blip_2_vision_model'"):
        open_source(str(tmp_path))


def test_layouts_differ_in_what_they_may_lack():
    assert "composer.prompt_tokens.weight" in LAVIS.optional
    assert "composer.prompt_tokens.weight" not in SPRC.optional
