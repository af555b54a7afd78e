"""Recurra's models: recurrent encoder-decoders, from parallel text to translations. Knows no HTTP, SQL or metrics."""

from model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.config import PRESETS, ModelConfig, Preset, TokenizerConfig, TrainingConfig
from model.decoding.search import SearchOptions
from model.errors import CheckpointError, DataError, InvalidValue, RecurraError, TrainingError
from model.network.seq2seq import EncoderDecoder, Seq2Seq
from model.translator import Translation, Translator

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
