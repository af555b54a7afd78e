"""Small networks of every architecture: the presets at a few units, and combinations that no preset has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from model.config import PRESETS, ModelConfig

VOCAB_SIZE = 23
# Unequal on purpose: a swapped axis cannot pass. The key and memory widths are divisible by 4 heads.
NARROW: dict[str, Any] = {
    "src_vocab_size": VOCAB_SIZE,
    "tgt_vocab_size": VOCAB_SIZE,
    "embedding_dim": 5,
    "encoder_dim": 6,
    "decoder_dim": 7,
    "attention_dim": 8,
}


def narrowed(config: ModelConfig, **options: Any) -> ModelConfig:
    readout_dim = 9 if config.tie_embeddings == "none" else 5
    return replace(config, **{**NARROW, "readout_dim": readout_dim, **options})


UNTIED: dict[str, Any] = {**NARROW, "readout_dim": 9, "tie_embeddings": "none"}
ARCHITECTURES: dict[str, ModelConfig] = {
    **{name: narrowed(preset.model) for name, preset in PRESETS.items()},
    "rnn-dot": ModelConfig(**{**UNTIED, "cell": "rnn", "attention": "dot", "decoder_dim": 12}),
    "lstm-previous-deep-residual": ModelConfig(
        **{**UNTIED, "attention": "additive", "attention_query": "previous", "decoder_layers": 3, "residual": True}
    ),
    "gru-norm-general": ModelConfig(**{**UNTIED, "cell": "gru", "layer_norm": True, "decoder_layers": 2}),
    "lstm-context-bidirectional": ModelConfig(
        **{**UNTIED, "attention": "none", "context_input": True, "encoder_layers": 2, "bidirectional_layers": 2}
    ),
    "rnn-two-vocabularies": ModelConfig(**{**UNTIED, "cell": "rnn", "src_vocab_size": 31, "attention": "none"}),
    "gru-more-decoder-layers": ModelConfig(**{**UNTIED, "cell": "gru", "decoder_layers": 3, "input_feeding": True}),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


@pytest.fixture(params=sorted(ARCHITECTURES))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """A small config of every architecture."""
    return ARCHITECTURES[request.param]


@pytest.fixture(params=sorted(PRESETS))
def preset_config(request: pytest.FixtureRequest) -> ModelConfig:
    """A small config of every preset."""
    return ARCHITECTURES[request.param]
