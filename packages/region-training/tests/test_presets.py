import sys

import pytest
from region_training.presets import did_you_mean, load_preset, parse_config, preset_layers, preset_names, read_config
from region_training.settings import ConfigError


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "toy_presets"
    folder.mkdir()
    for name, text in {
        "__init__.py": "",
        "tiny.yaml": "training: {seed: 1}\n",
        "large.yaml": "model: {kind: big}\n",
        "larger.yaml": "preset: large\ntraining: {seed: 2}\n",
        "largest.yaml": "preset: larger\nmodel: {kind: huge}\n",
    }.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_presets", raising=False)
    return "toy_presets"


def test_presets_are_listed_and_read(package):
    assert preset_names(package) == ["large", "larger", "largest", "tiny"]
    assert load_preset(package, "large") == {"model": {"kind": "big"}}


def test_an_unknown_preset_names_those_there_are(package):
    with pytest.raises(
        ConfigError, match=r"no preset 'tinny' \(did you mean 'tiny'\?\); available: large, larger, largest, tiny"
    ):
        load_preset(package, "tinny")


def test_a_preset_lies_above_those_that_it_builds_on(package):
    assert preset_layers(package, "largest") == [
        ("large", {"model": {"kind": "big"}}),
        ("larger", {"training": {"seed": 2}}),
        ("largest", {"model": {"kind": "huge"}}),
    ]
    assert preset_layers(package, "tiny") == [("tiny", {"training": {"seed": 1}})]


@pytest.mark.parametrize(
    ("below", "message"),
    [("odd", "builds on itself: odd -> odd"), ("even", "odd -> even -> odd"), ("largr", "no preset 'largr'")],
)
def test_a_preset_that_builds_on_itself_or_on_nothing_is_refused(package, tmp_path, below, message):
    (tmp_path / "toy_presets" / "odd.yaml").write_text(f"preset: {below}\n")
    (tmp_path / "toy_presets" / "even.yaml").write_text("preset: odd\n")
    with pytest.raises(ConfigError, match=message):
        preset_layers(package, "odd")


def test_a_config_file_is_read_and_an_empty_one_is_empty(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: {b: [1, 2]}\n")
    assert read_config(path) == {"a": {"b": [1, 2]}}
    path.write_text("# nothing\n")
    assert read_config(path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
        ("!!python/name:os.system", "could not determine a constructor for the tag"),
        ("a: 1\nb: 2\na: 3", "the key 'a' stands twice"),
        ("a: {b: 1, b: 2}", "the key 'b' stands twice"),
        ("a: [1", "my.yaml: not a plain YAML"),
        ("a: 1\n---\nb: 2", "single document"),
        ("- 1", "got list, expected a mapping"),
        ("1: 2", "expected a mapping of setting names"),
        ("just words", "got str"),
    ],
)
def test_anything_but_a_plain_mapping_is_refused(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(text, "my.yaml")
    assert "my.yaml" in str(caught.value)


def test_merge_keys_may_be_overridden():
    assert parse_config("base: &b {a: 1, c: 2}\nmine: {<<: *b, a: 3}", "x")["mine"] == {"a": 3, "c": 2}


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        read_config(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\xff")
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        read_config(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("training.lerning_rate", "training.learning_rate"),
        ("learning_rate", "training.learning_rate"),
        ("model.seed", "training.seed"),
        ("sed", "training.seed"),
        ("zzz", None),
    ],
)
def test_the_nearest_key_is_offered(word, found):
    known = ["model.kind", "training.seed", "training.learning_rate"]
    assert did_you_mean(word, known) == (f" (did you mean {found!r}?)" if found else "")
