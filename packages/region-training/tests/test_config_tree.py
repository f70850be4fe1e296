from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given, settings
from region_training.config_tree import (
    build_settings,
    default_tree,
    field_helps,
    flatten,
    merge_layer,
    options_of,
    plain_tree,
    settings_from_plain,
    summary_of,
    type_text,
)
from region_training.settings import ConfigError, TrainingSettings


@dataclass(frozen=True)
class Heads:
    """Typed heads.

    Attributes:
        hidden: Width of the hidden layer.
        dropout: Share of values dropped.
    """

    hidden: int = 64
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"heads.hidden is {self.hidden}, expected 1 or more")


@dataclass(frozen=True)
class Model:
    """The model. With a second sentence.

    Attributes:
        heads: Typed heads.
        kind: Which
            one.
        switch: On or off.
        names: Some names.
        sizes: Sizes by name.
        box: Two numbers.
        mixed: Several types.
        weights: A file of weights.
    """

    heads: Heads | None = None
    kind: Literal["plain", "deformable"] = "plain"
    switch: bool = False
    names: list[str] = field(default_factory=list)
    sizes: dict[str, float] = field(default_factory=dict)
    box: tuple[int, int] = (3, 4)
    mixed: int | str | None = None
    weights: Path | None = None


@dataclass(frozen=True)
class TrainSettings:
    """What `train` needs.

    Attributes:
        run_dir: The run folder.
    """

    run_dir: str = ""
    model: Model = field(default_factory=Model)
    training: TrainingSettings = field(default_factory=TrainingSettings)


@dataclass(frozen=True)
class EvaluateSettings:
    """What `evaluate` needs.

    Attributes:
        run: The run folder.
        images: Pictures.
    """

    run: str
    images: list[str] = field(default_factory=list)
    split: str = "val"


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    size: int
    colour: Colour = Colour.RED


@dataclass(frozen=True)
class Outer:
    """Outer.

    Args:
        given (int): With a type, as some write it.
    """

    given: Inner = field(default_factory=lambda: Inner(7, Colour.BLUE))
    off: Inner | None = None
    needed: Inner = field(default_factory=lambda: Inner(1))
    tuples: tuple[str, ...] = ()


@dataclass(frozen=True)
class NeedsSection:
    inner: Inner


def build(layer, kind=TrainSettings):
    return settings_from_plain(kind, layer, "my.yaml")


def test_options_are_the_leaves_with_type_default_and_help():
    options = options_of(TrainSettings)
    assert list(options)[:4] == ["run_dir", "model.heads", "model.heads.hidden", "model.heads.dropout"]
    assert options["model.heads"].section
    assert options["model.heads.hidden"].default == 64
    assert options["model.kind"].help == "Which one."
    assert options["training.learning_rate"].annotation is float
    assert options_of(EvaluateSettings)["run"].required
    assert field_helps(Outer) == {"given": "With a type, as some write it."}
    assert summary_of(Inner) == ""
    assert summary_of(Model) == "The model. With a second sentence."


def test_numbers_switches_lists_and_sections_are_converted_by_type():
    built = build(
        {
            "model": {
                "heads": {"hidden": "12", "dropout": "1e-4"},
                "switch": "yes",
                "names": "[a, b]",
                "sizes": {"x": "2e-3", "y": 1},
                "box": [1, 2],
                "weights": "a/b.pt",
                "mixed": "word",
            },
            "training": {"learning_rate": "1e-4", "zero_stage": 3},
        }
    )
    assert built.model == Model(
        heads=Heads(12, 1e-4),
        switch=True,
        names=["a", "b"],
        sizes={"x": 2e-3, "y": 1.0},
        box=(1, 2),
        weights=Path("a/b.pt"),
        mixed="word",
    )
    assert built.training.learning_rate == 1e-4
    assert built.training.zero_stage == 3


def test_partial_sections_stand_on_the_defaults_of_their_field():  # T32
    # `given` has another default than its class; a partial dict must not fall back to the class's.
    built = build({"given": {"size": 9}}, Outer)
    assert built.given == Inner(9, Colour.BLUE)
    assert build({"off": {"size": 3}}, Outer).off == Inner(3)
    assert build({}, Outer).off is None
    assert build({"off": None}, Outer).off is None


def test_layers_merge_sections_and_dicts_and_replace_lists():
    tree, sources = default_tree(TrainSettings), {}
    merge_layer(TrainSettings, tree, {"model": {"sizes": {"a": 1}, "names": ["x", "y"]}}, "one", sources)
    merge_layer(TrainSettings, tree, {"model": {"sizes": {"b": 2}, "names": ["z"]}}, "two", sources)
    built = build_settings(TrainSettings, tree, sources)
    assert built.model.sizes == {"a": 1.0, "b": 2.0}
    assert built.model.names == ["z"]
    assert sources["model.names"] == "two"


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"trainingg": {}}, r"my.yaml: unknown setting 'trainingg'"),
        ({"training": {"lr": 1}}, r"my.yaml: unknown setting 'training.lr'"),
        ({"training": {"lerning_rate": 1}}, r"'training.lerning_rate' \(did you mean 'training.learning_rate'\?\)"),
        ({"model": {"heads": {"hiddn": 1}}}, r"'model.heads.hiddn' \(did you mean 'model.heads.hidden'\?\)"),
        ({"seed": 1}, r"'seed' \(did you mean 'training.seed'\?\)"),
        ({"model": 3}, r"my.yaml: model is 3, expected a section with the keys heads, kind"),
        ({"model": None}, r"model is None, expected a section"),
        ({"model": {"heads": 3}}, r"model.heads is 3, expected a section with the keys hidden, dropout"),
    ],
)
def test_unknown_keys_are_errors_with_the_whole_path(layer, message):  # T31
    with pytest.raises(ConfigError, match=message):
        build(layer)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            {"training": {"learning_rate": "fast"}},
            r"training.learning_rate is 'fast' \(from my.yaml\), expected float$",
        ),
        ({"training": {"seed": 1.5}}, r"training.seed is 1.5 \(from my.yaml\), expected int"),
        ({"training": {"seed": True}}, r"training.seed is True"),
        ({"training": {"seed": None}}, r"training.seed is None"),
        ({"model": {"names": None}}, r"model.names is None \(from my.yaml\), expected list\[str\]"),
        ({"model": {"names": "null"}}, r"model.names is 'null'"),
        ({"model": {"kind": "round"}}, r"model.kind is 'round' \(from my.yaml\), expected plain \| deformable"),
        ({"model": {"sizes": {"a": "x"}}}, r"model.sizes is {'a': 'x'} \(from my.yaml\), expected dict\[str, float\]"),
        ({"model": {"box": [1, 2, 3]}}, r"model.box is \[1, 2, 3\] \(from my.yaml\), expected tuple\[int, int\]"),
        ({"model": {"heads": {"hidden": "x"}}}, r"model.heads.hidden is 'x' \(from my.yaml\), expected int"),
        ({"run_dir": 5}, r"run_dir is 5 \(from my.yaml\), expected str"),
        ({"model": {"switch": "maybe"}}, r"model.switch is 'maybe' \(from my.yaml\), expected true \| false"),
        ({"training": {"zero_stage": 4}}, r"training.zero_stage is 4 \(from my.yaml\), expected 0 \| 1 \| 2 \| 3"),
    ],
)
def test_a_wrong_type_names_key_value_source_and_type(layer, message):
    with pytest.raises(ConfigError, match=message):
        build(layer)


def test_what_the_dataclass_refuses_is_a_config_error():
    with pytest.raises(ConfigError, match=r"training.seed: got -1, expected 0 or more"):
        build({"training": {"seed": -1}})
    with pytest.raises(ConfigError, match=r"heads.hidden is 0, expected 1 or more"):
        build({"model": {"heads": {"hidden": 0}}})


def test_required_settings_are_asked_for_unless_their_section_is_off():
    with pytest.raises(ConfigError, match="nothing given for 'run', expected a value"):
        build({}, EvaluateSettings)
    with pytest.raises(ConfigError, match=r"nothing given for 'inner.size'"):
        build({"inner": {"colour": "RED"}}, NeedsSection)
    with pytest.raises(ConfigError, match=r"nothing given for 'off.size'"):
        build({"off": {"colour": "RED"}}, Outer)
    assert build({"inner": {"size": 2}}, NeedsSection).inner == Inner(2)


def test_yaml_tags_in_texts_stay_texts():
    word = "!!python/object/apply:os.system [ls]"
    assert build({"run_dir": word}).run_dir == word
    with pytest.raises(ConfigError, match=r"model.names is"):
        build({"model": {"names": word}})


def test_flatten_and_type_texts():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
    assert type_text(Literal["a", "b"] | None) == "a | b | null"
    assert type_text(dict[str, list[int]]) == "dict[str, list[int]]"
    assert type_text(tuple[str, ...]) == "tuple[str, ...]"
    assert type_text(Colour) == "RED | BLUE"
    assert type_text(Path | None) == "path | null"


@settings(max_examples=10, deadline=None)
@given(
    hidden=st.one_of(st.none(), st.integers(1, 10**6)),
    rate=st.floats(1e-12, 1e3),
    names=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=8)),
    sizes=st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), st.floats(-1e6, 1e6)),
    mixed=st.one_of(st.none(), st.integers()),
)
def test_any_configuration_survives_yaml(hidden, rate, names, sizes, mixed):
    original = TrainSettings(
        model=Model(heads=None if hidden is None else Heads(hidden), names=names, sizes=sizes, mixed=mixed)
    )
    original = build(plain_tree(original) | {"training": {"learning_rate": rate}})
    assert build(yaml.safe_load(yaml.safe_dump(plain_tree(original), allow_unicode=True))) == original
    assert original.model.names == names
