"""Recurra's models: recurrent encoder-decoders, from parallel text to translations. Knows no HTTP, SQL or metrics.

Names are imported when they are first used: torch takes more than a second, and whoever only reads a config need not
wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from model.config import PRESETS, ModelConfig, Preset, TokenizerConfig, TrainingConfig
    from model.decoding.search import SearchOptions
    from model.errors import CheckpointError, DataError, InvalidValue, RecurraError, TrainingError
    from model.network.seq2seq import EncoderDecoder, Seq2Seq
    from model.translator import Translation, Translator

_HOMES = {
    "model.checkpoint": ("Checkpoint", "load_checkpoint", "save_checkpoint"),
    "model.config": ("PRESETS", "ModelConfig", "Preset", "TokenizerConfig", "TrainingConfig"),
    "model.decoding.search": ("SearchOptions",),
    "model.errors": ("CheckpointError", "DataError", "InvalidValue", "RecurraError", "TrainingError"),
    "model.network.seq2seq": ("EncoderDecoder", "Seq2Seq"),
    "model.translator": ("Translation", "Translator"),
}

__all__ = [
    "PRESETS",
    "Checkpoint",
    "CheckpointError",
    "DataError",
    "EncoderDecoder",
    "InvalidValue",
    "ModelConfig",
    "Preset",
    "RecurraError",
    "SearchOptions",
    "Seq2Seq",
    "TokenizerConfig",
    "TrainingConfig",
    "TrainingError",
    "Translation",
    "Translator",
    "load_checkpoint",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
