"""What a model is and how it is trained, as frozen values; and the presets named after the papers that they follow.

A `ModelConfig` says everything that is needed to build the network of a checkpoint. A `TrainingConfig` says everything
that is needed to train it again. Both check themselves on construction, so that a wrong value is refused by name before
any work is done. Nothing here knows a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args

from model.errors import InvalidValue

CellKind = Literal["rnn", "gru", "lstm"]
AttentionKind = Literal["none", "additive", "dot", "general"]
AttentionQuery = Literal["previous", "current"]
Tying = Literal["none", "output", "all"]

_Config = TypeVar("_Config", bound="ModelConfig | TokenizerConfig | TrainingConfig")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InvalidValue(name, value, f"a number from {low:g} to {high:g}")


def _check_count(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidValue(name, value, f"a whole number from {low} to {high}")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidValue(name, value, "one of " + ", ".join(allowed))


def _check_flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise InvalidValue(name, value, "true or false")


def from_mapping(cls: type[_Config], values: Mapping[str, Any]) -> _Config:
    """Builds a config from plain JSON values; an unknown name is refused with the names there are."""
    known = {f.name for f in fields(cls)}
    for name in values:
        if name not in known:
            raise InvalidValue(name, values[name], "no such option; there are " + ", ".join(sorted(known)))
    return cls(**values)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of an encoder-decoder.

    Attributes:
        cell: recurrent cell of both sides: Elman's `rnn`, Cho's `gru`, Hochreiter and Schmidhuber's `lstm`.
        src_vocab_size, tgt_vocab_size: V of each side; set from the tokenizer.
        embedding_dim: E, the width of source and target embeddings.
        encoder_dim: H of the encoder, for each direction.
        decoder_dim: H of the decoder.
        encoder_layers, decoder_layers: L of each side.
        bidirectional_layers: how many of the lowest encoder layers read in both directions.
        reverse_source: the encoder reads the source backwards (Sutskever et al. 2014, section 3.3).
        residual: layers from the second on add their input to their output (Wu et al. 2016, section 3.1).
        layer_norm: gates are layer-normalised (Ba et al. 2016, equation 4).
        attention: score function, or `none`.
        attention_dim: A, the width of projected keys and queries for `additive`; other kinds follow `decoder_dim`.
        attention_heads: heads of `additive` (Chen et al. 2018, section 3).
        attention_query: `current` asks with the state after the cell (Luong et al. 2015), `previous` with the state
            before it, and the context enters the cell (Bahdanau et al. 2015).
        input_feeding: the attentional vector is concatenated to the next input (Luong et al. 2015, section 3.3).
        context_input: the fixed context (the encoder's last state) is concatenated to every decoder input
            (Cho et al. 2014); for models without attention.
        readout_dim: width of the vector that meets the output embeddings.
        tie_embeddings: `output` shares target embeddings with the output layer, `all` also with the source.
    """

    src_vocab_size: int = 0
    tgt_vocab_size: int = 0
    cell: CellKind = "lstm"
    embedding_dim: int = 256
    encoder_dim: int = 512
    decoder_dim: int = 512
    encoder_layers: int = 1
    decoder_layers: int = 1
    bidirectional_layers: int = 1
    bidirectional_decoder: bool = False
    reverse_source: bool = False
    residual: bool = False
    layer_norm: bool = False
    attention: AttentionKind = "general"
    attention_dim: int = 512
    attention_heads: int = 1
    attention_query: AttentionQuery = "current"
    input_feeding: bool = False
    context_input: bool = False
    readout_dim: int = 256
    tie_embeddings: Tying = "all"

    def __post_init__(self) -> None:
        _check_choice("cell", self.cell, get_args(CellKind))
        _check_choice("attention", self.attention, get_args(AttentionKind))
        _check_choice("attention_query", self.attention_query, get_args(AttentionQuery))
        _check_choice("tie_embeddings", self.tie_embeddings, get_args(Tying))
        for name in ("embedding_dim", "encoder_dim", "decoder_dim", "attention_dim", "readout_dim"):
            _check_count(name, getattr(self, name), 1, 8192)
        for name in ("src_vocab_size", "tgt_vocab_size"):
            _check_count(name, getattr(self, name), 0, 1_000_000)
        for name in ("encoder_layers", "decoder_layers"):
            _check_count(name, getattr(self, name), 1, 32)
        for flag in (
            "bidirectional_decoder",
            "reverse_source",
            "residual",
            "layer_norm",
            "input_feeding",
            "context_input",
        ):
            _check_flag(flag, getattr(self, flag))
        _check_count("bidirectional_layers", self.bidirectional_layers, 0, self.encoder_layers)
        _check_count("attention_heads", self.attention_heads, 1, 64)
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.bidirectional_decoder:
            raise InvalidValue(
                "bidirectional_decoder", True, "false: read backwards, a decoder would see the tokens it has to predict"
            )
        if self.attention == "none":
            if self.input_feeding:
                raise InvalidValue("input_feeding", True, "false without attention: there is no context to feed")
            if self.attention_query == "previous":
                raise InvalidValue("attention_query", "previous", "current without attention")
        elif self.context_input:
            raise InvalidValue("context_input", True, "false with attention, which has a context of its own")
        if self.attention_query == "previous" and self.input_feeding:
            raise InvalidValue(
                "input_feeding", True, "false with attention_query 'previous': the context enters anyway"
            )
        if self.attention == "dot" and self.memory_dim != self.decoder_dim:
            raise InvalidValue(
                "attention",
                "dot",
                f"dot only where the encoder's outputs ({self.memory_dim}) and decoder_dim "
                f"({self.decoder_dim}) are of one width; general has no such need",
            )
        if self.attention_heads > 1 and self.attention != "additive":
            raise InvalidValue("attention_heads", self.attention_heads, "1, or more with additive attention")
        if self.attention_dim % self.attention_heads or self.memory_dim % self.attention_heads:
            raise InvalidValue(
                "attention_heads", self.attention_heads, "a divisor of attention_dim and of the encoder's output width"
            )
        if self.tie_embeddings != "none" and self.readout_dim != self.embedding_dim:
            raise InvalidValue("readout_dim", self.readout_dim, f"embedding_dim ({self.embedding_dim}) when tied")
        if self.tie_embeddings == "all" and self.src_vocab_size != self.tgt_vocab_size:
            raise InvalidValue("tie_embeddings", "all", "output or none where the two vocabularies differ")

    @property
    def memory_dim(self) -> int:
        """Width of the encoder's outputs: D·H of its last layer."""
        return self.encoder_dim * (2 if self.bidirectional_layers == self.encoder_layers else 1)

    @property
    def num_directions(self) -> tuple[int, ...]:
        """D of each encoder layer, lowest first."""
        return tuple(2 if layer < self.bidirectional_layers else 1 for layer in range(self.encoder_layers))

    def is_residual_layer(self, index: int) -> bool:
        """Whether an encoder layer adds its input to its output: both have to be of one width."""
        directions = self.num_directions
        return self.residual and index > 0 and directions[index] == directions[index - 1]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How text becomes token ids.

    Attributes:
        kind: `word` (the course's: lower case, spaces around punctuation) or `sentencepiece`.
        vocab_size: V wanted from `sentencepiece`; fewer where the text has fewer pieces.
        model_type: `unigram` (Kudo 2018) or `bpe` (Sennrich et al. 2016).
        min_frequency: words of `word` seen less often become <unk>.
        shared: one vocabulary for both languages.
    """

    kind: Literal["word", "sentencepiece"] = "sentencepiece"
    vocab_size: int = 8000
    model_type: Literal["unigram", "bpe"] = "unigram"
    min_frequency: int = 2
    shared: bool = True

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, ("word", "sentencepiece"))
        _check_choice("model_type", self.model_type, ("unigram", "bpe"))
        _check_count("vocab_size", self.vocab_size, 16, 1_000_000)
        _check_count("min_frequency", self.min_frequency, 1, 1_000_000)
        _check_flag("shared", self.shared)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained.

    Attributes:
        max_epochs, max_steps, max_minutes: the run ends at whichever comes first; 0 is no limit for the last two.
        batch_tokens: padded tokens of the longer side a batch holds at most.
        learning_rate: peak of the schedule.
        warmup_steps: steps of linear rise to the peak.
        schedule: after the warm-up `cosine` falls to `final_learning_rate` at the run's planned end, `constant` stays,
            `inverse_sqrt` falls with the root of the step.
        final_learning_rate: end of the cosine, as a share of the peak.
        clip_norm: gradients are scaled down to this norm (0: never).
        label_smoothing: share of the target probability spread over the vocabulary (Szegedy et al. 2016).
        embedding_dropout, dropout, recurrent_dropout, readout_dropout: probabilities on embeddings, between layers,
            on the recurrent connection, and before the output layer. `variational` keeps one mask for all time steps
            of a sentence (Gal and Ghahramani 2016) on the first two; the recurrent one is always so.
        subword_sampling: smoothing alpha of sentencepiece's sampling (Kudo 2018), 0 for none.
        max_src_tokens, max_tgt_tokens: longer training pairs are left out, and counted.
        precision: `bf16` runs matrix products under autocast; `auto` takes what is faster on this machine.
        eval_every_epochs: how often the dev set is translated; the loss on it is measured then too.
        eval_sentences: dev sentences translated (greedy) for BLEU; 0 for all.
        patience: evaluations without a better dev BLEU after which the run stops; 0 for never.
        average_checkpoints: the result is the mean of this many best checkpoints.
        checkpoint_minutes: time between checkpoints within an epoch.
        seed: of weights, data order, dropout and sub-word sampling.
    """

    max_epochs: int = 20
    max_steps: int = 0
    max_minutes: float = 0.0
    batch_tokens: int = 2048
    learning_rate: float = 1e-3
    warmup_steps: int = 400
    schedule: Literal["cosine", "constant", "inverse_sqrt"] = "cosine"
    final_learning_rate: float = 0.02
    weight_decay: float = 1e-4
    beta2: float = 0.98
    clip_norm: float = 1.0
    label_smoothing: float = 0.1
    embedding_dropout: float = 0.1
    dropout: float = 0.2
    recurrent_dropout: float = 0.0
    readout_dropout: float = 0.2
    variational: bool = True
    subword_sampling: float = 0.0
    max_src_tokens: int = 128
    max_tgt_tokens: int = 128
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    eval_every_epochs: int = 1
    eval_sentences: int = 500
    patience: int = 6
    average_checkpoints: int = 4
    checkpoint_minutes: float = 5.0
    log_every_seconds: float = 10.0
    seed: int = 1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_epochs", 1, 10_000),
            ("max_steps", 0, 1_000_000_000),
            ("batch_tokens", 16, 1_000_000),
            ("warmup_steps", 0, 1_000_000),
            ("max_src_tokens", 2, 4096),
            ("max_tgt_tokens", 2, 4096),
            ("eval_every_epochs", 1, 10_000),
            ("eval_sentences", 0, 1_000_000),
            ("patience", 0, 10_000),
            ("average_checkpoints", 1, 32),
            ("seed", 0, 2**31 - 1),
        ):
            _check_count(name, getattr(self, name), low, high)
        for name, low_share, high_share in (
            ("max_minutes", 0, 1e6),
            ("learning_rate", 1e-8, 10),
            ("final_learning_rate", 0, 1),
            ("weight_decay", 0, 1),
            ("beta2", 0.5, 0.99999),
            ("clip_norm", 0, 1e6),
            ("label_smoothing", 0, 0.9),
            ("embedding_dropout", 0, 0.9),
            ("dropout", 0, 0.9),
            ("recurrent_dropout", 0, 0.9),
            ("readout_dropout", 0, 0.9),
            ("subword_sampling", 0, 10),
            ("checkpoint_minutes", 0.01, 1e6),
            ("log_every_seconds", 0.01, 1e6),
        ):
            _check_range(name, getattr(self, name), low_share, high_share)
        _check_flag("variational", self.variational)
        _check_choice("schedule", self.schedule, ("cosine", "constant", "inverse_sqrt"))
        _check_choice("precision", self.precision, ("auto", "fp32", "bf16"))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named architecture with what it follows and where it departs.

    Attributes:
        follows: the paper, and what is taken from it.
        departs: what is smaller or different here, and why.
    """

    follows: str
    departs: str
    model: ModelConfig
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def with_options(self, overrides: Mapping[str, Any]) -> Preset:
        """The preset with some options of its three parts replaced, each by its name.

        Raises:
            InvalidValue: no part has an option of that name, or its value is not allowed.
        """
        parts: dict[str, dict[str, Any]] = {"model": {}, "tokenizer": {}, "training": {}}
        owners = {
            f.name: part
            for part, cls in (("tokenizer", TokenizerConfig), ("model", ModelConfig), ("training", TrainingConfig))
            for f in fields(cls)
        }
        for name, value in overrides.items():
            if name not in owners:
                raise InvalidValue(name, value, "no such option; there are " + ", ".join(sorted(owners)))
            parts[owners[name]][name] = value
        return replace(
            self,
            model=replace(self.model, **parts["model"]),
            tokenizer=replace(self.tokenizer, **parts["tokenizer"]),
            training=replace(self.training, **parts["training"]),
        )


_COURSE_TOKENIZER = TokenizerConfig(kind="word", min_frequency=2, shared=False)
_COURSE_TRAINING = TrainingConfig(
    max_epochs=30,
    batch_tokens=1024,
    learning_rate=0.005,
    warmup_steps=0,
    schedule="constant",
    weight_decay=0.0,
    beta2=0.999,
    label_smoothing=0.0,
    embedding_dropout=0.0,
    readout_dropout=0.0,
)

PRESETS: dict[str, Preset] = {
    "cho2014": Preset(
        follows="Cho et al. 2014, 'Learning Phrase Representations using RNN Encoder-Decoder': GRU, one layer of 1000 "
        "units, 100-dimensional embeddings, the encoder's last state in every decoder input.",
        departs="whole sentences, not phrases to rescore; sub-words; Adam with dropout instead of Adadelta; a tanh "
        "readout instead of maxout.",
        model=ModelConfig(
            cell="gru",
            embedding_dim=100,
            encoder_dim=1000,
            decoder_dim=1000,
            bidirectional_layers=0,
            attention="none",
            context_input=True,
            readout_dim=500,
            tie_embeddings="none",
        ),
    ),
    "sutskever2014": Preset(
        follows="Sutskever et al. 2014, 'Sequence to Sequence Learning with Neural Networks': deep LSTM (4 layers) on "
        "both sides, reversed source, the last states handed over.",
        departs="512 units instead of 1000 and sub-words, to fit a small corpus; Adam instead of SGD.",
        model=ModelConfig(
            cell="lstm",
            embedding_dim=512,
            encoder_dim=512,
            decoder_dim=512,
            encoder_layers=4,
            decoder_layers=4,
            bidirectional_layers=0,
            reverse_source=True,
            attention="none",
            readout_dim=512,
            tie_embeddings="none",
        ),
    ),
    "bahdanau2015": Preset(
        follows="Bahdanau et al. 2015, 'Neural Machine Translation by Jointly Learning to Align and Translate': "
        "bidirectional GRU, additive attention asked with the previous state, the context enters the cell.",
        departs="512 units and 256-dimensional embeddings instead of 1000 and 620; a tanh readout instead of maxout; "
        "Adam instead of Adadelta.",
        model=ModelConfig(
            cell="gru",
            embedding_dim=256,
            encoder_dim=512,
            decoder_dim=512,
            attention="additive",
            attention_dim=512,
            attention_query="previous",
            readout_dim=256,
            tie_embeddings="none",
        ),
    ),
    "luong2015": Preset(
        follows="Luong et al. 2015, 'Effective Approaches to Attention-based Neural Machine Translation': stacked "
        "unidirectional LSTM, general score, global attention, input feeding, reversed source.",
        departs="2 layers of 512 units instead of 4 of 1000; Adam instead of SGD; sub-words.",
        model=ModelConfig(
            cell="lstm",
            embedding_dim=512,
            encoder_dim=512,
            decoder_dim=512,
            encoder_layers=2,
            decoder_layers=2,
            bidirectional_layers=0,
            reverse_source=True,
            attention="general",
            input_feeding=True,
            readout_dim=512,
            tie_embeddings="none",
        ),
    ),
    "gnmt2016": Preset(
        follows="Wu et al. 2016, 'Google's Neural Machine Translation System': deep residual LSTM, the first encoder "
        "layer bidirectional, additive attention.",
        departs="4 layers of 512 units instead of 8 of 1024; the attentional vector is fed to the first decoder layer "
        "only, where GNMT gives the context to all; Adam throughout.",
        model=ModelConfig(
            cell="lstm",
            embedding_dim=512,
            encoder_dim=512,
            decoder_dim=512,
            encoder_layers=4,
            decoder_layers=4,
            bidirectional_layers=1,
            residual=True,
            attention="additive",
            attention_dim=512,
            input_feeding=True,
            readout_dim=512,
            tie_embeddings="output",
        ),
    ),
    "rnmtplus2018": Preset(
        follows="Chen et al. 2018, 'The Best of Both Worlds' (RNMT+): bidirectional layers throughout, "
        "layer-normalised LSTM cells, 4-head additive attention, residual connections, label smoothing, dropout.",
        departs="3 + 2 layers of 384 and 512 units instead of 6 + 8 of 1024; the attentional vector is fed to the "
        "first decoder layer only.",
        model=ModelConfig(
            cell="lstm",
            embedding_dim=512,
            encoder_dim=384,
            decoder_dim=512,
            encoder_layers=3,
            decoder_layers=2,
            bidirectional_layers=3,
            residual=True,
            layer_norm=True,
            attention="additive",
            attention_dim=512,
            attention_heads=4,
            input_feeding=True,
            readout_dim=512,
            tie_embeddings="output",
        ),
    ),
    "d2l": Preset(
        follows="Dive into Deep Learning, section 10.7 (Zhang et al.): words as tokens, GRU encoder and decoder of two "
        "layers, the encoder's last state starts the decoder and enters every one of its inputs; Adam at 0.005, "
        "gradients clipped to 1.",
        departs="a tanh readout in front of the output layer; batches by tokens and no truncation; dropout with one "
        "mask a sentence.",
        model=ModelConfig(
            cell="gru",
            embedding_dim=256,
            encoder_dim=256,
            decoder_dim=256,
            encoder_layers=2,
            decoder_layers=2,
            bidirectional_layers=0,
            attention="none",
            context_input=True,
            tie_embeddings="none",
        ),
        tokenizer=_COURSE_TOKENIZER,
        training=_COURSE_TRAINING,
    ),
    "d2l-attention": Preset(
        follows="Dive into Deep Learning, section 11.4 (Zhang et al.): as `d2l`, and additive attention asked with the "
        "previous state in the place of the one context.",
        departs="as `d2l`.",
        model=ModelConfig(
            cell="gru",
            embedding_dim=256,
            encoder_dim=256,
            decoder_dim=256,
            encoder_layers=2,
            decoder_layers=2,
            bidirectional_layers=0,
            attention="additive",
            attention_dim=256,
            attention_query="previous",
            tie_embeddings="none",
        ),
        tokenizer=_COURSE_TOKENIZER,
        training=_COURSE_TRAINING,
    ),
    "small": Preset(
        follows="our own, for speed: one bidirectional GRU layer of 256, one GRU decoder layer of 256, general "
        "attention without input feeding (Luong et al. 2015, equation 5), so that training needs no loop over the "
        "attention and a decode step costs about 6 MFLOP.",
        departs="from Luong: no input feeding; all embeddings tied.",
        model=ModelConfig(cell="gru", embedding_dim=256, encoder_dim=256, decoder_dim=256, readout_dim=256),
    ),
    "base": Preset(
        follows="our own, for quality on small corpora: one bidirectional GRU layer of 512, one GRU decoder layer of "
        "512, general attention without input feeding, all embeddings tied.",
        departs="from Luong: no input feeding, one layer; the width is where two CPU cores still train it in an hour.",
        model=ModelConfig(cell="gru"),
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name; an unknown one is refused with the names there are."""
    if name not in PRESETS:
        raise InvalidValue("preset", name, "one of " + ", ".join(sorted(PRESETS)))
    return PRESETS[name]
