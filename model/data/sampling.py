"""Drawing one of the ways to cut a text into sub-words, so that a seed repeats the draws in any process.

sentencepiece has this too (`enable_sampling`), but mixes something of the process into its seed: the same seed cuts
otherwise in another process, and a training run that is resumed would not go on as it began. Here the vocabulary and
the scores are sentencepiece's and the draws are ours:

    unigram    P(cut) ∝ Π p(piece)^α (Kudo 2018, equation 6), by filtering forward and sampling backward
    BPE        each merge is left out with probability α (Provilkov et al. 2020, algorithm 1)

Words are cut one by one: no piece reaches over a space, unless the model was trained so, and then a text is one word.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

from model.data.vocab import UNK_ID

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # sentencepiece's space, at the start of a word
_UNKNOWN_PENALTY = 10.0  # sentencepiece's: an unknown character is this much worse than the rarest piece
_MAX_CACHED_WORDS = 200_000


class _Cut(NamedTuple):
    """A piece that may end at some place of a word: where it starts, its id, and the share of cuts up to it."""

    start: int
    piece_id: int
    up_to: float


class SubwordSampler:
    """Draws cuts with the vocabulary of a sentencepiece processor."""

    def __init__(self, processor: Any, alpha: float) -> None:
        self._alpha = alpha
        self._pieces: dict[str, tuple[int, float]] = {}
        self._bytes: dict[int, int] = {}
        for piece_id in range(processor.vocab_size()):
            piece = processor.id_to_piece(piece_id)
            if processor.is_byte(piece_id):
                self._bytes[int(piece[3:5], 16)] = piece_id
            elif not (
                processor.is_control(piece_id) or processor.is_unknown(piece_id) or processor.is_unused(piece_id)
            ):
                self._pieces[piece] = (piece_id, processor.get_score(piece_id))
        scores = [score for _, score in self._pieces.values()]
        self._is_bpe = all(score == int(score) for score in scores)  # its scores are the order of merges: 0, -1, -2 …
        self._unknown_score = min(scores, default=0.0) - _UNKNOWN_PENALTY
        self._max_chars = max(map(len, self._pieces), default=1)
        has_spaces_inside = any(SPACE in piece[1:].lstrip(SPACE) for piece in self._pieces)
        self._word = re.compile(r".+" if has_spaces_inside else rf"{SPACE}*[^{SPACE}]*", re.DOTALL)
        self._lattices: dict[str, list[list[_Cut]]] = {}

    def draw(self, text: str, chance: Random) -> list[int]:
        """The ids of one cut of a text as `processor.normalize` writes it."""
        ids: list[int] = []
        for word in self._word.findall(text):
            if word:
                for piece_id in self._merged(word, chance) if self._is_bpe else self._sampled(word, chance):
                    if not (piece_id == UNK_ID and ids and ids[-1] == UNK_ID):  # unknown neighbours are one <unk>
                        ids.append(piece_id)
        return ids

    def _unknown(self, char: str) -> list[int]:
        if self._bytes:
            return [self._bytes[byte] for byte in char.encode()]
        return [UNK_ID]

    # -- unigram ---------------------------------------------------------------------------------------------------

    def _sampled(self, word: str, chance: Random) -> list[int]:
        lattice = self._lattices.get(word)
        if lattice is None:
            if len(self._lattices) >= _MAX_CACHED_WORDS:
                self._lattices.clear()
            lattice = self._lattices[word] = self._lattice(word)
        ids: list[int] = []
        end = len(word)
        while end:
            cuts = lattice[end]
            cut = cuts[0]
            if len(cuts) > 1:
                drawn = chance.random()
                cut = next((c for c in cuts if drawn < c.up_to), cuts[-1])
            ids.extend(reversed(self._unknown(word[cut.start])) if cut.piece_id == UNK_ID else (cut.piece_id,))
            end = cut.start
        return ids[::-1]

    def _lattice(self, word: str) -> list[list[_Cut]]:
        """For each end of a piece what may end there, with the share of probability of all cuts of the word so far.

        Example, with α = 1: "ab" and the pieces a, b and ab of probability 0.5, 0.2 and 0.1. At end 1 stands a alone
        (0.5); at end 2 the cut a·b has 0.5 · 0.2 = 0.1 and ab 0.1: each is drawn half the time.
        """
        totals = [0.0] + [-math.inf] * len(word)  # log of the sum over all cuts up to each place
        lattice: list[list[_Cut]] = [[]]
        for end in range(1, len(word) + 1):
            found: list[tuple[int, int, float]] = []
            for start in range(max(0, end - self._max_chars), end):
                known = self._pieces.get(word[start:end])
                if known:
                    found.append((start, known[0], totals[start] + self._alpha * known[1]))
                elif start == end - 1:
                    found.append((start, UNK_ID, totals[start] + self._alpha * self._unknown_score))
            largest = max(weight for _, _, weight in found)
            shares = [math.exp(weight - largest) for _, _, weight in found]
            whole = sum(shares)
            totals[end] = largest + math.log(whole)
            cuts: list[_Cut] = []
            so_far = 0.0
            for (start, piece_id, _), share in zip(found, shares, strict=True):
                so_far += share / whole
                cuts.append(_Cut(start, piece_id, so_far))
            lattice.append(cuts)
        return lattice

    # -- BPE -------------------------------------------------------------------------------------------------------

    def _merged(self, word: str, chance: Random) -> list[int]:
        symbols = list(word)
        while True:
            merges = [
                (self._pieces[pair][1], -at)
                for at, pair in enumerate(map("".join, pairwise(symbols)))
                if pair in self._pieces and chance.random() >= self._alpha
            ]
            if not merges:
                break
            at = -max(merges)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        ids: list[int] = []
        for symbol in symbols:
            known = self._pieces.get(symbol)
            ids.extend([known[0]] if known else [i for char in symbol for i in self._unknown(char)])
        return ids
