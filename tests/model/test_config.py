"""Configs refuse wrong values by name, survive JSON, and presets say what they follow."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from model.config import PRESETS, ModelConfig, TokenizerConfig, TrainingConfig, from_mapping, preset
from model.errors import InvalidValue

CONFIGS = [ModelConfig, TokenizerConfig, TrainingConfig]
configs = pytest.mark.parametrize("cls", CONFIGS)
presets = pytest.mark.parametrize("name", sorted(PRESETS))


@configs
def test_a_config_survives_json(cls: type[Any]) -> None:
    assert from_mapping(cls, json.loads(json.dumps(cls().to_json()))) == cls()


@configs
def test_an_unknown_option_is_refused_with_those_there_are(cls: type[Any]) -> None:
    with pytest.raises(InvalidValue, match=f"no such option; there are .*{fields(cls)[0].name}") as caught:
        from_mapping(cls, {"colour": "red"})
    assert (caught.value.field, caught.value.value) == ("colour", "red")


@configs
def test_a_config_cannot_be_changed(cls: type[Any]) -> None:
    config = cls()
    with pytest.raises(FrozenInstanceError):
        setattr(config, fields(cls)[0].name, 1)


def test_an_option_name_belongs_to_one_config() -> None:
    names = [f.name for cls in CONFIGS for f in fields(cls)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (ModelConfig, "cell", "transformer"),
        (ModelConfig, "cell", ["gru"]),
        (ModelConfig, "attention", "Additive"),
        (ModelConfig, "attention_query", ""),
        (ModelConfig, "tie_embeddings", None),
        (ModelConfig, "encoder_dim", 0),
        (ModelConfig, "decoder_dim", 8193),
        (ModelConfig, "embedding_dim", 12.0),
        (ModelConfig, "encoder_layers", True),
        (ModelConfig, "src_vocab_size", -1),
        (ModelConfig, "residual", 1),
        (ModelConfig, "attention_heads", "4"),
        (TokenizerConfig, "kind", "characters"),
        (TokenizerConfig, "model_type", "wordpiece"),
        (TokenizerConfig, "vocab_size", 4),
        (TokenizerConfig, "min_frequency", 0),
        (TokenizerConfig, "shared", "yes"),
        (TrainingConfig, "learning_rate", 0),
        (TrainingConfig, "learning_rate", float("nan")),
        (TrainingConfig, "max_minutes", float("inf")),
        (TrainingConfig, "dropout", 1.0),
        (TrainingConfig, "dropout", "0.1"),
        (TrainingConfig, "max_epochs", 0),
        (TrainingConfig, "batch_tokens", 2048.5),
        (TrainingConfig, "schedule", "linear"),
        (TrainingConfig, "precision", "fp16"),
        (TrainingConfig, "variational", None),
        (TrainingConfig, "seed", -1),
    ],
)
def test_a_wrong_value_is_refused_by_name(cls: type[Any], name: str, value: Any) -> None:
    with pytest.raises(InvalidValue, match="allowed is") as caught:
        cls(**{name: value})
    assert (caught.value.field, caught.value.value) == (name, value) or value != value


@pytest.mark.parametrize(
    ("options", "name", "reason"),
    [
        ({"bidirectional_decoder": True}, "bidirectional_decoder", "tokens it has to predict"),
        ({"attention": "none", "input_feeding": True}, "input_feeding", "no context to feed"),
        ({"attention": "none", "attention_query": "previous"}, "attention_query", "without attention"),
        ({"context_input": True}, "context_input", "context of its own"),
        ({"attention_query": "previous", "input_feeding": True}, "input_feeding", "enters anyway"),
        ({"attention": "dot"}, "attention", r"1024.*512.*general"),
        ({"attention_heads": 4}, "attention_heads", "additive"),
        ({"attention": "additive", "attention_heads": 3}, "attention_heads", "divisor"),
        ({"readout_dim": 100}, "readout_dim", "embedding_dim"),
        ({"src_vocab_size": 50, "tgt_vocab_size": 60}, "tie_embeddings", "vocabularies differ"),
        ({"bidirectional_layers": 2}, "bidirectional_layers", "from 0 to 1"),
    ],
)
def test_values_that_do_not_go_together_are_refused_with_the_reason(
    options: dict[str, Any], name: str, reason: str
) -> None:
    with pytest.raises(InvalidValue, match=reason) as caught:
        ModelConfig(**options)
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("layers", "bidirectional", "directions", "memory_dim"),
    [(3, 0, (1, 1, 1), 7), (3, 1, (2, 1, 1), 7), (3, 3, (2, 2, 2), 14), (1, 1, (2,), 14)],
)
def test_the_lowest_layers_read_in_both_directions(
    layers: int, bidirectional: int, directions: tuple[int, ...], memory_dim: int
) -> None:
    config = ModelConfig(encoder_dim=7, encoder_layers=layers, bidirectional_layers=bidirectional)
    assert config.num_directions == directions
    assert config.memory_dim == memory_dim


# presets


@presets
def test_a_preset_says_what_it_follows_and_where_it_departs(name: str) -> None:
    assert preset(name).follows.endswith(".")
    assert preset(name).departs.endswith(".")


@presets
def test_a_preset_survives_json(name: str) -> None:
    config = preset(name).model
    assert from_mapping(ModelConfig, json.loads(json.dumps(config.to_json()))) == config


def test_the_papers_differ_where_their_presets_do() -> None:
    assert {name: preset(name).model.cell for name in ("cho2014", "sutskever2014", "bahdanau2015")} == {
        "cho2014": "gru",
        "sutskever2014": "lstm",
        "bahdanau2015": "gru",
    }
    assert preset("cho2014").model.context_input
    assert preset("sutskever2014").model.reverse_source
    assert preset("bahdanau2015").model.attention_query == "previous"
    assert preset("luong2015").model.input_feeding
    assert preset("gnmt2016").model.num_directions == (2, 1, 1, 1)
    assert preset("rnmtplus2018").model.attention_heads == 4


def test_an_unknown_preset_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidValue, match="one of bahdanau2015, base, cho2014"):
        preset("transformer")


def test_options_find_their_part_by_name() -> None:
    changed = preset("base").with_options({"decoder_dim": 300, "vocab_size": 500, "max_epochs": 2})
    assert changed.model == replace(PRESETS["base"].model, decoder_dim=300)
    assert changed.tokenizer == TokenizerConfig(vocab_size=500)
    assert changed.training == replace(PRESETS["base"].training, max_epochs=2)


def test_options_leave_the_preset_itself_alone() -> None:
    before = preset("base").model
    preset("base").with_options({"decoder_dim": 300})
    assert preset("base").model is before


@pytest.mark.parametrize(("options", "field"), [({"colour": 1}, "colour"), ({"dropout": 7}, "dropout")])
def test_wrong_options_of_a_preset_are_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        preset("base").with_options(options)
    assert caught.value.field == field
