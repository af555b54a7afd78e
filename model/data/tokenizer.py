"""Text to token ids and back.

Two kinds: `word`, the course's (Dive into Deep Learning, 10.5: lower case, punctuation split off), and `sentencepiece`
(Kudo & Richardson 2018), unigram or BPE, with sampling (Kudo 2018; for BPE, the dropout of Provilkov et al. 2020). Both
normalise what they are given, so that a corpus and a caller's text meet in one spelling. Adds no `<bos>` or `<eos>`:
that is the batch's and the decoder's affair.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from random import Random
from typing import ClassVar, Protocol

import sentencepiece

from model.data.corpus import normalize
from model.data.sampling import SubwordSampler
from model.data.vocab import BOS_ID, EOS_ID, PAD_ID, SPECIALS, UNK_ID, Vocabulary
from model.errors import DataError, InvalidValue
from model.files import write_atomically

MODEL_TYPES = ("unigram", "bpe")

_FORMAT_VERSION = 1
_MAX_ALPHA = 1.0
_SKIPPED_IDS = frozenset((PAD_ID, BOS_ID, EOS_ID))
_MAX_SENTENCE_BYTES = 1 << 16  # sentencepiece leaves longer ones out of training without a word; its own limit is 4,192


class Tokenizer(Protocol):
    """What the rest of the package needs of a tokenizer."""

    kind: ClassVar[str]
    file_name: ClassVar[str]

    @property
    def vocab_size(self) -> int:
        """Number of ids, specials included."""

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text, one for each id of `encode`; an unknown one shows what was written, not `<unk>`."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without `<bos>` and `<eos>`."""

    def encode_sampled(self, text: str, alpha: float) -> list[int]:
        """One of the ways to cut the text, drawn at random; `encode` where the kind knows only one way."""

    def encode_batch(self, texts: Sequence[str], *, sampling_alpha: float = 0.0) -> list[list[int]]:
        """The ids of each text; drawn as by `encode_sampled` where `sampling_alpha` is above 0."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; `<pad>`, `<bos>` and `<eos>` leave no trace, an unknown token does."""

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The piece of each id, for display."""

    def save(self, path: str | Path) -> Path:
        """Writes the tokenizer as one file, whole or not at all, and returns its path."""


_chance = Random()


def seed_sampling(seed: int) -> None:
    """Starts the random draws of `encode_sampled` anew, so that an epoch that is run again cuts its texts alike, in
    another process too.

    There is one generator for the whole process; draws of several threads would mix.
    """
    if not 0 <= seed < 2**32 - 1:
        raise InvalidValue("seed", seed, "a whole number from 0 to 2**32 - 2")
    _chance.seed(seed)


def _check_alpha(alpha: float) -> None:
    if not 0.0 <= alpha <= _MAX_ALPHA:
        raise InvalidValue("sampling_alpha", alpha, "a number from 0 to 1")


class WordTokenizer:
    """The course's tokenizer: words between spaces, in lower case, with , . ! ? as words of their own."""

    kind: ClassVar[str] = "word"
    file_name: ClassVar[str] = "tokenizer.json"

    def __init__(self, vocab: Vocabulary) -> None:
        self.vocab = vocab

    def __repr__(self) -> str:
        return f"WordTokenizer(vocab_size={self.vocab_size}, min_freq={self.vocab.min_freq})"

    @staticmethod
    def preprocess(text: str) -> str:
        """Lower case, normalised, a space before each , . ! ? that has none.

        Lower case comes first: there are capitals, such as the Kelvin sign, that NFC would turn into another capital.
        """
        return re.sub(r"(?<=[^ ])(?=[,.!?])", " ", normalize(text.lower()))

    @classmethod
    def train(cls, texts: Iterable[str], *, min_freq: int = 2, vocab_size: int | None = None) -> WordTokenizer:
        """The tokenizer whose vocabulary is the words of `texts`.

        Raises:
            DataError: the texts hold no word.
        """
        sentences = (cls.preprocess(text).split() for text in texts)
        vocab = Vocabulary.from_sentences(sentences, min_freq=min_freq, max_tokens=vocab_size)
        if len(vocab) == len(SPECIALS):
            raise DataError(f"no word stands in the texts at least min_freq = {min_freq} times")
        return cls(vocab)

    @property
    def vocab_size(self) -> int:
        return len(self.vocab)

    def tokenize(self, text: str) -> list[str]:
        return self.preprocess(text).split()

    def encode(self, text: str) -> list[int]:
        # A text may spell the name of a special; it must not act as one.
        return [UNK_ID if token in SPECIALS else self.vocab[token] for token in self.tokenize(text)]

    def encode_sampled(self, text: str, alpha: float) -> list[int]:
        _check_alpha(alpha)
        return self.encode(text)

    def encode_batch(self, texts: Sequence[str], *, sampling_alpha: float = 0.0) -> list[list[int]]:
        _check_alpha(sampling_alpha)
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        text = " ".join(self.vocab[token_id] for token_id in ids if token_id not in _SKIPPED_IDS)
        return re.sub(r" (?=[,.!?])", "", text)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        return [self.vocab[token_id] for token_id in ids]

    def save(self, path: str | Path) -> Path:
        data = {"format_version": _FORMAT_VERSION, "kind": self.kind, "vocabulary": self.vocab.to_json()}
        return write_atomically(path, json.dumps(data, ensure_ascii=False).encode())

    @classmethod
    def from_bytes(cls, content: bytes) -> WordTokenizer:
        """The tokenizer that `save` wrote.

        Raises:
            DataError: it is not one, or of another version.
        """
        try:
            data = json.loads(content)
        except (ValueError, RecursionError) as exc:
            raise DataError("this is not a word tokenizer: not JSON") from exc
        if not isinstance(data, dict) or data.get("kind") != cls.kind or data.get("format_version") != _FORMAT_VERSION:
            raise DataError(f"this is not a word tokenizer of format version {_FORMAT_VERSION}")
        return cls(Vocabulary.from_json(data.get("vocabulary")))


class SentencePieceTokenizer:
    """Sub-word pieces; case and spaces are kept, so that `decode` gives back the normalised text."""

    kind: ClassVar[str] = "sentencepiece"
    file_name: ClassVar[str] = "tokenizer.model"

    def __init__(self, model_proto: bytes) -> None:
        """Takes the bytes of a sentencepiece model.

        Raises:
            DataError: they are none, or its special ids are not ours.
        """
        if not model_proto:  # sentencepiece takes it for "no model yet" and complains on standard error ever after
            raise DataError("this is not a sentencepiece model: it is empty")
        try:
            sp = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        except RuntimeError as exc:
            raise DataError("this is not a sentencepiece model, or it is damaged") from exc
        self._processor = sp
        self._samplers: dict[float, SubwordSampler] = {}
        self._model_proto = model_proto
        special_ids = (sp.unk_id(), sp.pad_id(), sp.bos_id(), sp.eos_id())
        if special_ids != (UNK_ID, PAD_ID, BOS_ID, EOS_ID):
            raise DataError(f"its <unk>, <pad>, <bos>, <eos> have the ids {special_ids}; (0, 1, 2, 3) was expected")

    def __repr__(self) -> str:
        return f"SentencePieceTokenizer(vocab_size={self.vocab_size})"

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int = 8000,
        model_type: str = "unigram",
        character_coverage: float = 1.0,
        byte_fallback: bool = False,
    ) -> SentencePieceTokenizer:
        """The tokenizer of at most `vocab_size` pieces: a small corpus does not hold enough and gives fewer.

        Raises:
            InvalidValue: `vocab_size` has no room for the characters of the texts, or another parameter is not allowed.
            DataError: the texts hold no word.
        """
        if model_type not in MODEL_TYPES:
            raise InvalidValue("model_type", model_type, " or ".join(MODEL_TYPES))
        if vocab_size <= len(SPECIALS):
            raise InvalidValue("vocab_size", vocab_size, f"a whole number above {len(SPECIALS)}")
        if not 0.98 <= character_coverage <= 1.0:  # the range that sentencepiece itself accepts
            raise InvalidValue("character_coverage", character_coverage, "a number from 0.98 to 1")
        sentences = filter(None, map(normalize, texts))
        first = next(sentences, None)
        if first is None:
            raise DataError("the texts hold no word to learn a tokenizer from")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=chain((first,), sentences),
                model_writer=model,
                model_type=model_type,
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                character_coverage=character_coverage,
                byte_fallback=byte_fallback,
                normalization_rule_name="identity",  # texts are normalised here, by one function for all kinds
                max_sentence_length=_MAX_SENTENCE_BYTES,
                unk_id=UNK_ID,
                pad_id=PAD_ID,
                bos_id=BOS_ID,
                eos_id=EOS_ID,
                unk_piece=SPECIALS[UNK_ID],
                pad_piece=SPECIALS[PAD_ID],
                bos_piece=SPECIALS[BOS_ID],
                eos_piece=SPECIALS[EOS_ID],
                num_threads=1,  # more threads add their counts in another order each time: another model
                minloglevel=2,
            )
        except RuntimeError as exc:
            raise _training_error(exc, vocab_size) from exc
        return cls(model.getvalue())

    @property
    def vocab_size(self) -> int:
        return int(self._processor.vocab_size())

    def tokenize(self, text: str) -> list[str]:
        return list(self._processor.encode(normalize(text), out_type=str))

    def encode(self, text: str) -> list[int]:
        return list(self._processor.encode(normalize(text)))

    def encode_sampled(self, text: str, alpha: float) -> list[int]:
        """For unigram, `alpha` sharpens the distribution over all ways to cut (0.1 is usual, 1 is the model's own); for
        BPE it is the probability to leave out a merge. 0 draws nothing: `encode`.
        """
        return self.encode_batch([text], sampling_alpha=alpha)[0]

    def encode_batch(self, texts: Sequence[str], *, sampling_alpha: float = 0.0) -> list[list[int]]:
        _check_alpha(sampling_alpha)
        normalized = [normalize(text) for text in texts]
        if sampling_alpha == 0.0:
            return list(self._processor.encode(normalized, num_threads=1))
        sampler = self._samplers.get(sampling_alpha)
        if sampler is None:
            sampler = self._samplers[sampling_alpha] = SubwordSampler(self._processor, sampling_alpha)
        return [sampler.draw(self._processor.normalize(text), _chance) for text in normalized]

    def decode(self, ids: Sequence[int]) -> str:
        # <unk> is written " ⁇ " with its own spaces, on top of those of its neighbours.
        return " ".join(self._processor.decode(self._checked(i for i in ids if i not in _SKIPPED_IDS)).split())

    def tokens(self, ids: Sequence[int]) -> list[str]:
        return [self._processor.id_to_piece(token_id) for token_id in self._checked(ids)]

    def _checked(self, ids: Iterable[int]) -> list[int]:
        checked = list(ids)
        for token_id in checked:
            if not 0 <= token_id < self.vocab_size:
                raise InvalidValue("token id", token_id, f"a whole number from 0 to {self.vocab_size - 1}")
        return checked

    def save(self, path: str | Path) -> Path:
        return write_atomically(path, self._model_proto)

    @classmethod
    def from_bytes(cls, content: bytes) -> SentencePieceTokenizer:
        return cls(content)


def _training_error(exc: RuntimeError, vocab_size: int) -> InvalidValue | DataError:
    needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(exc))
    if needed:
        allowed = f"a whole number from {needed[1]}, the number of different characters in the texts and specials"
        return InvalidValue("vocab_size", vocab_size, allowed)
    return DataError(f"no tokenizer can be learnt from these texts: {exc}")


TOKENIZERS: dict[str, type[WordTokenizer] | type[SentencePieceTokenizer]] = {
    WordTokenizer.kind: WordTokenizer,
    SentencePieceTokenizer.kind: SentencePieceTokenizer,
}


def train_tokenizer(
    kind: str,
    texts: Iterable[str],
    *,
    vocab_size: int | None = None,
    min_freq: int = 2,
    model_type: str = "unigram",
    character_coverage: float = 1.0,
    byte_fallback: bool = False,
) -> Tokenizer:
    """Learns a tokenizer of the kind from texts. The same texts in the same order give the same tokenizer.

    Args:
        kind: a key of `TOKENIZERS`.
        vocab_size: at most so many ids; None for 8,000 pieces, or all words.
        min_freq: `word` only.
        model_type, character_coverage, byte_fallback: `sentencepiece` only.
    """
    if kind not in TOKENIZERS:
        raise InvalidValue("tokenizer", kind, " or ".join(TOKENIZERS))
    if kind == WordTokenizer.kind:
        return WordTokenizer.train(texts, min_freq=min_freq, vocab_size=vocab_size)
    return SentencePieceTokenizer.train(
        texts,
        vocab_size=8000 if vocab_size is None else vocab_size,
        model_type=model_type,
        character_coverage=character_coverage,
        byte_fallback=byte_fallback,
    )


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Reads what `save` wrote, of whichever kind: the content decides. Nothing is unpickled.

    Raises:
        DataError: there is no such file, or it is damaged, foreign or of another version.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise DataError(f"cannot be read: {exc.strerror or exc}", path) from exc
    cls = WordTokenizer if content.startswith(b"{") else SentencePieceTokenizer
    try:
        return cls.from_bytes(content)
    except DataError as exc:
        raise DataError(str(exc), path) from exc
