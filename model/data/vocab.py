"""Tokens and their numbers.

Knows nothing of text: what a token is, the tokenizer decides. The four special ids are the same for every tokenizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, overload

from model.errors import DataError, InvalidValue

UNK_ID, PAD_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
SPECIALS = ("<unk>", "<pad>", "<bos>", "<eos>")

_FORMAT_VERSION = 1


class Vocabulary:
    """Tokens with their counts, numbered after the specials by falling count; equal counts go by alphabet.

    Reads both ways: `vocab["hello"]` is its id and `vocab[17]` is its token. A token that is not known has the id of
    `<unk>`.

    Args:
        counts: how often each token was seen. The names of specials are ignored here: text cannot forge an `<eos>`.
        min_freq: tokens seen less often are left out; their occurrences are counted as `<unk>`.
        max_tokens: the size of the whole vocabulary at most, specials included; None for no limit.
    """

    def __init__(self, counts: Mapping[str, int], *, min_freq: int = 1, max_tokens: int | None = None) -> None:
        if min_freq < 1:
            raise InvalidValue("min_freq", min_freq, "a whole number from 1")
        if max_tokens is not None and max_tokens <= len(SPECIALS):
            raise InvalidValue("max_tokens", max_tokens, f"a whole number above {len(SPECIALS)}, or none")
        seen = sorted(
            ((token, count) for token, count in counts.items() if token not in SPECIALS),
            key=lambda item: (-item[1], item[0]),
        )
        num_frequent = sum(count >= min_freq for _, count in seen)
        num_kept = num_frequent if max_tokens is None else min(num_frequent, max_tokens - len(SPECIALS))
        num_unknown = sum(count for _, count in seen[num_kept:])
        self.min_freq = min_freq
        self._tokens = [*SPECIALS, *(token for token, _ in seen[:num_kept])]
        self._counts = [num_unknown, 0, 0, 0, *(count for _, count in seen[:num_kept])]
        self._ids = {token: token_id for token_id, token in enumerate(self._tokens)}

    @classmethod
    def from_sentences(
        cls, sentences: Iterable[Iterable[str]], *, min_freq: int = 1, max_tokens: int | None = None
    ) -> Self:
        """The vocabulary of sentences that are already cut into tokens."""
        counts: Counter[str] = Counter()
        for tokens in sentences:
            counts.update(tokens)
        return cls(counts, min_freq=min_freq, max_tokens=max_tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    @overload
    def __getitem__(self, key: str) -> int: ...
    @overload
    def __getitem__(self, key: int) -> str: ...
    def __getitem__(self, key: str | int) -> int | str:
        if isinstance(key, str):
            return self._ids.get(key, UNK_ID)
        if not 0 <= key < len(self._tokens):
            raise InvalidValue("token id", key, f"a whole number from 0 to {len(self._tokens) - 1}")
        return self._tokens[key]

    def count(self, token: str) -> int:
        """How often the token was seen; for `<unk>`, how many occurrences fell under `min_freq`. 0 where not known."""
        token_id = self._ids.get(token)
        return 0 if token_id is None else self._counts[token_id]

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": _FORMAT_VERSION,
            "min_freq": self.min_freq,
            "num_unknown": self._counts[UNK_ID],
            "tokens": [
                [t, c] for t, c in zip(self._tokens[len(SPECIALS) :], self._counts[len(SPECIALS) :], strict=True)
            ],
        }

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The vocabulary that `to_json` wrote.

        Raises:
            DataError: it is not one, or of another version.
        """
        if not isinstance(data, dict) or data.get("format_version") != _FORMAT_VERSION:
            raise DataError(f"this is not a vocabulary of format version {_FORMAT_VERSION}")
        try:
            tokens = [str(token) for token, _ in data["tokens"]]
            counts = [int(count) for _, count in data["tokens"]]
            min_freq, num_unknown = int(data["min_freq"]), int(data["num_unknown"])
        except (KeyError, TypeError, ValueError) as exc:
            raise DataError("the vocabulary is damaged: a list of [token, count] was expected") from exc
        if len(set(tokens)) != len(tokens) or not set(tokens).isdisjoint(SPECIALS):
            raise DataError("the vocabulary is damaged: a token stands in it twice")
        # Built from its parts, in the order of the file: ids must not move, whatever today's rule of sorting is.
        vocab = cls({})
        vocab.min_freq = min_freq
        vocab._tokens = [*SPECIALS, *tokens]
        vocab._counts = [num_unknown, 0, 0, 0, *counts]
        vocab._ids = {token: token_id for token_id, token in enumerate(vocab._tokens)}
        return vocab
